"""Precedence of config and W&B's variables: arguments of `wandb.init`, and content of a run's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, succeed

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, TrackingConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.both_directions import configs_of_directions
from ulmfit_dist.stages.cross_validate import configs_of_folds
from ulmfit_dist.stages.self_train import config_of_round
from ulmfit_dist.tracking.wandb_environment import (
    check_variables,
    init_arguments,
    mode_messages,
    mode_of_environment,
    wandb_project,
)
from ulmfit_dist.tracking.wandb_files import files_of, records

ALL = {"WANDB_PROJECT": "p", "WANDB_NAME": "n", "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "t, u"}


def config(*words: str) -> Config:
    return load_config(overrides=["data.source=bbc_news", *words])


def test_defaults_yield_to_the_environment():
    actual = init_arguments(config(), ALL)
    assert actual.arguments == {"project": "p", "name": "n", "group": "g", "tags": ["t", "u"]}
    assert (actual.run_id, actual.messages) == (None, [])


def test_without_variables_there_are_the_configs_values():
    actual = init_arguments(config("name=a"), {"WANDB_PROJECT": "", "WANDB_TAGS": " ", "PATH": "/bin"})
    assert actual.arguments == {"project": "ulmfit", "name": "a", "group": None, "tags": []}
    assert actual.settings == {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "init_timeout": 30,
    }
    assert actual.messages == []


@pytest.mark.parametrize(
    ("word", "argument", "value", "line"),
    [
        ("tracking.project=q", "project", "q", "ignoring WANDB_PROJECT=p: tracking.project=q is set"),
        ("name=a", "name", "a", "ignoring WANDB_NAME=n: name=a is set"),
        ("tracking.group=h", "group", "h", "ignoring WANDB_RUN_GROUP=g: tracking.group=h is set"),
        ("tracking.tags=[v]", "tags", ["v"], "ignoring WANDB_TAGS=t, u: tracking.tags=[v] is set"),
    ],
)
def test_a_value_in_the_recipe_wins_and_one_line_names_both(word: str, argument: str, value: Any, line: str):
    actual = init_arguments(config(word), ALL)
    assert actual.arguments[argument] == value
    assert actual.messages == [line]


def test_equal_values_need_no_line():
    words = ["tracking.project=p", "name=n", "tracking.group=g", "tracking.tags=[t, u]"]
    assert init_arguments(config(*words), ALL).messages == []


@pytest.mark.parametrize(
    ("variable", "value", "setting"),
    [
        ("WANDB_SILENT", "false", "silent"),
        ("WANDB_CONSOLE", "wrap", "console"),
        ("WANDB_DISABLE_GIT", "false", "disable_git"),
        ("WANDB_DISABLE_CODE", "false", "disable_code"),
        ("WANDB_SAVE_CODE", "true", "disable_code"),
        ("WANDB_INIT_TIMEOUT", "90", "init_timeout"),
    ],
)
def test_settings_of_ours_yield_too(variable: str, value: str, setting: str):
    plain = init_arguments(config(), {}).settings
    assert init_arguments(config(), {variable: value}).settings.keys() == plain.keys() - {setting}


def test_a_new_run_takes_the_environments_id():
    actual = init_arguments(config(), {"WANDB_RUN_ID": "mine", "WANDB_RESUME": "must"})
    assert (actual.run_id, actual.messages) == ("mine", [])
    assert "resume" not in actual.arguments  # W&B reads it itself
    assert init_arguments(config(), {"WANDB_RESUME": "auto"}).arguments["resume"] == "allow"


def test_a_run_that_resumes_keeps_its_id_and_says_so():
    variables = {"WANDB_RUN_ID": "other", "WANDB_RESUME": "never"}
    actual = init_arguments(config(), variables, resumed="mine")
    assert (actual.run_id, actual.arguments["resume"]) == ("mine", "allow")
    why = "runs/run resumes the W&B run mine (--fresh starts a new one)"
    assert actual.messages == [f"ignoring WANDB_RUN_ID=other: {why}", f"ignoring WANDB_RESUME=never: {why}"]
    assert init_arguments(config(), {"WANDB_RUN_ID": "mine", "WANDB_RESUME": "must"}, resumed="mine").messages == []


def test_in_a_sweep_its_agent_decides_project_and_id():
    variables = {"WANDB_SWEEP_ID": "s", "WANDB_PROJECT": "p", "WANDB_RUN_ID": "theirs"}
    actual = init_arguments(config("tracking.project=q"), variables, resumed="mine")
    assert (actual.arguments["project"], actual.run_id) == ("p", "theirs")
    assert actual.messages == ["ignoring tracking.project=q: the sweep sets WANDB_PROJECT=p"]


def test_files_stay_in_the_run_directory(tmp_path: Path):
    (message,) = init_arguments(config(), {"WANDB_DIR": "/scratch"}).messages
    assert message == "ignoring WANDB_DIR=/scratch: W&B's files are in runs/run/wandb, from which the run resumes"
    assert init_arguments(config(f"runs_dir={tmp_path}"), {"WANDB_DIR": f"{tmp_path}/run"}).messages == []


def test_folds_have_names_ids_and_a_group_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "g")
    folds = configs_of_folds(config("data.folds=2"))
    actual = [init_arguments(fold, {**ALL, "WANDB_RUN_ID": "mine"}) for fold in folds]
    assert [each.run_id for each in actual] == ["mine-fold-0", "mine-fold-1"]
    assert [each.arguments["name"] for each in actual] == ["n-fold-0", "n-fold-1"]
    assert [each.arguments["group"] for each in actual] == ["g", "g"]
    assert [each.messages for each in actual] == [[], []]


def test_rounds_of_self_training_have_names_ids_and_a_group_of_their_own():
    rounds = [config_of_round(config(), number) for number in (0, 1)]
    actual = [init_arguments(one, {"WANDB_NAME": "n", "WANDB_RUN_ID": "mine"}) for one in rounds]
    assert [each.run_id for each in actual] == ["mine-round-0", "mine-round-1"]
    assert [each.arguments["name"] for each in actual] == ["n-round-0", "n-round-1"]
    assert [each.arguments["group"] for each in actual] == ["run", "run"]
    assert [each.messages for each in actual] == [[], []]


def test_directions_have_names_ids_and_a_group_of_their_own():
    runs = configs_of_directions(config())
    actual = [init_arguments(run, {"WANDB_NAME": "n", "WANDB_RUN_ID": "mine"}) for run in runs]
    assert [each.run_id for each in actual] == ["mine-forward", "mine-backward"]
    assert [each.arguments["name"] for each in actual] == ["n-forward", "n-backward"]
    assert [each.arguments["group"] for each in actual] == ["run", "run"]
    assert [run.model.pretrained for run in configs_of_directions(config("model.pretrained=wt103_fwd"))] == [
        "wt103_fwd",
        "wt103_bwd",
    ]


def test_the_mode():
    assert mode_of_environment({"WANDB_MODE": ""}) is None
    assert mode_of_environment({"WANDB_MODE": "dryrun"}) == "offline"
    assert mode_of_environment({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}) == "disabled"
    assert mode_messages(TrackingConfig(), {"WANDB_MODE": "online"}) == []
    assert mode_messages(TrackingConfig(wandb_mode="offline"), {"WANDB_MODE": "dryrun"}) == []
    (line,) = mode_messages(TrackingConfig(wandb_mode="offline"), {"WANDB_MODE": "online"})
    assert line == "ignoring WANDB_MODE=online: tracking.wandb_mode=offline is set"
    (line,) = mode_messages(TrackingConfig(wandb_mode="online"), {"WANDB_DISABLED": "true"})
    assert line == "ignoring WANDB_DISABLED=true: tracking.wandb_mode=online is set"


def test_the_dashboards_project_is_that_of_the_runs():
    assert wandb_project(TrackingConfig(), {"WANDB_PROJECT": "p"}) == "p"
    assert wandb_project(TrackingConfig(project="q"), {"WANDB_PROJECT": "p"}) == "q"
    assert wandb_project(TrackingConfig(), {"WANDB_PROJECT": ""}) == "ulmfit"


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("WANDB_PROJECT", "a/b", "Invalid project name 'a/b'"),
        ("WANDB_RUN_ID", "a/b", "Run ID cannot contain"),
        ("WANDB_TAGS", "a,,b", "Tag at index 1 is empty"),
        ("WANDB_RESUME", "yes", "Input should be 'allow', 'must', 'never' or 'auto'"),
        ("WANDB_BASE_URL", "nowhere", "Input should be a valid URL"),
        ("WANDB_SILENT", "perhaps", "Input should be a valid boolean"),
    ],
)
def test_what_wandb_does_not_take_is_named_on_one_line(variable: str, value: str, reason: str):
    with pytest.raises(UserError) as caught:
        check_variables({"WANDB_NAME": "fine", variable: value})
    assert str(caught.value).startswith(f"{variable}={value}: {reason}")
    assert "\n" not in str(caught.value)


def test_a_runs_file_holds_what_the_environment_says(corpus: Path, recipe: Path, run_dirs: dict[str, Path], tmp_path: Path):
    words = [
        "lm",
        recipe,
        *TINY,
        f"data.path={corpus}",
        f"data.cache_dir={run_dirs['caches']}/cache1",
        f"runs_dir={tmp_path}",
    ]
    others = {"WANDB_ENTITY": "e", "WANDB_NOTES": "why", "WANDB_JOB_TYPE": "train", "WANDB_RUN_ID": "mine", "WANDB_DIR": ""}
    succeed([*words, "lm.phases=[{epochs: 1}]", "tracking.group=h"], WANDB_MODE="offline", **ALL, **others)
    (path,) = files_of(tmp_path / "run/wandb", "mine")
    (run, *_) = [record.run for record in records(path) if record.HasField("run")]
    assert (run.project, run.display_name, run.run_group, list(run.tags)) == ("p", "n", "h", ["t", "u"])
    assert (run.entity, run.notes, run.job_type, run.run_id) == ("e", "why", "train", "mine")
