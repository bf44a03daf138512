"""Models of the hub in processes of their own, with an empty home, through the variables of the hub's client."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
from conftest import ROOT, TINY, command, launch, succeed
from fastai_runs import make_models, make_table
from hub_server import WRITE, HubServer
from killing import same_bits

from ulmfit_dist import load_classifier

SHORT = ("lm.phases=[{epochs: 1, lr: 1e-2}]", "classifier.phases=[{epochs: 1, lr: 1e-2}]")
TEXT = "The team won the match and the cup."
BITS = f"""
import sys
from ulmfit_dist import load_classifier

print(load_classifier(sys.argv[1]).predict_proba([{TEXT!r}]).tobytes().hex())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "run"
    make_models(folder)
    return folder


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server.serve() as server:
        yield server


def downloads(hub: HubServer) -> list[str]:
    """Requests that transfer weights."""
    return [request for request in hub.requests if request.startswith("GET /cdn/")]


def test_a_pushed_model_computes_the_same_bits_elsewhere_and_offline(
    hub: HubServer, run_dirs: dict[str, Path], tmp_path: Path
):
    run = run_dirs["one"]
    pushed = ["push", run, "maria/reviews", "--license", "mit"]
    assert "uploaded to maria/reviews" in succeed(pushed, real=True, **hub.environment(tmp_path / "author", WRITE))
    files = hub.files("maria/reviews")
    assert len(files) == 7, "the files of a classifier, a model card, and the hub's own"
    written = b"".join(files[name] for name in ("config.yaml", "training.json", "README.md"))
    assert not any(str(path).encode() in written for path in (*run_dirs.values(), ROOT, Path(tempfile.gettempdir())))
    expected = load_classifier(run).predict_proba([TEXT]).tobytes().hex()
    home = tmp_path / "home"
    for offline in (False, True):
        result = launch(["-c", BITS, "hf:maria/reviews"], cwd=tmp_path, real=True, **hub.environment(home, offline=offline))
        assert (result.returncode, result.stdout.strip()) == (0, expected), result.stderr
    assert len(downloads(hub)) == 1
    unreachable = {**hub.environment(home), "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert launch(["-c", BITS, "hf:maria/reviews"], real=True, **unreachable).stdout.strip() == expected
    missing = command(["predict", "hf:maria/missing", TEXT], real=True, **unreachable)
    assert missing.returncode == 2
    assert missing.stderr.startswith("ulmfit-dist: error: hf:maria/missing: not in the cache, and the hub cannot be reached")
    assert len(missing.stderr.splitlines()) == 1


def test_two_processes_download_a_model_once(hub: HubServer, run: Path, tmp_path: Path):
    hub.add("maria/reviews", run / "classifier")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **hub.environment(tmp_path / "home")}
    words = [sys.executable, "-c", BITS, "hf:maria/reviews"]
    processes = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert printed == [load_classifier(run).predict_proba([TEXT]).tobytes().hex()] * 2
    assert len(downloads(hub)) == 1


def test_ranks_use_the_commit_that_rank_0_chooses(hub: HubServer, run: Path, tmp_path: Path):
    hub.add("maria/reviews", run / "classifier")
    make_table(12).to_csv(tmp_path / "new.csv")
    words = ["--file", tmp_path / "new.csv", "--output"]
    environment = hub.environment(tmp_path / "home")
    succeed(["predict", "hf:maria/reviews", *words, tmp_path / "a.csv"], 2, real=True, **environment)
    succeed(["predict", run, *words, tmp_path / "b.csv"])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    requests = [request for request in hub.requests if "maria" in request or "cdn" in request]
    assert requests.count("GET /api/models/maria/reviews") == 1
    assert len(requests) == len(set(requests)), "a rank has downloaded a file again"
    failed = command(["predict", "hf:maria/missing", *words, tmp_path / "c.csv"], 2, real=True, **environment)
    assert failed.stderr.count("no such model on the hub, or a private one") == 1


def test_a_run_that_starts_from_the_hub_ends_as_one_from_the_folder(
    hub: HubServer, run: Path, tmp_path: Path, corpus: Path, recipe: Path
):
    """Its sizes come with the weights, and its home is empty."""
    hub.add("maria/lm", run / "lm")
    sizes = [word for word in TINY if not word.startswith("model=")]
    words = [
        "run",
        recipe,
        *sizes,
        *SHORT,
        f"data.path={corpus}",
        f"data.cache_dir={tmp_path}/tokens",
        f"runs_dir={tmp_path}",
    ]
    succeed([*words, "name=hub", "model.pretrained=hf:maria/lm"], 2, real=True, **hub.environment(tmp_path / "home"))
    succeed([*words, "name=folder", f"model.pretrained={run}"], 2)
    assert same_bits(tmp_path / "hub", tmp_path / "folder")
    assert len(downloads(hub)) == 1
