"""Environment of a run: command, versions, revision and host, so that the run can be reproduced."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ulmfit_dist import __version__
from ulmfit_dist.utils.package_files import PACKAGE, is_checkout

PACKAGES = ("torch", "fastai", "accelerate", "spacy", "wandb")
"""Packages whose versions are recorded."""


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python, and of the packages that results depend on."""
    return {"ulmfit-dist": __version__, "python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def describe_environment() -> dict[str, Any]:
    """Return the command, the git revision of the code (None outside of a checkout), versions, host and SLURM job."""
    return {
        "command": shlex.join(["ulmfit-dist", *sys.argv[1:]]),
        "revision": git_revision(PACKAGE) if is_checkout() else None,
        "versions": versions(),
        "host": socket.gethostname(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def git_revision(folder: Path) -> str | None:
    """Return the commit that is checked out in a folder, with the suffix `-dirty` if tracked files differ from it."""
    argv = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
