"""A text model of the user's own: the example's encoder through both stages, and classes that cannot be one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LEARNING, TINY, make_folder
from fastai.text.models.awdlstm import awd_lstm_clas_split, awd_lstm_lm_split
from torch import Tensor, nn

from examples.custom_encoder import GRUEncoder
from ulmfit_dist import classifier_learner, evaluate, lm_learner, load_classifier, load_config, load_language_model
from ulmfit_dist.checkpointing.learner_state import LearnerStateDict
from ulmfit_dist.config.schema import ClassifierConfig, Config, LMConfig, ModelConfig, RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.export.fastai import export_to_fastai
from ulmfit_dist.export.onnx import export_to_onnx
from ulmfit_dist.models.awd_lstm import AWDLSTM
from ulmfit_dist.models.encoder import Encoder, Hidden
from ulmfit_dist.models.networks import (
    build_classifier,
    build_language_model,
    classifier_groups,
    encoder_of,
    lm_groups,
)
from ulmfit_dist.models.sampling import Sampling, continue_tokens
from ulmfit_dist.training.train_state import TrainState
from ulmfit_dist.training.train_steps import LMLearner

pytestmark = pytest.mark.usefixtures("no_process_group")
GRU = "model.arch=examples.custom_encoder.GRUEncoder"
SIZES = ModelConfig(emb_sz=6, n_hid=8, n_layers=3)


class Bag(Encoder):
    """Words alone: it keeps no state."""

    def __init__(self, vocab_size: int, model: ModelConfig, dropouts: dict[str, float]):
        super().__init__()
        self.encoder, self.layer = nn.Embedding(vocab_size, model.emb_sz), nn.Linear(model.emb_sz, model.emb_sz)

    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        return self.layer(self.encoder(x_bT)), state

    def zero_state(self, num_rows: int) -> Hidden:
        return []

    def layer_groups(self) -> list[nn.Module]:
        return [self.layer]


class Constant(AWDLSTM):
    """AWD-LSTM but for what it gives."""

    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        output, state = super().read(x_bT, state)
        return torch.ones_like(output), state


class Narrow(GRUEncoder):
    """Its embedding is not of the width that the config names."""

    def __init__(self, vocab_size: int, model: ModelConfig, dropouts: dict[str, float]):
        super().__init__(vocab_size, ModelConfig(emb_sz=5, n_hid=model.n_hid, n_layers=model.n_layers), dropouts)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("own_encoder") / "texts", per_class=30)


@pytest.fixture
def words(texts: Path, tmp_path: Path) -> list[str]:
    return [*TINY, *LEARNING, f"data.path={texts}", f"data.cache_dir={texts.parent}/cache", f"runs_dir={tmp_path}", GRU]


def identities(groups) -> list[list[int]]:
    return [[id(parameter) for parameter in group] for group in groups]


def test_layer_groups_are_fastais():
    language_model = build_language_model(40, SIZES, LMConfig())
    classifier = build_classifier(40, 3, SIZES, ClassifierConfig())
    assert identities(lm_groups(language_model)) == identities(awd_lstm_lm_split(language_model))
    assert identities(classifier_groups(classifier)) == identities(awd_lstm_clas_split(classifier))


def test_what_is_in_no_layer_is_trained_with_the_embedding():
    model = build_language_model(40, ModelConfig(6, 8, 2, arch="examples.custom_encoder.GRUEncoder"), LMConfig())
    encoder_of(model).scale = nn.Parameter(torch.ones(1))
    groups = lm_groups(model)
    assert sorted(id(parameter) for group in groups for parameter in group) == sorted(map(id, model.parameters()))
    assert encoder_of(model).scale in set(groups[-1])


def test_both_stages_and_what_is_done_with_their_models(words: list[str], tmp_path: Path):
    config = load_config(None, words)
    learn = lm_learner(config)
    before = learn.validate()["valid_loss"]
    learn.fit_one_cycle(3, 5e-2)
    assert learn.valid_metrics["valid_loss"] < before
    learn.export()
    classifier = classifier_learner(config)
    assert torch.equal(encoder_of(classifier.model).encoder.weight, encoder_of(learn.model).encoder.weight)
    classifier.fit_one_cycle(3, 5e-2)
    classifier.export()

    assert (
        load_language_model(tmp_path / "run", trust_remote_code=True)
        .generate("the match", words=5)[0]
        .startswith("the match ")
    )
    assert load_classifier(tmp_path / "run", trust_remote_code=True).predict(["goal match team score"])[0].label
    actual = evaluate(tmp_path / "run", Runtime(RuntimeConfig(precision="fp32")), trust_remote_code=True)
    assert actual["classifier"]["accuracy"] == classifier.valid_metrics["accuracy"]
    assert actual["lm"]["valid_loss"] == pytest.approx(learn.valid_metrics["valid_loss"], rel=1e-6)
    for refused in (
        lambda: load_classifier(tmp_path / "run"),
        lambda: load_language_model(tmp_path / "run"),
        lambda: export_to_fastai(tmp_path / "run"),
        lambda: export_to_onnx(tmp_path / "run", tmp_path / "model.onnx"),
        lambda: lm_learner(load_config(None, [*words[:-1], f"model.pretrained={tmp_path / 'run'}"])),
    ):
        with pytest.raises(UserError, match=r"model\.arch"):
            refused()
    assert lm_learner(load_config(None, [*words, f"model.pretrained={tmp_path / 'run'}"])).validate()["valid_loss"] < before


def test_a_text_is_continued_by_what_an_own_encoder_reads():
    model = build_language_model(40, replace(SIZES, arch="test_user_encoder.Constant"), LMConfig()).eval()
    likeliest = int(model[1].decoder(torch.ones(SIZES.emb_sz)).argmax())
    tokens = continue_tokens(model, torch.tensor([[2, 3]]), 4, Sampling(top_k=1), [], 1)
    assert tokens.tolist() == [[2, 3, *[likeliest] * 4]]


def weights(config: Config) -> dict[str, Tensor]:
    learn = lm_learner(config)
    learn.fit_one_cycle(1, 5e-2)
    return dict(learn.model.state_dict())


def test_rows_in_turns_train_as_all_at_once(words: list[str]):
    words = [*words, "runtime.precision=fp64", "lm.drop_mult=1"]
    whole = weights(load_config(None, words))
    pieces = weights(load_config(None, [*words, "runtime.micro_batch_size=1"]))
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("arch", "names"), [("GRU", {"0.h", "1.h"}), ("Bag", set()), ("qrnn", {"0.h", "0.c", "1.h"})])
def test_its_state_is_part_of_a_checkpoint(arch: str, names: set[str], words: list[str]):
    if arch == "qrnn":
        words = [*words, "model.arch=qrnn"]  # the first layer also keeps its last input
    if arch == "Bag":
        words = [*words, "model.arch=test_user_encoder.Bag", "model.n_layers=1"]
    config = load_config(None, words)
    learn, other = (lm_learner(config) for _ in range(2))
    learn.pct_train = 0.1
    for step in range(2):
        for batch in learn.dls.train.step(step):
            learn.set_dropout_context(batch.rows)
            learn.model.eval()(batch.x)
    runtime = Runtime(config.runtime)
    train_state = TrainState("lm", num_phases=1, first_step=2, stage_step=2)
    tensors, state = LearnerStateDict(learn, runtime).capture(train_state)
    assert tensors["hidden_states"].keys() == names
    LearnerStateDict(other, runtime).restore(tensors, json.loads(json.dumps(state)))
    encoder_of(other.model).reset()
    other.resume_epoch.before_train()
    assert as_lists(other) == as_lists(learn)


def as_lists(learn: LMLearner) -> dict[int, list]:
    states = encoder_of(learn.model).hidden_states
    return {row: [[part.tolist() for part in layer] for layer in state] for row, state in states.items() if state}


@pytest.mark.parametrize(
    ("arch", "model", "printed"),
    [
        ("examples.custom_encoder.LSTMEncoder", {}, "cannot be imported"),
        ("torch.nn.LSTM", {}, "is not a subclass of ulmfit_dist.models.encoder.Encoder: derive it from that"),
        ("ulmfit_dist.models.encoder.Encoder", {}, "cannot be instantiated .*abstract"),
        (
            "examples.custom_encoder.GRUEncoder",
            {"arch_kwargs": {"depth": 2}},
            "cannot be instantiated .*depth.*arch_kwargs",
        ),
        ("test_user_encoder.Narrow", {}, r"\(40, 5\), expected vocabulary and model.emb_sz, \(40, 6\)"),
        ("test_user_encoder.Bag", {}, r"layer_groups\(\) returns 1 groups, but model.n_layers is 3"),
    ],
)
def test_what_cannot_be_an_encoder_is_refused(arch: str, model: dict, printed: str):
    with pytest.raises(UserError, match=printed):
        build_language_model(40, ModelConfig(6, 8, 3, arch=arch, **model), LMConfig())
