"""`ulmfit-dist doctor`: what is broken is named, within a minute, and nothing hangs."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, command, command_here, mounted

from ulmfit_dist import philox
from ulmfit_dist.compose import load_config
from ulmfit_dist.doctor import hardware, numerics, performance, ranks, report, services, storage
from ulmfit_dist.doctor.checks import Check, Context, Finding, Result, Status, failure, ok, run_checks, skipped
from ulmfit_dist.doctor.monitor import Monitor
from ulmfit_dist.doctor.rendezvous import JoinError, Launch, join, read_launch
from ulmfit_dist.errors import UserError
from ulmfit_dist.precision import auto_precision
from ulmfit_dist.stages.doctor import checks_of

TINY = (
    "model={emb_sz: 16, n_hid: 20, n_layers: 2}",
    "tokenizer.max_vocab=300",
    "tracking.wandb=disabled",
    "runtime.precision=no",
)
MINUTE = 60.0


def words(folder: Path, *more: str) -> list[str]:
    return ["doctor", *TINY, f"runs_dir={folder}/runs", f"data.cache={folder}/cache", *more]


def context_of(folder: Path, *more: str) -> Context:
    """One process that has no runtime yet."""
    config = load_config(None, ["data.path=.", *words(folder, *more)[1:]])
    return Context(config, 0, 1, 0, Monitor(0, ["rank 0"], [], report=lambda results: None), {})


def row(content: str, check: str) -> dict:
    (found,) = [found for found in json.loads(content)["checks"] if found["check"] == check]
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(rank: int, world_size: int, port: int, folder: Path) -> subprocess.Popen[str]:
    """A rank of a doctor, the first of its node, in a process of its own and without a launcher."""
    launch = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT),
        **{key: str(value) for key, value in launch.items()},
    }
    command = [sys.executable, "-m", "ulmfit_dist", *words(folder, "--json")]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# The report


def results(*findings: Finding) -> dict[int, list[Result]]:
    return {rank: [Result("disk", finding)] for rank, finding in enumerate(findings)}


def test_a_row_is_the_worst_of_all_ranks():
    (found,) = report.rows(["disk"], results(ok("fine"), failure("full", "free some"), ok("fine")), 3)
    assert (found.status, found.found, found.fix) == (Status.FAILURE, "rank 1: full", "free some")
    assert found.ranks == {0: "ok", 1: "failure", 2: "ok"}
    (found,) = report.rows(["disk"], results(failure("full", "a"), failure("full", "a")), 2)
    assert found.found == "full"
    (found,) = report.rows(["disk"], results(failure("full", "a"), failure("gone", "b")), 2)
    assert found.found == "rank 0: full; rank 1: gone"


def test_a_row_names_no_more_than_some_ranks():
    (found,) = report.rows(["disk"], results(*(failure(f"full {rank}", "") for rank in range(20))), 20)
    assert found.found.endswith("rank 3: full 3; and 16 more")


def test_what_no_rank_has_reached_is_no_success_and_no_failure():
    found = report.rows(["disk", "network"], results(ok("fine")), 1)
    assert found[1].status is Status.SKIPPED
    assert found[1].found == "not reached"
    assert not report.has_failed(found)


def test_skipped_on_most_ranks_is_ok_where_one_is():
    (found,) = report.rows(["disk"], results(skipped("no"), ok("fine")), 2)
    assert (found.status, found.found) == (Status.OK, "fine")


def test_the_last_line_can_be_pasted(tmp_path: Path):
    config = context_of(tmp_path).config
    measured = {"tokens_per_second": 300_000, "peak_memory_gb": 6.25, "largest_batch": 512}
    suggestion = report.overrides(config, "bf16", measured)
    assert report.last_lines(measured, suggestion) == [
        "language model: 300,000 tokens/s, peak memory 6.25 GB a rank, largest batch that fits: 512",
        "lm.global_batch_size=512 runtime.precision=bf16",
    ]
    assert load_config(None, ["data.path=.", *suggestion.split()]).lm.global_batch_size == 512


def test_an_exception_in_a_check_is_a_row(tmp_path: Path):
    def broken(context: Context) -> Finding:
        raise OSError("the disk\nis on fire")

    (result,) = run_checks([Check("disk", broken)], context_of(tmp_path))
    assert result.finding.status is Status.FAILURE
    assert result.finding.found == "OSError: the disk is on fire"
    assert result.finding.fix


def test_every_check_has_a_name_of_its_own(tmp_path: Path):
    names = [check.name for check in checks_of(context_of(tmp_path).config)]
    assert len(set(names)) == len(names)


# Hardware


def test_gpus_that_this_torch_cannot_use_are_no_reason_to_train_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused() -> bool:
        raise UserError("2 GPU(s) cannot be used: driver 470: update the driver")

    monkeypatch.setattr(hardware, "uses_gpu", refused)
    (result,) = run_checks([Check("device", hardware.check_device)], context_of(tmp_path))
    assert result.finding == failure("2 GPU(s) cannot be used: driver 470", "update the driver")


def test_auto_gives_its_reason(tmp_path: Path):
    found = hardware.check_precision(context_of(tmp_path, "runtime.precision=auto"))
    assert found.status is Status.OK
    assert auto_precision(has_gpu=False)[1] in found.found


def test_a_precision_that_the_machine_cannot_do_is_a_row(tmp_path: Path):
    (result,) = run_checks([Check("precision", hardware.check_precision)], context_of(tmp_path, "runtime.precision=fp16"))
    assert result.finding.status is Status.FAILURE
    assert "runtime.precision=fp16 needs a GPU" in result.finding.found


# Storage


def test_a_folder_that_is_fine_is_left_as_it_was(tmp_path: Path):
    context = context_of(tmp_path)
    found = storage.writable("runs_dir")(context)
    assert found.status is Status.OK
    assert "locked" in found.found
    assert (tmp_path / "runs/run").is_dir()
    assert not list((tmp_path / "runs/run").iterdir())
    storage.remove_created(context)
    assert not list(tmp_path.iterdir())


def test_locks_that_exclude_nobody_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fcntl.flock", lambda *args: None)
    found = storage.writable("runs_dir")(context_of(tmp_path))
    assert found.status is Status.WARNING
    assert "locks exclude nobody" in found.found


def test_a_file_in_the_place_of_a_folder_is_found(tmp_path: Path):
    (tmp_path / "cache").write_text("")
    found = storage.writable("data.cache")(context_of(tmp_path))
    assert found.status is Status.FAILURE
    assert "data.cache" in found.fix


def test_a_disk_with_no_room_for_the_checkpoints_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    context = context_of(tmp_path)
    for free, status in ((1000, Status.FAILURE), (10**6, Status.WARNING), (10**9, Status.OK)):
        monkeypatch.setattr(storage.shutil, "disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        assert storage.check_disk(context).status is status


# Services


def test_slurm_nodes_without_ranks_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert services.check_slurm(context_of(tmp_path)).status is Status.SKIPPED
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    found = services.check_slurm(context_of(tmp_path))
    assert found.status is Status.WARNING
    assert "fewer than nodes" in found.found


def test_wandb_online_without_a_login_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(services, "quiet_wandb", lambda: type("wandb", (), {"login": lambda **how: False}))
    found = services.check_wandb(context_of(tmp_path, "tracking.wandb=online"))
    assert found.status is Status.FAILURE
    assert "wandb login" in found.fix


# Numbers


def test_numbers_that_are_right_are_ok(tmp_path: Path):
    context = context_of(tmp_path)
    for check in (numerics.check_philox, numerics.check_lstm, numerics.check_loss):
        found = check(context)
        assert found.status is Status.OK, found
    assert "bf16" in numerics.check_lstm(context).found


def test_a_generator_that_differs_from_numpys_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = philox.philox
    monkeypatch.setattr(philox, "philox", lambda counter, key: right(counter, key + 1))
    found = numerics.check_philox(context_of(tmp_path))
    assert found.status is Status.FAILURE
    assert "differ from numpy's" in found.found


def test_a_loss_that_differs_from_autograd_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = numerics.DecoderLoss.__call__
    monkeypatch.setattr(numerics.DecoderLoss, "__call__", lambda self, x, y: 1.01 * right(self, x, y))
    found = numerics.check_loss(context_of(tmp_path))
    assert found.status is Status.FAILURE
    assert "expected in fp32" in found.found


def test_an_lstm_that_reads_other_weights_in_bf16_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = numerics.WeightDropout.forward

    def wrong(self, x, hidden):
        output, state = right(self, x, hidden)
        return (output * 2 if torch.is_autocast_enabled("cpu") else output), state

    monkeypatch.setattr(numerics.WeightDropout, "forward", wrong)
    found = numerics.check_lstm(context_of(tmp_path))
    assert found.status is Status.FAILURE
    assert "expected in bf16" in found.found


@pytest.mark.parametrize("stage", ["lm", "classifier"])
def test_a_step_in_bf16_is_compared_with_fp32(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    context = context_of(tmp_path)
    assert numerics.step_against_cpu(stage)(context).status is Status.SKIPPED
    context.resolved = "bf16"
    assert numerics.step_against_cpu(stage)(context).status is Status.OK
    right = numerics.LocalStep.gradients
    monkeypatch.setattr(
        numerics.LocalStep, "gradients", lambda self: right(self) * (2 if self.dtype == torch.bfloat16 else 1)
    )
    assert numerics.step_against_cpu(stage)(context).status is Status.FAILURE


def test_on_a_cpu_nothing_is_said_of_gpus(tmp_path: Path):
    context = context_of(tmp_path)
    for check in (hardware.check_cuda, hardware.check_kernels, performance.check_waits, performance.check_largest_batch):
        assert check(context).status is Status.SKIPPED


# Ranks that meet


def test_launch_variables_that_make_no_sense_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(JoinError, match="RANK=2 with WORLD_SIZE=2"):
        read_launch()
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(JoinError, match="RANK=one is not a whole number"):
        read_launch()


def launch_of(rank: int, port: int) -> Launch:
    return Launch(rank, 2, 0, "127.0.0.1", port, is_held_by_launcher=False)


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as server, pytest.raises(JoinError, match="in use by another process"):
        join(launch_of(0, server.getsockname()[1]), seconds=1)


def test_a_port_that_is_refused_is_named():
    port = free_port()
    with pytest.raises(JoinError, match=f"127.0.0.1:{port} .* refused"):
        join(launch_of(1, port), seconds=0.5)


def test_a_rank_that_does_not_come_is_named():
    port = free_port()
    with pytest.raises(JoinError, match=f"rank 1 of 2 has not come to 127.0.0.1:{port}"):
        join(launch_of(0, port), seconds=0.5)


def on_two_ranks(tmp_path: Path, function, *more: tuple[str, ...]) -> list[Finding]:
    """A check on two ranks that are threads here, each with overrides of its own, over a real store."""

    def rank_of(rank: int) -> Finding:
        stores, names, _ = join(launch_of(rank, port), seconds=20)
        context = context_of(tmp_path, *more[rank])
        context.rank, context.world_size = rank, 2
        context.monitor = Monitor(rank, names, stores, report=lambda results: None)
        found = function(context)
        context.monitor.reported()
        return found

    port = free_port()
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(rank_of, range(2)))


def test_a_folder_that_the_ranks_do_not_share_is_named(tmp_path: Path):
    def check(context: Context) -> Finding:
        storage.writable("runs_dir")(context)
        return storage.shared("runs_dir")(context)

    here, there = on_two_ranks(tmp_path, check, (f"runs_dir={tmp_path}/a",), (f"runs_dir={tmp_path}/b",))
    assert here.status is Status.OK
    assert there.status is Status.FAILURE
    assert "a file of rank 0 is not there on rank" in there.found
    assert {found.status for found in on_two_ranks(tmp_path, check, (), ())} == {Status.OK}


def test_ranks_with_other_configs_are_named(tmp_path: Path):
    found = on_two_ranks(tmp_path, ranks.check_same, (), ("seed=7",))
    assert {one.status for one in found} == {Status.FAILURE}
    assert "rank 1 has config" in found[0].found
    assert {one.status for one in on_two_ranks(tmp_path, ranks.check_same, (), ())} == {Status.OK}


def test_ranks_that_share_a_gpu_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    found = on_two_ranks(tmp_path, ranks.check_devices, (), ())
    assert {one.status for one in found} == {Status.FAILURE}
    assert "3 is the GPU of several ranks" in found[0].found


def test_batches_that_the_ranks_cannot_share_are_named(tmp_path: Path):
    context = context_of(tmp_path)
    context.world_size = 3
    (result,) = run_checks([Check("batch sizes", ranks.check_batches)], context)
    assert "lm.global_batch_size=64 cannot be shared evenly by 3 ranks" in result.finding.found
    assert result.finding.fix == "make it 63 or 66"


# Whole runs


def test_one_process_is_checked_from_the_launch_to_the_speed(tmp_path: Path):
    done = command_here(words(tmp_path, "--json"))
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert content["ok"]
    assert not [found for found in content["checks"] if found["found"] == "not reached"]
    assert "equal bits" in row(done.stdout, "classifier: the same steps twice")["found"]
    assert content["measured"]["tokens_per_second"] > 0
    assert content["overrides"] == "runtime.precision=no"
    assert not list(tmp_path.iterdir())


def test_a_recipe_may_be_given(tmp_path: Path):
    done = command_here(["doctor", "configs/quickstart.yaml", *words(tmp_path)[1:], "lm.batch=3"])
    assert done.returncode == 2
    assert "unknown key lm.batch" in done.stderr


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    with mounted(folder, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield


def test_a_full_disk_and_a_read_only_cache_are_named(tmp_path: Path):
    with mounted(tmp_path / "runs", "64k"), read_only(tmp_path / "cache"):
        (tmp_path / "runs/filler").write_bytes(bytes(60 << 10))
        done = command_here(words(tmp_path))
        as_json = command_here(words(tmp_path, "--json"))
    assert done.returncode == as_json.returncode == 2
    assert "failure" in done.stdout
    run, cache, disk = (row(as_json.stdout, name) for name in ("run directory", "cache", "free disk"))
    assert (run["status"], cache["status"], disk["status"]) == ("failure", "failure", "failure")
    assert "No space left on device" in run["found"]
    assert "Read-only file system" in cache["found"]
    assert "data.cache" in cache["fix"]
    assert "run directory, cache, free disk" in as_json.stderr


def test_two_ranks_are_checked_together(tmp_path: Path):
    done = command(words(tmp_path, "--json"), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert content["world_size"] == 2
    assert all(found["ranks"].keys() == {"0", "1"} for found in content["checks"])
    for name, said in (
        ("all-reduce", "GB/s inside the node"),
        ("object collectives", "ms"),
        ("rank watch", "connected"),
        ("run directory, shared", "2 of 2"),
        ("lm: the same steps twice", "on all ranks"),
    ):
        assert said in row(done.stdout, name)["found"]


def test_a_missing_rank_and_a_refused_port_are_named_within_a_minute(tmp_path: Path):
    first, second = free_port(), free_port()
    alone = {0: start(0, 2, first, tmp_path / "a"), 1: start(1, 2, second, tmp_path / "b")}
    dist.TCPStore("127.0.0.1", first, 2, False, timedelta(seconds=60), wait_for_workers=False)  # rank 0 has begun to wait
    started = time.monotonic()
    said = {rank: process.communicate(timeout=120) for rank, process in alone.items()}
    assert time.monotonic() - started < MINUTE
    assert [process.returncode for process in alone.values()] == [2, 2]
    assert f"rank 1 of 2 has not come to 127.0.0.1:{first}" in row(said[0][0], "rendezvous")["found"]
    assert f"rank 1 cannot reach rank 0 at 127.0.0.1:{second}" in row(said[1][0], "rendezvous")["found"]
    assert "Connection refused" in row(said[1][0], "rendezvous")["found"]
    assert row(said[1][0], "run directory")["status"] == "ok"  # what needs no other rank is checked all the same
    assert "rendezvous" in said[0][1]
    assert "rendezvous" in said[1][1]
    assert "Traceback" not in said[0][1] + said[1][1]


def stop(process: subprocess.Popen[str], number: signal.Signals, rank: int, port: int) -> None:
    """Signal a rank as soon as it has published its first result."""
    store = dist.TCPStore("127.0.0.1", port, 2, False, timedelta(seconds=60), wait_for_workers=False)
    dist.PrefixStore("doctor/0", store).wait([f"results/{rank}"], timedelta(seconds=60))
    process.send_signal(number)


@pytest.mark.parametrize(("stopped", "number"), [(1, signal.SIGSTOP), (0, signal.SIGSTOP)])
def test_a_rank_that_hangs_is_named_within_a_minute(stopped: int, number: signal.Signals, tmp_path: Path):
    port = free_port()
    both: Sequence[subprocess.Popen[str]] = [start(rank, 2, port, tmp_path) for rank in range(2)]
    try:
        stop(both[stopped], number, stopped, port)
        began = time.monotonic()
        out, err = both[1 - stopped].communicate(timeout=120)
        assert time.monotonic() - began < MINUTE
    finally:
        both[stopped].kill()
        both[stopped].communicate()
    assert both[1 - stopped].returncode == 2, out + err
    failed = [found for found in json.loads(out)["checks"] if found["status"] == "failure"]
    assert len(failed) == 1
    assert f"rank {stopped} (" in failed[0]["found"]
