"""User-defined callbacks and metrics: the examples, on one and two ranks, and invalid ones."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, command, command_here, succeed, succeed_here
from fastai.callback.core import Callback
from safetensors.torch import load_file
from sklearn.metrics import f1_score, roc_auc_score

from ulmfit_dist.config.loading import load_config, to_yaml
from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.data.targets import one_class_each
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.objective import sample_answers
from ulmfit_dist.metrics.user import build_metrics, metric_names
from ulmfit_dist.tracking.console import EpochTable
from ulmfit_dist.training.callbacks.user import add_callbacks

METRICS = [
    "examples.custom_metric.among_two",
    {"path": "fastai.metrics.F1Score", "average": "weighted", "name": "f1_weighted"},
    {"path": "fastai.metrics.RocAuc"},
    "test_user_defined_parts.first_label",
]
IN_THE_CONFIG = (
    "classifier.metrics=[examples.custom_metric.among_two, "
    "{path: fastai.metrics.F1Score, average: weighted, name: f1_weighted}]",
    "classifier.callbacks=[{path: examples.custom_callback.LowerRates, factor: 0.5}, test_user_defined_parts.StopsItself]",
    "lm.callbacks=[fastai.callback.training.ShortEpochCallback]",
)


class ModelSelectionCallback(Callback):
    """Has the name of a built-in metric."""


def answers(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sample answers for metrics."""
    return sample_answers(one_class_each([*"abc"[:num_classes]]))


def first_label(logits_NC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    return y_N[0]


class StopsItself(Callback):
    """Stop the run after the step in the environment, as a scheduler does."""

    def after_batch(self) -> None:
        if self.learn.training and str(self.learn.stage_step) == os.environ.get("STOP_AFTER"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_metrics_are_of_all_documents_at_once_and_in_the_order_of_the_store():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 3, 30)
    metrics = build_metrics(METRICS, *answers(3))
    for rows in (np.arange(0, 30, 2)[::-1], np.arange(1, 30, 2)):
        batch = SimpleNamespace(documents=rows.copy(), y=torch.from_numpy(y[rows]))
        metrics.update(torch.from_numpy(logits[rows]), batch)
    actual = metrics.compute(Runtime(RuntimeConfig(precision="fp32")))
    shares = torch.from_numpy(logits).softmax(1).numpy()
    second = np.sort(logits, axis=1)[:, 1]
    assert actual == pytest.approx(
        {
            "among_two": (logits[np.arange(30), y] >= second).mean(),
            "f1_weighted": f1_score(y, logits.argmax(1), average="weighted"),
            "RocAuc": roc_auc_score(y, shares, average="macro", multi_class="ovr"),
            "first_label": y[0],
        }
    )


def test_an_evaluation_forgets_the_one_before():
    metrics, runtime = build_metrics(["fastai.metrics.error_rate"], *answers(2)), Runtime(RuntimeConfig(precision="fp32"))
    for y in (0, 1):
        metrics.reset()
        metrics.update(torch.tensor([[1.0, 0.0]]), SimpleNamespace(documents=np.array([0]), y=torch.tensor([y])))
        assert metrics.compute(runtime) == {"error_rate": float(y)}


@pytest.mark.parametrize(
    ("entries", "output"),
    [
        (["fastai.metrics.F1Score"], "F1Score fails on 3 classes .*average='binary'.*: check its arguments"),
        (["fastai.metrics.F2Score"], "'fastai.metrics.F2Score' cannot be imported"),
        (["fastai.metrics.accuracy"], "fastai.metrics.accuracy has the name of another metric, accuracy"),
        ([{"path": "fastai.metrics.RocAuc", "max": 3}], "cannot be created .*'max'"),
        ([{"module": "x"}], "give module.name, or {path: module.name, argument: value}"),
        (["builtins.dict"], "returns a dict: give a function of logits and targets"),
        (["torch.add"], "torch.add fails on 3 classes"),
    ],
)
def test_metrics_that_would_fail_are_refused_before_training(entries: list, output: str):
    with pytest.raises(UserError, match=output):
        build_metrics(entries, *answers(3))


@pytest.mark.parametrize(
    ("entries", "output"),
    [
        (["fastai.callback.tracker.EarlyStoppingCallback"], "needs fastai's own training loop: use early_stopping_patience"),
        (["fastai.callback.core.event"], "is not a subclass of fastai's Callback"),
        (["examples.custom_callback.Missing"], "cannot be imported"),
        ([{"path": "examples.custom_callback.LowerRates", "speed": 3}], "cannot be created .*speed"),
        (["test_user_defined_parts.ModelSelectionCallback"], "the learner already has a 'model_selection'"),
        (["examples.custom_callback.LowerRates"] * 2, "the learner already has a 'lower_rates'"),
    ],
)
def test_callbacks_that_cannot_work_are_refused(entries: list, output: str):
    learner = SimpleNamespace()
    learner.add_cb = lambda callback: setattr(learner, callback.name, callback)
    with pytest.raises(UserError, match=output):
        add_callbacks(learner, "lm", entries)


def test_names_are_columns_of_the_terminal():
    names = metric_names(METRICS)
    assert names == ["among_two", "f1_weighted", "RocAuc", "first_label"]
    table = EpochTable("classifier", [], user_metrics=names)
    line = {"phase": 0, "epoch": 1, "classifier/f1_weighted": 0.25, "classifier/epoch_seconds": 1}
    columns = (
        "stage phase epoch train_loss valid_loss accuracy f1_macro among_two f1_weighted RocAuc first_label examples/s time"
    )
    assert table.header().split() == columns.split()
    assert "0.2500" in table.row(line)
    assert len(table.row(line)) == len(table.header())


def test_they_survive_a_round_trip_through_yaml(tmp_path: Path):
    config = load_config(None, ["data.path=x", *IN_THE_CONFIG])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert config.classifier.callbacks[0] == {"path": "examples.custom_callback.LowerRates", "factor": 0.5}


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_own_parts_do_the_same_on_one_rank_on_two_and_in_a_run_that_was_stopped(corpus: Path, recipe: Path, tmp_path: Path):
    words = [
        recipe,
        f"data.path={corpus}",
        *TINY,
        *IN_THE_CONFIG,
        f"data.cache_dir={tmp_path}/cache",
        f"runs_dir={tmp_path}",
    ]
    words += ["runtime.precision=fp64", "tracking.wandb_mode=disabled", "lm.phases=[{lr: 5e-2}]"]
    words += ["classifier.phases=[{epochs: 6, lr: 5e-2}]", "classifier.global_batch_size=16"]
    folders = (ROOT, ROOT / "tests", ROOT / "tests/stages")
    here = {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    output = succeed(["run", *words, "name=one"], **here)
    stopped = command(["run", *words, "name=two"], 2, STOP_AFTER="42", **here)
    assert "stopped by SIGTERM after step" in stopped.stderr
    succeed(["run", *words, "name=two"], 2, **here)

    one, two = (load_file(tmp_path / name / "classifier" / "model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)
    epochs = {
        name: [line for line in lines_of(tmp_path / name) if "classifier/valid_loss" in line] for name in ("one", "two")
    }
    for metric in ("among_two", "f1_weighted"):
        values = {name: [line[f"classifier/{metric}"] for line in lines] for name, lines in epochs.items()}
        assert len(values["one"]) == 6
        assert values["two"] == pytest.approx(values["one"], rel=1e-6)
        summary = json.loads((tmp_path / "two" / "summary.json").read_text())
        assert summary["classifier"][metric] == values["two"][-1]
        assert metric in output
    accuracies = [line["classifier/accuracy"] for line in epochs["one"]]
    assert any(now <= max(accuracies[:i]) for i, now in enumerate(accuracies[:-1]) if i), accuracies

    evaluated = command_here(["evaluate", "--json", tmp_path / "one", "--precision", "fp64"])
    assert "classifier.metrics are skipped: --trust-remote-code computes them" in evaluated.stderr
    assert "f1_weighted" not in json.loads(evaluated.stdout)["classifier"]
    trusted = json.loads(
        succeed_here(["evaluate", "--json", tmp_path / "one", "--precision", "fp64", "--trust-remote-code"])
    )
    assert trusted["classifier"]["f1_weighted"] == pytest.approx(epochs["one"][-1]["classifier/f1_weighted"], rel=1e-6)
