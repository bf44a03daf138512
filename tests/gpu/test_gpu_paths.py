"""Tests of features other than plain training on a GPU, in each precision. Skipped without a GPU."""

import json
import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from killing import STAGES, metrics, weights
from small_runs import DEVICE, PRECISIONS, flat_lstm_weights, make_texts, needs_gpu, running, small_config, train

from ulmfit_dist import lm_learner, load_classifier, load_language_model
from ulmfit_dist.config.schema import Config
from ulmfit_dist.stages.evaluate import evaluate
from ulmfit_dist.stages.evaluate_ensemble import evaluate_ensemble
from ulmfit_dist.stages.lr_find import find_learning_rate

pytestmark = needs_gpu

SHORT = (
    "lm.phases=[{epochs: 1, lr: 1e-2}]",
    "classifier.phases=[{epochs: 1, lr: 1e-2, freeze_to: -1}, {epochs: 1, lr: [8e-3, 1e-2]}]",
    "checkpoint.interval_steps=null",
)
DOCUMENTS = 48
TEXTS = ["w3 w4 w5", "w40 w41 w42 w43", "w80"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("texts"), DOCUMENTS)


@pytest.fixture(scope="module", params=["fp32", *PRECISIONS])
def base(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the config of a complete run of both stages."""
    words = f"runtime.precision={request.param}", "tracking.log_text=true", "tracking.num_samples=2"
    config = small_config(texts, tmp_path_factory.mktemp("runs"), *SHORT, *words)
    with flat_lstm_weights():
        train(config, *STAGES)
    return config


def other(base: Config, texts: Path, folder: Path, *overrides: str) -> Config:
    """Return the config of `base` in another folder, with more overrides."""
    return small_config(texts, folder, *SHORT, f"runtime.precision={base.runtime.precision}", *overrides)


def tolerance(config: Config) -> float:
    """Return the relative difference between two results for the same number."""
    return 1e-4 if config.runtime.precision == "fp32" else 3e-2


def losses(run: Path, stage: str) -> list[float]:
    return [line[f"{stage}/loss"] for line in metrics(run) if f"{stage}/loss" in line]


def test_evaluation_finds_the_figures_of_the_training_again(base: Config):
    with running(base) as runtime, flat_lstm_weights():
        actual = evaluate(base.run_dir, runtime)
    summary = json.loads((base.run_dir / "summary.json").read_text())
    for stage in STAGES:
        assert actual[stage]["valid_loss"] == pytest.approx(summary[stage]["valid_loss"], rel=tolerance(base))


def test_the_mean_of_a_model_and_itself_is_the_model(base: Config):
    with running(base) as runtime, flat_lstm_weights():
        actual = evaluate_ensemble([base.run_dir, base.run_dir], runtime)
    assert actual["ensemble"]["accuracy"] == actual["members"][0]["accuracy"] == actual["members"][1]["accuracy"]


def test_predictions_are_those_of_a_cpu(base: Config):
    with flat_lstm_weights():
        actual = load_classifier(base.run_dir, device=DEVICE).predict_proba(TEXTS)
    np.testing.assert_allclose(actual, load_classifier(base.run_dir).predict_proba(TEXTS), atol=1e-5)


def test_the_same_seed_generates_the_same_texts(base: Config):
    model = load_language_model(base.run_dir, device=DEVICE)
    with flat_lstm_weights():
        first, second = (model.generate("w3 w4", words=4, samples=2) for _ in range(2))
    assert first == second
    assert len(first) == 2
    assert all(first)


def test_samples_of_each_epoch_are_logged(base: Config):
    tables = json.loads((base.run_dir / "tables.json").read_text())
    assert [bool(sample["text"]) for sample in tables["lm"]["samples"]] == [True, True]


@pytest.mark.parametrize("stage", STAGES)
def test_a_learning_rate_range_is_tested(stage: str, base: Config):
    with running(base) as runtime, flat_lstm_weights():
        actual = find_learning_rate(base, runtime, stage, num_steps=20)
    assert len(actual.rates) >= 5
    assert min(actual.losses) < actual.losses[0]


def test_micro_batches_train_as_whole_batches_do(base: Config, texts: Path, tmp_path: Path):
    config = other(base, texts, tmp_path, "runtime.micro_batch_size=3")
    with flat_lstm_weights():
        train(config, *STAGES)
    for stage in STAGES:
        assert losses(config.run_dir, stage)[:3] == pytest.approx(losses(base.run_dir, stage)[:3], rel=tolerance(base))


def test_virtual_ranks_train_as_one_does(base: Config, texts: Path, tmp_path: Path):
    config = other(base, texts, tmp_path, "runtime.canonical_ranks=2")
    with flat_lstm_weights():
        train(config, *STAGES)
    for stage in STAGES:
        assert losses(config.run_dir, stage)[:3] == pytest.approx(losses(base.run_dir, stage)[:3], rel=tolerance(base))


def test_class_weights_smoothing_clipping_and_the_best_epoch(base: Config, texts: Path, tmp_path: Path):
    of_classifier = "classifier.class_weights=balanced", "classifier.label_smoothing=0.1", "classifier.grad_clip=0.1"
    config = other(
        base, texts, tmp_path, *of_classifier, "classifier.export_epoch=best", "lm.export_epoch=best", "lm.grad_clip=0.3"
    )
    with flat_lstm_weights():
        train(config, *STAGES)
    summary = json.loads((config.run_dir / "summary.json").read_text())
    for stage in STAGES:
        valid_losses = [line[f"{stage}/valid_loss"] for line in metrics(config.run_dir) if f"{stage}/valid_loss" in line]
        assert summary[stage]["valid_loss"] in valid_losses


def test_a_deterministic_run_ends_twice_with_the_same_bits(base: Config, texts: Path, tmp_path: Path):
    configs = [other(base, texts, tmp_path, "runtime.deterministic=true", f"name={name}") for name in ("first", "second")]
    first, second = (weights(train(config, "lm"), "lm") for config in configs)
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_metrics_of_the_users_own_are_computed(base: Config, texts: Path, tmp_path: Path):
    metric = "classifier.metrics=[{path: fastai.metrics.F1Score, average: macro}]"
    config = other(base, texts, tmp_path, metric)
    train(config, *STAGES)
    lines = [line for line in metrics(config.run_dir) if "classifier/valid_loss" in line]
    assert lines
    for line in lines:
        own = next(value for key, value in line.items() if "f1" in key.lower() and key != "classifier/f1_macro")
        assert own == pytest.approx(line["classifier/f1_macro"], abs=1e-6)


def test_a_learner_trains_in_a_notebook(base: Config, texts: Path, tmp_path: Path):
    config = other(base, texts, tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with patch.dict(os.environ, ACCELERATE_USE_CPU=str(DEVICE.type == "cpu").lower()), flat_lstm_weights():
            learner = lm_learner(config)
            learner.fit_one_cycle(1, 1e-2)
            assert learner.validate()["valid_loss"] > 0
            learner.export()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert (config.run_dir / "lm/model.safetensors").exists()
