"""Our learners beside fastai's own, on one process: the same weights, batches and recipe, dropout off, step by step."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.text.learner import language_model_learner, text_classifier_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config, awd_lstm_clas_split, awd_lstm_lm_config
from stores import make_store
from torch.nn import functional as F

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import ClassifierConfig, Config, DataConfig, LMConfig, ModelConfig, Phase, RuntimeConfig
from ulmfit_dist.data.batches import RankLoader
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.accumulators import ClassifierMetrics
from ulmfit_dist.models.networks import build_classifier
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages.classifier import classifier_loaders
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.learner import LearnerParts, build_learner
from ulmfit_dist.training.schedule import learning_rate, run_phases
from ulmfit_dist.training.train_steps import ClassifierLearner

T, V, CLASSES = 10, 60, 3
SIZES = {"emb_sz": 24, "n_hid": 40, "n_layers": 3}
NEARLY_NONE = 1e-15
"""A dropout that drops nothing: with zero, fastai's WeightDropout fails."""
CONFIG = Config(
    data=DataConfig(valid_pct=0.1),
    model=ModelConfig(**SIZES),
    lm=LMConfig(
        global_batch_size=8, seq_len=T, drop_mult=0, grad_clip=0.3, phases=[Phase(1, 1e-2, -1), Phase(1, [2e-3, 5e-3], 0)]
    ),
    classifier=ClassifierConfig(
        global_batch_size=8,
        seq_len=T,
        max_len=4 * T,
        drop_mult=0,
        head_dropout=0,
        grad_clip=0.3,
        phases=[Phase(1, 2e-2, -1), Phase(1, [5e-4, 5e-3], -2), Phase(2, [2e-4, 2e-3], 0)],
    ),
)


class StepLosses(Callback):
    """The training loss of each step."""

    def before_fit(self) -> None:
        self.actual = getattr(self, "actual", [])

    def after_batch(self) -> None:
        if self.learn.training:
            self.actual.append(self.learn.loss.item())


class Replay:
    """Our batches as fastai's loaders give them: `(x, y)`, another order each epoch."""

    def __init__(self, batches: RankLoader):
        self.batches, self.epoch = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.batches.set_epoch(self.epoch)
        self.epoch += 1
        yield from ((batch.x, batch.y) for (batch,) in self.batches)


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """One process that computes in a precision."""
    yield Runtime(RuntimeConfig(precision=request.param))
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Documents whose class shows in their words, of whole chunks: there fastai reads every token of every one."""
    rng = np.random.default_rng(0)
    labels = np.arange(130) % CLASSES
    weights = rng.dirichlet(np.full(V - 2, 0.3), CLASSES)
    documents = [2 + rng.choice(V - 2, size=T * rng.integers(1, 7), p=weights[label]) for label in labels]
    return make_store(tmp_path_factory.mktemp("store"), documents, labels, [f"w{i}" for i in range(V)])


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def reference(build, ours: Learner, config: dict[str, float], **kwargs) -> Learner:
    """fastai's learner, with our weights and batches."""
    dls = DataLoaders(Replay(ours.dls.train), Replay(ours.dls.valid), device="cpu")
    dls.vocab, dls.c = [f"w{i}" for i in range(V)], CLASSES
    config = {**config, **SIZES, "output_p": 0, "hidden_p": 0, "input_p": 0, "embed_p": 0, "weight_p": NEARLY_NONE}
    settings = {"moms": (0.8, 0.7, 0.8), "alpha": 2.0, "beta": 1.0, "wd": ours.wd, "pretrained": False}
    callbacks = {"default_cbs": False, "cbs": [TrainEvalCallback(), GradientClip(0.3)]}  # Recorder fails in fp64
    learner = build(dls, AWD_LSTM, config=config, drop_mult=1, **callbacks, **settings, **kwargs)
    learner.loss_func = cross_entropy  # what fastai's CrossEntropyLossFlat computes, which rounds fp64 to fp32
    learner.model.load_state_dict(ours.model.state_dict())
    return learner


def losses(learner: Learner, phases: list[Phase], ours: bool) -> list[float]:
    recorded = StepLosses()
    learner.add_cb(recorded)
    if ours:
        run_phases(learner, phases)
    else:
        for phase in phases:
            learner.freeze_to(phase.freeze_to)
            learner.fit_one_cycle(phase.epochs, learning_rate(phase))
    return recorded.actual


@pytest.mark.parametrize(("runtime", "tolerance"), [("fp64", 1e-8), ("fp32", 1e-5)], indirect=["runtime"])
def test_fifty_steps_of_the_language_model_are_fastais(store: TokenStore, runtime: Runtime, tolerance: float):
    ours = lm_learner(CONFIG, runtime, store)
    fastais = reference(language_model_learner, ours, awd_lstm_lm_config)
    expected, actual = losses(fastais, CONFIG.lm.phases, ours=False), losses(ours, CONFIG.lm.phases, ours=True)
    assert len(actual) >= 50
    assert actual == pytest.approx(expected, rel=tolerance)
    assert actual[-1] < actual[0]


def classifier_of_ours(settings: ClassifierConfig, runtime: Runtime, store: TokenStore) -> ClassifierLearner:
    """Ours on the test's documents, with the recipe of some settings."""
    train, valid = classifier_loaders(CONFIG, runtime, store)
    seed_torch(1)
    model = build_classifier(V, CLASSES, CONFIG.model, settings)
    parts = LearnerParts(model, awd_lstm_clas_split, F.cross_entropy, ClassifierMetrics(CLASSES), train, valid)
    return build_learner(ClassifierLearner, "classifier", parts, settings, runtime, seed=1)


@pytest.mark.parametrize("runtime", ["fp64"], indirect=True)  # batch norm over an untrained encoder makes much of rounding
def test_fifty_steps_of_the_classifier_are_fastais(store: TokenStore, runtime: Runtime):
    settings = CONFIG.classifier
    ours = classifier_of_ours(settings, runtime, store)
    head = {"seq_len": T, "max_len": settings.max_len, "lin_ftrs": settings.lin_ftrs, "ps": [0.0]}
    fastais = reference(text_classifier_learner, ours, awd_lstm_clas_config, loss_func=cross_entropy, **head)
    expected, actual = losses(fastais, settings.phases, ours=False), losses(ours, settings.phases, ours=True)
    assert len(actual) >= 50
    assert actual == pytest.approx(expected, rel=1e-8)
    assert actual[-1] < actual[0]


class HyperParameters(Callback):
    """Learning rate and momentum of each trained layer group, step by step."""

    def before_fit(self) -> None:
        self.actual = getattr(self, "actual", [])

    def after_batch(self) -> None:
        if self.learn.training:
            trained = self.learn.opt.hypers[self.learn.opt.frozen_idx :]
            self.actual.append([(hyper["lr"], hyper["mom"], hyper["wd"]) for hyper in trained])


@pytest.mark.parametrize("runtime", ["fp32"], indirect=True)
def test_the_recipe_of_five_epochs_has_the_schedule_of_fine_tune(store: TokenStore, runtime: Runtime):
    recipe = replace(load_config(ROOT / "configs/imdb_fine_tune.yaml").classifier, seq_len=T)  # as the test's loaders
    ours = classifier_of_ours(recipe, runtime, store)
    train, valid = ours.dls
    dls = DataLoaders(Replay(train), Replay(valid), device="cpu")
    dls.vocab, dls.c = [f"w{i}" for i in range(V)], CLASSES
    config = {**awd_lstm_clas_config, **SIZES}
    fastais = text_classifier_learner(dls, AWD_LSTM, config=config, drop_mult=0.5, pretrained=False, loss_func=cross_entropy)
    expected, actual = HyperParameters(), HyperParameters()
    with fastais.no_bar(), fastais.no_logging():
        fastais.fine_tune(4, 1e-2, cbs=expected)
    ours.add_cb(actual)
    run_phases(ours, recipe.phases)
    assert len(actual.actual) == 5 * len(train)
    assert {len(groups) for groups in actual.actual} == {1, 5}
    for own_part, reference in zip(actual.actual, expected.actual, strict=True):
        np.testing.assert_allclose(own_part, reference, rtol=1e-12)
