"""W&B dashboard: its JSON, and the requests that a server gets."""

import json
import socket
import sys
from pathlib import Path

import pytest
from conftest import launch
from wandb_server import Server, wandb_server

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import UserError
from ulmfit_dist.tracking.wandb_workspace import dashboard

OF_A_STEP = (
    "loss loss_smoothed learning_rate momentum gradient_norm communication_mb memory_gb data_seconds forward_seconds "
    "backward_seconds communication_seconds optimizer_seconds checkpoint_seconds"
).split()
OF_AN_EPOCH = "train_loss valid_loss accuracy".split()
STEP_METRICS = {
    **{f"lm/{name}": "lm/step" for name in [*OF_A_STEP, "tokens_per_second", *(f"learning_rate_{i}" for i in range(3))]},
    **{
        f"classifier/{name}": "classifier/step"
        for name in [*OF_A_STEP, "examples_per_second", *(f"learning_rate_{i}" for i in range(4))]
    },
}
EPOCH_METRICS = {
    **{f"lm/{name}": "lm/epoch" for name in [*OF_AN_EPOCH, "perplexity"]},
    **{f"classifier/{name}": "classifier/epoch" for name in [*OF_AN_EPOCH, "f1_macro"]},
}
SYSTEM_METRICS = {
    *(f"system/gpu.{gpu}.{name}" for gpu in range(8) for name in ("gpu", "memoryAllocated", "powerWatts", "temp")),
    *(f"system/{name}" for name in "cpu memory_percent proc.memory.rssMB network.sent network.recv".split()),
}
AXES = {**STEP_METRICS, **EPOCH_METRICS, **dict.fromkeys(SYSTEM_METRICS, "_runtime")}
"""Axis of each metric of the quick start, whose models have two layers."""


def quickstart(*words: str) -> Config:
    return load_config("configs/quickstart.yaml", words)


def panels(spec: dict) -> dict[str, list[dict]]:
    """Return the settings of the panels of each section."""
    sections = spec["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}


def test_each_metric_stands_over_the_axis_of_its_stage():
    shown = panels(json.loads(dashboard(quickstart("model.n_layers=2"), None, dry_run=True))["spec"])
    names = "Language model,Classifier,Optimization,Throughput,Time of a step,Memory,System"
    assert list(shown) == names.split(",")
    axes = {metric: panel["xAxis"] for section in shown.values() for panel in section for metric in panel["metrics"]}
    assert axes.items() <= AXES.items()
    assert AXES.keys() - axes.keys() == {"lm/learning_rate", "classifier/learning_rate"}  # that of the last layer group
    parts = [panel for panel in shown["Time of a step"] if panel.get("plotType") == "stacked-area"]
    assert [len(panel["metrics"]) for panel in parts] == [6, 6]


def test_the_same_config_gives_the_same_dashboard():
    first, second = (dashboard(quickstart(), "ada", dry_run=True) for _ in range(2))
    assert first == second
    assert first.startswith('{\n "entity": "ada",\n "project": "ulmfit",\n')
    ids = [panel for panel in first.splitlines() if '"__id__"' in panel]
    assert len(set(ids)) == len(ids) > 20


def test_a_group_in_the_config_groups_the_runs():
    alone, grouped = (
        json.loads(dashboard(quickstart(*words), None, dry_run=True))["spec"]["section"]["runSets"][0]["grouping"]
        for words in ([], ["tracking.group=seeds"])
    )
    assert alone == []
    assert [key["name"] for key in grouped] == ["group"]


def test_deeper_models_have_more_learning_rates():
    text = dashboard(quickstart("model.n_layers=4"), None, dry_run=True)
    for metric in ("lm/learning_rate_4", "classifier/learning_rate_5"):
        assert f'"{metric}"' in text
        assert f'"{metric[:-1]}{int(metric[-1]) + 1}"' not in text


def test_without_the_package_it_says_which_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"pip install 'ulmfit-dist\[wandb-dashboard\]'"):
        dashboard(quickstart(), None, dry_run=True)


SAVE = """
import sys
from ulmfit_dist.config.loading import load_config
from ulmfit_dist.errors import UserError
from ulmfit_dist.tracking import wandb_workspace
wandb_workspace.TIMEOUT = 3
try:
    print(wandb_workspace.dashboard(load_config("configs/quickstart.yaml"), None, dry_run=False))
except UserError as error:
    sys.exit(f"error: {error}")
"""


def save(folder: Path, **env: str) -> tuple[int, str, str]:
    """Save the quick start's dashboard in a separate process; return exit code, output and errors."""
    nobody = {"HOME": str(folder), "NETRC": f"{folder}/netrc", "WANDB_CONFIG_DIR": str(folder), "WANDB_API_KEY": ""}
    done = launch(["-c", SAVE], **{**nobody, "WANDB_MODE": "online", **env})
    return done.returncode, done.stdout, done.stderr


def logged_in(server: Server) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40}


def test_saved_twice_it_is_one_view_with_the_same_address(tmp_path: Path):
    with wandb_server() as server:
        for _ in range(2):
            assert save(tmp_path, **logged_in(server)) == (0, f"{server.url}/me/ulmfit?nw=ulmfitdist\n", "")
        ((name, view),) = server.views.items()
    assert (view["entityName"], view["projectName"], view["type"]) == ("me", "ulmfit", "project-view")
    assert view["id"]  # of the first one: the second has replaced it
    planned = json.loads(dashboard(quickstart(), "me", dry_run=True))
    assert (name, view["displayName"]) == (planned["name"], planned["displayName"])
    assert json.loads(view["spec"]) == planned["spec"]


def test_without_a_login_it_is_one_line(tmp_path: Path):
    code, _, errors = save(tmp_path)
    assert code == 1
    assert errors == "error: no login to W&B: run `wandb login`, or set WANDB_API_KEY; --dry-run needs neither\n"


@pytest.mark.parametrize("listens", [False, True])
def test_a_server_that_refuses_or_never_answers_is_one_line(tmp_path: Path, listens: bool):
    with socket.socket() as reserved:  # no other process can listen there
        reserved.bind(("127.0.0.1", 0))
        if listens:
            reserved.listen()
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        code, _, errors = save(tmp_path, WANDB_BASE_URL=url, WANDB_API_KEY="a" * 40)
    assert code == 1
    assert errors.startswith("error: W&B rejects the dashboard: ")
    assert url in errors
    assert "`wandb login`" in errors
    assert errors.count("\n") == 1
