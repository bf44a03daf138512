"""Tests of `ulmfit-dist doctor` on ranks, and of whole commands: problems are named within a minute, and nothing hangs."""

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import command, command_here, mounted
from doctors import MINUTE, argv_of, context_of, free_port, row, start, store_at

from ulmfit_dist.doctor import ranks, storage
from ulmfit_dist.doctor.checks import Check, Context, Finding, Status, run_checks
from ulmfit_dist.doctor.monitor import Monitor
from ulmfit_dist.doctor.rendezvous import JoinError, Launch, join, read_launch

# Ranks that meet


def test_invalid_launch_variables_are_named(monkeypatch: pytest.MonkeyPatch):
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


def test_a_missing_rank_is_named():
    port = free_port()
    with pytest.raises(JoinError, match=f"rank 1 of 2 has not joined at 127.0.0.1:{port}"):
        join(launch_of(0, port), seconds=0.5)


def on_two_ranks(tmp_path: Path, function, *more: tuple[str, ...]) -> list[Finding]:
    """Run a check on two ranks, which are threads with their own overrides, over a real store."""

    def rank_of(rank: int) -> Finding:
        stores, names, _ = join(launch_of(rank, port), seconds=20)
        context = context_of(tmp_path, *more[rank])
        context.rank, context.world_size = rank, 2
        context.monitor = Monitor(rank, names, stores, report=lambda results: None)
        actual = function(context)
        context.monitor.reported()
        return actual

    port = free_port()
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(rank_of, range(2)))


def test_a_folder_that_the_ranks_do_not_share_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "VISIBILITY_TIMEOUT", 0.3)

    def check(context: Context) -> Finding:
        storage.writable("runs_dir")(context)
        return storage.shared("runs_dir")(context)

    here, there = on_two_ranks(tmp_path, check, (f"runs_dir={tmp_path}/a",), (f"runs_dir={tmp_path}/b",))
    assert here.status is Status.OK
    assert there.status is Status.FAILURE
    assert "a file of rank 0 is not visible on rank" in there.details
    assert {actual.status for actual in on_two_ranks(tmp_path, check, (), ())} == {Status.OK}


def test_ranks_with_other_configs_are_named(tmp_path: Path):
    actual = on_two_ranks(tmp_path, ranks.check_agreement, (), ("seed=7",))
    assert {one.status for one in actual} == {Status.FAILURE}
    assert "rank 1 has config" in actual[0].details
    assert {one.status for one in on_two_ranks(tmp_path, ranks.check_agreement, (), ())} == {Status.OK}


def test_ranks_that_share_a_gpu_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    actual = on_two_ranks(tmp_path, ranks.check_devices, (), ())
    assert {one.status for one in actual} == {Status.FAILURE}
    assert "several ranks use GPU 3" in actual[0].details


def test_batches_that_the_ranks_cannot_share_are_named(tmp_path: Path):
    context = context_of(tmp_path)
    context.world_size = 3
    (result,) = run_checks([Check("batch sizes", ranks.check_batches)], context)
    assert "lm.global_batch_size=64 cannot be shared evenly by 3 ranks" in result.finding.details
    assert result.finding.fix == "make it 63 or 66"


# Whole runs


def test_one_process_is_checked_from_the_launch_to_the_speed(tmp_path: Path):
    done = command_here(argv_of(tmp_path, "--json"))
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert content["ok"]
    assert not [actual for actual in content["checks"] if actual["details"] == "not reached"]
    assert "bitwise equal" in row(done.stdout, "classifier: the same steps twice")["details"]
    assert content["measured"]["tokens_per_second"] > 0
    assert content["overrides"] == "runtime.precision=fp32"
    assert not list(tmp_path.iterdir())


def test_a_config_may_be_given(tmp_path: Path):
    done = command_here(["doctor", "configs/quickstart.yaml", *argv_of(tmp_path)[1:], "lm.batch=3"])
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
        done = command_here(argv_of(tmp_path))
        as_json = command_here(argv_of(tmp_path, "--json"))
    assert done.returncode == as_json.returncode == 2
    assert "failure" in done.stdout
    run, cache, disk = (row(as_json.stdout, name) for name in ("run directory", "cache", "free disk"))
    assert (run["status"], cache["status"], disk["status"]) == ("failure", "failure", "failure")
    assert "No space left on device" in run["details"]
    assert "Read-only file system" in cache["details"]
    assert "data.cache_dir" in cache["fix"]
    assert "run directory, cache, free disk" in as_json.stderr


def test_two_ranks_are_checked_together(tmp_path: Path):
    done = command(argv_of(tmp_path, "--json"), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert content["world_size"] == 2
    assert all(actual["ranks"].keys() == {"0", "1"} for actual in content["checks"])
    for name, output in (
        ("all-reduce", "GB/s inside the node"),
        ("object collectives", "ms"),
        ("heartbeat", "connected"),
        ("run directory, shared", "2 of 2"),
        ("lm: the same steps twice", "on all ranks"),
    ):
        assert output in row(done.stdout, name)["details"]


def test_a_missing_rank_and_a_refused_port_are_named_within_a_minute(tmp_path: Path):
    first, second = free_port(), free_port()
    alone = {0: start(0, 2, first, tmp_path / "a"), 1: start(1, 2, second, tmp_path / "b")}
    store_at(first)  # rank 0 has begun to wait
    started = time.monotonic()
    output = {rank: process.communicate(timeout=120) for rank, process in alone.items()}
    assert time.monotonic() - started < MINUTE
    assert [process.returncode for process in alone.values()] == [2, 2]
    assert f"rank 1 of 2 has not joined at 127.0.0.1:{first}" in row(output[0][0], "rendezvous")["details"]
    assert f"rank 1 cannot reach rank 0 at 127.0.0.1:{second}" in row(output[1][0], "rendezvous")["details"]
    assert "Connection refused" in row(output[1][0], "rendezvous")["details"]
    assert row(output[1][0], "run directory")["status"] == "ok"  # checks of one rank still run
    assert "rendezvous" in output[0][1]
    assert "rendezvous" in output[1][1]
    assert "Traceback" not in output[0][1] + output[1][1]


def stop(process: subprocess.Popen[str], number: signal.Signals, rank: int, port: int) -> None:
    """Signal a rank as soon as it has published its first result."""
    dist.PrefixStore("doctor/0", store_at(port)).wait([f"results/{rank}"], timedelta(seconds=60))
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
    failed = [actual for actual in json.loads(out)["checks"] if actual["status"] == "failure"]
    assert len(failed) == 1
    assert f"rank {stopped} (" in failed[0]["details"]
