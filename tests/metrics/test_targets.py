"""Multi-label classification and regression: labels, metrics, and complete runs."""

import csv
import dataclasses
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import FILLERS, TINY, TOPICS, command_here, succeed, succeed_here
from fastai.learner import Metric
from fastai.losses import BCEWithLogitsLossFlat, MSELossFlat
from fastai.metrics import F1ScoreMulti, accuracy_multi, mae, rmse
from sklearn.metrics import r2_score
from stores import make_store

from ulmfit_dist import load_classifier
from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import ClassifierConfig, RuntimeConfig
from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.data.targets import Targets, check_targets, read_targets
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.objective import binary_cross_entropy, build_objective_loss, build_objective_metrics, squared_error

MULTI, NUMBER = ClassifierConfig(target="multicategory"), ClassifierConfig(target="regression")
B, C = 37, 4


def targets_of(labels: list[str], settings: ClassifierConfig, tmp_path: Path) -> Targets:
    store = make_store(tmp_path / "store", [np.ones(3)], np.zeros(1), ["a"])
    store.label_names = labels
    return read_targets(store, settings, ";")


def test_several_classes_are_cut_at_the_delimiter(tmp_path: Path):
    targets = targets_of(["", "a", "b; a", "c;"], MULTI, tmp_path)
    assert (targets.names, targets.num_outputs) == (["a", "b", "c"], 3)
    assert targets.of(np.array([2, 0, 3])).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert targets.documents_of_classes(np.array([1, 2, 2, 0])).tolist() == [3, 2, 0]


def test_numbers_are_read_and_what_is_none_is_named(tmp_path: Path):
    targets = targets_of(["-1", "2.5", "1e3"], NUMBER, tmp_path)
    assert (targets.num_outputs, targets.of(np.array([1, 0, 2])).tolist()) == (1, [2.5, -1, 1000])
    for label in ("good", "nan", "inf"):
        with pytest.raises(UserError, match=f"label '{label}' is not a number"):
            targets_of([label], NUMBER, tmp_path)
    with pytest.raises(UserError, match=r"label 7 is outside classifier.y_range=\[0, 5\]"):
        targets_of(["1", "7"], ClassifierConfig(target="regression", y_range=[0, 5]), tmp_path)


def test_a_class_that_only_validation_has_is_named(tmp_path: Path):
    targets = targets_of(["a", "a;b"], MULTI, tmp_path)
    check_targets(targets, np.array([0, 1]), np.array([1]))
    with pytest.raises(UserError, match="label 'b' is in validation only"):
        check_targets(targets, np.array([0, 0]), np.array([1]))
    with pytest.raises(UserError, match="no labelled document to train"):
        check_targets(targets, np.array([], dtype=np.int64), np.array([1]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classifier.target=many"], "classifier.target='many' is not known"),
        (["classifier.target=regression"], "-1 is a number, too"),
        (
            ["classifier.target=regression", "data.missing_label=null", "classifier.y_range=[5, 0]"],
            "the lowest and the highest",
        ),
        (["classifier.y_range=[0, 5]"], "is for classifier.target=regression"),
        (
            ["classifier.target=multicategory", "classifier.class_weights=balanced"],
            "leave out label_smoothing and class_weights",
        ),
        (["classifier.threshold=1"], "classifier.threshold=1.0"),
        (["data.label_delim=''"], "data.label_delim='': give the text between"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(words: list[str], message: str):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        load_config(None, ["data.source=bbc_news", *words])


def measured(targets: Targets, settings: ClassifierConfig, outputs: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Return the metrics of documents in two batches of different sizes."""
    metrics = build_objective_metrics(targets, settings)
    metrics.reset(torch.device("cpu"))
    for rows in (range(30), range(30, B)):
        part = slice(rows.start, rows.stop)
        metrics.update(outputs[part], MicroBatch(torch.ones(len(rows), 1), y[part], rows, B, B))
    return metrics.compute(Runtime(RuntimeConfig(precision="fp32")))


def fastais(metric: Metric, outputs: torch.Tensor, y: torch.Tensor) -> float:
    """Return the value of a fastai metric that needs a learner, on all documents at once."""
    metric.reset()
    metric.accumulate(SimpleNamespace(pred=outputs, y=y, yb=(y,), to_detach=lambda tensor: tensor))
    return float(metric.value)


def test_metrics_of_several_classes_are_fastais():
    torch.manual_seed(0)
    outputs, y = torch.randn(B, C), (torch.rand(B, C) > 0.6).float()
    settings = ClassifierConfig(target="multicategory", threshold=0.4)
    actual = measured(Targets("multicategory", [*"abcd"], torch.zeros(1, C)), settings, outputs, y)
    assert actual["valid_loss"] == pytest.approx(BCEWithLogitsLossFlat()(outputs, y).item(), rel=1e-6)
    assert actual["accuracy"] == pytest.approx(accuracy_multi(outputs, y, thresh=0.4).item())
    for average in ("macro", "micro"):
        assert actual[f"f1_{average}"] == pytest.approx(fastais(F1ScoreMulti(thresh=0.4, average=average), outputs, y))


def test_metrics_of_numbers_are_fastais():
    torch.manual_seed(0)
    outputs, y = torch.randn(B, 1), torch.randn(B)
    actual = measured(Targets("regression", [], torch.zeros(1)), NUMBER, outputs, y)
    assert actual["valid_loss"] == pytest.approx(MSELossFlat()(outputs, y).item(), rel=1e-6)
    assert actual["mae"] == pytest.approx(mae(outputs, y).item(), rel=1e-6)
    assert actual["rmse"] == pytest.approx(fastais(rmse, outputs, y), rel=1e-6)
    assert actual["r2"] == pytest.approx(r2_score(y, outputs))  # what fastai's R2Score calls


def test_a_checkpoint_is_scored_so_that_more_is_better():
    metrics = {"valid_loss": 0.5, "f1_macro": 0.25, "accuracy": 0.75}
    assert build_objective_metrics(Targets("multicategory", [*"ab"], torch.zeros(1, 2)), MULTI).score(metrics) == 0.25
    assert build_objective_metrics(Targets("regression", [], torch.zeros(1)), NUMBER).score(metrics) == -0.5


@pytest.mark.parametrize("settings", [MULTI, NUMBER], ids=["multicategory", "regression"])
def test_sums_are_of_fp64_on_the_device_of_the_model(settings: ClassifierConfig):
    metrics = build_objective_metrics(Targets(settings.target, [*"ab"], torch.zeros(1, 2)), settings)
    metrics.reset(torch.device("meta"))
    for name in ("sums_3C", "totals") if settings is MULTI else ("sums",):
        assert getattr(metrics, name).dtype == torch.float64
        assert getattr(metrics, name).device.type == "meta"


def test_a_class_is_predicted_above_the_threshold_not_at_it():
    y = torch.tensor([[1.0, 0], [1, 0]])
    outputs = torch.tensor([[0.0, 0], [0.1, -0.1]])  # probabilities of exactly one half in the first document
    metrics = build_objective_metrics(Targets("multicategory", [*"ab"], torch.zeros(1, 2)), MULTI)
    metrics.reset(torch.device("cpu"))
    metrics.update(outputs, MicroBatch(torch.ones(2, 1), y, range(2), 2, 2))
    actual = metrics.compute(Runtime(RuntimeConfig(precision="fp32")))
    assert actual["accuracy"] == 0.75
    assert (metrics.hits_C.tolist(), metrics.predicted_C.tolist(), metrics.true_C.tolist()) == ([1, 0], [1, 0], [2, 0])
    assert actual["f1_macro"] == actual["f1_micro"] == pytest.approx(2 / 3)


def test_nothing_that_occurs_or_is_predicted_has_an_f1_of_zero():
    y = torch.zeros(2, 2)
    metrics = build_objective_metrics(Targets("multicategory", [*"ab"], torch.zeros(1, 2)), MULTI)
    metrics.reset(torch.device("cpu"))
    metrics.update(y - 1, MicroBatch(torch.ones(2, 1), y, range(2), 2, 2))
    actual = metrics.compute(Runtime(RuntimeConfig(precision="fp32")))
    assert (actual["accuracy"], actual["f1_macro"], actual["f1_micro"]) == (1, 0, 0)


def test_equal_numbers_have_no_r2():
    metrics = build_objective_metrics(Targets("regression", [], torch.zeros(1)), NUMBER)
    metrics.reset(torch.device("cpu"))
    metrics.update(torch.tensor([[1.0], [4]]), MicroBatch(torch.ones(2, 1), torch.tensor([3.0, 3]), range(2), 2, 2))
    actual = metrics.compute(Runtime(RuntimeConfig(precision="fp32")))
    assert (actual["valid_loss"], actual["mae"], actual["rmse"]) == (2.5, 1.5, math.sqrt(2.5))
    assert math.isnan(actual["r2"])


@pytest.mark.parametrize("settings", [MULTI, NUMBER], ids=["multicategory", "regression"])
def test_user_defined_metrics_are_computed_with_the_others_and_start_again_at_a_reset(settings: ClassifierConfig):
    entry = {"path": "sklearn.metrics.mean_absolute_error", "name": "distance"}
    targets = Targets(settings.target, [*"ab"], torch.zeros(1, 2))
    metrics = build_objective_metrics(targets, dataclasses.replace(settings, metrics=[entry]))
    y = torch.ones(2, 2) if settings is MULTI else torch.ones(2)
    outputs = torch.zeros(2, 2) if settings is MULTI else torch.full((2, 1), 1.0)
    for outputs_of_epoch in (outputs + 7, outputs):
        metrics.reset(torch.device("cpu"))
        metrics.update(outputs_of_epoch, MicroBatch(torch.ones(2, 1), y, range(2), 2, 2, documents=np.arange(2)))
    assert metrics.compute(Runtime(RuntimeConfig(precision="fp32")))["distance"] == (1 if settings is MULTI else 0)


def test_the_losses_are_fastais():
    outputs, y = torch.randn(B, C), (torch.rand(B, C) > 0.6).float()
    several, number = Targets("multicategory", [*"abcd"], torch.zeros(1, C)), Targets("regression", [], torch.zeros(1))
    actual = build_objective_loss(MULTI, several, np.zeros(1))(outputs, y)
    torch.testing.assert_close(actual, BCEWithLogitsLossFlat()(outputs, y))
    actual = build_objective_loss(NUMBER, number, np.zeros(1))(outputs[:, :1], y[:, 0])
    torch.testing.assert_close(actual, MSELossFlat()(outputs[:, :1], y[:, 0]))


@pytest.mark.parametrize("loss", [binary_cross_entropy, squared_error])
def test_in_fp64_a_loss_is_of_fp64(loss):
    y = torch.ones(B, 1) if loss is binary_cross_entropy else torch.ones(B)
    assert loss(torch.randn(B, 1, dtype=torch.float64), y).dtype == torch.float64


def make_table(path: Path, label_of) -> Path:
    """Write texts that mix the words of one to three topics."""
    rng = random.Random(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for _ in range(200):
            topics = rng.sample([*TOPICS], rng.randint(1, 3))
            words = [word for topic in topics for word in rng.choices(TOPICS[topic], k=6)] + rng.choices(FILLERS, k=8)
            rng.shuffle(words)
            rows.writerow([" ".join(words), label_of(topics)])
    return path


LONGER = "classifier.phases=[{epochs: 1, lr: 2e-2, freeze_to: -1}, {epochs: 12, lr: [2e-2, 5e-2]}]"


def test_several_classes_are_learned_alike_by_one_rank_and_two(tmp_path: Path, recipe: Path):
    table = make_table(tmp_path / "texts.csv", lambda topics: "|".join(topics))
    words = [recipe, "data.source=csv", f"data.path={table}", "data.label_delim='|'", "classifier.target=multicategory"]
    words += [*TINY, LONGER, "runtime.canonical_ranks=2", "lm.drop_mult=0.2", "classifier.drop_mult=0.2"]
    words += [f"runs_dir={tmp_path}", f"data.cache_dir={tmp_path / 'cache'}"]
    output = succeed(["run", *words, "name=one"])
    succeed(["run", *words, "name=two"], processes=2)
    weights = [safetensors.torch.load_file(tmp_path / name / "classifier" / "model.safetensors") for name in ("one", "two")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())

    summary = json.loads((tmp_path / "one" / "summary.json").read_text())["classifier"]
    assert summary["f1_macro"] > 0.8
    assert f"{summary['f1_macro']:.4f}" in output
    evaluated = json.loads(succeed_here(["evaluate", "--json", tmp_path / "one"]))["classifier"]
    assert evaluated["f1_macro"] == pytest.approx(summary["f1_macro"])

    text = " ".join(TOPICS["sport"][:6] + TOPICS["food"][:6])
    (prediction,) = load_classifier(tmp_path / "one").predict([text])
    assert prediction.labels == ["food", "sport"]
    assert succeed_here(["predict", tmp_path / "one", text]).startswith("food;sport")


def test_numbers_are_learned_within_their_range(tmp_path: Path, recipe: Path):
    table = make_table(tmp_path / "texts.csv", lambda topics: 3 * ("sport" in topics) - 1)
    words = [recipe, "data.source=csv", f"data.path={table}", "data.missing_label=null", "classifier.target=regression"]
    words += [*TINY, LONGER, "classifier.y_range=[-4, 4]", "lm.drop_mult=0.2", "classifier.drop_mult=0.2"]
    words += [f"runs_dir={tmp_path}", f"data.cache_dir={tmp_path / 'cache'}", "name=run"]
    output = succeed(["run", *words])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["classifier"]
    assert summary["r2"] > 0.5
    assert math.sqrt(summary["valid_loss"]) == pytest.approx(summary["rmse"])
    assert f"{summary['r2']:.4f}" in output
    food, sport = (" ".join(TOPICS[topic]) for topic in ("food", "sport"))
    low, high = (actual.value for actual in load_classifier(tmp_path / "run").predict([food, sport]))
    assert -4 <= low < 0 < high <= 4
    assert float(succeed_here(["predict", tmp_path / "run", sport]).split()[0]) == pytest.approx(high, abs=1e-3)

    refused = command_here(["run", *words, "classifier.target=category", "classifier.y_range=null"])
    assert refused.returncode == 2
    assert "classifier.target (now category, then regression)" in refused.stderr
