"""The same run on one rank, two, four, and one with accumulated micro-batches: real processes, every file read back.

The recipe is ULMFiT's with nothing left out: frozen and unfrozen phases of the language model, gradual unfreezing of the
classifier, one-cycle, discriminative learning rates, every dropout at its default, weight decay, AR, TAR and clipping.
"""

import json
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import LEARNING, TINY, store_in, succeed
from killing import BY_THE_CLOCK
from safetensors.torch import load_file

RECIPE = (
    *TINY,
    "model={emb_sz: 16, n_hid: 20, n_layers: 3}",
    "lm.phases=[{epochs: 1, lr: 1e-2, freeze_to: -1}, {epochs: 1, lr: 5e-3}]",
    "lm.grad_clip=0.3",
    # the default rates: a factor of 2.6 from layer group to layer group
    "classifier.phases=[{epochs: 1, lr: 2e-2, freeze_to: -1}, {epochs: 1, lr: [2.188e-4, 1e-2], freeze_to: -2},"
    " {epochs: 1, lr: [1.094e-4, 5e-3], freeze_to: -3}, {epochs: 1, lr: [2.188e-5, 1e-3], freeze_to: 0}]",
    "classifier.grad_clip=0.1",
    "tracking.log_interval=1",
    "tracking.wandb_mode=disabled",
)
CUTS = {"one": (1, []), "two": (2, []), "four": (4, []), "accumulated": (1, ["runtime.micro_batch_size=2"])}
OTHERS = ["two", "four", "accumulated"]
STAGES = ["lm", "classifier"]


@pytest.fixture(scope="module")
def fp64_runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path, recipe: Path) -> Path:
    """A folder of run directories by cut, computed in fp64, where ranks round alike to some 1e-14."""
    return train_cuts(tmp_path_factory.mktemp("fp64"), corpus, recipe, CUTS, ["runtime.precision=fp64"])


@pytest.fixture(scope="module")
def fp32_runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path, recipe: Path) -> Path:
    """The same in fp32, each computed as four ranks would: there equal bits are promised."""
    names = ("one", "two", "four")
    overrides = ["runtime.precision=fp32", "runtime.canonical_ranks=4"]
    return train_cuts(tmp_path_factory.mktemp("fp32"), corpus, recipe, names, overrides)


def train_cuts(folder: Path, corpus: Path, recipe: Path, names: Iterable[str], overrides: list[str]) -> Path:
    """Train the cuts of one rank side by side, then the others."""
    shared = [recipe, *RECIPE, f"data.path={corpus}", f"data.cache_dir={folder}", f"runs_dir={folder}", *overrides]
    succeed(["prepare", *shared])

    def train(name: str) -> None:
        processes, cut = CUTS[name]
        succeed(["run", *shared, *cut, f"name={name}"], processes)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, [name for name in names if CUTS[name][0] == 1]))
    for name in names:
        if CUTS[name][0] > 1:
            train(name)
    return folder


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "model.safetensors")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_lines(actual: list[dict], expected: list[dict], rel: float) -> None:
    """The same metrics in the same lines, but for what depends on the clock."""
    assert len(actual) == len(expected)
    for ours, reference in zip(actual, expected, strict=True):
        assert list(ours) == list(reference)
        for name in ours:
            if name == "stage":
                assert ours[name] == reference[name]
            elif not name.endswith(BY_THE_CLOCK):
                assert ours[name] == pytest.approx(reference[name], rel=rel), name


def losses(run: Path, stage: str) -> list[float]:
    """The training loss of each step."""
    return [line[f"{stage}/loss"] for line in lines(run) if f"{stage}/loss" in line]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def figures(run: Path, stage: str) -> dict[str, float]:
    return {name: value for name, value in summary(run)[stage].items() if not name.endswith(BY_THE_CLOCK)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("other", OTHERS)
def test_every_steps_loss_is_that_of_one_rank(fp64_runs: Path, other: str, stage: str):
    expected, actual = (losses(fp64_runs / cut, stage) for cut in ("one", other))
    assert summary(fp64_runs / other)["world_size"] == CUTS[other][0]
    assert len(actual) == len(expected) >= 76
    assert actual == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("other", OTHERS)
def test_every_line_of_the_metrics_is_that_of_one_rank(fp64_runs: Path, other: str):
    one, actual = (lines(fp64_runs / cut) for cut in ("one", other))
    assert len(one) > 160
    assert_same_lines(actual, one, rel=1e-9)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("other", OTHERS)
def test_final_weights_and_metrics_are_those_of_one_rank(fp64_runs: Path, other: str, stage: str):
    one, run = fp64_runs / "one", fp64_runs / other
    torch.testing.assert_close(weights(run, stage), weights(one, stage), rtol=1e-9, atol=1e-9)
    assert figures(run, stage) == pytest.approx(figures(one, stage), rel=1e-9)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("other", ["two", "four"])
def test_fp32_weights_have_the_bits_of_one_rank_where_all_compute_as_four(fp32_runs: Path, other: str, stage: str):
    assert summary(fp32_runs / other)["world_size"] == CUTS[other][0]
    expected, actual = (losses(fp32_runs / cut, stage) for cut in ("one", other))
    assert len(actual) == len(expected) >= 76
    assert actual == pytest.approx(expected, rel=1e-6)
    one, other_weights = (weights(fp32_runs / cut, stage) for cut in ("one", other))
    assert list(one) == list(other_weights)
    assert all(torch.equal(one[key], other_weights[key]) for key in one)


def test_a_qrnn_is_the_same_on_two_ranks_and_in_micro_batches(tmp_path: Path, corpus: Path, recipe: Path):
    overrides = ["runtime.precision=fp64", "model={arch: qrnn, arch_kwargs: {zoneout: 0.1}, n_layers: 2}"]
    overrides += ["lm.phases=[{epochs: 1, lr: 1e-2}]", "classifier.phases=[{epochs: 1, lr: 1e-2}]"]
    folder = train_cuts(tmp_path, corpus, recipe, ("one", "two", "accumulated"), overrides)
    for other in ("two", "accumulated"):
        assert_same_lines(lines(folder / other), lines(folder / "one"), rel=1e-9)
        for stage in STAGES:
            expected = weights(folder / "one", stage)
            assert any("layers.0.linear.weight_raw" in name for name in expected)
            torch.testing.assert_close(weights(folder / other, stage), expected, rtol=1e-9, atol=1e-9)


def test_two_ranks_log_the_same_metrics_as_one(run_dirs: dict[str, Path]):
    one, two = lines(run_dirs["one"]), lines(run_dirs["two"])
    assert len(one) > 5
    assert_same_lines(one, two, rel=1e-7)


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


def classifier_alone(
    run_dirs: dict[str, Path], corpus: Path, recipe: Path, folder: Path, words: list[str], **kwargs
) -> Path:
    """The classifier trained again on the encoder of a run."""
    (folder / "run").mkdir()
    (folder / "run" / "lm").symlink_to(run_dirs["one"] / "lm")
    place = [f"data.path={corpus}", f"data.cache_dir={run_dirs['caches']}/cache1", f"runs_dir={folder}"]
    succeed(["classifier", recipe, *TINY, *LEARNING, *place, "tracking.wandb_mode=disabled", *words], **kwargs)
    return folder / "run"


def test_a_frozen_phase_leaves_frozen_weights_alone(run_dirs: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path):
    phases = "classifier.phases=[{epochs: 1, freeze_to: -1, lr: 1e-2}]"
    run = classifier_alone(run_dirs, corpus, recipe, tmp_path, [phases])
    before, after = weights(run, "lm"), weights(run, "classifier")
    encoder = {key: value for key, value in after.items() if key.startswith("0.module.rnns.")}
    assert len(encoder) == 8
    for key, value in encoder.items():
        assert torch.equal(value, before[key.replace("0.module.", "0.", 1)])


@pytest.mark.usefixtures("bf16_lstms")
def test_two_ranks_accumulate_micro_batches_of_an_uneven_batch_and_exchange_half_the_bytes(
    run_dirs: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path
):
    words = ["runtime.micro_batch_size=4", "runtime.precision=bf16", "classifier.phases=[{epochs: 1, lr: 1e-2}]"]
    words += ["runtime.canonical_ranks=null", "runtime.gradient_compression=fp16", "tracking.log_interval=1"]
    run = classifier_alone(run_dirs, corpus, recipe, tmp_path, words, processes=2)
    assert summary(run)["precision"] == "bf16"
    assert math.isfinite(summary(run)["classifier"]["valid_loss"])
    given = [line["classifier/communication_mb"] * 1e6 for line in lines(run) if "classifier/loss" in line]
    num_weights = sum(weight.numel() for name, weight in weights(run, "classifier").items() if "running" not in name)
    assert all(2 * num_weights <= bytes_of_step < 2.5 * num_weights for bytes_of_step in given)  # with what the head reads
