"""The project as a user installs it: a wheel in a new environment, with the other packages of the tests' environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

CHECKOUT = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
"""Variables that would make an environment import the checkout, or compile the package again in each process."""


def build(target: str, folder: Path, source: Path = ROOT) -> Path:
    """Build a `wheel` or an `sdist` from a source folder, without network; return its path."""
    argv = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(argv, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.iterdir()
    return path


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a new environment; return the folder of its programs.

    Its `.pth` file names the packages' folders of this environment; Python runs no `.pth` file in there, so an editable
    installation of the checkout is not found.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    argv = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", "--no-compile"]
    subprocess.run([*argv, "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    return folder / "bin"


def environment(**env: str) -> dict[str, str]:
    """Return the variables of a process that must not find the checkout."""
    return {**{name: value for name, value in os.environ.items() if name not in CHECKOUT}, **env}
