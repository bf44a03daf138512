"""`accelerate launch` with the exit code of its ranks."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from accelerate.commands import launch as accelerate_launch
from conftest import ROOT, launch

from ulmfit_dist.distributed.launch_settings import read_config_file
from ulmfit_dist.errors import UserError
from ulmfit_dist.launch.launcher import exit_code, find_config_file, main, name_defaults, refuse_unsupported_options

RANK = """
import os, signal, sys, time
from pathlib import Path

folder, code = Path(sys.argv[1]), int(sys.argv[2])
for number in (signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda *_: sys.exit(85))
if code < 0 and os.environ.get("RANK") == "1":
    os.kill(os.getpid(), -code)
(folder / os.environ.get("RANK", "0")).touch()
if code > 0:
    sys.exit(code)
time.sleep(60)
"""


def start(folder: Path, code: int, processes: int, **options: bool) -> subprocess.Popen[str]:
    (folder / "rank.py").write_text(RANK)
    words = ["--config_file", ROOT / "configs/accelerate/multi_gpu.yaml", "--num_processes", processes]
    command = [sys.executable, "-m", "ulmfit_dist.launch", *words, folder / "rank.py", folder, code]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*map(str, command)], env=environment, stdout=-1, stderr=-1, text=True, **options)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_reaches_the_ranks_and_their_exit_code_whoever_waits(tmp_path: Path, processes: int):
    launcher = start(tmp_path, 0, processes)
    while len(list(tmp_path.glob("[0-9]"))) < processes:
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.communicate(timeout=30) == ("", "")
    assert launcher.returncode == 85


@pytest.mark.parametrize("processes", [1, 2])
def test_a_keyboards_signal_reaches_each_rank_once(tmp_path: Path, processes: int):
    launcher = start(tmp_path, 0, processes, start_new_session=True)  # as a terminal has its commands
    while len(list(tmp_path.glob("[0-9]"))) < processes:
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.communicate(timeout=30) == ("", "")
    assert launcher.returncode == 85


def test_a_rank_that_is_killed_is_named_and_one_that_exits_by_itself_is_not(tmp_path: Path):
    launchers = [start(tmp_path, 2, 2), start(tmp_path, -signal.SIGKILL, 2)]
    (refused, lost) = [launcher.communicate(timeout=60) for launcher in launchers]
    assert refused == ("", "")
    assert lost == ("", "ulmfit-dist: rank 1 was killed by signal 9\n")
    assert [launcher.returncode for launcher in launchers] == [2, 1]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([85, 85], 85),
        ([85, -15], 85),
        ([-10], 85),
        ([2, -15], 2),
        ([2, 2], 2),
        ([-9], 1),
        ([1, -9], 1),
        ([85, 1], 1),
        ([85, -9], 1),
    ],
)
def test_the_exit_code_is_resumable_only_where_all_ranks_are(codes: list[int], expected: int):
    assert exit_code(codes) == expected


@pytest.fixture
def no_default_file(monkeypatch: pytest.MonkeyPatch):
    for module in ("accelerate.commands.launch", "accelerate.commands.config"):
        monkeypatch.setattr(f"{module}.default_config_file", "/nowhere/default_config.yaml")


@pytest.mark.usefixtures("no_default_file")
@pytest.mark.parametrize("num_gpus", [0, 1, 4])
@pytest.mark.parametrize(
    "options", ["", "--cpu --num_processes 1", "--multi_gpu --num_processes 2", "--num_processes 3", "--num_machines 1"]
)
def test_accelerate_has_no_default_to_print_a_block_about(options: str, num_gpus: int, monkeypatch: pytest.MonkeyPatch):
    printed: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(accelerate_launch.logger, "warning", printed.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plain, named = [accelerate_launch.launch_command_parser().parse_args([*options.split(), "train.py"]) for _ in range(2)]
    name_defaults(named)
    accelerate_launch._validate_launch_command(named)
    assert printed == []
    accelerate_launch._validate_launch_command(plain)
    assert printed  # here is what would have been
    keys = ("multi_gpu", "num_machines", "mixed_precision", "dynamo_backend", "num_cpu_threads_per_process")
    assert [getattr(named, key) for key in keys] == [getattr(plain, key) for key in keys]
    assert named.num_processes == max(1, plain.num_processes)
    alone = accelerate_launch.launch_command_parser().parse_args(["--cpu", "train.py"])
    name_defaults(alone)
    assert (alone.num_processes, alone.multi_gpu) == (1, False)


@pytest.mark.usefixtures("no_default_file")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--use_deepspeed", "accelerate launch --use_deepspeed requests DeepSpeed, .*: use data parallel training"),
        ("--use_fsdp", "accelerate launch --use_fsdp requests FSDP"),
        ("--use_megatron_lm", "accelerate launch --use_megatron_lm requests Megatron-LM"),
        ("--use_fsdp --use_parallelism_config", "accelerate launch --use_fsdp requests FSDP"),
        ("--tpu", "accelerate launch --tpu requests a TPU, .*: use GPUs"),
        ("--mixed_precision fp8", "--mixed_precision fp8: ulmfit-dist does not support mixed precision fp8: use bf16"),
        ("--config_file nowhere.yaml", "nowhere.yaml: Accelerate's config file cannot be read"),
    ],
)
def test_what_there_is_not_is_refused_before_anything_is_started(
    options: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(accelerate_launch, "launch_command", pytest.fail)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    try:
        assert main([*options.split(), "train.py"]) == 2
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"ulmfit-dist: error: .*{message}", line)


SAGEMAKER = ("ec2_instance_type: ml.p3.2xlarge", "iam_role_name: role")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["distributed_type: FSDP"], "distributed_type: FSDP in .* requests FSDP"),
        (["distributed_type: DEEPSPEED"], "distributed_type: DEEPSPEED in .* requests DeepSpeed"),
        (["distributed_type: MEGATRON_LM"], "requests Megatron-LM"),
        (["distributed_type: XLA"], "requests a TPU"),
        (["distributed_type: 'NO'", "mixed_precision: fp8"], "mixed_precision: fp8 in .*: ulmfit-dist does not support"),
        (
            [
                "compute_environment: AMAZON_SAGEMAKER",
                "distributed_type: DATA_PARALLEL",
                "ec2_instance_type: x",
                "iam_role_name: y",
            ],
            "compute_environment: AMAZON_SAGEMAKER in .* requests Amazon SageMaker's launcher",
        ),
    ],
)
def test_a_config_file_for_what_there_is_not_is_refused(lines: list[str], message: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("\n".join([*lines, *([] if "mixed" in lines[-1] else ["mixed_precision: 'no'"])]) + "\n")
    parser = accelerate_launch.launch_command_parser()
    args = parser.parse_args(["--config_file", str(path), "train.py"])
    with pytest.raises(UserError, match=message):
        refuse_unsupported_options(args, find_config_file(args))
    if "distributed_type: FSDP" in lines:
        args = parser.parse_args(["--config_file", str(path), "--multi_gpu", "train.py"])
        refuse_unsupported_options(args, find_config_file(args))  # the option wins


@pytest.mark.parametrize("name", ["multi_gpu.yaml", "multi_node.yaml"])
def test_the_projects_config_files_are_accelerates_and_name_no_precision(name: str):
    config = read_config_file(ROOT / "configs/accelerate" / name)
    assert config.distributed_type == "MULTI_GPU"
    assert config.mixed_precision is None


def test_the_readmes_launcher_prints_nothing_of_its_own_beside_another_launch(tmp_path: Path):
    (tmp_path / "rank.py").write_text("import os; os.write(1, os.environ['RANK'].encode())")
    command = [sys.executable, "-m", "ulmfit_dist.launch", "--multi_gpu", "--num_processes", "2", tmp_path / "rank.py"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)}
    with socket.socket() as other:
        with suppress(OSError):  # taken already, which will do as well
            other.bind(("127.0.0.1", 29500))  # Accelerate's default
            other.listen()
        result = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=120)
    assert sorted(result.stdout) == ["0", "1"]
    assert (result.stderr, result.returncode) == ("", 0)


def test_no_module_of_torchruns_agent_logs_errors():
    script = (
        "import logging; from ulmfit_dist.launch.launcher import _silence_elastic; _silence_elastic();"
        "names = [name for name in logging.root.manager.loggerDict if name.startswith('torch.distributed.elastic')];"
        "print(len(names) > 5, {logging.getLogger(name).isEnabledFor(logging.ERROR) for name in names})"
    )
    assert launch(["-c", script], real=True).stdout.strip() == "True {False}"
