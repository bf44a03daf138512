"""A fork of the server is what a new interpreter is, in all that tests rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import ROOT, launch

FACTS = """
import json, os, random, signal, sys, threading
import __main__
from pathlib import Path
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "folder": os.getcwd(), "environment": dict(os.environ), "name": __name__,
    "file": getattr(__main__, "__file__", None), "is_main": __main__.__dict__ is globals(), "flags": list(sys.flags),
    "signals": [str(signal.getsignal(n)).split(" at ")[0] for n in (2, 10, 13, 15, 17)],
    "mask": [str(n) for n in signal.pthread_sigmask(0, [])],
    "threads": [threading.active_count(), len(os.listdir("/proc/self/task"))], "session": os.getsid(0) == os.getpid(),
    "stdout": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stdin.fileno()],
}))
import torch
print(torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
import numpy
print(torch.rand(1).item(), numpy.random.random(), random.random())
"""
RANK = """
import json, os, sys, time
from dataclasses import asdict
from pathlib import Path
from ulmfit_dist.distributed.launch_settings import find_launcher, read_launch_settings
launcher = find_launcher()
facts = {"environment": dict(os.environ), "argv": sys.argv, "session": os.getsid(0) == os.getpid()}
facts |= {"launcher": launcher.argv, "variables": dict(launcher.environ), "settings": str(read_launch_settings())}
facts |= {"folders": [str(launcher.folder), os.getcwd()]}
Path(os.environ["RANK"]).write_text(json.dumps(facts))
if sys.argv[1] == "fail" and os.environ["RANK"] == "1":
    sys.exit(7)
while sys.argv[1] == "fail":
    time.sleep(0.1)
"""
OF_A_LAUNCH = {"MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
"""Variables that are other ones at each launch."""


def environment() -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OF_THE_TEST": "yes"}


@pytest.mark.parametrize("as_text", [True, False], ids=["text", "script"])
def test_a_fork_is_as_a_new_process(tmp_path: Path, as_text: bool):
    (tmp_path / "facts.py").write_text(FACTS)
    words = [sys.executable, *(["-c", FACTS] if as_text else ["facts.py"]), "a", "b c"]
    printed = []
    for popen in (forked.popen, forked.real_popen):
        process = popen(words, tmp_path, environment(), subprocess.PIPE, subprocess.PIPE, new_session=True)
        assert isinstance(process, forked.Forked) == (popen is forked.popen)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        printed.append(output.splitlines())
    (fork, *numbers), (new, *others) = printed
    assert json.loads(fork) == json.loads(new)
    assert numbers[0] == others[0]
    assert not set(numbers[1].split()) & set(launch(words[1:], cwd=tmp_path).stdout.splitlines()[2].split())


def test_forks_end_with_their_code_or_signal_and_read_their_own_variables(tmp_path: Path):
    for text, code, output in [
        ("import sys; print('said', end=''); sys.exit(3)", 3, "said"),
        ("raise KeyError(1)", 1, ""),
        ("import os; print('x', flush=True); os.kill(os.getpid(), 9)", -9, "x\n"),
        ("import os; os._exit(4)", 4, ""),
    ]:
        result = launch(["-c", text])
        assert (result.returncode, result.stdout) == (code, output)
    process = forked.popen([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, environment())
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == process.poll() == -signal.SIGTERM


def test_a_fork_imports_from_more_folders_as_a_new_process_does(tmp_path: Path):
    (tmp_path / "module_of_the_test.py").write_text("")
    words = [sys.executable, "-c", "import sys, module_of_the_test; print(sys.path, module_of_the_test.__file__)"]
    printed = []
    for popen in (forked.popen, forked.real_popen):
        variables = environment() | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, tmp_path)))}
        process = popen(words, ROOT, variables, subprocess.PIPE, subprocess.PIPE)
        assert isinstance(process, forked.Forked) == (popen is forked.popen)
        printed.append(process.communicate(timeout=60))
    assert printed[0] == printed[1]


@pytest.mark.parametrize(
    "variables", [{"OMP_NUM_THREADS": "2"}, {"HF_HOME": "/x"}, {"PYTHONHASHSEED": "1"}, {"HOME": "/"}, {"PYTHONPATH": "/x"}]
)
def test_what_libraries_read_at_their_import_gets_a_real_process(variables: dict[str, str], tmp_path: Path):
    process = forked.popen([sys.executable, "-c", ""], tmp_path, environment() | variables)
    assert not isinstance(process, forked.Forked)
    assert process.wait() == 0


def test_ranks_have_the_environment_of_the_real_launcher(tmp_path: Path):
    metadata = []
    for real in (True, False):
        folder = tmp_path / str(real)
        folder.mkdir()
        (tmp_path / "rank.py").write_text(RANK)
        result = launch([tmp_path / "rank.py", "go"], 2, cwd=folder, real=real)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        ranks = [json.loads((folder / str(rank)).read_text()) for rank in range(2)]
        for rank in ranks:
            rank["folders"] = [path.replace(str(folder), "") for path in rank["folders"]]
            for variables in (rank["environment"], rank["variables"]):
                for name in OF_A_LAUNCH & variables.keys():
                    variables[name] = "other"
        metadata.append(ranks)
    assert metadata[0] == metadata[1]
    assert [rank["environment"]["LOCAL_RANK"] for rank in metadata[1]] == ["0", "1"]


def test_a_rank_that_fails_ends_the_others_and_the_launcher(tmp_path: Path):
    (tmp_path / "rank.py").write_text(RANK)
    result = launch([tmp_path / "rank.py", "fail"], 2, cwd=tmp_path)
    assert result.returncode == 1
    assert "exitcode  : 7" in result.stderr
    assert "Signal 15 (SIGTERM) received" in result.stderr


def test_a_server_ends_with_its_client():
    server = forked.Server()
    assert server.process.poll() is None
    server.close()
    assert server.process.poll() == 0
