"""Checkpoints on disk: complete or absent, damage is detected, and no code in them runs."""

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import mounted

from ulmfit_dist.checkpointing import manager as folder_module
from ulmfit_dist.checkpointing.async_writer import AsyncCheckpointWriter
from ulmfit_dist.checkpointing.compatibility import differences
from ulmfit_dist.checkpointing.manager import (
    Checkpoint,
    CheckpointManager,
    CorruptCheckpointError,
    read_state,
    read_tensors,
    verify,
)
from ulmfit_dist.checkpointing.resume import _find
from ulmfit_dist.config.loading import to_dict
from ulmfit_dist.config.schema import ClassifierConfig, Config
from ulmfit_dist.errors import UserError
from ulmfit_dist.training.train_state import TrainState


def content(step: int, score: float | None = None, elements: int = 10) -> Checkpoint:
    tensors = {"model": {"w": torch.full((elements,), float(step))}, "optimizer": {}, "hidden_states": {}}
    return Checkpoint(tensors, {"train_state": {"stage_step": step}}, f"line {step}\n", score)


@pytest.fixture
def stage(tmp_path: Path) -> CheckpointManager:
    """Checkpoints of steps 10, 20 and 30."""
    stage = CheckpointManager(tmp_path / "checkpoints", "lm")
    for step in (10, 20, 30):
        stage.write(content(step), keep_latest=3)
    return stage


def newest(stage: CheckpointManager) -> tuple[int | None, list[str]]:
    """Step of the newest intact checkpoint, and the errors of those skipped."""
    skipped: list[str] = []
    state = stage.newest_intact(read_state, lambda path, error: skipped.append(f"{path.name}: {error}"))
    return (None if state is None else state["train_state"]["stage_step"]), skipped


def seal(path: Path) -> None:
    """Write a manifest that matches the files, as an attacker would."""
    files = {name: {"bytes": (path / name).stat().st_size, "xxh3": folder_module._checksum(path / name)} for name in FILES}
    (path / "manifest.json").write_text(json.dumps({"format": folder_module.FORMAT, "score": None, "files": files}))


FILES = folder_module.FILES


def test_a_written_checkpoint_is_read_again(stage: CheckpointManager):
    path = stage.at(30)
    verify(path)
    assert torch.equal(read_tensors(path)["model"]["w"], torch.full((10,), 30.0))
    assert sorted(file.name for file in path.iterdir()) == sorted([*FILES, "manifest.json"])
    assert newest(stage) == (30, [])
    assert (stage.checkpoints / "latest").resolve() == path.resolve()


def truncate(path: Path) -> None:
    os.truncate(path / "optimizer.safetensors", (path / "optimizer.safetensors").stat().st_size - 1)


def flip(path: Path) -> None:
    changed = bytearray((path / "model.safetensors").read_bytes())
    changed[-5] ^= 1
    (path / "model.safetensors").write_bytes(changed)


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def lose_file(path: Path) -> None:
    (path / "state.json").unlink()


@pytest.mark.parametrize(
    ("damage", "output"),
    [
        (truncate, r"optimizer\.safetensors: has \d+ bytes, but the manifest lists \d+"),
        (flip, r"model\.safetensors: checksum differs from the manifest"),
        (lose_manifest, r"manifest\.json: No such file"),
        (lose_file, r"state\.json: missing, or not a regular file"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_is_used(
    stage: CheckpointManager, damage: Callable[[Path], None], output: str
):
    damage(stage.at(30))
    with pytest.raises(CorruptCheckpointError, match=output):
        verify(stage.at(30))
    step, skipped = newest(stage)
    assert step == 20
    assert [line.partition(":")[0] for line in skipped] == ["step-00000030"]
    damage(stage.at(20))
    damage(stage.at(10))
    assert newest(stage)[0] is None


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def pickle_for_tensors(path: Path) -> None:
    (path / "model.safetensors").write_bytes(pickle.dumps(Bomb(path.parent / "trace")))
    seal(path)


def torch_pickle_for_tensors(path: Path) -> None:
    torch.save({"w": Bomb(path.parent / "trace")}, path / "optimizer.safetensors")
    seal(path)


def path_out_of_the_folder(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../../secret"] = manifest["files"].pop("state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))


def link_out_of_the_folder(path: Path) -> None:
    shutil.move(path / "model.safetensors", path.parent / "elsewhere")
    (path / "model.safetensors").symlink_to(path.parent / "elsewhere")


def manifest_of_gigabytes(path: Path) -> None:
    os.truncate(path / "manifest.json", 5 << 30)


def manifest_of_brackets(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 1_000_000)


def manifest_of_lists(path: Path) -> None:
    (path / "manifest.json").write_text(json.dumps({"format": folder_module.FORMAT, "files": {name: [] for name in FILES}}))


def state_of_nothing(path: Path) -> None:
    (path / "state.json").write_text("[]")
    seal(path)


HOSTILE = [
    path_out_of_the_folder,
    link_out_of_the_folder,
    manifest_of_gigabytes,
    manifest_of_brackets,
    manifest_of_lists,
    state_of_nothing,
]


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_one_is_skipped(stage: CheckpointManager, attack: Callable[[Path], None]):
    attack(stage.at(30))
    step, skipped = newest(stage)
    assert (step, len(skipped)) == (20, 1)


@pytest.mark.parametrize("attack", [pickle_for_tensors, torch_pickle_for_tensors])
def test_a_pickle_in_place_of_tensors_is_refused_and_not_run(stage: CheckpointManager, attack: Callable[[Path], None]):
    attack(stage.at(30))
    step, skipped = newest(stage)
    assert step == 20
    assert "not safetensors" in skipped[0]
    with pytest.raises(CorruptCheckpointError, match="not safetensors"):
        read_tensors(stage.at(30))
    assert not (stage.path / "trace").exists()


def test_a_folder_that_is_a_link_is_no_checkpoint(stage: CheckpointManager, tmp_path: Path):
    shutil.move(stage.at(30), tmp_path / "elsewhere")
    stage.at(30).symlink_to(tmp_path / "elsewhere")
    assert newest(stage) == (20, [])


def test_the_newest_and_the_best_are_kept(tmp_path: Path):
    stage = CheckpointManager(tmp_path, "lm")
    for step, score in ((1, 0.5), (2, 0.9), (3, None), (4, 0.9), (5, 0.7), (6, None), (7, None)):
        stage.write(content(step, score), keep_latest=2)
    assert [path.name for path in stage.newest_first()] == ["step-00000007", "step-00000006", "step-00000004"]


def test_a_damaged_newer_one_does_not_cost_those_written_after_it(stage: CheckpointManager):
    flip(stage.at(30))
    stage.write(content(21), keep_latest=1)
    assert newest(stage)[0] == 21
    stage.write(content(22), keep_latest=1)
    assert newest(stage)[0] == 22
    assert not stage.at(21).exists()


def test_what_a_kill_left_is_tidied_up_and_nothing_is_lost(stage: CheckpointManager):
    stage.at(30).replace(stage.path / ".step-00000030.old")  # killed between the two names of a step that is saved again
    (stage.path / ".step-00000030.tmp").mkdir()
    (stage.path / ".step-00000010.gone").mkdir()
    stage.tidy()
    assert [path.name for path in sorted(stage.path.iterdir())] == ["step-00000010", "step-00000020", "step-00000030"]
    assert newest(stage) == (30, [])


def test_a_full_disk_is_reported_and_the_last_good_one_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with mounted(tmp_path / "small", "1m"):
        writer = AsyncCheckpointWriter(CheckpointManager(tmp_path / "small" / "checkpoints", "lm"), keep_latest=2)
        for step, elements in ((1, 10), (2, 1_000_000), (3, 20)):
            writer.write(content(step, elements=elements))
            writer.wait()
            assert newest(writer.manager) == ({1: 1, 2: 1, 3: 3}[step], [])
            assert (writer.error is not None) == (step == 2)
    output = capsys.readouterr().err
    assert "step-00000002 could not be written" in output
    assert "No space left on device" in output
    assert f"the last good checkpoint is {writer.manager.at(1)}; training continues" in output


def test_a_folder_that_can_no_longer_be_written_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with mounted(tmp_path / "small", "1m"):
        writer = AsyncCheckpointWriter(CheckpointManager(tmp_path / "small" / "checkpoints", "lm"), keep_latest=2)
        writer.write(content(1))
        writer.wait()
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "small"], check=True)
        writer.write(content(2))
        writer.wait()
        assert newest(writer.manager) == (1, [])
    assert "step-00000002 could not be written" in capsys.readouterr().err


def test_a_config_that_has_changed_is_refused_with_its_keys():
    then = {**to_dict(Config()), "seed": 7}
    then["model"] = {**then["model"], "n_hid": 20}
    actual = differences("lm", Config(), then, "a", "b")
    assert actual == ["seed (now 42, then 7)", "model.n_hid (now 1152, then 20)", "data"]
    harmless = Config(name="other")
    harmless.checkpoint.keep_latest, harmless.tracking.log_interval, harmless.runtime.micro_batch_size = 9, 9, 9
    harmless.classifier.wd = 0.5  # not the language model's
    assert differences("lm", harmless, to_dict(Config()), "a", "a") == []
    assert differences("classifier", harmless, to_dict(Config()), "a", "a") == ["classifier.wd (now 0.5, then 0.01)"]
    assert differences("lm", Config(), {}, "a", "a") != []


def test_a_run_from_before_a_key_existed_resumes():
    then = to_dict(Config())
    then["lm"] = {**then["lm"], "phases": [{"epochs": 1, "lr": 1e-2, "freeze_to": -1}, {"epochs": 9, "lr": 1e-3}]}
    del then["classifier"]["encoder"]
    assert differences("classifier", Config(), then, "a", "a") == [
        "lm.phases[1].epochs (now 10, then 9)",
        "lm.phases[1].freeze_to (now 0, then None)",
    ]
    shaped = Config()
    shaped.lm.phases[0].pct_start = 0.99
    assert differences("lm", shaped, to_dict(Config()), "a", "a") == ["lm.phases[0].pct_start (now 0.99, then None)"]


def test_a_classifier_on_an_encoder_from_elsewhere_does_not_depend_on_how_the_run_trains_a_language_model():
    now, then = (Config(classifier=ClassifierConfig(encoder="runs/other")) for _ in range(2))
    now.lm.wd, now.lm.phases = 0.3, now.lm.phases[:1]
    assert differences("classifier", now, to_dict(then), "a", "a") == []
    assert differences("classifier", Config(), to_dict(then), "a", "a") == ["classifier.encoder (now None, then runs/other)"]


def test_where_all_are_damaged_nothing_starts_over_by_itself(stage: CheckpointManager, capsys: pytest.CaptureFixture[str]):
    config = Config(name="run", runs_dir=str(stage.checkpoints.parent.parent))
    config.name = stage.checkpoints.parent.name
    for step in (10, 20, 30):
        flip(stage.at(step))
    with pytest.raises(UserError, match="all checkpoints are damaged: start over with --fresh"):
        _find(config.checkpoints_dir, config.run_dir, "lm")
    assert capsys.readouterr().err.count("the checkpoint is damaged (model.safetensors: checksum") == 3


def test_a_train_state_is_read_with_care():
    state = TrainState("lm", num_phases=2, phase=1, stage_epoch=4, stage_step=45, first_epoch=2, first_step=5)
    content = json.loads(json.dumps(state.to_json()))
    assert TrainState.from_json(content) == state
    assert not state.is_finished
    assert TrainState("lm", num_phases=2, phase=2).is_finished
    wrong = [{"phase": -1}, {"phase": "1"}, {"phase": True}, {"stage": None}, {"is_stopped": 0}, {"first_step": 1.0}]
    for bad in (None, [], {"phase": 1}, *({**content, **values} for values in wrong)):
        with pytest.raises(ValueError, match="not a train state"):
            TrainState.from_json(bad)
