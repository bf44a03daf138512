"""Training steps: gradients against those of the whole global batch, computed here, with every dropout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from out_of_memory import config_of, make_texts
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.data.batches import IGNORED, MicroBatch
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.stages.classifier import classifier_learner
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.train_steps import in_rows, one_thread

ALPHA, BETA = 2.0, 1.0
CPU = torch.device("cpu")


@pytest.fixture
def runtime(no_process_group: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with Runtime(config_of().runtime, keeps_group=True) as runtime:
        yield runtime


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return make_texts(tmp_path / "store")


class FirstStep(Callback):
    """Gradients, loss, events and outputs of the first step, after which the fit ends."""

    order = 100

    def before_fit(self) -> None:
        self.events: Counter[str] = Counter()
        self.encoder_passes: list[range] = []
        self.hook = encoder_of(self.learn.model).register_forward_pre_hook(self._note_pass)

    def _note_pass(self, encoder: nn.Module, _: object) -> None:
        if encoder.position.chunk == 0:
            self.encoder_passes.append(encoder.position.rows)

    def after_pred(self) -> None:
        self.events["after_pred"] += 1
        self.inputs, self.outputs, self.seen_targets = self.learn.xb[0], self.learn.pred, self.learn.yb[0]

    def after_loss(self) -> None:
        self.events["after_loss"] += 1
        assert not self.learn.loss.requires_grad  # what callbacks record keeps no graph

    def before_backward(self) -> None:
        self.events["before_backward"] += 1

    def before_step(self) -> None:
        self.gradients = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.learn.model.named_parameters()
        }
        self.mean_loss = self.learn.loss.item()
        self.kept_outputs = [] if self.learn.stage == "lm" else list(self.learn.encoded)

    def after_step(self) -> None:
        self.hook.remove()
        raise CancelFitException


def first_step(learner: DistributedLearner) -> FirstStep:
    """Make one step of a learner without clipping."""
    learner.accelerate.grad_clip = None
    recorded = FirstStep()
    learner.fit(1, cbs=recorded)
    return recorded


def learner_of(stage: str, store: TokenStore, runtime: Runtime, **settings: object) -> DistributedLearner:
    runtime.micro_batch_size, config = None, config_of(**settings)
    if stage == "lm":
        return lm_learner(config, runtime, store)
    return classifier_learner(config, runtime, store, needs_encoder=False)


def whole_batch(learner: DistributedLearner) -> MicroBatch:
    (batch,) = learner.dls.train.step(0)
    return batch


def penalty(dropped: Tensor, raw: Tensor) -> Tensor:
    return ALPHA * dropped.pow(2).mean() + BETA * (raw[:, 1:] - raw[:, :-1]).pow(2).mean()


def expected_of(stage: str, learner: DistributedLearner) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of the global batch by torch's operations."""
    batch, model = whole_batch(learner), learner.model.train()
    encoder_of(model).position.step, encoder_of(model).position.rows = 0, batch.rows
    if stage == "lm":
        features, raw, dropped = model(batch.x)
        loss = F.cross_entropy(model[1].decoder(features).flatten(0, 1), batch.y.flatten())
        (loss + penalty(dropped, raw)).backward()
    else:
        output, padding = model[0](batch.x, batch.chunk_rows)
        logits, *_ = model[1]((output, padding))
        loss = F.cross_entropy(logits, batch.y)
        (loss + penalty(output, output)).backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 1}, {"micro_batch_size": 3}, {"canonical_ranks": 2}], ids=str)
@pytest.mark.parametrize("stage", ["lm", "classifier"])
def test_a_step_has_loss_and_gradients_of_the_global_batch(stage: str, settings: dict, store: TokenStore, runtime: Runtime):
    loss, gradients = expected_of(stage, learner_of(stage, store, runtime))
    learner = learner_of(stage, store, runtime, **settings)  # whose weights are the same
    number = len(learner.dls.train.step(0))
    actual = first_step(learner)
    assert actual.mean_loss == pytest.approx(loss, rel=1e-12)
    assert actual.gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(actual.gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    times = number if stage == "lm" else 1
    assert actual.events == {"after_pred": times, "after_loss": times, "before_backward": times}


@pytest.mark.parametrize("stage", ["lm", "classifier"])
def test_a_frozen_encoder_gets_no_gradient_and_no_second_pass(stage: str, store: TokenStore, runtime: Runtime):
    learner = learner_of(stage, store, runtime, micro_batch_size=3)
    _, gradients = expected_of(stage, learner_of(stage, store, runtime))
    learner.freeze()
    actual = first_step(learner)
    rows = [batch.rows for batch in learner.dls.train.step(0)]
    assert actual.encoder_passes == rows
    trained = {id(parameter) for group in learner.opt.param_lists[-1:] for parameter in group}
    for name, parameter in learner.model.named_parameters():
        if id(parameter) in trained or ("bias" in name and "layers" in name):
            torch.testing.assert_close(actual.gradients[name], gradients[name], rtol=1e-9, atol=1e-12)
        elif name.startswith("0."):
            assert actual.gradients[name] is None


def test_a_classifiers_encoder_runs_twice_where_micro_batches_save_memory_only(store: TokenStore, runtime: Runtime):
    for settings, times in (
        ({}, 1),
        ({"micro_batch_size": 9}, 1),
        ({"micro_batch_size": 8}, 2),
        ({"micro_batch_size": 3}, 2),
        ({"canonical_ranks": 2}, 1),
    ):
        learner = learner_of("classifier", store, runtime, **settings)
        rows = [batch.rows for batch in learner.dls.train.step(0)]
        actual = first_step(learner)
        assert actual.encoder_passes == rows * times, settings
        assert actual.kept_outputs == []  # no graph outlives its step


def test_callbacks_of_a_classifier_see_outputs_and_targets_of_the_global_batch(store: TokenStore, runtime: Runtime):
    learner = learner_of("classifier", store, runtime, micro_batch_size=3)
    batch = whole_batch(learner_of("classifier", store, runtime))
    actual = first_step(learner)
    assert actual.outputs.shape == (batch.global_rows, 3)
    assert actual.seen_targets.tolist() == batch.y.tolist()
    assert torch.equal(actual.inputs, batch.x)


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 3}], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("stage", ["lm", "classifier"])
def test_a_validation_has_the_metrics_of_the_models_outputs(stage: str, settings: dict, store: TokenStore, runtime: Runtime):
    learner, losses = learner_of(stage, store, runtime, **settings), []
    actual = learner.validate()
    model = learner_of(stage, store, runtime).model.eval()
    model.reset()
    with torch.no_grad():
        for batches in learner_of(stage, store, runtime).dls.valid:
            for batch in batches:
                encoder_of(model).position.rows = batch.rows
                output = model(batch.x)[0] if stage == "lm" else model[1](model[0](batch.x))[0]
                logits = model[1].decoder(output).flatten(0, 1) if stage == "lm" else output
                losses += F.cross_entropy(logits, batch.y.flatten(), reduction="none")[batch.y.flatten() != IGNORED].tolist()
    assert actual["valid_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_what_a_failed_step_holds_is_released(store: TokenStore, runtime: Runtime):
    learner = learner_of("classifier", store, runtime)
    first_step(learner)
    assert "pooled" in learner.__dict__
    learner.encoded = [(torch.zeros(1), torch.zeros(1))]
    for _ in range(2):  # the second time nothing is left
        learner.release()
        assert learner.encoded == []
        assert "pooled" not in learner.__dict__
        assert (learner.xb, learner.yb, learner.pred, learner.loss_grad) == ((), (), None, None)


def test_modules_that_are_trained_as_a_whole_are_replaced(store: TokenStore, runtime: Runtime):
    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module):
            super().__init__()
            self.module = module

    learner = learner_of("lm", store, runtime)
    model = learner.model
    learner.replace_modules(Wrapped)
    assert learner.model.module is model
    learner = learner_of("classifier", store, runtime)
    encoder, layers = learner.model[0], learner.model[1].layers
    learner.replace_modules(Wrapped)
    assert learner.model[0].module is encoder
    assert learner.model[1].layers.module is layers


def batch_at(rows: range, global_rows: int = 6) -> MicroBatch:
    return MicroBatch(torch.zeros(len(rows), 1), torch.zeros(len(rows)), rows, global_rows, global_rows)


def test_rows_are_put_where_they_are_in_the_global_batch():
    batches = [batch_at(range(1, 6, 2)), batch_at(range(0, 1))]
    placed = in_rows([torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.tensor([[7.0, 8]])], batches)
    assert placed.tolist() == [[7, 8], [1, 2], [0, 0], [3, 4], [0, 0], [5, 6]]
    numbers = in_rows([torch.tensor([4, 5, 6])], batches[:1])
    assert numbers.tolist() == [0, 4, 0, 5, 0, 6]
    assert numbers.dtype == torch.int64


def test_the_head_computes_onone_thread_and_then_on_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread(CPU):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyError), one_thread(CPU):
            raise KeyError
        assert torch.get_num_threads() == 3
        with one_thread(torch.device("meta")):  # as on a GPU
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
