"""`python fork_server.py FD`: an interpreter with all libraries imported, forked for the processes of tests.

Torch, fastai, Accelerate, datasets, W&B and this package take a new process several seconds of CPU to import, and the
tests start hundreds. A fork of a process that has imported them starts at once. It is a real process: own pid, environment,
folder, arguments, standard streams, signals and exit, and real gloo between ranks. `accelerate launch` runs in such a fork,
too, with torchrun's real agent; only the ranks that it starts are forks instead of new interpreters.

The trade-off: a fork has the hash seed of this server, its libraries have read the environment before, and all modules are
imported already. So a command whose variables differ in what libraries read at their import gets a real process (see
`forked.py`), and what tests start-up, imports, threads, exits or the launcher itself asks for one.

Nothing here may start a thread, or open a device, before it forks.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import os
import pickle
import pkgutil
import runpy
import select
import signal
import socket
import struct
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = (
    "accelerate.commands.launch", "datasets", "fastai.text.all", "jinja2", "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg", "matplotlib.pyplot", "numpy", "psutil", "pyarrow.csv", "pyarrow.json",
    "pyarrow.parquet", "safetensors.torch", "scipy.stats", "sklearn.linear_model", "spacy.lang.de", "spacy.lang.en",
    "spacy.lang.ja", "spacy.lang.ko", "spacy.lang.th", "spacy.lang.vi", "spacy.lang.zh", "spacy.pipeline.factories",
    "spacy_loggers", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.nn.functional", "torch.distributed.run",
    "torch.distributed.tensor.parallel", "wandb", "wandb.apis.public", "wandb.sdk.launch",
)  # fmt: skip
LOADING = (
    "ARROW_", "ATEN_", "BLIS_", "CUBLAS_", "CUDA_", "DNNL_", "FASTAI_", "FSSPEC_", "GOMP_", "HF_", "KMP_", "LANG", "LC_",
    "LD_", "MALLOC_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTHON", "PYTORCH_", "TQDM_", "TZ", "XDG_",
)  # fmt: skip
"""Prefixes of environment variables that libraries may read while they load, unseen by Python."""
LAUNCHER = ("-m", "accelerate.commands.launch")
AT_A_KEYBOARD = signal.getsignal(signal.SIGINT)
"""The handler that this process has begun with: none where whoever started it ignores the signal."""
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36


class Request(NamedTuple):
    """A process to start: its command line after the interpreter, environment and folder, and whether it leads a session.

    Sent as a plain tuple.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    new_session: bool


def receive(connection: socket.socket, count: int = 0) -> tuple[Any, list[int]]:
    """An object and so many files that have been sent. Raises EOFError when the other side has closed."""
    header, files, _, _ = socket.recv_fds(connection, 8, count)
    if not header:
        raise EOFError
    header += _read(connection, 8 - len(header))
    return pickle.loads(_read(connection, *struct.unpack("!q", header))), files


def send(connection: socket.socket, item: object, files: Sequence[int] = ()) -> None:
    """Send an object and files, for `receive`."""
    content = pickle.dumps(item)
    header = struct.pack("!q", len(content))
    sent = socket.send_fds(connection, [header], files)
    connection.sendall(header[sent:] + content)


def _read(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise EOFError
        content += part
    return content


def fixed(name: str, read: frozenset[str]) -> bool:
    """Return True if a variable must have its value in the server: libraries may have read it at their import."""
    return name in read or name.startswith(LOADING)


def differing(env: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """Names of variables that differ; PYTHONPATH may have more folders after those of the other, which a fork adds."""
    names = {name for name in {*env, *other} if env.get(name) != other.get(name)}
    if env.get("PYTHONPATH", "").startswith(f"{other.get('PYTHONPATH')}{os.pathsep}"):
        names.discard("PYTHONPATH")
    return names


def main() -> None:
    """Serve; in each fork, run what was requested as the interpreter would, up to its real finalization."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    sys.path.pop(0)
    names = _import_all()
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise RuntimeError(f"the fork server has {threads} threads: which library has started them at its import?")
    gc.collect()
    folders = [item for item in gc.get_objects() if type(item) is tempfile.TemporaryDirectory]
    gc.freeze()
    send(connection, names)
    request = _serve(connection)
    if request is not None and tuple(request.argv[:2]) == LAUNCHER:
        request = _with_nursery(request, names)
    if request is None:
        return
    for folder in folders:  # as W&B makes them at its import: each process has its own, and removes it
        folder._finalizer.detach()
        folder.__init__(suffix=Path(folder.name).name[len("tmp12345678") :])
    _run(request)


def _import_all() -> frozenset[str]:
    """Import all that tests use; returns the names of the variables that were read meanwhile."""
    import fsspec.config  # noqa: F401  which reads all variables, for those that begin with its name; tqdm does the same
    import tqdm.std  # noqa: F401

    read: set[str] = set()
    plain = os._Environ.__getitem__

    def noted(self: Any, name: Any) -> Any:
        read.add(os.fsdecode(name))
        return plain(self, name)

    os._Environ.__getitem__ = noted  # type: ignore[method-assign]
    try:
        for name in LIBRARIES:
            importlib.import_module(name)
        import ulmfit_dist

        for module in pkgutil.walk_packages(ulmfit_dist.__path__, "ulmfit_dist."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    finally:
        os._Environ.__getitem__ = plain  # type: ignore[method-assign]
    return frozenset(read)


def _serve(connection: socket.socket) -> Request | None:
    """Fork for each request; returns it in the fork, and None in the server when its client has closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a keyboard's is for the tests; they close the connection
    status_files: dict[int, tuple[int, int]] = {}  # by pidfd: the process, and where its client waits for its status
    while True:
        ready, _, _ = select.select([connection, *status_files], [], [])
        for pidfd in ready:
            if pidfd in status_files:
                pid, file = status_files.pop(pidfd)
                status = os.waitpid(pid, 0)[1]
                with suppress(BrokenPipeError):  # nobody waits for it
                    os.write(file, struct.pack("!i", status))
                os.close(file)
                os.close(pidfd)
        if connection not in ready:
            continue
        try:
            request, files = receive(connection, 3)
        except (EOFError, ConnectionError):
            return None
        pid = os.fork()
        if pid == 0:
            connection.close()
            for number, stream in enumerate(files[:2], 1):
                os.dup2(stream, number)
            for file in [*files, *status_files, *(file for _, file in status_files.values())]:
                os.close(file)
            return _become(Request(*request))
        os.close(files[0])
        os.close(files[1])
        status_files[os.pidfd_open(pid)] = (pid, files[2])
        send(connection, pid)


def _become(request: Request) -> Request:
    """Make a fork what a new process is: folder, environment, arguments, signals, seeds."""
    signal.signal(signal.SIGINT, AT_A_KEYBOARD)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if request.new_session:
        os.setsid()
    os.chdir(request.cwd)
    sys.path[: len(_search_path(os.environ))] = _search_path(request.env)
    for name in [name for name in os.environ if name not in request.env]:
        del os.environ[name]
    os.environ.update(request.env)

    import multiprocessing.process

    import numpy as np
    import torch

    multiprocessing.process.ORIGINAL_DIR = request.cwd  # type: ignore[attr-defined]
    np.random.seed()  # Python's own generator is seeded again in each fork
    torch.default_generator.seed()
    return request


def _search_path(env: Mapping[str, str]) -> list[str]:
    """Return the folders that PYTHONPATH adds to `sys.path`."""
    return [str(Path(folder).absolute()) for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]


def _run(request: Request) -> None:
    """Run the command line as `python` would: a module, a script or a text, as the module `__main__`."""
    argv = list(request.argv)
    sys.orig_argv = [sys.executable, *argv]
    _name_processes({os.getpid(): (sys.orig_argv, dict(request.env))})
    if argv[0] == "-u":
        argv.pop(0)
        raw = io.FileIO(1, "w", closefd=False)
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(raw, sys.stdout.encoding, sys.stdout.errors, write_through=True)  # type: ignore[arg-type, misc]
    importlib.invalidate_caches()
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    if argv[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = argv[1:]
        sys.modules.pop(argv[1], None)
        runpy._run_module_as_main(argv[1])  # type: ignore[attr-defined]
        return
    if argv[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *argv[2:]]
        exec(compile(argv[1], "<string>", "exec"), module.__dict__)
        return
    sys.path.insert(0, str(Path(argv[0]).resolve().parent))
    sys.argv = argv
    module.__file__ = os.path.abspath(argv[0])
    exec(compile(Path(argv[0]).read_bytes(), argv[0], "exec"), module.__dict__)


def _name_processes(known: Mapping[int, tuple[list[str], dict[str, str]]]) -> None:
    """Have psutil give command lines and environments of forks: the system knows those of the server only."""
    import psutil

    cmdline, environ = psutil.Process.cmdline, psutil.Process.environ
    psutil.Process.cmdline = lambda self: known[self.pid][0] if self.pid in known else cmdline(self)
    psutil.Process.environ = lambda self: known[self.pid][1] if self.pid in known else environ(self)


def _with_nursery(request: Request, names: frozenset[str]) -> Request:
    """Prepare a fork that is to be `accelerate launch`: what its agent starts is forked, too; returns what to run here.

    torchrun's agent has threads, so it is a process without any, forked before, that forks the ranks. They become children
    of the launcher, whose agent waits for them as for any others.
    """
    here, nursery = socket.socketpair()
    libc = ctypes.CDLL(None)
    launcher = os.getpid()
    if os.fork() == 0:
        here.close()
        try:
            rank = _fork_ranks(nursery)
        except BaseException:
            os._exit(1)
        if rank is None:
            os._exit(0)
        nursery.close()
        libc.prctl(PR_SET_NAME, f"rank {rank.env['RANK']}".encode(), 0, 0, 0)
        _name_processes({launcher: ([sys.executable, *request.argv], dict(request.env))})
        return _become(rank)
    nursery.close()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    import subprocess
    import threading

    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    def start(handler: Any, args: Sequence[str], env: dict[str, str]) -> subprocess.Popen:
        assert handler._stdout is None
        assert handler._stderr is None
        assert args[0] == sys.executable
        other = [name for name in differing(env, request.env) if fixed(name, names)]
        assert not other, f"{other} came too late for a fork: start this launcher as a real process"
        send(here, (args[1:], env, os.getcwd(), True))
        child: Any = subprocess.Popen.__new__(subprocess.Popen)
        child.args, child.returncode, child.stdin, child.stdout, child.stderr = args, None, None, None, None
        child._waitpid_lock, child._child_created, child._sigint_wait_secs = threading.Lock(), True, 0.25
        child.pid = receive(here)[0]
        return child

    SubprocessHandler._popen = start  # type: ignore[method-assign]
    return request


def _fork_ranks(connection: socket.socket) -> Request | None:
    """Fork a child of the launcher for each request; returns it in the fork, and None when the launcher has ended.

    A process whose parent ends becomes a child of the next ancestor that adopts such: the launcher does.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            request, _ = receive(connection)
        except (EOFError, ConnectionError):
            return None
        reference, go = os.pipe()
        ours, message = os.pipe()
        between = os.fork()
        if between == 0:
            rank = os.fork()
            if rank != 0:
                os.write(message, struct.pack("!i", rank))
                os._exit(0)
            for file in (go, ours, message):
                os.close(file)
            is_child_of_launcher = os.read(reference, 1)
            os.close(reference)
            if not is_child_of_launcher:
                os._exit(1)
            return Request(*request)
        os.waitpid(between, 0)
        send(connection, *struct.unpack("!i", os.read(ours, 4)))
        os.write(go, b"!")
        for file in (reference, go, ours, message):
            os.close(file)


if __name__ == "__main__":
    main()
