"""State of a learner, captured and restored into another learner, in one process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
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
