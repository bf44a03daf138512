"""Runs that are killed and resumed: real processes, real kills, every file read back."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from conftest import LEARNING, RECIPE, ROOT, TINY, command, mounted
from killing import (
    STAGES,
    finish,
    history,
    kill_all,
    metrics,
    ranks_of,
    rows_read,
    same_bits,
    start,
    wait_for_step,
    wait_for_training,
)

from ulmfit_dist.checkpointing.manager import Checkpoint, CheckpointManager
from ulmfit_dist.checkpointing.resume import METADATA, ResumePoint, find_checkpoint
from ulmfit_dist.config.loading import to_dict
from ulmfit_dist.config.schema import Config, LMConfig, Phase, RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import WEIGHTS, ModelBundle
from ulmfit_dist.tracking.accelerate_trackers import FINAL, read_mlflow, read_tensorboard
from ulmfit_dist.tracking.jsonl import MetricLog, row_after
from ulmfit_dist.tracking.metric_logger import MetricRow, row_of
from ulmfit_dist.tracking.wandb_files import files_of
from ulmfit_dist.training.train_state import TrainState

TRACKERS = ("tracking.trackers=[wandb,tensorboard,mlflow]",)
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin(tmp_path: Path, corpus: Path, recipe: Path, run_dirs: dict[str, Path]) -> Iterator[Start]:
    """Starts `run` in a folder of the test's; whatever still runs at its end is killed."""
    started = []
    shared = [recipe, f"data.path={corpus}", f"data.cache_dir={run_dirs['caches']}/cache1", f"runs_dir={tmp_path}"]

    def begin(
        *words: str, processes: int = 2, options: tuple[str, ...] = (), command: str = "run", real: bool = False
    ) -> subprocess.Popen[str]:
        started.append(start([command, *shared, *words], processes, tmp_path / "notes", *options, real=real))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            kill_all(process)


def wait_for_save(process: subprocess.Popen[str], run: Path) -> None:
    """Until a checkpoint is being written."""
    while not list(run.glob("checkpoints/*/.step-*.tmp")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.0005)


def catches(pid: int, number: signal.Signals) -> bool:
    """Return True if a process has a handler for a signal."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> (number - 1) & 1)


def assert_has_every_line_once(rows: list[dict], run: Path) -> None:
    """Return True if W&B's history is metrics.jsonl, in order."""
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    rows = [row for row in rows if "classifier/most_wrong" not in row]
    for row, line in zip(rows, metrics(run), strict=True):
        actual = {name: row[name] for name in line if "/" in name}
        assert actual == pytest.approx({name: line[name] for name in actual}, rel=1e-12)


def assert_trackers_hold(run: Path) -> None:
    """Assert that the curves in TensorBoard's and MLflow's files are exactly metrics.jsonl, durations included."""
    log, rows, first = MetricLog(run / "metrics.jsonl"), list[MetricRow](), 0
    for stage in STAGES:
        lines = log.read(stage)
        rows += [row_of(line, first) for line in lines]
        first = row_after(lines, first) + 1
    expected = {(name, row.number): value for row in rows for name, value in row.values.items()}
    identity = json.loads((run / "mlflow.json").read_text())
    mlflow.set_tracking_uri(identity["tracking_uri"])
    for known, dtype in ((read_tensorboard(run / "tensorboard"), np.float32), (read_mlflow(identity["run_id"]), np.float64)):
        curves = {key: value for key, value in known.items() if not key[0].startswith(FINAL)}
        assert curves == {key: float(dtype(value)) for key, value in expected.items()}


def test_a_run_that_is_killed_again_and_again_ends_as_one_left_alone(
    begin: Start, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its trackers are read in `assert_trackers_hold`: rows of a killed start must not remain in them."""
    run, notes = tmp_path / "run", tmp_path / "notes"
    process = begin(*RECIPE, *TRACKERS, "name=run")
    wait_for_step(process, notes, "lm", 62)  # in the second phase
    wait_for_save(process, run)
    kill_all(process)
    assert list(run.glob("checkpoints/lm/step-*"))

    process = begin(*RECIPE, *TRACKERS, "name=run")
    wait_for_step(process, notes, "classifier", 10)
    os.kill(process.pid, signal.SIGTERM)
    errors = process.communicate()[1]
    assert re.search(r"stopped by SIGTERM after step \d+: classifier is saved in \S+; start again to resume", errors)

    process = begin(*RECIPE, *TRACKERS, "name=run")
    wait_for_step(process, notes, "classifier", 80)
    kill_all(process)
    printed = finish(begin(*RECIPE, *TRACKERS, "name=run"))
    assert "lm: already trained" in printed
    assert "classifier: resumes from" in printed

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert_trackers_hold(run)
    assert same_bits(run, alone / "run")
    for ours, reference in zip(metrics(run), metrics(alone / "run"), strict=True):
        assert ours.pop("stage") == reference.pop("stage")
        assert ours == pytest.approx(reference, rel=1e-12)  # logged sums over ranks are added up in another order
    expected, actual = dict(rows_read(alone / "notes")), list(rows_read(notes))
    assert all(expected[key] == ids for key, ids in actual)
    assert expected.keys() == {key for key, _ in actual}
    assert len(actual) > len(expected)  # some steps were made twice: what was not saved
    (run_id,) = {path.name.split("-")[-1] for path in (run / "wandb").glob("offline-run-*")}  # through all lives
    assert_has_every_line_once(history(*files_of(run / "wandb", run_id)), run)


def test_a_run_goes_on_to_the_same_bits_on_another_number_of_ranks(begin: Start, run_dirs: dict[str, Path], tmp_path: Path):
    words = [*TINY, *LEARNING, "checkpoint.interval_steps=7", "tracking.wandb_mode=disabled", "name=run"]
    notes = tmp_path / "notes"
    for processes, stage, step in ((2, "lm", 70), (1, "classifier", 25), (4, "classifier", 60)):
        process = begin(*words, processes=processes)
        wait_for_step(process, notes, stage, step)
        kill_all(process)
    printed = finish(begin(*words, processes=2))
    assert "classifier: resumes from" in printed
    assert "written on 4 rank(s)" in printed
    assert same_bits(tmp_path / "run", run_dirs["one"])


def test_when_a_rank_dies_the_others_name_it_and_end_and_a_restart_goes_on(begin: Start, alone: Path, tmp_path: Path):
    """New interpreters under the real `accelerate launch`, which starts all ranks again after one was killed."""
    notes = tmp_path / "notes"
    process = begin(*RECIPE, "name=run", real=True)
    wait_for_step(process, notes, "lm", 30)
    killed, began = ranks_of(process)[1], time.monotonic()
    os.kill(killed, signal.SIGKILL)
    errors = process.communicate(timeout=30)[1]
    assert time.monotonic() - began < 30
    assert process.returncode != 0
    assert re.search(rf"error: rank 1 \(\S+ process {killed}\) exited without an error: it was killed", errors)

    process = begin(*RECIPE, "name=run", options=("--max_restarts", "1"), real=True)
    wait_for_step(process, notes, "lm", 70)
    os.kill(ranks_of(process)[0], signal.SIGKILL)
    printed = finish(process)
    assert re.search(r"error: rank 0 \(\S+ process \d+\) exited without an error", printed)
    assert same_bits(tmp_path / "run", alone / "run")


def test_signals_end_a_run_with_85_and_what_no_longer_fits_is_refused(begin: Start, tmp_path: Path, recipe: Path):
    words = [*RECIPE, "name=run", "tracking.wandb_mode=disabled", "lm.phases=[{epochs: 200, lr: 1e-3}]"]
    notes = tmp_path / "notes"
    process = begin(*words, processes=1)
    wait_for_training(process, notes)
    os.kill(process.pid, signal.SIGUSR1)
    printed = process.communicate(timeout=30)[1]
    assert process.returncode == 85
    assert "ulmfit-dist: stopped by SIGUSR1 after step" in printed
    (saved,) = re.findall(r"lm is saved in (\S+);", printed)
    assert json.loads(Path(saved, "state.json").read_text())["train_state"]["first_step"] > 0

    process = begin(*words, "lm.wd=0.3", "checkpoint.keep_latest=5", processes=1)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert f"{saved} was made with another lm.wd (now 0.3, then 0.1): start over with --fresh" in printed

    process = begin(*words, "checkpoint.keep_latest=5", "tracking.log_interval=3", processes=1)  # harmless
    wait_for_training(process, notes)
    os.kill(process.pid, signal.SIGINT)
    while catches(process.pid, signal.SIGINT):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == -signal.SIGINT
    assert f"lm: resumes from {saved}" in output


def test_a_command_is_stopped_before_it_trains_with_85(recipe: Path, corpus: Path, tmp_path: Path):
    words = ["run", recipe, f"data.path={corpus}", f"data.cache_dir={tmp_path}", f"runs_dir={tmp_path}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ulmfit_dist", *map(str, words)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    while not catches(process.pid, signal.SIGTERM):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == "ulmfit-dist: stopped by SIGTERM: run the same command again to resume\n"
    assert process.returncode == 85


def test_a_fresh_start_that_is_killed_goes_on_and_leaves_the_models_before_aside(
    begin: Start, run_dirs: dict[str, Path], tmp_path: Path
):
    shutil.copytree(run_dirs["one"], tmp_path / "run")
    words = [*TINY, *LEARNING, "name=run", "tracking.wandb_mode=disabled", "lm.wd=0.2"]
    process = begin(*words, "--fresh", processes=1)
    wait_for_step(process, tmp_path / "notes", "lm", 40)  # there is no checkpoint yet but that before the first step
    kill_all(process)
    process = begin(*words, processes=1)
    wait_for_step(process, tmp_path / "notes", "lm", 70)
    os.kill(process.pid, signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 85
    assert re.search(r"lm: resumes from \S+/step-00000000, written on 1 rank", output)
    printed = finish(begin(*words, processes=1))
    assert "lm: resumes from" in printed
    assert "already trained" not in printed
    exported = [json.loads((tmp_path / "run" / stage / "training.json").read_text()) for stage in STAGES]
    assert len({training["training_id"] for training in exported}) == 2
    printed = finish(begin(*words, processes=1))
    assert [line.rsplit(":", 1)[0] for line in printed.splitlines() if ": already" in line][:2] == [
        f"{stage}: already trained" for stage in STAGES
    ]


def test_a_full_disk_does_not_stop_a_run(begin: Start, tmp_path: Path):
    run, notes = tmp_path / "small" / "run", tmp_path / "notes"
    with mounted(tmp_path / "small", "3m"):
        by_the_clock = ["checkpoint.interval_steps=null", "checkpoint.interval_minutes=0.002"]
        words = [*RECIPE, *by_the_clock, "name=run", f"runs_dir={tmp_path}/small", "lm.phases=[{epochs: 8}]"]
        words += ["tracking.wandb_mode=disabled"]
        process = begin(*words, processes=1, command="lm")
        wait_for_step(process, notes, "lm", 25)
        filler = tmp_path / "small" / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096) == 4096:
                    pass
            except OSError:
                pass
        before = {path.name for path in run.glob("checkpoints/lm/step-*")}
        wait_for_step(process, notes, "lm", 90)
        assert before <= {path.name for path in run.glob("checkpoints/lm/step-*")}
        filler.unlink()
        printed = finish(process)
        assert "could not be written (" in printed
        assert "No space left on device" in printed
        assert max(path.name for path in run.glob("checkpoints/lm/step-*")) > max(before)
        steps = [line["step"] for line in metrics(run) if "lm/learning_rate" in line]
        assert steps == list(range(5, steps[-1] + 1, 5))  # not a line is missing
        assert (run / "lm" / "model.safetensors").is_file()


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_last_good_checkpoint(
    run_dirs: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path
):
    place = [f"data.path={corpus}", f"data.cache_dir={run_dirs['caches']}/cache1", f"runs_dir={tmp_path}", "name=run"]
    words = [*TINY, "lm.phases=[{epochs: 1, lr: 1e30}]", "checkpoint.interval_steps=1", "tracking.wandb_mode=disabled"]
    result = command(["lm", recipe, *place, *words])
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("ulmfit-dist: error:")]
    actual = re.search(
        r"lm phase 1 epoch 1: .* is NaN or inf at step (\d+); the last good checkpoint is (\S+)\. Lower", line
    )
    assert actual is not None, line
    assert "Lower the phase's lr" in line
    assert Path(actual[2]).is_dir()
    assert int(Path(actual[2]).name[5:]) < int(actual[1])


PHASES = Config(name="run", lm=LMConfig(phases=[Phase(1, 1e-2), Phase(3, 1e-3)]))
TENSORS = {"model": {"w": torch.arange(3.0)}, "optimizer": {"w/sqr_avg": torch.ones(3)}, "hidden_states": {}}


def state_of(step: int, **changes: object) -> dict:
    """Return the state of a checkpoint in the second of two phases, as a training writes it."""
    position = TrainState("lm", num_phases=2, phase=1, stage_epoch=3, stage_step=step, first_epoch=2, first_step=5)
    metadata = {"training_id": "id", "data_fingerprint": "texts", "world_size": 2, "wandb_run_id": None}
    assert metadata.keys() == METADATA
    return {"train_state": {**position.to_json(), **changes}, "config": to_dict(PHASES), **metadata}


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    """Checkpoints of steps 10 and 20."""
    manager = CheckpointManager(tmp_path / "checkpoints", "lm")
    for step in (10, 20):
        manager.write(Checkpoint(TENSORS, state_of(step), f"line {step}\n"), keep_latest=2)
    return manager


def found_in(manager: CheckpointManager, stage: str = "lm") -> ResumePoint | None:
    runtime = Runtime(RuntimeConfig(precision="fp32"))
    return find_checkpoint(manager.checkpoints, manager.checkpoints.parent, stage, runtime)


def damage(path: Path) -> None:
    (path / "metrics.jsonl").write_text("other lines\n")


def test_a_run_resumes_from_the_newest_checkpoint_that_is_intact(
    manager: CheckpointManager, capsys: pytest.CaptureFixture[str]
):
    point = found_in(manager)
    assert point == ResumePoint(manager.at(20), state_of(20), TrainState.from_json(state_of(20)["train_state"]))
    assert point.lines() == "line 20\n"
    assert found_in(manager, "classifier") is None
    assert capsys.readouterr().err == ""
    damage(manager.at(20))
    (manager.path / ".step-00000030.tmp").mkdir()  # left by a kill
    assert found_in(manager).path == manager.at(10)
    assert f"skipping {manager.at(20)}: the checkpoint is damaged (metrics.jsonl" in capsys.readouterr().err
    assert not (manager.path / ".step-00000030.tmp").exists()


def test_without_an_intact_checkpoint_only_an_exported_model_lets_a_run_start_its_next_stage(manager: CheckpointManager):
    for step in (10, 20):
        damage(manager.at(step))
    with pytest.raises(UserError, match=r"checkpoints/lm: all checkpoints are damaged: start over with --fresh"):
        found_in(manager)
    weights = manager.checkpoints.parent / "lm" / WEIGHTS
    weights.parent.mkdir()
    with pytest.raises(UserError, match="all checkpoints are damaged"):
        found_in(manager)
    weights.touch()
    assert found_in(manager) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stage": "classifier"}, r"ValueError: not a train state of lm with 2 phase\(s\)"),
        ({"num_phases": 3}, r"ValueError: not a train state of lm with 2 phase\(s\)"),
        ({"first_epoch": 3}, "ValueError: its position is beyond the end of the phase"),
        ({"phase": -1}, "ValueError: not a train state"),
    ],
)
def test_a_position_outside_of_the_recipe_is_damage(
    manager: CheckpointManager, changes: dict, reason: str, capsys: pytest.CaptureFixture[str]
):
    manager.write(Checkpoint(TENSORS, state_of(30, **changes)), keep_latest=3)
    assert found_in(manager).path == manager.at(20)
    assert re.search(rf"step-00000030: the checkpoint is damaged \(state\.json: {reason}", capsys.readouterr().err)


def test_the_end_of_a_training_is_a_position(manager: CheckpointManager):
    manager.write(Checkpoint(TENSORS, state_of(30, phase=2, first_epoch=0, first_step=0)), keep_latest=3)
    assert found_in(manager).train_state.is_finished


@pytest.mark.parametrize("key", ["train_state", "config", *sorted(METADATA)])
def test_a_state_without_what_training_needs_first_is_damage(
    manager: CheckpointManager, key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    state = state_of(30)
    del state[key]
    monkeypatch.setattr(Checkpoint, "step", 30)
    manager.write(Checkpoint(TENSORS, state), keep_latest=3)
    assert found_in(manager).path == manager.at(20)
    named = f"lacks {key}" if key in METADATA else f"KeyError: '{key}'"
    assert named in capsys.readouterr().err


def test_another_config_or_other_texts_are_refused(manager: CheckpointManager):
    point = found_in(manager)
    point.check(PHASES, "lm", SimpleNamespace(fingerprint="texts"))
    for config, fingerprint, changed in (
        (replace(PHASES, seed=7), "texts", r"seed \(now 7, then 42\)"),
        (PHASES, "other", "data"),
        (replace(PHASES, seed=7), "other", r"seed \(now 7, then 42\), data"),
    ):
        with pytest.raises(UserError, match=rf"step-00000020 was made with another {changed}: start over .* name=run-2$"):
            point.check(config, "lm", SimpleNamespace(fingerprint=fingerprint))


def test_a_model_is_of_the_same_training_if_its_id_is(manager: CheckpointManager):
    point = found_in(manager)
    for training, expected in (({"training_id": "id"}, True), ({"training_id": "other"}, False), ({}, False)):
        assert point.is_of(ModelBundle(manager.path, PHASES, [], None, training)) is expected


def test_tensors_are_read_by_file_and_name_and_damage_after_the_search_is_one_line(manager: CheckpointManager):
    runtime, point = Runtime(RuntimeConfig(precision="fp32")), found_in(manager)
    tensors = point.tensors(runtime)
    assert tensors.keys() == TENSORS.keys()
    for file, named in TENSORS.items():
        assert tensors[file].keys() == named.keys()
        assert all(torch.equal(tensors[file][name], tensor) for name, tensor in named.items())
    (point.path / "optimizer.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"step-00000020: not safetensors"):
        point.tensors(runtime)
    (point.path / "metrics.jsonl").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"step-00000020: metrics\.jsonl: .*can't decode byte 0xff"):
        point.lines()
