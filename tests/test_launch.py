"""The launch scripts, as far as they can be run without making an environment."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project that is set up already: its .venv is the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("a house with spaces")
    for name in ("launch", "configs", "ulmfit_dist"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "launch" / "setup.sh").write_text("true\n")
    return folder


def start(house: Path, script: str, *words: str, **env: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PATH": path, **env}
    return subprocess.Popen(
        ["bash", str(house / "launch" / script), *words],
        env=environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_say_what_they_are_for(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert any(line.startswith("# ") for line in script.read_text().splitlines()[:3])


def test_two_nodes_train_together(house: Path, corpus: Path, recipe: Path, tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [str(recipe), f"data.path={corpus}", *TINY, f"runs_dir={tmp_path}", f"data.cache={tmp_path}/cache"]
    words += ["tracking.wandb=disabled", "lm.phases=[{epochs: 1}]", "classifier.phases=[{epochs: 1}]"]
    shared = {"NUM_NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GPUS_PER_NODE": "1"}
    nodes = [start(house, "multi_node.sh", *words, NODE_RANK=str(rank), **shared) for rank in range(2)]
    outputs = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["world_size"] == 2
    assert "report: " in outputs[0][0]
    assert outputs[1][0] == ""


def test_scripts_refuse_a_misspelt_key_before_they_launch(house: Path):
    node = start(house, "quickstart.sh", "lm.bathc=3", "--fresh")
    output, errors = node.communicate(timeout=60)
    assert node.returncode == 2
    assert output == ""
    assert errors.splitlines() == [line for line in errors.splitlines() if "unknown key lm.bathc" in line]
    node = start(house, "multi_node.sh", "configs/quickstart.yaml", NUM_NODES="2")
    assert "NODE_RANK is not set" in node.communicate(timeout=60)[1]
    assert node.returncode == 2
