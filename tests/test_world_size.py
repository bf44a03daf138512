"""The same run on one rank, two, four, and one with accumulated micro-batches: real processes, every file read back.

The recipe is ULMFiT's with nothing left out: frozen and unfrozen phases of the language model, gradual unfreezing of the
classifier, one-cycle, discriminative learning rates, every dropout at its default, weight decay, AR, TAR and clipping.
"""

import json
import math
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
    "lm.phases=[{epochs: 1, lr: 1e-2, freeze_to: -1}, {epochs: 3, lr: 5e-3}]",
    "lm.grad_clip=0.3",
    # the default rates: a factor of 2.6 from layer group to layer group
    "classifier.phases=[{epochs: 4, lr: 2e-2, freeze_to: -1}, {epochs: 3, lr: [2.188e-4, 1e-2], freeze_to: -2},"
    " {epochs: 2, lr: [1.094e-4, 5e-3], freeze_to: -3}, {epochs: 2, lr: [2.188e-5, 1e-3], freeze_to: 0}]",
    "classifier.grad_clip=0.1",
    "tracking.log_every=1",
    "tracking.wandb=disabled",
)
CUTS = {"one": (1, []), "two": (2, []), "four": (4, []), "accumulated": (1, ["runtime.micro_batch_size=2"])}
OTHERS = ["two", "four", "accumulated"]
STAGES = ["lm", "classifier"]


@pytest.fixture(scope="module", params=["fp64", "no"])
def cuts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, corpus: Path, recipe: Path):
    """Run directories by cut, and the precision they were computed in. In fp32 all classifiers start from one encoder."""
    folder = tmp_path_factory.mktemp(request.param)
    shared = [recipe, *RECIPE, f"data.path={corpus}", f"data.cache={folder}", f"runs_dir={folder}"]
    shared += [f"runtime.precision={request.param}"]
    succeed(["prepare", *shared])
    if request.param == "fp64":
        for name in CUTS:
            (folder / f"{name}-lm").symlink_to(folder / name)
        train_all_cuts("run", shared)
    else:
        train_all_cuts("lm", shared, "-lm")
        for name in CUTS:
            (folder / name).mkdir()
            (folder / name / "lm").symlink_to(folder / "one-lm" / "lm")
        train_all_cuts("classifier", shared)
    return folder, request.param


def train_all_cuts(command: str, words: list[object], ending: str = "") -> None:
    """Those of one rank at once, then the others."""

    def train(name: str) -> None:
        processes, cut = CUTS[name]
        succeed([command, *words, *cut, f"name={name}{ending}"], processes)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, ("one", "accumulated")))
    for name in ("two", "four"):
        train(name)


def run_of(folder: Path, cut: str, stage: str) -> Path:
    return folder / (f"{cut}-lm" if stage == "lm" else cut)


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "model.safetensors")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_lines(found: list[dict], expected: list[dict], rel: float) -> None:
    """The same metrics in the same lines, but for what depends on the clock."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == list(theirs)
        for name in mine:
            if name == "stage":
                assert mine[name] == theirs[name]
            elif not name.endswith(BY_THE_CLOCK):
                assert mine[name] == pytest.approx(theirs[name], rel=rel), name


def losses(run: Path, stage: str) -> list[float]:
    """The training loss of each step."""
    return [line[f"{stage}/loss"] for line in lines(run) if f"{stage}/loss" in line]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def figures(run: Path, stage: str) -> dict[str, float]:
    return {name: value for name, value in summary(run)[stage].items() if not name.endswith(BY_THE_CLOCK)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("other", OTHERS)
def test_every_steps_loss_is_that_of_one_rank(cuts: tuple[Path, str], other: str, stage: str):
    folder, precision = cuts
    expected, found = (losses(run_of(folder, cut, stage), stage) for cut in ("one", other))
    assert summary(run_of(folder, other, stage))["world_size"] == CUTS[other][0]
    assert len(found) == len(expected) >= 200
    assert found == pytest.approx(expected, rel=1e-9 if precision == "fp64" else 1e-4)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("other", OTHERS)
def test_every_line_of_the_metrics_is_that_of_one_rank(cuts: tuple[Path, str], other: str, stage: str):
    folder, precision = cuts
    one, found = (lines(run_of(folder, cut, stage)) for cut in ("one", other))
    assert len(one) > 200
    assert_same_lines(found, one, rel=1e-9 if precision == "fp64" else 1e-4)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("other", OTHERS)
def test_final_weights_and_metrics_are_those_of_one_rank(cuts: tuple[Path, str], other: str, stage: str):
    folder, precision = cuts
    one, run = (run_of(folder, cut, stage) for cut in ("one", other))
    tolerance = 1e-9 if precision == "fp64" else 1e-3
    torch.testing.assert_close(weights(run, stage), weights(one, stage), rtol=tolerance, atol=tolerance)
    expected, found = figures(one, stage), figures(run, stage)
    assert found == pytest.approx(expected, **({"rel": 1e-9} if precision == "fp64" else {"abs": 5e-5}))  # four decimals


def test_one_two_and_four_ranks_are_equal_bit_by_bit_where_they_compute_as_four(
    run_dirs: dict[str, Path], corpus: Path, recipe: Path
):
    folder = run_dirs["caches"]
    words = [recipe, f"data.path={corpus}", *TINY, *LEARNING, f"data.cache={folder}/cache1", f"runs_dir={folder}"]
    succeed(["run", *words, "name=four"], processes=4)
    assert [summary(folder / name)["world_size"] for name in ("one", "two", "four")] == [1, 2, 4]
    for stage in STAGES:
        one = weights(folder / "one", stage)
        for other in ("two", "four"):
            found = weights(folder / other, stage)
            assert list(one) == list(found)
            assert all(torch.equal(one[key], found[key]) for key in one), (stage, other)


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
    """The classifier trained anew on the encoder of a run."""
    (folder / "run").mkdir()
    (folder / "run" / "lm").symlink_to(run_dirs["one"] / "lm")
    place = [f"data.path={corpus}", f"data.cache={run_dirs['caches']}/cache1", f"runs_dir={folder}"]
    succeed(["classifier", recipe, *TINY, *LEARNING, *place, "tracking.wandb=disabled", *words], **kwargs)
    return folder / "run"


def test_a_frozen_phase_leaves_frozen_weights_alone(run_dirs: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path):
    phases = "classifier.phases=[{epochs: 1, freeze_to: -1, lr: 1e-2}]"
    run = classifier_alone(run_dirs, corpus, recipe, tmp_path, [phases])
    before, after = weights(run, "lm"), weights(run, "classifier")
    encoder = {key: value for key, value in after.items() if key.startswith("0.module.rnns.")}
    assert len(encoder) == 8
    for key, value in encoder.items():
        assert torch.equal(value, before[key.replace("0.module.", "0.", 1)])


def test_two_ranks_accumulate_micro_batches_of_an_uneven_batch_and_exchange_half_the_bytes(
    run_dirs: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path
):
    words = ["runtime.micro_batch_size=4", "runtime.precision=bf16", "classifier.phases=[{epochs: 1, lr: 1e-2}]"]
    words += ["runtime.virtual_ranks=null", "runtime.compress_gradients=fp16", "tracking.log_every=1"]
    run = classifier_alone(run_dirs, corpus, recipe, tmp_path, words, processes=2)
    assert summary(run)["precision"] == "bf16"
    assert math.isfinite(summary(run)["classifier"]["valid_loss"])
    given = [line["classifier/communication_mb"] * 1e6 for line in lines(run) if "classifier/loss" in line]
    num_weights = sum(weight.numel() for name, weight in weights(run, "classifier").items() if "running" not in name)
    assert all(2 * num_weights <= bytes_of_step < 2.5 * num_weights for bytes_of_step in given)  # with what the head reads
