"""Exported models that somebody has tampered with: refused in one line, and nothing of them run."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ulmfit_dist import load_classifier, load_language_model
from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.evaluate import evaluate


class Bomb:
    """Unpickled, it makes a folder in the working directory."""

    def __reduce__(self):
        return (os.mkdir, ("trace",))


def call_a_function(folder: Path) -> None:
    config = OmegaConf.load(folder / "config.yaml")
    config.tokenizer.rules = ["os.mkdir"]
    OmegaConf.save(config, folder / "config.yaml")


def pickle_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))


def let_yaml_grow(folder: Path) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write("a: &a [x, x]\nb: &b [*a, *a]\n")


def let_yaml_call(folder: Path) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write("a: !!python/object/apply:os.mkdir [trace]\n")


def inherit_from_a_file(folder: Path) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write("base: /etc/passwd\n")


def gigabytes_of_vocabulary(folder: Path) -> None:
    os.truncate(folder / "vocab.json", 5 << 30)


def gigabytes_of_config(folder: Path) -> None:
    os.truncate(folder / "config.yaml", 5 << 30)


ATTACKS = [
    (call_a_function, r"its tokenizer\.rules would call os\.mkdir: if you trust .* --trust-remote-code"),
    (pickle_the_weights, r"model\.safetensors: damaged or unreadable"),
    (let_yaml_grow, r"it has YAML aliases"),
    (let_yaml_call, r"config\.yaml"),
    (inherit_from_a_file, r"config\.yaml: base='/etc/passwd': a model's config must be complete"),
    (gigabytes_of_vocabulary, r"vocab\.json: .*5,368,709,120 bytes"),
    (gigabytes_of_config, r"config\.yaml: .*5,368,709,120 bytes"),
]


@pytest.fixture
def model(run_dirs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of one's own to tamper with; the working directory is an empty folder."""
    shutil.copytree(run_dirs["one"], tmp_path / "run", symlinks=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "run"


@pytest.mark.parametrize(("attack", "output"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
def test_a_model_that_was_tampered_with_is_refused_and_runs_nothing(
    model: Path, attack: Callable[[Path], None], output: str
):
    for stage in ("lm", "classifier"):
        attack(model / stage)
    uses = [
        lambda: load_classifier(model).predict(["trace"]),
        lambda: load_language_model(model).generate("trace"),
        lambda: evaluate(model, Runtime(RuntimeConfig(precision="fp32"))),
    ]
    for use in uses:
        with pytest.raises(UserError, match=output):
            use()
    assert not list(Path().iterdir())


def test_rules_are_called_where_they_are_trusted(model: Path):
    call_a_function(model / "classifier")
    with pytest.raises(TypeError):  # os.mkdir was called, and gives no text back
        load_classifier(model, trust_remote_code=True).predict(["trace"])
    assert [path.name.strip() for path in Path().iterdir()] == ["xxbos trace"]
