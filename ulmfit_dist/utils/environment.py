"""What a run was made with: so that it can be made again."""

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

PACKAGES = ("torch", "fastai", "accelerate", "spacy", "wandb")


def versions() -> dict[str, str]:
    """Of this package, of Python, and of what the numbers depend on."""
    return {"ulmfit-dist": __version__, "python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def describe_environment() -> dict[str, Any]:
    """The command, the code's git revision (None outside of a checkout), versions, host and SLURM job."""
    return {
        "command": shlex.join(["ulmfit-dist", *sys.argv[1:]]),
        "revision": git_revision(Path(__file__).parent),
        "versions": versions(),
        "host": socket.gethostname(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def git_revision(folder: Path) -> str | None:
    """The commit that is checked out there, with `-dirty` behind it where files differ from it."""
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
