"""Learning rate range test: against fastai's, on one and two ranks, and its files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, command_here, succeed
from fastai.callback.core import Callback
from fastai.callback.schedule import LRFinder, SuggestionMethod
from fastai.learner import AvgSmoothLoss
from matplotlib import pyplot
from stores import make_store

from ulmfit_dist import find_learning_rate
from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, DataConfig, LMConfig, ModelConfig, Phase, RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.callbacks.lr_finder import LRFinderResult, range_test
from ulmfit_dist.training.train_steps import LMLearner

V = 60
WORDS = ("--steps", "40", "--end", "1")


@pytest.fixture
def learner(tmp_path: Path) -> LMLearner:
    rng = np.random.default_rng(0)
    documents = [2 + rng.choice(V - 2, size=rng.integers(10, 60)) for _ in range(60)]
    store = make_store(tmp_path / "store", documents, np.zeros(60, dtype=np.int64), [f"w{i}" for i in range(V)])
    config = Config(
        data=DataConfig(valid_pct=0.1),
        model=ModelConfig(emb_sz=12, n_hid=16, n_layers=2),
        lm=LMConfig(global_batch_size=4, seq_len=8, phases=[Phase(1, 1e-2, 0)]),
    )
    learner = lm_learner(config, Runtime(RuntimeConfig(precision="fp32")), store)
    learner.freeze_to(0)
    return learner


class Losses(Callback):
    """fastai's smoothed loss for learners without a Recorder."""

    order, run_valid = 50, False

    def __init__(self):
        self.smooth, self.rates, self.actual = AvgSmoothLoss(beta=0.98), [], []

    def after_batch(self) -> None:
        self.smooth.accumulate(self.learn)
        self.learn.smooth_loss = self.smooth.value
        self.rates.append(self.learn.opt.hypers[-1]["lr"])
        self.actual.append(self.smooth.value.item())


class NoFile(LRFinder):
    """fastai's LRFinder without saved weights and without a validation."""

    def before_fit(self) -> None:
        self.hps, self.best_loss = {"lr": []}, float("inf")

    def after_train(self) -> None:
        from fastai.callback.core import CancelEpochException

        raise CancelEpochException()

    def after_fit(self) -> None: ...


def test_rates_losses_and_suggestions_are_fastais(learner: LMLearner):
    actual = range_test(learner, 1e-4, 10, 60)
    recorded = Losses()
    learner.fit(60 // len(learner.dls.train) + 1, cbs=[NoFile(1e-4, 10, 60), recorded])
    assert len(actual.rates) > 20
    assert actual.rates == pytest.approx(recorded.rates, rel=1e-6)
    assert actual.smoothed == pytest.approx(recorded.actual, rel=1e-5)
    rates, losses = torch.tensor(recorded.rates[6:-5]), torch.tensor(recorded.actual[6:-5])
    for method in (SuggestionMethod.Valley, SuggestionMethod.Steep, SuggestionMethod.Minimum):
        assert actual.suggest(method) == pytest.approx(method(rates, losses, 60)[0], rel=1e-4)


def test_a_learner_is_afterwards_what_it_was(learner: LMLearner):
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    suggested = learner.lr_find(num_it=40, suggest_funcs=(SuggestionMethod.Steep, SuggestionMethod.Minimum))
    assert suggested._fields == ("steep", "minimum")
    assert pyplot.gcf().axes[0].get_xscale() == "log"
    pyplot.close("all")
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())
    state = learner.train_state
    assert (state.stage_epoch, state.stage_step, state.first_epoch, state.first_step) == (0, 0, 0, 0)
    assert not any("grad_avg" in state for state in learner.opt.state.values())


def test_the_rates_of_lower_layers_are_spread_as_the_phases(learner: LMLearner):
    seen = []
    learner.add_cb(
        type("Rates", (Callback,), {"order": 70, "before_step": lambda self: seen.append(self.opt.hypers[0]["lr"])})
    )
    actual = range_test(learner, 1e-4, 1, 20, spread=0.1)
    assert seen == pytest.approx([0.1 * rate for rate in actual.rates])


def test_a_loss_that_diverges_ends_the_test(learner: LMLearner):
    assert len(range_test(learner, 1e-3, 1e6, 100).rates) < 100


def test_a_notebook_calls_it_on_a_config(corpus: Path, tmp_path: Path):
    place = [f"data.path={corpus}", f"data.cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}"]
    config = load_config(None, [*TINY, *place, "data.num_proc=1"])
    actual = find_learning_rate(config, "lm", num_steps=20)
    assert len(actual.rates) == 20
    assert actual.suggestions().keys() == {"valley", "steep", "minimum"}
    with pytest.raises(UserError, match="0 < start < end"):
        find_learning_rate(config, "lm", start=1.0, end=0.1)


def test_too_few_steps_are_told():
    actual = LRFinderResult([1e-7] * 12, [1.0] * 12, [1.0] * 12, num_steps=100)
    with pytest.raises(UserError, match="start at a lower rate"):
        actual.suggestions()


def test_two_ranks_find_what_one_does_and_leave_no_model(corpus: Path, recipe: Path, tmp_path: Path):
    words = [recipe, f"data.path={corpus}", *TINY, f"data.cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}"]
    words += ["runtime.precision=fp64", "lm.global_batch_size=16", "lm.callbacks=[examples.custom_callback.LowerRates]"]
    output = {name: succeed(["lr-find", *words, f"name={name}", *WORDS], n) for name, n in (("one", 1), ("two", 2))}
    for name in output:
        assert "for the first phase, by fastai's default: lr: " in output[name]
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["lr_find_lm.jsonl", "lr_find_lm.png"]
        assert (tmp_path / name / "lr_find_lm.png").stat().st_size > 5000
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "lr_find_lm.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == 40
    for ours, reference in zip(two, one, strict=True):
        assert ours == pytest.approx(reference, rel=1e-9)
    assert output["one"].replace("/one/", "") == output["two"].replace("/two/", "")


def test_a_classifier_needs_its_language_model(corpus: Path, recipe: Path, tmp_path: Path):
    words = [recipe, f"data.path={corpus}", *TINY, f"data.cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}"]
    refused = command_here(["lr-find", *words, "--stage", "classifier"])
    assert refused.returncode == 2
    assert "lm: no exported model here" in refused.stderr
