"""Compile the simulated GPU's device guard once per machine, and load it before torch is imported.

The name of the library is a hash of its source, the compiler's options and the versions of torch and Python, and it is
renamed into the cache folder. So any number of processes may load it at the same time, and a stale one is never loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "ulmfit_dist"
SOURCE = Path(__file__).with_name("guard.cpp")
OPTIONS = ("-std=c++20", "-O1", "-shared", "-fPIC")
LIBRARIES = ("libc10.so", "libtorch_cpu.so")


class NotPossibleError(Exception):
    """Failure to simulate a GPU on this machine, with a one-line reason."""


@functools.cache
def load() -> ctypes.CDLL:
    """Load the library, and compile it if it is missing. Call this before torch is imported.

    Raises:
        NotPossibleError: if there is no compiler, no headers, or a torch that is built for real GPUs.
    """
    library = compiled()
    folder = torch_folder() / "lib"
    for name in LIBRARIES:
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def compiled() -> Path:
    """Return the path of the compiled library in the cache folder."""
    check()
    version = f"{importlib.metadata.version('torch')} {sys.version_info[:2]} {OPTIONS}"
    key = hashlib.sha256(version.encode() + SOURCE.read_bytes()).hexdigest()[:16]
    library = cache_folder() / f"guard-{key}.so"
    if not library.exists():
        _compile(library)
    return library


def check() -> None:
    """Raise NotPossibleError if the library cannot be compiled or loaded."""
    folder = torch_folder()
    if (folder / "lib/libtorch_cuda.so").exists():
        raise NotPossibleError(
            "torch is built for GPUs here, and the simulated GPU needs its CPU build: run tests/gpu as it is"
        )
    if shutil.which("g++") is None:
        raise NotPossibleError("g++ is missing, which compiles the simulated GPU's device guard: apt-get install g++")
    if not (folder / "include/c10/core/impl/DeviceGuardImplInterface.h").exists():
        raise NotPossibleError(
            f"{folder / 'include'} has no headers of torch: install torch's wheel from PyPI or pytorch.org"
        )


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise NotPossibleError("torch is not installed: bash launch/setup.sh")
    return Path(spec.origin).parent


def cache_folder() -> Path:
    """Return the user's cache folder, or a temporary one if it is not writable."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ulmfit-dist-simulated-gpu"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"ulmfit-dist-simulated-gpu-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _compile(library: Path) -> None:
    folder = torch_folder()
    handle, name = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    includes = [f"-I{folder / 'include'}", f"-I{folder / 'include/torch/csrc/api/include'}"]
    command = ["g++", *OPTIONS, *includes, str(SOURCE), "-o", name, f"-L{folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        Path(name).unlink()
        errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()[-1:]
        raise NotPossibleError(f"g++ cannot compile {SOURCE.name} against torch's headers: {' '.join(errors[:1])}")
    os.replace(name, library)


if __name__ == "__main__":
    try:
        compiled()
    except NotPossibleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
