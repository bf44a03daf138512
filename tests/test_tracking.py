"""W&B's own files, written by a real run and read back."""

import errno
import json
from pathlib import Path

import pytest
from wandb_files import records

from ulmfit_dist.compose import load_config
from ulmfit_dist.config import TrackingConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.training.tracking import Tracker, wandb_mode


def history(path: Path) -> list[dict]:
    rows = []
    for record in records(path):
        if record.HasField("history"):
            rows.append({(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item})
    return rows


@pytest.mark.parametrize("run", ["one", "two"])
def test_wandbs_file_holds_every_metric_of_metrics_jsonl(run_dirs: dict[str, Path], run: str):
    files = list((run_dirs[run] / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1  # one run for all stages, from rank 0 alone
    logged = history(files[0])
    written = [json.loads(line) for line in (run_dirs[run] / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == len(written)
    for row, line in zip(logged, written, strict=True):
        metrics = {name: value for name, value in line.items() if "/" in name}
        assert {name: row[name] for name in metrics} == metrics
        assert row[f"{line['stage']}/step"] == line["step"]
    names = {name for row in logged for name in row}
    assert {"lm/perplexity", "lm/accuracy", "lm/train_loss", "classifier/accuracy", "classifier/f1_macro"} <= names


def test_the_summary_is_the_last_evaluation(run_dirs: dict[str, Path]):
    summary = json.loads((run_dirs["two"] / "summary.json").read_text())
    lines = [json.loads(line) for line in (run_dirs["two"] / "metrics.jsonl").read_text().splitlines()]
    for stage in ("lm", "classifier"):
        last = [line for line in lines if line["stage"] == stage][-1]
        for name in ("valid_loss", "accuracy"):
            assert summary[stage][name] == last[f"{stage}/{name}"]
    assert summary.keys() == {"name", "world_size", "device", "precision", "seconds", "lm", "classifier"}
    assert summary["seconds"].keys() == {"prepare", "lm", "classifier"}


def test_auto_is_offline_unless_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode(TrackingConfig()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode(TrackingConfig()) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(TrackingConfig()) == "disabled"
    assert wandb_mode(TrackingConfig(wandb="offline")) == "offline"


def two_trackers(folder: Path) -> list[Tracker]:
    config = load_config(overrides=["data.source=bbc_news", f"runs_dir={folder}", "name=a", "tracking.wandb=disabled"])
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
    with pytest.raises(UserError, match=r"another process trains in it: .* such as name=a-2"):
        second.start_stage("lm")
    first.close()
    second.start_stage("lm")
    second.close()
