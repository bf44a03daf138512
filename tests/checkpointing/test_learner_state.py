"""State of a learner, captured and restored into another learner, in one process."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from fastai.callback.core import Callback
from stores import make_store

from ulmfit_dist.checkpointing.learner_state import LearnerStateDict, ResumeEpoch
from ulmfit_dist.config.schema import Config, DataConfig, LMConfig, ModelConfig, Phase, RuntimeConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.train_state import TrainState

T, V = 10, 60
HERE = TrainState("lm", num_phases=1, first_step=3, stage_step=3)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    rng = np.random.default_rng(0)
    documents = [rng.integers(9, V, rng.integers(20, 40)) for _ in range(40)]
    return make_store(tmp_path, documents, rng.integers(0, 3, 40).astype(np.int32), [f"w{i}" for i in range(V)])


def config_of(**runtime: object) -> Config:
    return Config(
        data=DataConfig(valid_pct=0.2),
        model=ModelConfig(emb_sz=8, n_hid=12, n_layers=2),
        runtime=RuntimeConfig(**runtime),  # type: ignore[arg-type]
        lm=LMConfig(global_batch_size=4, seq_len=T, phases=[Phase(1, 1e-2)]),
    )


def learner_state(store: TokenStore, **runtime: object) -> LearnerStateDict:
    config = config_of(**runtime)
    AcceleratorState._reset_state(reset_partial_state=True)
    own = Runtime(config.runtime)
    learner = lm_learner(config, own, store)
    learner.pct_train = 0.1
    return LearnerStateDict(learner, own)


def trained(state: LearnerStateDict, seed: int) -> LearnerStateDict:
    """As after some steps: moments and hidden states of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in state.parameters.items():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        if name != "1.decoder.bias":  # as if it were frozen
            moments = {key: torch.randn(parameter.shape, generator=generator) for key in ("grad_avg", "sqr_avg")}
            state.learner.opt.state[parameter].update(moments, step=3)
    layers = [(torch.randn(1, 4, n, generator=generator), torch.randn(1, 4, n, generator=generator)) for n in (12, 8)]
    encoder_of(state.learner.model).hidden_states = {
        rows.start: [(h[:, rows.start : rows.stop], c[:, rows.start : rows.stop]) for h, c in layers]
        for rows in state.learner.dls.train.row_ranges
    }
    return state


def as_on_disk(state: dict) -> dict:
    return json.loads(json.dumps(state))


def begin_epoch(state: LearnerStateDict) -> None:
    """As a resumed fit does, after all other callbacks."""
    encoder_of(state.learner.model).reset()
    (callback,) = [cb for cb in state.learner.cbs if isinstance(cb, ResumeEpoch)]
    callback.before_train()


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
def test_a_restored_state_is_captured_again(store: TokenStore, micro_batch_size: int | None):
    tensors, state = trained(learner_state(store), seed=0).capture(HERE)
    other = learner_state(store, micro_batch_size=micro_batch_size)
    other.restore(tensors, as_on_disk(state))
    assert other.learner.train_state == HERE
    begin_epoch(other)
    tensors_again, state_again = other.capture(HERE)
    assert as_on_disk(state_again) == as_on_disk(state)
    assert tensors["hidden_states"].keys() == {"0.h", "0.c", "1.h", "1.c"}
    for file, named in tensors.items():
        assert named.keys() == tensors_again[file].keys()
        assert all(torch.equal(tensor, tensors_again[file][name]) for name, tensor in named.items()), file
    widths = [len(layers[0][0][0]) for layers in encoder_of(other.learner.model).hidden_states.values()]
    assert widths == [len(rows) for rows in other.learner.dls.train.row_ranges]


def test_a_snapshot_is_a_copy(store: TokenStore):
    state = trained(learner_state(store), seed=0)
    tensors, _ = state.capture(HERE)
    before = tensors["model"]["0.encoder.weight"].clone()
    state.parameters["0.encoder.weight"].data.add_(1)
    assert torch.equal(tensors["model"]["0.encoder.weight"], before)


def test_a_loss_scaler_is_restored(store: TokenStore):
    state = trained(learner_state(store), seed=0)
    state.runtime.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    state.runtime.accelerator.scaler.scale(torch.zeros(1))
    state.runtime.accelerator.scaler.update(512.0)
    tensors, saved = state.capture(HERE)
    other = learner_state(store)
    other.runtime.accelerator.scaler = torch.amp.GradScaler("cpu")
    other.restore(tensors, as_on_disk(saved))
    assert other.runtime.accelerator.scaler.get_scale() == 512.0


@pytest.mark.parametrize(("of_config", "expected"), [(None, [2, 2]), (4, [2, 2]), (1, [1, 1, 1, 1])])
def test_a_micro_batch_size_to_which_a_lack_of_memory_led_is_kept(
    store: TokenStore, of_config: int | None, expected: list[int]
):
    state = trained(learner_state(store), seed=0)
    state.learner.limit_micro_batches(2)
    tensors, saved = state.capture(HERE)
    other = learner_state(store, micro_batch_size=of_config)
    other.restore(tensors, as_on_disk(saved))
    for loader in (other.learner.dls.train, other.learner.dls.valid):
        assert [len(batch.rows) for batch in loader.step(0)] == expected
    assert other.runtime.micro_batch_size == expected[0]
    with pytest.raises(UserError, match="micro_batch_size 0"):
        learner_state(store).restore(tensors, {**as_on_disk(saved), "micro_batch_size": 0})


def test_a_weight_that_is_nan_is_detected(store: TokenStore):
    state = learner_state(store)
    assert state.is_finite()
    state.parameters["1.decoder.bias"].data[3] = float("nan")
    assert not state.is_finite()


def test_the_state_of_another_model_is_refused(store: TokenStore):
    tensors, state = trained(learner_state(store), seed=0).capture(HERE)
    for spoil in (
        lambda tensors, state: tensors["model"].pop("1.decoder.bias"),
        lambda tensors, state: tensors["model"].update({"1.decoder.bias": torch.zeros(3)}),
        lambda tensors, state: tensors["optimizer"].update({"nobody/grad_avg": torch.zeros(3)}),
        lambda tensors, state: tensors["optimizer"].update({"0.encoder.weight/grad_avg": torch.zeros(3)}),
        lambda tensors, state: tensors["hidden_states"].pop("1.c"),
        lambda tensors, state: tensors["hidden_states"].update({"1.c": torch.zeros(2, 8)}),
        lambda tensors, state: state["optimizer"]["counters"].pop("1.decoder.bias"),
        lambda tensors, state: state.pop("optimizer"),
        lambda tensors, state: state["optimizer"].update(hypers=[]),
        lambda tensors, state: state["train_state"].update(phase="1"),
    ):
        spoiled = {file: dict(named) for file, named in tensors.items()}, as_on_disk(state)
        spoil(*spoiled)
        with pytest.raises(UserError, match="the checkpoint does not fit this model"):
            learner_state(store).restore(*spoiled)


def test_weights_that_are_large_but_finite_are_finite(store: TokenStore):
    state = learner_state(store)
    state.parameters["0.encoder.weight"].data.fill_(3e38)  # whose squares overflow
    assert state.is_finite()
    state.parameters["0.encoder.weight"].data[1, 2] = float("-inf")
    assert not state.is_finite()


def test_a_state_names_what_a_resume_depends_on(store: TokenStore):
    state = trained(learner_state(store), seed=0)
    state.learner.limit_micro_batches(2)
    _, saved = state.capture(HERE)
    assert saved["train_state"] == HERE.to_json()
    assert (saved["pct_train"], saved["precision"], saved["micro_batch_size"]) == (0.1, state.runtime.precision, 2)
    assert saved["scaler"] is None
    assert saved["optimizer"]["counters"]["0.encoder.weight"] == {"step": 3}
    assert saved["optimizer"]["counters"]["1.decoder.bias"] == {"do_wd": False}
    assert len(saved["optimizer"]["hypers"]) == len(state.learner.opt.param_lists)


def test_at_the_edge_of_an_epoch_there_is_no_hidden_state_and_no_progress_within_it(store: TokenStore):
    edge = replace(HERE, first_step=0, first_epoch=1)
    tensors, saved = trained(learner_state(store), seed=0).capture(edge)
    assert tensors["hidden_states"] == {}
    assert saved["pct_train"] == 0
    other = learner_state(store)
    other.learner.train_iter = 0
    other.restore(tensors, as_on_disk(saved))
    begin_epoch(other)
    assert other.learner.train_iter == len(other.learner.dls.train)
    assert other.learner.pct_train == 0.1  # which fastai has set for the epoch
    assert encoder_of(other.learner.model).hidden_states == {}


def test_a_resumed_epoch_continues_at_its_step_and_its_share_of_the_schedule(store: TokenStore):
    position = replace(HERE, first_epoch=2)
    tensors, saved = trained(learner_state(store), seed=0).capture(position)
    other = learner_state(store)
    other.learner.pct_train, other.learner.train_iter = 0.7, 0
    other.restore(tensors, as_on_disk(saved))
    assert other.learner.train_state == position
    begin_epoch(other)
    assert other.learner.train_iter == 2 * len(other.learner.dls.train) + 3
    assert other.learner.pct_train == 0.1
    (callback,) = [cb for cb in other.learner.cbs if isinstance(cb, ResumeEpoch)]
    callback.after_train()
    assert callback not in other.learner.cbs


def test_a_new_phase_begins_with_its_own_optimizer(store: TokenStore):
    tensors, saved = trained(learner_state(store), seed=0).capture(replace(HERE, first_step=0))
    other = learner_state(store)
    other.learner.train_iter = 0
    other.restore(tensors, as_on_disk(saved))
    begin_epoch(other)
    assert other.learner.train_iter == 0
    assert {other.learner.opt.state[parameter].get("step", 0) for parameter in other.parameters.values()} == {0}


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({"pct_train": 0}, False),
        ({"pct_train": 1.01}, False),
        ({"pct_train": -0.01}, True),
        ({"pct_train": 1.02}, True),
        ({"first_step": "steps"}, False),
        ({"first_step": "steps + 1"}, True),
        ({"stage": "classifier"}, True),
        ({"micro_batch_size": True}, True),
        ({"micro_batch_size": "2"}, True),
        ({"micro_batch_size": 1}, False),
    ],
    ids=str,
)
def test_a_position_beyond_the_epoch_is_refused(store: TokenStore, changes: dict, is_refused: bool):
    tensors, saved = trained(learner_state(store), seed=0).capture(HERE)
    other = learner_state(store)
    steps = {"steps": len(other.learner.dls.train), "steps + 1": len(other.learner.dls.train) + 1}
    for key, value in changes.items():
        of_train_state = key in ("first_step", "stage")
        (saved["train_state"] if of_train_state else saved)[key] = steps.get(value, value) if of_train_state else value
    if is_refused:
        with pytest.raises(UserError, match="the checkpoint does not fit this model"):
            other.restore(tensors, as_on_disk(saved))
    else:
        other.restore(tensors, as_on_disk(saved))


class Counting(Callback):
    """Callback with a state, as torch's `Stateful`."""

    def __init__(self, count: int):
        self.count = count

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class OnlySaving(Callback):
    """Callback whose state cannot be restored."""

    def state_dict(self) -> dict[str, int]:
        return {"count": 1}


def test_callbacks_with_a_state_are_restored_and_others_are_left_alone(store: TokenStore):
    state = trained(learner_state(store), seed=0)
    state.learner.add_cbs([Counting(5), OnlySaving()])
    tensors, saved = state.capture(HERE)
    assert saved["callbacks"]["counting"] == {"count": 5}
    assert "only_saving" not in saved["callbacks"]
    for callbacks, expected in ((saved["callbacks"], 5), ({}, 0)):  # a callback that the run did not have before
        other, counting = learner_state(store), Counting(0)
        other.learner.add_cb(counting)
        other.restore(tensors, {**as_on_disk(saved), "callbacks": callbacks})
        assert counting.count == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_restored_moments_are_copies_in_the_dtype_of_their_parameters(store: TokenStore, dtype: torch.dtype):
    tensors, saved = trained(learner_state(store), seed=0).capture(HERE)
    moments = {name: moment.to(dtype, copy=True) for name, moment in tensors["optimizer"].items()}
    other = learner_state(store)
    other.restore({**tensors, "optimizer": moments}, as_on_disk(saved))
    for moment in moments.values():
        moment.fill_(7)
    begin_epoch(other)
    parameter = other.parameters["0.encoder.weight"]
    restored = other.learner.opt.state[parameter]["grad_avg"]
    assert restored.dtype == parameter.dtype == torch.float32
    assert torch.equal(restored, tensors["optimizer"]["0.encoder.weight/grad_avg"])


@pytest.mark.parametrize(("of_state", "dtype"), [(None, torch.float64), ("fp64", torch.float32)])
def test_hidden_states_of_another_precision_are_converted(store: TokenStore, of_state: str | None, dtype: torch.dtype):
    tensors, saved = trained(learner_state(store), seed=0).capture(HERE)
    tensors["hidden_states"] = {name: hidden.double() for name, hidden in tensors["hidden_states"].items()}
    other = learner_state(store)
    other.restore(tensors, {**as_on_disk(saved), "precision": of_state or saved["precision"]})
    begin_epoch(other)
    for layers in encoder_of(other.learner.model).hidden_states.values():
        assert {part.dtype for parts in layers for part in parts} == {dtype}


def test_buffers_are_saved_and_restored_under_their_names(store: TokenStore):
    state, other = trained(learner_state(store), seed=0), learner_state(store)
    for one, value in ((state, 5.0), (other, 0.0)):
        one.learner.model[1].register_buffer("scale", torch.tensor([value]))
        one.modules["1.decoder"].register_buffer("shift", torch.tensor([value]))
    tensors, saved = state.capture(HERE)
    assert {"1.scale", "1.decoder.shift"} <= tensors["model"].keys()
    other.restore(tensors, as_on_disk(saved))
    assert other.learner.model[1].scale.tolist() == other.modules["1.decoder"].shift.tolist() == [5]


def test_another_rank_than_the_first_keeps_no_tensors(store: TokenStore, monkeypatch: pytest.MonkeyPatch):
    state = trained(learner_state(store), seed=0)
    monkeypatch.setattr(type(state.runtime), "is_main", False)
    tensors, saved = state.capture(HERE)
    assert tensors == {}
    assert saved["train_state"] == HERE.to_json()
