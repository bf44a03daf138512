"""Selection of the exported epoch, and early stopping."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, TINY, command, succeed, succeed_here
from killing import same_bits
from safetensors.torch import load_file

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.errors import UserError
from ulmfit_dist.training.callbacks.model_selection import ModelSelectionCallback
from ulmfit_dist.training.train_state import TrainState


def after(scores: list[float], patience: int | None = None, halfway: bool = False) -> ModelSelectionCallback:
    """Return a selection after these scores; halfway: restored from a checkpoint after half of them."""
    selection = ModelSelectionCallback(patience, lambda: {"of": len(scores)})
    for number, score in enumerate(scores, 1):
        if halfway and number == len(scores) // 2:
            state = json.loads(json.dumps(selection.state_dict()))
            selection = ModelSelectionCallback(patience, selection.tables)
            selection.load_state_dict(state)
        progress = {"stage": "lm", "stage_epoch": number, "stage_step": 10 * number}
        runtime = SimpleNamespace(broadcast_object=lambda value: value, print=lambda words: None)
        selection.learn = SimpleNamespace(score=score, valid_metrics={}, train_state=TrainState(**progress), **progress)
        selection.learn.accelerate = SimpleNamespace(runtime=runtime)
        selection.after_epoch()
        if selection.learn.train_state.is_stopped:
            break
    return selection


@pytest.mark.parametrize("halfway", [False, True])
def test_the_last_of_the_best_epochs_is_selected(halfway: bool):
    best = after([0.1, 0.9, 0.3, 0.9, 0.2], halfway=halfway).best
    assert (best.number, best.step, best.score) == (4, 40, 0.9)


@pytest.mark.parametrize("halfway", [False, True])
def test_a_stage_stops_after_epochs_without_improvement(halfway: bool):
    stopped = after([0.1, 0.5, 0.5, 0.4, 0.9], patience=2, halfway=halfway)
    assert stopped.learn.train_state.is_stopped
    assert stopped.learn.stage_epoch == 4
    assert stopped.best.number == 3
    assert not after([0.1, 0.5, 0.5, 0.6, 0.4], patience=2, halfway=halfway).learn.train_state.is_stopped


def test_wrong_values_are_named():
    for override, output in (
        ("lm.export_epoch=first", "did you mean .last.?"),
        ("classifier.early_stopping_patience=0", "at least 1"),
    ):
        with pytest.raises(UserError, match=output):
            load_config(None, ["data.path=x", override])


def test_the_best_epochs_model_is_exported_also_after_a_stop(corpus: Path, recipe: Path, tmp_path: Path):
    words = [recipe, f"data.path={corpus}", *TINY, f"data.cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}"]
    words += [
        "tracking.wandb_mode=disabled",
        "lm.phases=[{lr: 5e-2}]",
        "classifier.export_epoch=best",
        "classifier.early_stopping_patience=2",
    ]
    words += ["classifier.phases=[{epochs: 3, lr: 2e-2},{epochs: 9, lr: 1.0}]", "runtime.canonical_ranks=2"]
    words += ["checkpoint.keep_latest=1", "classifier.callbacks=[test_user_defined_parts.StopsItself]"]
    folders = (ROOT, ROOT / "tests", ROOT / "tests/stages")
    here = {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    output = succeed(["run", *words, "name=alone"], **here)
    run = tmp_path / "alone"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "classifier/valid_loss" in line]
    accuracies = [line["classifier/accuracy"] for line in epochs]
    best = max(range(len(epochs)), key=lambda i: (accuracies[i], i))
    assert best < len(epochs) - 1 < 11
    assert "classifier: stopped early: no improvement in " in output
    assert f"classifier: exporting epoch {best + 1} of {len(epochs)}, the best: valid_loss" in output
    summary = json.loads((run / "summary.json").read_text())["classifier"]
    for metric in ("valid_loss", "accuracy", "f1_macro"):
        assert summary[metric] == epochs[best][f"classifier/{metric}"]
    matrix = json.loads((run / "tables.json").read_text())["classifier"]["confusion_matrix"]
    assert sum(matrix[i][i] for i in range(3)) == pytest.approx(accuracies[best] * sum(map(sum, matrix)))
    evaluated = json.loads(succeed_here(["evaluate", "--json", run, "--precision", "fp32"]))["classifier"]
    assert evaluated["accuracy"] == pytest.approx(summary["accuracy"], abs=1e-6)
    saved = load_file(run / "checkpoints/classifier" / f"step-{epochs[best]['step']:08d}" / "model.safetensors")
    exported = load_file(run / "classifier" / "model.safetensors")
    assert all(tensor.equal(saved[name]) for name, tensor in exported.items())

    stopped = command(["run", *words, "name=stopped"], 2, STOP_AFTER=str(epochs[best]["step"] + 5), **here)
    assert "stopped by SIGTERM after step" in stopped.stderr
    output = succeed(["run", *words, "name=stopped"], **here)
    assert f"exporting epoch {best + 1} of {len(epochs)}, the best" in output
    assert same_bits(tmp_path / "stopped", run)
