"""Tests of each check of `ulmfit-dist doctor`: each detects its problem."""

from pathlib import Path

import pytest
import torch
from doctors import context_of

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.distributed.precision import auto_precision
from ulmfit_dist.doctor import hardware, numerics, performance, report, services, storage
from ulmfit_dist.doctor.checks import Check, Context, Finding, Result, Status, failure, ok, run_checks, skipped
from ulmfit_dist.doctor.suite import checks_of
from ulmfit_dist.errors import UserError
from ulmfit_dist.rng import philox

# The report


def results(*findings: Finding) -> dict[int, list[Result]]:
    return {rank: [Result("disk", finding)] for rank, finding in enumerate(findings)}


def test_a_row_is_the_worst_of_all_ranks():
    (row,) = report.rows(["disk"], results(ok("fine"), failure("full", "free some"), ok("fine")), 3)
    assert (row.status, row.details, row.fix) == (Status.FAILURE, "rank 1: full", "free some")
    assert row.ranks == {0: "ok", 1: "failure", 2: "ok"}
    (row,) = report.rows(["disk"], results(failure("full", "a"), failure("full", "a")), 2)
    assert row.details == "full"
    (row,) = report.rows(["disk"], results(failure("full", "a"), failure("gone", "b")), 2)
    assert row.details == "rank 0: full; rank 1: gone"


def test_a_row_names_no_more_than_some_ranks():
    (row,) = report.rows(["disk"], results(*(failure(f"full {rank}", "") for rank in range(20))), 20)
    assert row.details.endswith("rank 3: full 3; and 16 more")


def test_a_check_that_no_rank_has_reached_is_skipped():
    rows = report.rows(["disk", "network"], results(ok("fine")), 1)
    assert rows[1].status is Status.SKIPPED
    assert rows[1].details == "not reached"
    assert not report.has_failed(rows)


def test_skipped_on_most_ranks_is_ok_where_one_is():
    (row,) = report.rows(["disk"], results(skipped("no"), ok("fine")), 2)
    assert (row.status, row.details) == (Status.OK, "fine")


def test_the_last_line_can_be_pasted(tmp_path: Path):
    config = context_of(tmp_path).config
    measured = {"tokens_per_second": 300_000, "peak_memory_gb": 6.25, "largest_batch": 512}
    suggestion = report.overrides(config, "bf16", measured)
    assert report.last_lines(measured, suggestion) == [
        "language model: 300,000 tokens/s, peak memory 6.25 GB per rank, largest batch that fits: 512",
        "lm.global_batch_size=512 runtime.precision=bf16",
    ]
    assert load_config(None, ["data.path=.", *suggestion.split()]).lm.global_batch_size == 512


def test_an_exception_in_a_check_is_a_row(tmp_path: Path):
    def broken(context: Context) -> Finding:
        raise OSError("the disk\nis on fire")

    (result,) = run_checks([Check("disk", broken)], context_of(tmp_path))
    assert result.finding.status is Status.FAILURE
    assert result.finding.details == "OSError: the disk is on fire"
    assert result.finding.fix


def test_every_check_has_a_name_of_its_own(tmp_path: Path):
    names = [check.name for check in checks_of(context_of(tmp_path).config)]
    assert len(set(names)) == len(names)


# Hardware


def test_gpus_that_torch_cannot_use_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused() -> bool:
        raise UserError("2 GPU(s) cannot be used: driver 470: update the driver")

    monkeypatch.setattr(hardware, "uses_gpu", refused)
    (result,) = run_checks([Check("device", hardware.check_device)], context_of(tmp_path))
    assert result.finding == failure("2 GPU(s) cannot be used: driver 470", "update the driver")


def test_auto_gives_its_reason(tmp_path: Path):
    finding = hardware.check_precision(context_of(tmp_path, "runtime.precision=auto"))
    assert finding.status is Status.OK
    assert auto_precision(has_gpu=False)[1] in finding.details


def test_an_unsupported_precision_is_a_row(tmp_path: Path):
    (result,) = run_checks([Check("precision", hardware.check_precision)], context_of(tmp_path, "runtime.precision=fp16"))
    assert result.finding.status is Status.FAILURE
    assert "runtime.precision=fp16 needs a GPU" in result.finding.details


# Storage


def test_a_folder_that_is_fine_is_left_as_it_was(tmp_path: Path):
    context = context_of(tmp_path)
    finding = storage.writable("runs_dir")(context)
    assert finding.status is Status.OK
    assert "locked" in finding.details
    assert (tmp_path / "runs/run").is_dir()
    assert not list((tmp_path / "runs/run").iterdir())
    storage.remove_created(context)
    assert not list(tmp_path.iterdir())


def test_locks_without_effect_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fcntl.flock", lambda *args: None)
    finding = storage.writable("runs_dir")(context_of(tmp_path))
    assert finding.status is Status.WARNING
    assert "file locks have no effect" in finding.details


def test_a_file_in_the_place_of_a_folder_is_found(tmp_path: Path):
    (tmp_path / "cache").write_text("")
    finding = storage.writable("data.cache_dir")(context_of(tmp_path))
    assert finding.status is Status.FAILURE
    assert "data.cache_dir" in finding.fix


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
    finding = services.check_slurm(context_of(tmp_path))
    assert finding.status is Status.WARNING
    assert "fewer than nodes" in finding.details


def test_wandb_online_without_a_login_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(services, "quiet_wandb", lambda: type("wandb", (), {"login": lambda **how: False}))
    finding = services.check_wandb(context_of(tmp_path, "tracking.wandb_mode=online"))
    assert finding.status is Status.FAILURE
    assert "wandb login" in finding.fix


# Numbers


@pytest.mark.usefixtures("bf16_lstms")
def test_correct_numbers_are_ok(tmp_path: Path):
    context = context_of(tmp_path)
    for check in (numerics.check_philox, numerics.check_lstm, numerics.check_loss):
        finding = check(context)
        assert finding.status is Status.OK, finding
    assert "bf16" in numerics.check_lstm(context).details


def test_bf16_is_skipped_on_a_cpu_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numerics, "has_bf16_lstms", lambda: False)
    finding = numerics.check_lstm(context_of(tmp_path))
    assert finding.status is Status.SKIPPED
    assert "fp32 only" in finding.details


def test_a_generator_that_differs_from_numpys_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = philox.philox
    monkeypatch.setattr(philox, "philox", lambda counter, key: right(counter, key + 1))
    finding = numerics.check_philox(context_of(tmp_path))
    assert finding.status is Status.FAILURE
    assert "differ from numpy's" in finding.details


def test_a_loss_that_differs_from_autograd_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = numerics.DecoderLoss.__call__
    monkeypatch.setattr(numerics.DecoderLoss, "__call__", lambda self, x, y: 1.01 * right(self, x, y))
    finding = numerics.check_loss(context_of(tmp_path))
    assert finding.status is Status.FAILURE
    assert "expected in fp32" in finding.details


@pytest.mark.usefixtures("bf16_lstms")
def test_an_lstm_that_reads_other_weights_in_bf16_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = numerics.WeightDropout.forward

    def wrong(self, x, hidden):
        output, state = right(self, x, hidden)
        return (output * 2 if torch.is_autocast_enabled("cpu") else output), state

    monkeypatch.setattr(numerics.WeightDropout, "forward", wrong)
    finding = numerics.check_lstm(context_of(tmp_path))
    assert finding.status is Status.FAILURE
    assert "expected in bf16" in finding.details


@pytest.mark.parametrize("stage", ["lm", "classifier"])
@pytest.mark.usefixtures("bf16_lstms")
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
    for check in (hardware.check_cuda, hardware.check_kernels, performance.check_syncs, performance.check_largest_batch):
        assert check(context).status is Status.SKIPPED
