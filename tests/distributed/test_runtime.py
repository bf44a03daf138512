"""Tests of the runtime: joining and leaving the process group, and changes of precision."""

import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from conftest import launch
from torch import nn

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.data.batches import BatchShard
from ulmfit_dist.distributed import process_group, signals
from ulmfit_dist.distributed.process_group import CONTROL_TIMEOUT, join_process_group
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import RankLostError, ResumableInterrupt, UserError
from ulmfit_dist.training.callbacks.accelerate import AccelerateCallback

LEAVE = """
from pathlib import Path
import torch
from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime

with Runtime(RuntimeConfig()) as runtime:
    model = runtime.accelerator.prepare_model(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    del model
names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
Path(f"rank-{runtime.rank}").write_text(" ".join(name for name in names if "gloo" in name))
"""

TWO_RUNTIMES = """
import json
import os
from pathlib import Path

os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"  # as after `--max_restarts`
import torch
import torch.distributed as dist
from ulmfit_dist.distributed import process_group, signals
from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.distributed.runtime import Runtime

real, used = process_group.control_group, []
process_group.control_group = lambda device: real(torch.device("cuda"))  # as on a GPU
for name in ("all_gather_object", "broadcast_object_list", "barrier"):
    def noted(*args, collective=getattr(dist, name), **kwargs):
        used.append(kwargs.get("group") or args[0])
        return collective(*args, **kwargs)
    setattr(dist, name, noted)

found = []
for precision in ("bf16", "fp32"):
    with Runtime(RuntimeConfig(precision=precision), keeps_group=True) as runtime:
        runtime.barrier()
        model = runtime.accelerator.prepare_model(torch.nn.Linear(64, 64))
        x = torch.arange(64.0)
        same = torch.equal(model(x), torch.nn.functional.linear(x, model.module.weight, model.module.bias))
        rank = runtime.rank
        found.append([runtime.precision, same, runtime.all_gather_object(rank), runtime.broadcast_object(rank)])
        assert (runtime.highest(-rank), runtime.highest(rank)) == (0, 1)
        control = runtime._control
        try:
            with runtime.fail_together():
                if rank == 1:
                    raise UserError("one rank fails")
        except UserError as error:
            found.append(str(error))
with Runtime(RuntimeConfig(precision="fp32")) as runtime:
    found.append(runtime._control is control and control is not dist.group.WORLD)
    found.append(all(group is control for group in used) and len(used) > 10)
    found.append(dist.get_backend(control))
    found.append(control._get_backend(torch.device("cpu")).options._timeout.total_seconds())
used.clear()
del model, control
names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
found.append([name for name in names if "gloo" in name])
Path(f"rank-{runtime.rank}.json").write_text(json.dumps(found))
"""


def test_no_thread_of_the_process_group_outlives_the_run(tmp_path: Path):
    """A remaining thread can abort the process after all work is done. New interpreters, because imports decide it."""
    (tmp_path / "leave.py").write_text(LEAVE)
    result = launch(["leave.py"], processes=2, cwd=tmp_path, real=True)
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == ["", ""]


@pytest.mark.usefixtures("bf16_lstms")
def test_ranks_keep_their_group_in_another_precision_and_control_uses_gloo(tmp_path: Path):
    (tmp_path / "two_runtimes.py").write_text(TWO_RUNTIMES)
    result = launch(["two_runtimes.py"], processes=2, cwd=tmp_path, real=True)
    assert result.returncode == 0, result.stderr
    for rank in range(2):
        first, error, second, same_error, is_kept, all_on_it, backend, timeout, threads = json.loads(
            (tmp_path / f"rank-{rank}.json").read_text()
        )
        assert first == ["bf16", False, [0, 1], 0]
        assert second == ["fp32", True, [0, 1], 0]
        assert error == same_error == "one rank fails"
        assert (is_kept, all_on_it, backend, timeout) == (True, True, "gloo", CONTROL_TIMEOUT.total_seconds())
        assert threads == []


@pytest.mark.parametrize(
    ("has_gpu", "expected"), [(True, {"cpu": False}), (False, {"cpu": True, "timeout": timedelta(hours=3)})]
)
def test_gradients_have_nccls_own_timeout(has_gpu: bool, expected: dict, monkeypatch: pytest.MonkeyPatch):
    """Ranks wait for `prepare` over gloo, so ten minutes in NCCL mean a hang."""
    monkeypatch.setattr(process_group, "PartialState", lambda **kwargs: kwargs)
    assert join_process_group(has_gpu) == expected


@pytest.mark.parametrize(("has_gpu", "backend"), [(True, "gloo"), (False, "nccl")])
def test_ranks_cannot_change_their_kind_of_device(has_gpu: bool, backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_group.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(process_group.dist, "get_backend", lambda: backend)
    with pytest.raises(UserError, match=f"process group uses {backend}.*set ACCELERATE_USE_CPU before the ranks start"):
        join_process_group(has_gpu)


@pytest.fixture
def on_cpus(no_process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def fitted(runtime: Runtime, x: torch.Tensor) -> torch.Tensor:
    """Return the output of a module while a learner of this runtime trains it."""
    torch.manual_seed(0)
    learner = SimpleNamespace(model=nn.Linear(64, 64, dtype=torch.get_default_dtype()))
    learner.replace_modules = lambda replace: setattr(learner, "model", replace(learner.model))
    callback = AccelerateCallback(runtime, BatchShard())
    callback.learn = learner
    callback.before_fit()
    assert AcceleratorState._shared_state["_mixed_precision"] == runtime.accelerator.mixed_precision  # autocast's dtype
    return learner.model(x).detach()


@pytest.mark.usefixtures("on_cpus")
@pytest.mark.usefixtures("bf16_lstms")
def test_runtimes_of_different_precision_are_used_in_turn():
    """A notebook may use a learner in bf16, another one in fp32, and the first one again."""
    x = torch.randn(5, 64)
    half, full = Runtime(RuntimeConfig(precision="bf16")), Runtime(RuntimeConfig(precision="fp32"))
    assert (half.precision, full.precision) == ("bf16", "fp32")
    assert (half.accelerator.mixed_precision, full.accelerator.mixed_precision) == ("bf16", "no")
    first, second, third = fitted(half, x), fitted(full, x), fitted(half, x)
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, rtol=0.05, atol=0.05)


@pytest.mark.usefixtures("on_cpus")
@pytest.mark.usefixtures("bf16_lstms")
def test_a_call_of_another_precision_leaves_a_learner_in_its_own():
    x = torch.randn(5, 64)
    learners = Runtime(RuntimeConfig(precision="fp64"))
    with Runtime(RuntimeConfig(precision="bf16"), keeps_group=True) as runtime:
        assert fitted(runtime, x).dtype == torch.float32
    assert AcceleratorState._shared_state["_mixed_precision"] == "no"
    learners.activate()
    assert torch.get_default_dtype() == torch.float64
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("on_cpus")
@pytest.mark.usefixtures("bf16_lstms")
def test_a_call_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch):
    """A notebook may start ranks afterwards: Accelerate's launcher requires a process without distributed state."""
    with Runtime(RuntimeConfig(precision="bf16"), keeps_group=True):
        assert PartialState._shared_state
    assert PartialState._shared_state == AcceleratorState._shared_state == {}
    assert "RANK" not in os.environ


@pytest.mark.usefixtures("on_cpus")
def test_the_accelerator_of_a_script_keeps_its_precision():
    from accelerate import Accelerator

    own = Accelerator(cpu=True, mixed_precision="bf16")
    with Runtime(RuntimeConfig(precision="fp32"), keeps_group=True) as runtime:
        assert runtime.accelerator.mixed_precision == "no"
    assert own.mixed_precision == "bf16"
    assert own.prepare_model(nn.Linear(64, 64))(torch.ones(1, 64)).dtype == torch.float32
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"


def test_a_signal_does_not_interrupt_the_end_of_a_run_that_is_done(no_process_group: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    before = signal.getsignal(signal.SIGTERM)
    with signals.at_once(), Runtime(RuntimeConfig(precision="fp32")) as runtime:
        monkeypatch.setattr(runtime.accelerator, "end_training", lambda: signal.raise_signal(signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("on_cpus")
def test_a_signal_does_not_hide_that_another_rank_was_lost():
    """The launcher signals the other ranks at once, while they exit after a failed collective."""
    for cause, expected in ((RuntimeError("connection closed"), RankLostError), (None, ResumableInterrupt)):
        runtime = Runtime(RuntimeConfig(precision="fp32"), keeps_group=True)
        runtime.heartbeat = SimpleNamespace(loss=lambda patience: "rank 1 was lost", close=lambda message: None)
        stop = ResumableInterrupt("stopped by SIGTERM")
        stop.__context__ = cause
        with pytest.raises(expected), runtime:
            raise stop
