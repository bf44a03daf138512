"""Tests of loss scaling in fp16 training on a GPU. Skipped without a GPU."""

import json
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from small_runs import DEVICE, PRECISIONS, make_texts, needs_cuda, needs_gpu, running, small_config

from ulmfit_dist.checkpointing.learner_state import LearnerStateDict
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.schedule import run_phases
from ulmfit_dist.training.train_state import TrainState

pytestmark = needs_gpu

PRECISION = "fp16" if DEVICE.type == "cuda" else "bf16"
BAD_STEP = 6


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("texts"))


class OneBadStep(Callback):
    """Callback that makes one gradient of a step infinite, and records weight changes and the scale of each step."""

    def before_step(self) -> None:
        self.scale = self.learn.accelerate.accelerator.scaler.get_scale()
        self.weights = [parameter.detach().clone() for parameter in self.learn.model.parameters()]
        if self.learn.stage_step == BAD_STEP:
            self.learn.model[1].decoder.bias.grad[3] = torch.inf

    def after_step(self) -> None:
        pairs = zip(self.weights, self.learn.model.parameters(), strict=True)
        changed = [not torch.equal(before, after) for before, after in pairs]
        assert len(set(changed)) == 1
        factor = self.learn.accelerate.accelerator.scaler.get_scale() / self.scale
        self.noted = [*getattr(self, "noted", []), (changed[0], factor)]


def give_scaler(runtime: Runtime) -> torch.amp.GradScaler:
    """Return a scaler with a scale at which no gradient of these tests overflows."""
    runtime.accelerator.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0)
    return runtime.accelerator.scaler


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
def test_the_loss_is_scaled_in_fp16_alone(precision: str, texts: Path, tmp_path: Path):
    with running(small_config(texts, tmp_path, f"runtime.precision={precision}")) as runtime:
        assert (runtime.accelerator.scaler is not None) is (precision == "fp16")


def test_a_step_of_infinite_gradients_is_left_out_and_training_goes_on(texts: Path, tmp_path: Path):
    config = small_config(
        texts, tmp_path, f"runtime.precision={PRECISION}", "lm.phases=[{epochs: 1, lr: 1e-2}]", "lm.grad_clip=0.3"
    )
    with running(config) as runtime:
        give_scaler(runtime)
        learner, steps = lm_learner(config, runtime, TokenStore(texts)), OneBadStep()
        learner.add_cb(steps)
        run_phases(learner, config.lm.phases)
        assert all(parameter.isfinite().all() for parameter in learner.model.parameters())
    good, bad = (True, 1.0), (False, 0.5)
    assert len(steps.noted) > BAD_STEP + 10
    assert steps.noted == [bad if step == BAD_STEP else good for step in range(len(steps.noted))]


def test_the_scaler_is_part_of_a_checkpoint_and_comes_back(texts: Path, tmp_path: Path):
    config = small_config(texts, tmp_path, f"runtime.precision={PRECISION}", "lm.phases=[{epochs: 1, lr: 1e-2}]")
    with running(config) as runtime:
        scaler, learner = give_scaler(runtime), lm_learner(config, runtime, TokenStore(texts))
        state, num_steps = LearnerStateDict(learner, runtime), len(learner.dls.train)
        learner.add_cb(OneBadStep())
        run_phases(learner, config.lm.phases)
        tensors, saved = state.capture(TrainState("lm", num_phases=1, phase=1, stage_step=num_steps))
        expected = scaler.state_dict()
    assert expected["scale"] == 512
    assert expected["_growth_tracker"] == num_steps - BAD_STEP - 1
    with running(config) as runtime:
        scaler = give_scaler(runtime)
        assert scaler.state_dict() != expected
        LearnerStateDict(lm_learner(config, runtime, TokenStore(texts)), runtime).restore(
            tensors, json.loads(json.dumps(saved))
        )
        assert scaler.state_dict() == expected
        scaler.scale(torch.zeros(1, device=DEVICE))  # a scaler makes its scale at its first use
        assert scaler.state_dict() == expected
