"""Sweeps in configs/: `wandb sweep` and `wandb agent` as real processes, and the training that the agent starts."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, launch
from wandb_server import Server, wandb_server

from ulmfit_dist.config.loading import load_config

SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
FEW = {
    "lm.phases": {"values": ["[{epochs: 1, lr: 5e-2}]"]},
    "classifier.phases": {"values": ["[{epochs: 1, lr: [8e-3, 1e-2]}]"]},
}
"""Parameters of a short sweep."""


def wandb(words: list[str], server: Server, folder: Path) -> str:
    """Return the output of a wandb command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    place = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online", "WANDB_DIR": str(folder)}
    environment = {"PATH": path, **place, "WANDB_CONFIG_DIR": str(folder), "WANDB_CACHE_DIR": str(folder)}
    done = launch(["-m", "wandb", *words], cwd=folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_agent_trains_what_the_sweep_proposes(run_dirs: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path):
    sweep = yaml.safe_load((ROOT / "configs/sweeps/quickstart.yaml").read_text())
    sweep["command"][sweep["command"].index("quickstart")] = str(recipe)
    place = [f"data.path={corpus}", f"data.cache_dir={run_dirs['caches']}/cache1", "runs_dir=runs"]
    sweep["command"][-1:-1] = [*place, *TINY]
    sweep["parameters"] |= FEW
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with wandb_server() as server:
        assert "Creating sweep with ID: sweep0" in wandb(["sweep", "sweep.yaml"], server, tmp_path)
        output = wandb(["agent", "me/ulmfit/sweep0", "--count", "1"], server, tmp_path)
    assert len(server.runs) == 1, output
    ((run_id, run),) = server.runs.items()
    assert server.sweeps["sweep0"].runs == [run_id]
    assert (run.sweep, run.exit_code) == ("sweep0", 0)
    proposed = {"lm.drop_mult": 0.1, "classifier.drop_mult": 0.2, "classifier.wd": 0.001}
    assert yaml.safe_load(run.config).items() >= {key: {"value": value} for key, value in proposed.items()}.items()
    used = load_config(tmp_path / "runs" / f"quickstart-{run_id}" / "config.yaml")
    assert (used.lm.drop_mult, used.classifier.drop_mult, used.classifier.wd) == (0.1, 0.2, 0.001)
    assert [phase.lr for phase in used.lm.phases + used.classifier.phases] == [5e-2, [8e-3, 1e-2]]
    assert sweep["metric"]["name"] in yaml.safe_load(run.summary)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_command_and_every_value_of_a_sweep_are_a_config(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_RUN_ID", "a1b2")
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(path.read_text())
    _, run, rest = " ".join(sweep["command"]).partition(" run ")
    recipe, *words = rest.split()
    assert run
    assert words.pop() == "${args_no_hyphens}"
    for key, output in sweep["parameters"].items():
        for value in output.get("values") or [output["min"], output["max"]]:
            config = load_config(recipe, [*words, f"{key}={value}"])
            assert config.name == f"{path.stem}-a1b2"
            assert config.tracking.project == sweep["project"]
