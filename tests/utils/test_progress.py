"""Progress without a terminal, remaining time, and the plan of a run."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, make_folder, succeed_here
from made_classifiers import CONFIG, lettered_store
from rich.console import Console
from safetensors.torch import load_file

from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages import estimate
from ulmfit_dist.stages.estimate import CorpusSize, StageEstimate, TimingLimits, estimate_stage
from ulmfit_dist.stages.plan import RunPlan
from ulmfit_dist.training.callbacks.progress import StageClock
from ulmfit_dist.utils import progress
from ulmfit_dist.utils.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def lines_of(capsys: pytest.CaptureFixture[str], clock: list[float], seconds: float, total: int) -> list[str]:
    """Return the lines of a loop of `total` steps that take `seconds` each."""
    with Progress("lm", total) as bar:
        for _ in range(total):
            clock[0] += seconds
            bar.advance(counted=10, loss=1.5)
    actual = capsys.readouterr()
    assert actual.out == ""
    return actual.err.splitlines()


def test_a_line_comes_at_each_tenth(capsys: pytest.CaptureFixture[str], clock: list[float]):
    lines = lines_of(capsys, clock, 1.0, 100)
    assert [line.partition(",")[0] for line in lines] == [f"lm: {10 * i} of 100" for i in range(1, 11)]
    assert lines[4] == "lm: 50 of 100, loss 1.5000, 10 tokens/s, 0:50 elapsed, 0:50 left"


def test_a_line_comes_each_minute_of_a_long_tenth(capsys: pytest.CaptureFixture[str], clock: list[float]):
    lines = lines_of(capsys, clock, 20.0, 100)
    steps = [int(re.findall(r"\d+", line)[0]) for line in lines]
    assert set(range(10, 101, 10)) <= set(steps)
    assert all(later - earlier <= 3 for earlier, later in zip([0, *steps], steps, strict=False))


def test_lines_of_a_fast_loop_stand_apart(capsys: pytest.CaptureFixture[str], clock: list[float]):
    assert lines_of(capsys, clock, 2**-7, 512) == []
    assert len(lines_of(capsys, clock, 0.125, 100)) == 2


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=120))
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    with Progress("lm", 10) as bar:
        bar.advance(10, counted=500, loss=2.5, clock="0:01 elapsed")
        bar._bar.refresh()
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", screen.getvalue())
    assert "10/10 loss 2.5000" in shown
    assert errors.getvalue() == ""


def test_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str], clock: list[float]):
    with Progress("lm", 10, shown=False) as bar:
        clock[0] += 1000
        bar.advance(5)
    assert capsys.readouterr().err == ""


def test_the_time_that_is_left_follows_from_the_costs_of_the_epochs():
    clock = StageClock([10, 30, 60], later_seconds=300)
    assert clock.left(0, 0.0, 0.0) is None
    assert clock.left(1, 0.0, 20.0) == pytest.approx(180)  # a tenth of the cost took 20 seconds
    assert clock.left(2, 0.5, 140.0) == pytest.approx(60)
    assert clock.describe(60.0, 140.0) == "2:20 elapsed, 1:00 left of the stage, 6:00 of the run"


def test_a_resumed_stage_counts_from_where_it_resumes():
    clock = StageClock([10, 10, 10, 10])
    assert clock.left(2, 0.5, 0.0) is None
    assert clock.left(3, 0.0, 8.0) == pytest.approx(16)
    assert clock.describe(None, 3.0) == "0:03 elapsed"


def test_a_plan_knows_what_follows_a_stage():
    estimates = {
        "lm": StageEstimate("lm", 10, (5, 5), (50.0, 50.0)),
        "classifier": StageEstimate("classifier", 10, (3, 3), (6.0, 30.0), test_seconds=4.0),
    }
    plan = RunPlan(estimates, {stage: each.total_seconds for stage, each in estimates.items()})
    lm, classifier = plan.clock("lm"), plan.clock("classifier")
    assert (lm.epoch_costs, lm.later_seconds) == ((50.0, 50.0), 40.0)
    assert (classifier.epoch_costs, classifier.later_seconds) == ((6.0, 30.0), 4.0)


@pytest.mark.usefixtures("no_process_group")
def test_an_estimate_counts_the_steps_of_all_epochs_and_grows_with_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, runtime = lettered_store(tmp_path / "store"), Runtime(CONFIG.runtime)
    small = estimate_stage(CONFIG, runtime, store, "classifier")
    assert (small.steps, small.total_seconds) == ((7, 7), 0.0)  # too little work to be measured
    monkeypatch.setattr(estimate, "MIN_WORK", 0)
    for stage in ("lm", "classifier"):
        limits = TimingLimits(budget_seconds=0.2)
        once = estimate_stage(CONFIG, runtime, store, stage, limits=limits)
        thrice = estimate_stage(CONFIG, runtime, store, stage, CorpusSize(scale=3.0, vocab_size=5000), limits)
        assert once.total_seconds > 0
        assert all(3 * step - 2 <= more <= 3 * step + 2 for step, more in zip(once.steps, thrice.steps, strict=True))
        assert thrice.num_parameters - once.num_parameters == (5000 - len(store.vocab)) * (12 + (stage == "lm"))


@pytest.mark.distributed
def test_a_plan_that_measures_changes_nothing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    short = ("lm.phases=[{epochs: 1, lr: 1e-2}]", "classifier.phases=[{epochs: 2, lr: 1e-2}]", f"runs_dir={tmp_path}")
    place = [f"data.path={make_folder(tmp_path / 'texts', 20)}", f"data.cache_dir={tmp_path / 'cache'}"]
    weights = []
    for name, min_work in (("planned", 0.0), ("unplanned", 1e30)):
        monkeypatch.setattr(estimate, "MIN_WORK", min_work)
        printed = succeed_here(["run", recipe, *TINY, *place, *short, f"name={name}"])
        (row,) = [line for line in printed.splitlines() if line.startswith("lm  ") and len(line.split()) == 5]
        assert (row.split()[-1] == "seconds") is (name == "unplanned")
        weights.append({stage: load_file(tmp_path / name / stage / "model.safetensors") for stage in ("lm", "classifier")})
    for stage in ("lm", "classifier"):
        for name, tensor in weights[0][stage].items():
            assert torch.equal(tensor, weights[1][stage][name]), (stage, name)
