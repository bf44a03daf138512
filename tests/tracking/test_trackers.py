"""TensorBoard's and MLflow's real files: the rows of a run, resumed runs, failures, and unknown trackers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from made_runs import stage_lines

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import RESUMABLE, UserError
from ulmfit_dist.tracking.accelerate_trackers import AccelerateLogger, check_trackers, read_mlflow, read_tensorboard
from ulmfit_dist.tracking.metric_logger import MetricRow, row_of

pytestmark = pytest.mark.distributed  # MLflow starts `uname`
TRACKERS = ("tensorboard", "mlflow")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    yield
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        os.environ.pop(name, None)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = load_config(None, ["data.path=x", f"runs_dir={tmp_path}", "name=made", "tracking.wandb_timeout=20"])
    config.run_dir.mkdir()
    return config


def rows(stop: int, speed: float = 1.0, first: int = 0) -> list[MetricRow]:
    """Rows of a language model, of which only the durations depend on the speed."""
    return [row_of(line, 0) for line in list(stage_lines("lm", 0.0, speed))[first:stop]]


def logged(name: str, config: Config, accelerator: Accelerator, new: list[MetricRow], earlier: list[MetricRow], **how: bool):
    """Return a tracker with these rows, still open."""
    tracker = AccelerateLogger(name, config, accelerator, earlier, **{"resumes": bool(earlier), **how})
    for row in new:
        tracker.log(row)
    return tracker


def records(name: str, config: Config) -> dict[tuple[str, int], float]:
    """Return the values of all curves in a tracker's files."""
    if name == "tensorboard":
        values = read_tensorboard(config.run_dir / "tensorboard")
    else:
        import mlflow

        (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list", order_by=["start_time DESC"])[:1]
        values = read_mlflow(run.info.run_id)
    return {key: value for key, value in values.items() if not key[0].startswith("final/")}


def expected(name: str, rows: list[MetricRow]) -> dict[tuple[str, int], float]:
    fp32 = name == "tensorboard"
    return {
        (metric, row.number): float(np.float32(value)) if fp32 else value
        for row in rows
        for metric, value in row.values.items()
    }


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_has_the_names_steps_and_values_of_the_rows(name: str, config: Config, accelerator: Accelerator):
    tracker = logged(name, config, accelerator, rows(20), [])
    tracker.summarize({"lm/valid_loss": 1.5}, 41)
    assert any(name in line.lower() for line in tracker.finish(0))
    assert records(name, config) == expected(name, rows(20))
    finals = read_tensorboard(config.run_dir / "tensorboard") if name == "tensorboard" else read_mlflow(mlflow_run(config))
    assert finals["final/lm/valid_loss", 41] == 1.5


@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_continues_its_records_and_replaces_what_it_repeats(
    name: str, config: Config, accelerator: Accelerator
):
    logged(name, config, accelerator, rows(30), []).finish(RESUMABLE)
    first = mlflow_run(config) if name == "mlflow" else ""
    again = rows(40, speed=2.0, first=20)  # resumed from a checkpoint after 20 rows, on a faster machine
    logged(name, config, accelerator, again, rows(20)).finish(0)
    assert records(name, config) == expected(name, [*rows(20), *again])
    assert name != "mlflow" or mlflow_run(config) == first


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_lacks_earlier_rows_gets_them(name: str, config: Config, accelerator: Accelerator):
    logged(name, config, accelerator, rows(15, first=10), rows(10)).finish(0)
    assert records(name, config) == expected(name, rows(15))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_that_starts_over_has_none_of_the_old_records(name: str, config: Config, accelerator: Accelerator):
    logged(name, config, accelerator, rows(20), []).finish(0)
    logged(name, config, accelerator, rows(5, speed=2.0), [], resumes=False).finish(0)
    assert records(name, config) == expected(name, rows(5, speed=2.0))


def test_equal_rows_are_sent_to_mlflow_once(config: Config, accelerator: Accelerator):
    logged("mlflow", config, accelerator, rows(10), []).finish(0)
    size = sum(path.stat().st_size for path in config.run_dir.glob("mlruns/*/*/metrics/**/*") if path.is_file())
    logged("mlflow", config, accelerator, rows(10, first=5), rows(10)).finish(0)
    assert size == sum(path.stat().st_size for path in config.run_dir.glob("mlruns/*/*/metrics/**/*") if path.is_file())


def test_the_config_is_with_the_records(config: Config, accelerator: Accelerator):
    for name in TRACKERS:
        logged(name, config, accelerator, rows(1), []).finish(0)
    import mlflow

    assert mlflow.get_run(mlflow_run(config)).data.params["lm.global_batch_size"] == str(config.lm.global_batch_size)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(config.run_dir / "tensorboard")).Reload()
    assert events.Tags()["tensors"] == ["config/text_summary"]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_fails_is_one_warning_and_the_run_continues(
    name: str, config: Config, accelerator: Accelerator, caplog: pytest.LogCaptureFixture
):
    (config.run_dir / ("tensorboard" if name == "tensorboard" else "mlruns")).write_text("a file where a folder is needed")
    assert logged(name, config, accelerator, rows(5), []).finish(0) == []
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("ulmfit_dist")]
    assert message.startswith(f"{name} failed (")
    assert message.endswith("the run continues without it; metrics.jsonl has all figures")


def test_unknown_and_missing_trackers_are_one_line(monkeypatch: pytest.MonkeyPatch):
    check_trackers(["wandb", *TRACKERS])
    with pytest.raises(UserError, match=r"tracking\.trackers: 'tensorbord' is not known; .*tensorboard"):
        check_trackers(["tensorbord"])
    with pytest.raises(UserError, match="comet_ml is not installed: pip install comet-ml"):
        check_trackers(["comet_ml"])
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(UserError, match=r"mlflow is not installed: pip install 'ulmfit-dist\[mlflow\]'"):
        check_trackers(["mlflow"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["tracking.trackers=[mlflow,mlflow]"], "names mlflow twice"),
        (["tracking.trackers=[mlflow]", "tracking.wandb_mode=online"], "is without wandb: add it, or leave"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: list[str], message: str):
    with pytest.raises(UserError, match=message):
        load_config(None, ["data.path=x", *settings])


def mlflow_run(config: Config) -> str:
    """Return the id of the run that is saved in the run directory."""
    import json

    return json.loads((config.run_dir / "mlflow.json").read_text())["run_id"]
