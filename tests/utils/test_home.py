"""Tests with a home folder that is not writable, or does not exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import TINY, command

from ulmfit_dist.utils.home import FOLDERS, replace_unwritable_home, unwritable_folders


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in FOLDERS:
        monkeypatch.setenv(name, "")  # what the test sets is undone at its end
    return monkeypatch


def test_a_home_that_can_be_written_changes_nothing(variables: pytest.MonkeyPatch, tmp_path: Path):
    variables.setenv("HOME", str(tmp_path))
    assert replace_unwritable_home() is None
    assert os.environ["XDG_CACHE_HOME"] == ""
    assert list(tmp_path.iterdir()) == []


def test_folders_that_the_user_names_stay():
    named = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/mine", "XDG_CONFIG_HOME": "/c"}
    assert unwritable_folders(named) == {"XDG_DATA_HOME": "/dev/null/.local/share"}


def test_a_cache_in_a_home_that_cannot_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".cache").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # a read-only home needs no root here
    missing = unwritable_folders({"HOME": str(tmp_path)})
    assert missing == {"XDG_CONFIG_HOME": f"{tmp_path}/.config", "XDG_DATA_HOME": f"{tmp_path}/.local/share"}


def test_a_folder_of_another_user_is_not_used(variables: pytest.MonkeyPatch, tmp_path: Path):
    variables.setattr("tempfile.tempdir", str(tmp_path))
    variables.setenv("HOME", "/dev/null")
    replace_unwritable_home()
    usual = tmp_path / f"ulmfit-dist-{os.getuid()}"
    assert os.environ["XDG_CACHE_HOME"] == f"{usual}/.cache"
    usual.rmdir()
    usual.symlink_to("/")
    variables.setenv("XDG_CACHE_HOME", "")
    replace_unwritable_home()
    other = Path(os.environ["XDG_CACHE_HOME"])
    assert other.is_relative_to(tmp_path)
    assert not other.is_relative_to(usual)


def test_a_run_without_a_home_works_and_names_folder_and_variable(
    corpus: Path, recipe: Path, run_dirs: dict[str, Path], tmp_path: Path
):
    words = [
        "run",
        recipe,
        *TINY,
        f"data.path={corpus}",
        f"data.cache_dir={run_dirs['caches']}/cache1",
        f"runs_dir={tmp_path}",
    ]
    words += ["lm.phases=[{epochs: 1}]", "classifier.phases=[{epochs: 1}]"]
    (tmp_path / "tmp").mkdir()
    usual = {"HF_HOME": "~/.cache/huggingface", "FASTAI_HOME": "~/.fastai", "MPLCONFIGDIR": ""}
    home = {**usual, "HOME": "/dev/null", "TMPDIR": f"{tmp_path}/tmp"}
    result = command(words, WANDB_MODE="offline", **home, **dict.fromkeys(FOLDERS, ""))
    assert result.returncode == 0, result.stderr
    first, *others = result.stderr.splitlines()
    place = f"{tmp_path}/tmp/ulmfit-dist-{os.getuid()}"
    assert first == (
        "warning: /dev/null/.cache, /dev/null/.config, /dev/null/.local/share not writable: caches go to "
        f"{place}; to keep them set HOME, or XDG_CACHE_HOME, XDG_CONFIG_HOME, XDG_DATA_HOME"
    )
    assert [line for line in others if "/dev/null" in line or "W&B" in line or "rror" in line or "INFO" in line] == []
    assert "W&B is offline: send it with: " in result.stdout
