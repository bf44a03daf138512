"""W&B's files, written by a real run and read back."""

import errno
import json
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from fastai.learner import AvgSmoothLoss
from killing import history
from safetensors.torch import load_file

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.distributed.step_timer import PARTS
from ulmfit_dist.errors import UserError
from ulmfit_dist.tracking.jsonl import MetricLog
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.tracking.wandb_files import records
from ulmfit_dist.training.callbacks.tracking import TrackingCallback, without_texts

pytestmark = pytest.mark.distributed  # W&B has a process of its own
NAMES_OF_A_STEP = {
    *("loss", "loss_smoothed", "learning_rate", "learning_rate_0", "learning_rate_1", "learning_rate_2", "momentum"),
    *(
        "gradient_norm",
        "communication_mb",
        "memory_gb",
        "data_seconds",
        "forward_seconds",
        "backward_seconds",
        "communication_seconds",
    ),
    *("optimizer_seconds", "checkpoint_seconds"),
}
NAMES = {
    "lm": NAMES_OF_A_STEP | {"train_loss", "valid_loss", "perplexity", "accuracy", "tokens_per_second"},
    "classifier": NAMES_OF_A_STEP | {"train_loss", "valid_loss", "accuracy", "f1_macro", "examples_per_second"},
}


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("run", ["one", "two"])
def test_wandbs_file_holds_every_metric_of_metrics_jsonl(run_dirs: dict[str, Path], run: str):
    (path,) = (run_dirs[run] / "wandb").glob("offline-run-*/run-*.wandb")  # one run for all stages, from rank 0 alone
    logged, written = history(path), lines_of(run_dirs[run])
    *logged, tables = logged
    assert len(logged) == len(written)
    assert [row["_step"] for row in logged] == sorted({row["_step"] for row in logged})
    for row, line in zip(logged, written, strict=True):
        metrics = {name: value for name, value in line.items() if "/" in name}
        assert {name: row[name] for name in metrics} == metrics
        for axis in ("step", "epoch", "phase", "tokens"):
            assert row[f"{line['stage']}/{axis}"] == line[axis]
    for stage, names in NAMES.items():
        assert {f"{stage}/{name}" for name in names} <= {name for row in logged for name in row}
        steps = [row[f"{stage}/step"] for row in logged if f"{stage}/step" in row]
        assert steps == sorted(steps)
    assert {"classifier/confusion_matrix_table", "classifier/most_wrong"} <= tables.keys()
    axes = {(r.metric.name or r.metric.glob_name): r.metric.step_metric for r in records(path) if r.HasField("metric")}
    assert {axes[f"{stage}/*"] for stage in NAMES} == {f"{stage}/step" for stage in NAMES}


def test_a_steps_line_says_what_the_optimizer_did_and_where_the_time_went(run_dirs: dict[str, Path]):
    parts = [part for part in PARTS if part != "checkpoint"]  # which also counts what is saved after an epoch
    for stage in NAMES:
        steps = [line for line in lines_of(run_dirs["two"]) if f"{stage}/loss" in line]
        rates = [line[f"{stage}/learning_rate"] for line in steps]
        assert rates == [line[f"{stage}/learning_rate_{2 if stage == 'lm' else 3}"] for line in steps]
        assert len(set(rates)) > 2
        assert all(0.69 < line[f"{stage}/momentum"] < 0.81 for line in steps)
        assert all(line[f"{stage}/gradient_norm"] > 0 for line in steps)
        assert all(line[f"{stage}/{part}_seconds"] > 0 for line in steps for part in parts)
        unit = "tokens" if stage == "lm" else "examples"
        total = [sum(line[f"{stage}/{part}_seconds"] for part in parts) for line in steps]
        size = 8 * (10 if stage == "lm" else 1)  # of a step
        expected = [size / line[f"{stage}/{unit}_per_second"] for line in steps]
        assert median(total) == pytest.approx(median(expected), rel=0.5)


def test_ranks_exchange_nothing_in_a_step_but_the_gradients(run_dirs: dict[str, Path]):
    last_phase = {
        run: [line["lm/communication_mb"] for line in lines_of(path) if "lm/loss" in line and line["phase"] == 1][1:]
        for run, path in run_dirs.items()
        if run in ("one", "two")
    }
    weights = load_file(run_dirs["two"] / "lm" / "model.safetensors").values()
    gradients = 4 * sum(weight.numel() for weight in weights)
    beside = [1e6 * given - gradients for given in last_phase["two"]]
    assert beside
    assert all(0 <= given < 8 for given in beside)  # less than one number a step: what a checkpoint adds up
    assert set(last_phase["one"]) == {0}


def test_the_smoothed_loss_is_fastais(run_dirs: dict[str, Path]):
    """Every step's loss is a line here, so the exponential moving average can be recomputed."""
    tracking = TrackingCallback.__new__(TrackingCallback)
    tracking.runtime = SimpleNamespace(device=torch.device("cpu"))
    tracking._begin_sums()
    fastais = AvgSmoothLoss(beta=0.98)
    for loss in torch.rand(50, generator=torch.Generator().manual_seed(0)):
        tracking.learn = SimpleNamespace(loss=loss)
        tracking._add_loss(1.0)
        fastais.accumulate(SimpleNamespace(loss=loss))
        assert tracking.sums_3[2].item() / tracking.weights["smoothed"] == pytest.approx(fastais.value.item(), rel=1e-5)


def test_no_word_of_the_texts_leaves_the_token_store_unasked(run_dirs: dict[str, Path]):
    words = [word.encode() for word in ("cheese", "pepper", "keyboard", "season")]
    message = [
        path for name in ("wandb", "") for path in (run_dirs["two"] / name).glob("**/*" if name else "*.*") if path.is_file()
    ]
    assert {"report.html", "tables.json", "metrics.jsonl"} <= {path.name for path in message}
    assert [path for path in message if any(word in path.read_bytes() for word in words)] == []
    mistakes = json.loads((run_dirs["two"] / "tables.json").read_text())["classifier"]
    assert mistakes["labels"] == ["food", "sport", "tech"]
    assert sum(map(sum, mistakes["confusion_matrix"])) == 52


def test_the_summary_is_the_last_evaluation(run_dirs: dict[str, Path]):
    summary = json.loads((run_dirs["two"] / "summary.json").read_text())
    for stage in ("lm", "classifier"):
        last = [line for line in lines_of(run_dirs["two"]) if line["stage"] == stage][-1]
        for name in ("valid_loss", "accuracy"):
            assert summary[stage][name] == last[f"{stage}/{name}"]
    assert summary.keys() == {"name", "world_size", "device", "precision", "seconds", "lm", "classifier"}
    assert summary["seconds"].keys() == {"prepare", "lm", "classifier"}


def test_texts_of_an_earlier_start_go_where_texts_are_not_wanted():
    wrong = [{"document": 3, "label": "a", "text": "secret"}]
    tables = {"samples": [{"epoch": 1, "text": "secret"}], "labels": ["a"], "most_wrong": wrong}
    assert without_texts(tables) == {"labels": ["a"], "most_wrong": [{"document": 3, "label": "a"}]}


def started(folder: Path, *words: str, fresh: bool = False, stage: str = "lm", **actual: str) -> str | None:
    """Return the W&B run id of a start that logs a line."""
    config = load_config(
        overrides=["data.source=bbc_news", "runtime.precision=fp32", f"runs_dir={folder}", "name=a", *words]
    )
    tracker = Tracker(config, Runtime(config.runtime))
    tracker.fresh = fresh
    tracker.start_stage(stage, **actual)
    tracker.log(stage, {"phase": 0, "epoch": 0, "step": 5, "tokens": 50}, {"loss": 1.0})
    tracker.close(1)
    return tracker.run_id


def test_wandbs_run_stays_the_same_until_the_training_is_another(tmp_path: Path):
    offline, disabled = "tracking.wandb_mode=offline", "tracking.wandb_mode=disabled"
    first = started(tmp_path, offline)
    assert first is not None
    assert started(tmp_path, disabled, lines="", run_id=first) == first
    line = (tmp_path / "a/metrics.jsonl").read_text()
    assert started(tmp_path, offline, lines=line, run_id=first) == first
    assert started(tmp_path, offline, lines=line) == first  # a checkpoint of a start without W&B
    assert started(tmp_path, offline) != first  # another training
    second = (tmp_path / "a/wandb/run_id").read_text()
    (tmp_path / "a/metrics.jsonl").unlink()
    assert started(tmp_path, offline, fresh=True) != second
    assert started(tmp_path, disabled, fresh=True) is None
    assert not (tmp_path / "a/wandb/run_id").exists()


def test_a_classifier_on_an_encoder_from_elsewhere_goes_on_with_its_wandb_run(tmp_path: Path):
    words = ["tracking.wandb_mode=offline", "classifier.encoder=runs/wiki"]
    first = started(tmp_path, *words, stage="classifier")
    line = (tmp_path / "a/metrics.jsonl").read_text()
    assert started(tmp_path, *words, stage="classifier", lines=line, run_id=first) == first


def test_a_line_that_is_none_of_ours_is_passed_over(tmp_path: Path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.begin("lm", "")
    log.append({"stage": "lm", "phase": 0, "epoch": 0, "step": 5, "tokens": 50})
    with log.path.open("a") as file:
        file.write('{"stage": "lm", "step": 60}\n[1]\n{"stage": "lm", "ph')
    assert [line["step"] for line in log.read("lm")] == [5]


def two_trackers(folder: Path) -> list[Tracker]:
    words = [
        "data.source=bbc_news",
        "runtime.precision=fp32",
        f"runs_dir={folder}",
        "name=a",
        "tracking.wandb_mode=disabled",
    ]
    config = load_config(overrides=words)
    return [Tracker(config, Runtime(config.runtime)) for _ in range(2)]


def test_without_locks_in_the_file_system_a_killed_run_keeps_nobody_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    killed, resumed = two_trackers(tmp_path)
    killed.start_stage("lm")  # and is never closed
    resumed.start_stage("lm")
    assert capsys.readouterr().err.count("cannot be locked (Function not implemented)") == 2


def test_two_do_not_train_in_one_run_directory(tmp_path: Path):
    first, second = two_trackers(tmp_path)
    first.start_stage("lm")
    with pytest.raises(UserError, match=r"locked by another training process: .* such as name=a-2"):
        second.start_stage("lm")
    first.close()
    second.start_stage("lm")
    second.close()
