"""Inference loads nothing of training: `predict` and `generate` start in the time that torch and spaCy take."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from fastai_runs import make_models

pytestmark = pytest.mark.distributed  # each test reads the modules of a new interpreter

NEVER_LOADED = {
    *("fastai", "fastcore", "fastprogress", "wandb", "sklearn", "scipy", "pandas", "matplotlib", "datasets", "accelerate"),
    *("ulmfit_dist.training", "ulmfit_dist.tracking", "ulmfit_dist.checkpointing", "ulmfit_dist.stages", "ulmfit_dist.api"),
}
"""Modules that inference has no use for, with all below them."""
DISTRIBUTED = {"torch.distributed", "torch.nn.parallel", "torch.optim"}
"""Parts of torch that only training uses. `import torch` itself loads some of them, torch.nn.parallel among them, which
cannot be avoided: nothing may be added to those."""

PREDICT = """
from ulmfit_dist.cli.main import main
assert main(["predict", {run!r}, "A match of the TEAM never-seen"]) == 0
"""
GENERATE = """
from ulmfit_dist.cli.main import main
assert main(["generate", {run!r}, "the match", "--words", "3"]) == 0
"""
API = """
from ulmfit_dist import load_classifier, load_language_model
assert load_classifier({run!r}).predict_one("A match of the TEAM never-seen").label
assert load_language_model({run!r}).generate("the match", words=3)
"""
PRINT_MODULES = """
import json, sys
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inference") / "run"
    make_models(folder)
    return folder


@cache
def modules_after(script: str) -> set[str]:
    """The modules that a new process has loaded at the end of a script."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", script + PRINT_MODULES]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def below(modules: set[str], roots: set[str]) -> list[str]:
    """The roots that any of the modules is, or lies below."""
    parents = {".".join(parts[: i + 1]) for module in modules if (parts := module.split(".")) for i in range(len(parts))}
    return sorted(roots & parents)


@pytest.mark.parametrize("script", [PREDICT, GENERATE, API], ids=["predict", "generate", "api"])
def test_inference_loads_nothing_of_training(run: Path, script: str):
    loaded = modules_after(script.format(run=str(run)))
    assert {"torch", "ulmfit_dist.inference", "spacy.tokenizer"} <= loaded  # it has done its work
    assert below(loaded, NEVER_LOADED) == []


@pytest.mark.parametrize("script", [PREDICT, GENERATE, API], ids=["predict", "generate", "api"])
def test_inference_loads_nothing_of_distributed_torch(run: Path, script: str):
    own = modules_after("import torch\n")
    more = modules_after(script.format(run=str(run))) - own
    assert [module for module in sorted(more) if below({module}, DISTRIBUTED)] == []
