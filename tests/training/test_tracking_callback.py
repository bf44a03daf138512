"""Lines of metrics.jsonl that are written at the step of the next line, so that training does not wait for the GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ulmfit_dist.checkpointing.callback import CheckpointCallback
from ulmfit_dist.distributed.step_timer import PARTS, StepTimer
from ulmfit_dist.training.callbacks.tracking import TrackingCallback
from ulmfit_dist.training.train_state import TrainState
from ulmfit_dist.utils import host_copy
from ulmfit_dist.utils.host_copy import HostCopy

CPU = torch.device("cpu")
LOSSES = [4.0, 2.0, 3.0, 1.0, 5.0, 6.0, 2.5]
LOG_EVERY = 2


class Fit:
    """Training steps with given losses, rates and gradients, and the lines that they log."""

    def __init__(self, is_late: bool):
        self.lines: list[dict[str, Any]] = []
        runtime = SimpleNamespace(
            device=CPU, world_size=1, rank=0, is_main=True, bytes_given=0, micro_batch_size=None, step_timer=StepTimer(CPU)
        )
        runtime.all_gather_object, runtime.broadcast_object, runtime.all_reduce_sum = (
            (lambda item: [item]),
            (lambda item: item),
            (lambda values: values),
        )
        config = SimpleNamespace(tracking=SimpleNamespace(log_interval=LOG_EVERY, log_text=True))
        tracker = SimpleNamespace(config=config, runtime=runtime, log=self._log)
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.learn = SimpleNamespace(
            stage="lm",
            train_state=TrainState("lm"),
            stage_step=0,
            valid_metrics={"valid_loss": 1.0},
            opt=SimpleNamespace(hypers=[{"lr": 0.0, "mom": 0.8}]),
            model=torch.nn.ParameterList([self.weight]),
            accelerate=SimpleNamespace(accelerator=SimpleNamespace(scaler=None)),
            further_losses={},
            micro_batches=[SimpleNamespace(weight=1.0, global_tokens=10, global_rows=1)],
        )
        self.tracking = TrackingCallback(tracker, "tokens", lambda before: before)  # type: ignore[arg-type]
        self.tracking.learn, self.tracking.is_late = self.learn, is_late
        self.tracking.progress = SimpleNamespace(advance=lambda: None, __exit__=lambda *args: None)  # type: ignore[assignment]
        runtime.step_timer.start()

    def _log(self, stage: str, position: dict, metrics: dict, tables: dict | None = None) -> None:
        self.lines.append({"stage": stage, **position, **metrics})

    def step(self, number: int) -> None:
        """Step `number`, counted from 0."""
        self.learn.loss = torch.tensor(LOSSES[number])
        self.learn.opt.hypers[0]["lr"] = 0.1 * (number + 1)
        self.weight.grad = torch.tensor([3.0, 4.0]) * (number + 1)
        self.tracking.before_step()
        self.learn.train_state.stage_step += 1
        self.learn.stage_step = self.learn.train_state.stage_step
        self.tracking.runtime.bytes_given += 1000
        self.tracking.after_batch()
        self.weight.grad = None

    def end(self) -> list[dict[str, Any]]:
        """End the epoch; return all lines without measured times."""
        self.tracking.after_train()
        self.tracking.runtime.step_timer.stop()
        self.tracking.after_epoch()
        return without_times(self.lines)


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if "second" not in name and "gb" not in name} for line in lines]


def test_a_line_is_written_at_the_next_ones_step_with_the_values_of_its_own():
    fit, written = Fit(is_late=True), []
    for number in range(4):
        fit.step(number)
        written.append([line["step"] for line in fit.lines])
    assert written == [[], [], [], [2]]
    (line,) = fit.lines
    assert (line["loss"], line["gradient_norm"], line["tokens"]) == (3.0, 10.0, 20)
    assert (line["learning_rate"], line["communication_mb"]) == (pytest.approx(0.2), 0.001)
    assert line["tokens_per_second"] > 0


def test_late_lines_are_those_that_are_written_at_once():
    at_once, late = Fit(is_late=False), Fit(is_late=True)
    for number in range(len(LOSSES)):
        at_once.step(number)
        late.step(number)
        assert [line["step"] for line in at_once.lines] == list(range(2, number + 2, 2))
    expected = at_once.end()
    assert [line["step"] for line in expected] == [2, 4, 6, 7]
    assert expected[-1]["train_loss"] == pytest.approx(sum(LOSSES) / len(LOSSES))
    assert late.end() == expected


def test_a_checkpoint_holds_the_lines_of_all_its_steps_and_a_resumed_run_logs_what_it_would_have_logged():
    whole, killed, resumed = Fit(is_late=True), Fit(is_late=True), Fit(is_late=True)
    for number in range(len(LOSSES)):
        whole.step(number)
    for number in range(4):
        killed.step(number)
    state = json.loads(json.dumps(killed.tracking.state_dict()))
    assert [line["step"] for line in killed.lines] == [2, 4]
    assert state["epoch_seconds"] > 0
    resumed.tracking.load_state_dict(state)
    resumed.learn.train_state.stage_step = resumed.learn.stage_step = 4
    for number in range(4, len(LOSSES)):
        resumed.step(number)
    assert without_times(killed.lines) + resumed.end() == whole.end()


def test_an_epoch_has_the_time_of_all_its_steps_whoever_reads_it_when(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("ulmfit_dist.distributed.step_timer.time.perf_counter", lambda: now[0])
    fit = Fit(is_late=True)
    for number in range(5):
        now[0] += 1.0
        fit.step(number)
        fit.tracking.runtime.step_timer.end("optimizer")
        if number == 2:
            fit.tracking.state_dict()
    fit.end()
    assert [line["tokens_per_second"] for line in fit.lines] == [10.0] * 3
    assert [line["optimizer_seconds"] for line in fit.lines[:2]] == [1.0] * 2
    assert fit.lines[-1]["epoch_seconds"] == 5.0


def test_a_copy_is_of_the_tensor_as_it_was():
    values = torch.tensor([1.0, 2.0])
    copy = HostCopy(values)
    values.zero_()
    assert copy.read() == [1.0, 2.0]


def test_a_copy_from_a_gpu_is_launched_and_waited_for_only_when_it_is_read(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []
    event = SimpleNamespace(record=lambda: calls.append("record"), synchronize=lambda: calls.append("wait"))
    monkeypatch.setattr(host_copy.cuda, "Event", lambda: event)
    values = SimpleNamespace(tolist=lambda: calls.append("read") or [1.0])
    on_gpu = SimpleNamespace(is_cuda=True, to=lambda *args, **how: calls.append((args, how)) or values)
    copy = HostCopy(on_gpu)  # type: ignore[arg-type]
    assert calls == [(("cpu",), {"non_blocking": True}), "record"]
    assert copy.read() == [1.0]
    assert calls[2:] == ["wait", "read"]


@pytest.mark.parametrize(("device", "actual"), [("cpu", [2, None, 4]), ("cuda", [None, 2, None])])
def test_a_status_exchange_reads_on_a_gpu_the_copies_that_the_last_one_launched(device: str, actual: list[int | None]):
    callback = CheckpointCallback.__new__(CheckpointCallback)
    callback.runtime, callback.losses, callback.copied = SimpleNamespace(device=torch.device(device)), [], []  # type: ignore
    seen = []
    for losses in ([(1, 1.0), (2, torch.nan)], [(3, 2.0)], [(4, torch.inf)]):
        callback.losses += [(step, torch.tensor(loss)) for step, loss in losses]
        seen.append(callback._bad_step())
    assert seen == actual
    callback._copy_losses()
    assert callback._bad_step() == (4 if device == "cuda" else None)


def test_laps_are_read_later_and_a_lap_whose_purpose_is_open_is_left_to_the_next(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("ulmfit_dist.distributed.step_timer.time.perf_counter", lambda: now[0])
    timer = StepTimer(CPU)
    timer.start()
    for seconds, part in ((1, "data"), (2, None), (4, "communication")):
        now[0] += seconds
        timer.end(part)
    first = timer.take()
    now[0] += 8
    timer.end("forward")
    second = timer.take()
    assert second.read().parts == dict.fromkeys(PARTS, 0.0) | {"communication": 4.0, "forward": 10.0}
    assert first.read().parts == dict.fromkeys(PARTS, 0.0) | {"data": 1.0}
    assert (first.read().training, second.read().training) == (1.0, 14.0)
