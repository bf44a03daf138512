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
import xxhash
from conftest import mounted

from ulmfit_dist.checkpointing import manager as folder_module
from ulmfit_dist.checkpointing.async_writer import AsyncCheckpointWriter
from ulmfit_dist.checkpointing.compatibility import differences
from ulmfit_dist.checkpointing.manager import (
    Checkpoint,
    CheckpointManager,
    CorruptCheckpointError,
    read_lines,
    read_state,
    read_tensors,
    remove_stage,
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


def test_a_step_that_is_saved_again_replaces_the_earlier_one(stage: CheckpointManager):
    stage.write(content(30, score=0.5, elements=3), keep_latest=3)
    assert read_tensors(stage.at(30))["model"]["w"].tolist() == [30, 30, 30]
    assert newest(stage) == (30, [])
    assert sorted(path.name for path in stage.path.iterdir()) == ["step-00000010", "step-00000020", "step-00000030"]


def test_a_folder_between_two_names_gives_way_to_its_successor(stage: CheckpointManager):
    shutil.copytree(stage.at(10), stage.path / ".step-00000030.old")  # killed after its successor was renamed
    (stage.path / ".step-00000040.old.tmp").mkdir()  # not one of ours
    stage.tidy()
    assert newest(stage) == (30, [])
    assert [path.name for path in sorted(stage.path.glob(".*"))] == [".step-00000040.old.tmp"]


def test_steps_are_ordered_as_numbers_and_other_names_are_no_checkpoints(stage: CheckpointManager):
    for name in ("step-100000000", "step-99999999", "step-7", "step-00000099.bak", "other"):
        shutil.copytree(stage.at(10), stage.path / name)
    (stage.path / "step-00000098").touch()
    names = [path.name for path in stage.newest_first()]
    assert names == ["step-100000000", "step-99999999", "step-00000030", "step-00000020", "step-00000010"]
    assert stage.at(123_456_789).name == "step-123456789"
    assert CheckpointManager(stage.checkpoints, "classifier").newest_first() == []


def test_the_best_is_kept_by_its_score_and_a_score_must_be_a_finite_number(tmp_path: Path):
    stage = CheckpointManager(tmp_path, "lm")
    for step, score in ((1, 0.5), (2, float("nan")), (3, float("inf")), (4, 0.25), (5, 0.5)):
        stage.write(content(step, score), keep_latest=1)
        if step == 4:
            assert [path.name for path in stage.newest_first()] == ["step-00000004", "step-00000001"]
    assert [path.name for path in stage.newest_first()] == ["step-00000005"]
    for written in (True, "0.9", None, [1]):
        manifest = json.loads((stage.at(5) / "manifest.json").read_text())
        (stage.at(5) / "manifest.json").write_text(json.dumps({**manifest, "score": written}))
        assert folder_module._score(stage.at(5)) is None
    (stage.at(5) / "manifest.json").write_text("no JSON")
    assert folder_module._score(stage.at(5)) is None


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_and_earlier_ones_stay(stage: CheckpointManager):
    wrong = content(40)
    wrong.state["not JSON"] = {1}
    with pytest.raises(TypeError):
        stage.write(wrong, keep_latest=1)
    assert sorted(path.name for path in stage.path.iterdir()) == ["step-00000010", "step-00000020", "step-00000030"]
    assert (stage.checkpoints / "latest").resolve() == stage.at(30)


def test_the_link_to_the_latest_is_relative_and_never_in_the_way(stage: CheckpointManager):
    assert os.readlink(stage.checkpoints / "latest") == "lm/step-00000030"
    (stage.checkpoints / f".latest.{os.getpid()}").touch()  # left by a killed run whose process had this number
    CheckpointManager(stage.checkpoints, "classifier").write(content(1), keep_latest=1)
    assert os.readlink(stage.checkpoints / "latest") == "classifier/step-00000001"
    (stage.checkpoints / "latest").unlink()
    (stage.checkpoints / "latest").mkdir()  # what no link can replace
    stage.write(content(31), keep_latest=4)
    assert newest(stage) == (31, [])
    assert sorted(path.name for path in stage.checkpoints.iterdir()) == ["classifier", "latest", "lm"]


def test_a_stage_is_removed_with_its_model_and_no_other_stage_is(stage: CheckpointManager, tmp_path: Path):
    other = CheckpointManager(stage.checkpoints, "classifier")
    other.write(content(1), keep_latest=1)
    for name in ("lm", "classifier"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    remove_stage(tmp_path, stage.checkpoints, "lm")
    remove_stage(tmp_path, stage.checkpoints, "lm")  # nothing is left: no error
    assert not (tmp_path / "lm").exists()
    assert not stage.path.exists()
    assert (tmp_path / "classifier" / "model.safetensors").is_file()
    assert newest(other) == (1, [])


def test_a_checkpoint_has_its_lines_state_and_score_in_utf_8(tmp_path: Path):
    stage = CheckpointManager(tmp_path, "lm")
    checkpoint = content(1, 0.5)
    checkpoint.lines, checkpoint.state["name"] = "é\n😀\n", "ü"
    path = stage.write(checkpoint, keep_latest=1)
    assert path == stage.at(1)
    assert read_lines(path) == "é\n😀\n"
    assert read_state(path) == checkpoint.state
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["score"], list(manifest["files"])) == (folder_module.FORMAT, 0.5, list(FILES))
    assert read_tensors(path).keys() == {"model", "optimizer", "hidden_states"}
    (path / "metrics.jsonl").unlink()
    with pytest.raises(CorruptCheckpointError, match=r"^metrics\.jsonl: "):
        read_lines(path)


def rewrite(**changes: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))

    return write


def drop_file(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["state.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))


def folder_for_a_file(path: Path) -> None:
    (path / "state.json").unlink()
    (path / "state.json").mkdir()


def link_for_a_manifest(path: Path) -> None:
    (path / "manifest.json").replace(path / "elsewhere")
    (path / "manifest.json").symlink_to(path / "elsewhere")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (rewrite(format=1), r"manifest\.json: format 1, but this version reads 2"),
        (rewrite(format=None), r"manifest\.json: format None"),
        (rewrite(files=None), r"manifest\.json: does not list model\.safetensors"),
        (rewrite(files=list(FILES)), r"manifest\.json: does not list model\.safetensors"),
        (drop_file, r"manifest\.json: does not list"),
        (folder_for_a_file, r"state\.json: missing, or not a regular file"),
        (link_for_a_manifest, r"manifest\.json: a link, not a regular file"),
        (manifest_of_lists, r"model\.safetensors: has \d+ bytes, but the manifest lists None"),
        (manifest_of_gigabytes, r"manifest\.json: "),
        (manifest_of_brackets, r"manifest\.json: "),
    ],
)
def test_a_manifest_that_does_not_describe_its_folder_is_named(
    stage: CheckpointManager, change: Callable[[Path], None], reason: str
):
    change(stage.at(30))
    with pytest.raises(CorruptCheckpointError, match=f"^{reason}"):
        verify(stage.at(30))


def test_a_checksum_is_of_the_whole_file(tmp_path: Path):
    content = os.urandom(1 << 20) + b"end"
    (tmp_path / "a").write_bytes(content)
    assert folder_module._checksum(tmp_path / "a") == xxhash.xxh3_128_hexdigest(content)


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


def test_a_language_model_with_a_share_of_its_own_is_the_same_in_all_folds():
    one, other = Config(), Config()
    one.data.folds, one.data.fold, other.data.folds, other.data.fold = 3, 0, 3, 1
    changed = ["data.fold (now 1, then 0)"]
    assert differences("lm", other, to_dict(one), "a", "a") == changed
    assert differences("classifier", other, to_dict(one), "a", "a") == changed
    one.lm.valid_pct = other.lm.valid_pct = 0.1
    assert differences("lm", other, to_dict(one), "a", "a") == []
    other.data.valid_pct = 0.3
    assert [name.partition(" ")[0] for name in differences("lm", other, to_dict(one), "a", "a")] == ["data.valid_pct"]


def test_metrics_and_baseline_may_change_and_phases_are_compared_one_by_one():
    now, then = Config(), Config()
    now.classifier.metrics, now.classifier.baseline = ["sklearn.metrics.accuracy_score"], not then.classifier.baseline
    assert differences("classifier", now, to_dict(then), "a", "a") == []
    now.classifier.phases = then.classifier.phases[:1]
    (changed,) = differences("classifier", now, to_dict(then), "a", "a")
    assert changed.startswith("classifier.phases (now [{")  # of another number: as a whole
    assert differences("classifier", then, to_dict(then), "a", "b") == ["data"]


def test_a_section_that_an_earlier_version_lacked_counts_as_its_defaults():
    now, then = Config(), to_dict(Config())
    then["model"] = {key: value for key, value in then["model"].items() if key != "n_hid"}
    then["classifier"] = {**then["classifier"], "lin_ftrs": "none"}
    assert differences("classifier", now, then, "a", "a") == ["classifier.lin_ftrs (now [50], then none)"]
    now.model.arch_kwargs = {"width": 3}
    assert differences("lm", now, then, "a", "a") == ["model.arch_kwargs.width (now 3, then None)"]
    now.model.n_hid, now.model.arch_kwargs = 20, {}
    assert differences("lm", now, then, "a", "a") == ["model.n_hid (now 20, then 1152)"]


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
