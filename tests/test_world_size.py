"""The same run on one rank and on two: real processes, real Accelerate, every file read back."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import TINY, store_in, succeed
from safetensors.torch import load_file


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "model.safetensors")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("stage", ["lm", "classifier"])
def test_two_ranks_train_the_same_weights_as_one(run_dirs: dict[str, Path], stage: str):
    assert summary(run_dirs["two"])["world_size"] == 2
    torch.testing.assert_close(weights(run_dirs["two"], stage), weights(run_dirs["one"], stage), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stage", ["lm", "classifier"])
def test_accumulated_micro_batches_train_the_same_weights(run_dirs: dict[str, Path], stage: str):
    torch.testing.assert_close(weights(run_dirs["micro"], stage), weights(run_dirs["one"], stage), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stage", ["lm", "classifier"])
def test_two_virtual_ranks_on_one_are_two_ranks_bit_by_bit_with_dropout(run_dirs: dict[str, Path], stage: str):
    one, two = weights(run_dirs["one-bits"], stage), weights(run_dirs["two-bits"], stage)
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert summary(run_dirs["one-bits"])["world_size"] == 1


@pytest.mark.parametrize("kind", ["", "-bits"])
def test_two_ranks_log_the_same_metrics_as_one(run_dirs: dict[str, Path], kind: str):
    one, two = lines(run_dirs[f"one{kind}"]), lines(run_dirs[f"two{kind}"])
    assert len(one) == len(two) > 5
    for mine, theirs in zip(one, two, strict=True):
        assert list(mine) == list(theirs)
        for name in mine:
            if name == "stage":
                assert mine[name] == theirs[name]
            elif not name.endswith("_per_second"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-7 if kind else 1e-9), name


def test_two_ranks_write_the_same_bytes_of_the_store(run_dirs: dict[str, Path]):
    one, two = (store_in(run_dirs["caches"] / f"cache{n}") for n in (1, 2))
    assert one.name == two.name
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in two.iterdir())
    assert sum(name.endswith(".tokens") for name in names) == 5
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_perplexity_is_the_exponential_of_the_loss_and_learning_happens(run_dirs: dict[str, Path]):
    epochs = [line for line in lines(run_dirs["one"]) if "lm/perplexity" in line]
    assert all(line["lm/perplexity"] == pytest.approx(math.exp(line["lm/valid_loss"])) for line in epochs)
    assert epochs[-1]["lm/perplexity"] < epochs[0]["lm/perplexity"]
    assert summary(run_dirs["one"])["classifier"]["accuracy"] > 0.6  # three classes: chance is 0.33


def test_a_frozen_phase_leaves_frozen_weights_alone(run_dirs: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path):
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "lm").symlink_to(run_dirs["one"] / "lm")
    place = [f"data.path={corpus}", f"data.cache={run_dirs['caches']}/cache1", f"runs_dir={tmp_path}", "name=head"]
    phases = "classifier.phases=[{epochs: 1, freeze_to: -1, lr: 1e-2}]"
    same = ["lm.drop_mult=0", "lm.grad_clip=0.3", "runtime.precision=fp64", "tracking.wandb=disabled"]
    succeed(["classifier", recipe, *TINY, *place, *same, phases])
    before, after = weights(run_dirs["one"], "lm"), weights(tmp_path / "head", "classifier")
    encoder = {key: value for key, value in after.items() if key.startswith("0.module.rnns.")}
    assert len(encoder) == 8
    for key, value in encoder.items():
        assert torch.equal(value, before[key.replace("0.module.", "0.", 1)].to(value.dtype))


def test_two_ranks_accumulate_micro_batches_of_an_uneven_classifier_batch(
    run_dirs: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lm").symlink_to(run_dirs["one"] / "lm")
    place = [f"data.path={corpus}", f"data.cache={run_dirs['caches']}/cache1", f"runs_dir={tmp_path}"]
    same = ["lm.drop_mult=0", "lm.grad_clip=0.3", "tracking.wandb=disabled", "runtime.precision=bf16"]
    words = [*place, *same, "runtime.micro_batch_size=4", "classifier.phases=[{epochs: 1, lr: 1e-2}]"]
    succeed(["classifier", recipe, *TINY, *words], processes=2)
    assert summary(tmp_path / "run")["precision"] == "bf16"
    assert math.isfinite(summary(tmp_path / "run")["classifier"]["valid_loss"])
