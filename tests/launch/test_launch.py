"""The launch scripts, without the creation of an environment."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project that counts as set up: it uses the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("a project with spaces")
    return copy_project(folder)


def copy_project(folder: Path) -> Path:
    for name in ("launch", "configs", "ulmfit_dist"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "launch" / "setup.sh").write_text("true\n")
    return folder


def start(project: Path, script: str, *words: str, **env: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PATH": path, **env}
    return subprocess.Popen(
        ["bash", str(project / "launch" / script), *words],
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


def test_two_nodes_train_together(project: Path, corpus: Path, recipe: Path, tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [str(recipe), f"data.path={corpus}", *TINY, f"runs_dir={tmp_path}", f"data.cache_dir={tmp_path}/cache"]
    words += ["tracking.wandb_mode=disabled", "lm.phases=[{epochs: 1}]", "classifier.phases=[{epochs: 1}]"]
    shared = {"NUM_NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GPUS_PER_NODE": "1"}
    nodes = [start(project, "multi_node.sh", *words, NODE_RANK=str(rank), **shared) for rank in range(2)]
    outputs = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["world_size"] == 2
    assert "report: " in outputs[0][0]
    assert outputs[1][0] == ""


def test_scripts_refuse_a_misspelt_key_before_they_launch(project: Path):
    node = start(project, "quickstart.sh", "lm.bathc=3", "--fresh")
    output, errors = node.communicate(timeout=60)
    assert node.returncode == 2
    assert output == ""
    assert errors.splitlines() == [line for line in errors.splitlines() if "unknown key lm.bathc" in line]
    node = start(project, "multi_node.sh", "configs/quickstart.yaml", NUM_NODES="2")
    assert "NODE_RANK is not set" in node.communicate(timeout=60)[1]
    assert node.returncode == 2


def test_gpus_that_cannot_share_a_batch_are_left_idle_by_the_quick_start_and_refused_elsewhere(tmp_path: Path):
    project = copy_project(tmp_path / "project")
    with (project / "launch" / "functions.sh").open("a") as functions:
        functions.write("visible_gpus() { echo 6; }\n")
    with (project / "launch" / "common.sh").open("a") as common:  # in place of the launcher
        common.write('python() { [[ $2 != *.launch ]] || { echo "$@"; exit; }; command python "$@"; }\n')
    scripts = [("quickstart.sh",), ("multi_gpu.sh", "configs/quickstart.yaml"), ("multi_gpu.sh", "configs/quickstart.yaml")]
    variables: list[dict[str, str]] = [{}, {}, {"NUM_PROCESSES": "2"}]
    runs = [start(project, *words, **env) for words, env in zip(scripts, variables, strict=True)]
    (chosen, refused, two) = [(*run.communicate(timeout=120), run.returncode) for run in runs]
    assert "--num_processes 4 " in chosen[0]
    assert chosen[1].startswith("warning: using 4 of 6 GPUs, 2 are idle: lm.global_batch_size=16 cannot be shared")
    assert chosen[2] == 0
    (line,) = refused[1].splitlines()
    assert line.startswith(
        "ulmfit-dist: error: lm.global_batch_size=16 cannot be shared evenly by 6 ranks: make it 12 or 18"
    )
    assert (refused[0], refused[2]) == ("", 2)
    assert "--num_processes 2 " in two[0]
    assert two[1:] == ("", 0)


PYTHON = """#!/usr/bin/env bash
# An interpreter that logs the arguments of pip, and copies itself into an environment.
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo "${@:4}" >> "$(dirname "$0")/../../pip.log" ;;
esac
"""


def test_torch_comes_from_the_index_that_is_named_until_another_is(tmp_path: Path):
    (tmp_path / "launch").mkdir()
    for name in ("launch/setup.sh", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    log = tmp_path / "pip.log"

    def installed(**env: str) -> list[str]:
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), **env}
        log.write_text("")
        subprocess.run(["bash", tmp_path / "launch/setup.sh"], env=environment, check=True, capture_output=True)
        return log.read_text().splitlines()

    package = "--quiet --disable-pip-version-check --constraint constraints.txt --editable .[demo,sentencepiece,dev]"
    plain = "--quiet --disable-pip-version-check --constraint constraints.txt torch torchvision"
    assert installed() == [plain, package]
    assert installed() == []
    torch, rest = installed(TORCH_INDEX="file:///cu1")
    assert re.fullmatch(
        r"--quiet --disable-pip-version-check --force-reinstall --index-url file:///cu1 torch==\S+ torchvision==\S+", torch
    )
    assert rest == package
    assert installed(TORCH_INDEX="file:///cu1") == []
    assert installed() == []  # as the launch scripts call it
    assert "--force-reinstall --index-url file:///cu2 torch==" in installed(TORCH_INDEX="file:///cu2")[0]
    assert installed(TORCH_INDEX="") == [plain.replace("check ", "check --force-reinstall "), package]
