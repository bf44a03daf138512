"""Out of memory: steps are repeated with smaller micro-batches, on all ranks alike, or one line tells what to set."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, command_here, launch
from fastai.callback.core import Callback, CancelBatchException
from out_of_memory import MESSAGE, OutOfMemory, config_of, difference, make_texts, trained

from ulmfit_dist.data.batches import BatchShard
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.evaluation import read_batches
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.out_of_memory import RankOutOfMemoryError, cut_states, refuse_validation
from ulmfit_dist.utils.memory import explain_out_of_memory, figures_of, is_out_of_memory

FIGURES = "Tried to allocate 2.00 GiB, total capacity of 79.11 GiB"
STAGES = ("lm", "classifier")


@pytest.fixture
def runtime(no_process_group: None, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with Runtime(config_of().runtime, keeps_group=True) as runtime:
        yield runtime


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return make_texts(tmp_path / "store")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Any]]]:
    """Outcome of each scenario on two ranks: rank 0's value, and rank 1's."""
    tests = Path(__file__).parents[1]
    words = [tests / "out_of_memory.py", tmp_path_factory.mktemp("oom") / "store"]
    result = launch(words, 2, PYTHONPATH=f"{tests.parent}:{tests}")
    assert result.returncode == 0, result.stdout + result.stderr
    actual: dict[str, dict[str, list[Any]]] = {}
    for line in result.stdout.splitlines():
        actual |= json.loads(line) if line.startswith("{") else {}
    return actual


@pytest.mark.parametrize(
    ("scenario", "size"),
    [
        ("lm forward", 2),
        ("lm loss", 2),
        ("lm backward", 2),
        ("lm on both ranks", 2),
        ("lm twice", 1),
        ("lm virtual ranks", 1),
        ("classifier forward", 3),  # a rank has five documents of nine there, and four of eight in later steps
        ("classifier head", 3),
        ("classifier pooled", 3),
        ("classifier backward", 2),
        ("classifier reads twice", 1),
        ("classifier virtual ranks", 2),
    ],
)
def test_two_ranks_repeat_a_step_in_which_one_fails(outcomes: dict[str, dict[str, list[Any]]], scenario: str, size: int):
    assert outcomes[scenario]["sizes"] == [size, size]
    assert max(outcomes[scenario]["differences"]) < 1e-12


@pytest.mark.parametrize("scenario", ["lm forward", "classifier forward"])
def test_a_repeated_first_step_is_bit_by_bit_that_of_smaller_micro_batches(
    outcomes: dict[str, dict[str, list[Any]]], scenario: str
):
    assert outcomes[scenario]["differences"] == [0, 0]


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (
            "lm too often",
            f"lm: out of memory at 1 row(s) per micro-batch on rank 1 ({FIGURES}), the smallest possible: lower lm.seq_len, "
            f"model.n_hid or model.emb_sz, or use a GPU with more memory",
        ),
        (
            "lm validation",
            f"lm: out of memory in validation at 4 row(s) per micro-batch on rank 1 ({FIGURES}): set "
            f"runtime.micro_batch_size=2",
        ),
        (
            "classifier validation",
            f"classifier: out of memory in validation at 16 row(s) per micro-batch on rank 0 ({FIGURES}): set "
            f"runtime.micro_batch_size=8",
        ),
    ],
)
def test_where_no_step_can_be_repeated_both_ranks_name_what_to_set(
    outcomes: dict[str, dict[str, list[Any]]], scenario: str, message: str
):
    assert outcomes[scenario] == {"errors": [message, message]}


def test_no_thread_of_the_process_group_outlives_fits_that_errors_have_ended(outcomes: dict[str, Any]):
    assert outcomes["threads"] == []


@pytest.mark.parametrize("place", ["forward", "backward", "head", "pooled"])
def test_one_rank_repeats_a_step(runtime: Runtime, store: TokenStore, place: str, capsys: pytest.CaptureFixture[str]):
    stage = "classifier" if place in ("head", "pooled") else "lm"
    actual = trained(stage, store, runtime, [OutOfMemory(place, 2)])
    assert f"continuing with {runtime.micro_batch_size}; set runtime" in capsys.readouterr().out
    assert difference(actual, trained(stage, store, runtime, micro_batch_size=4)) < 1e-12


def test_a_loss_scaler_does_not_see_a_failed_attempt(runtime: Runtime, store: TokenStore, monkeypatch: pytest.MonkeyPatch):
    scalers = []
    for failures in ([OutOfMemory("backward", 2)], []):
        monkeypatch.setattr(runtime.accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=5))
        trained("lm", store, runtime, failures)
        scalers.append(runtime.accelerator.scaler.state_dict())
    assert scalers[0] == scalers[1]
    assert scalers[0]["scale"] == 256


def test_an_optimizer_out_of_memory_is_one_line(runtime: Runtime, store: TokenStore):
    class Fails(Callback):
        def before_step(self) -> None:
            raise torch.OutOfMemoryError(MESSAGE)

    with pytest.raises(UserError, match=r"^lm step 0, outside of its micro-batches: out of memory \(Tried .*\): start more"):
        lm_learner(config_of(), runtime, store).fit_one_cycle(1, 1e-2, cbs=Fails())


def test_gradients_of_earlier_steps_are_not_lost(runtime: Runtime, store: TokenStore):
    class Accumulates(Callback):
        def after_loss(self) -> None:
            if self.learn.iter == 1:
                raise torch.OutOfMemoryError(MESSAGE)

        def before_step(self) -> None:
            raise CancelBatchException

    with pytest.raises(UserError, match=r"with accumulated gradients: set runtime\.micro_batch_size=4$"):
        lm_learner(config_of(), runtime, store).fit_one_cycle(1, 1e-2, cbs=Accumulates())


def test_a_rank_without_rows_in_a_validations_last_batch_names_what_to_set_too(runtime: Runtime, store: TokenStore):
    learner = lm_learner(config_of(), runtime, store)
    learner.dl, learner.micro_batches = learner.dls.valid, []
    error = refuse_validation(learner, RankOutOfMemoryError({1: FIGURES}))
    assert str(error).endswith("row(s) per micro-batch on rank 1 (" + FIGURES + "): set runtime.micro_batch_size=4")


def test_a_step_that_was_prepared_before_the_size_changed_is_cut_again(runtime: Runtime, store: TokenStore):
    learner = lm_learner(config_of(), runtime, store)
    learner.dl, learner.iter = learner.dls.train, 3
    learner.micro_batches = learner.dl.step(3)
    whole = learner.micro_batches[0].x
    learner.limit_micro_batches(3)
    learner.recut_micro_batches()
    assert [batch.rows for batch in learner.micro_batches] == [range(2), range(2, 5), range(5, 8)]
    assert torch.equal(torch.cat([batch.x for batch in learner.micro_batches]), whole)
    assert learner.dls.valid.shard.micro_batch_size == runtime.micro_batch_size == 3


@pytest.mark.distributed
def test_a_run_keeps_the_smaller_size(corpus: Path, recipe: Path, tmp_path: Path):
    words = ["run", recipe, *TINY, f"data.path={corpus}", f"data.cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}"]
    words += ["name=run", "tracking.log_interval=1", "tracking.wandb_mode=disabled", "lm.phases=[{epochs: 1, lr: 1e-2}]"]
    words += ["classifier.phases=[{epochs: 1, lr: 1e-2}]"]
    result = command_here([*words, "lm.callbacks=[{path: out_of_memory.OutOfMemory, place: forward, step: 3}]"])
    assert result.returncode == 0, result.stderr
    output = f"lm: out of memory at 8 row(s) per micro-batch on rank 0 ({FIGURES}): continuing with 4; set"
    assert result.stdout.count("out of memory") == result.stdout.count(output) == 1
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    sizes = {stage: [line.get(f"{stage}/micro_batch_size") for line in lines if f"{stage}/loss" in line] for stage in STAGES}
    assert sizes["lm"][:4] == [None, None, None, 4]
    assert set(sizes["lm"][3:]) == set(sizes["classifier"]) == {4}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [summary[stage]["micro_batch_size"] for stage in STAGES] == [4, 4]
    for stage in STAGES:
        states = [json.loads(file.read_text()) for file in (tmp_path / "run/checkpoints" / stage).glob("*/state.json")]
        assert max(states, key=lambda state: state["train_state"]["stage_step"])["micro_batch_size"] == 4


@pytest.mark.parametrize(
    ("size", "rows", "expected"),
    [(None, 8, 4), (4, 8, 2), (None, 9, 5), (3, 10, 2), (2, 8, 1), (1, 8, None), (None, 1, None)],
)
def test_a_micro_batch_is_halved(size: int | None, rows: int, expected: int | None):
    assert BatchShard(micro_batch_size=size).halved(rows) == expected


def test_what_is_the_smallest_share_of_an_uneven_batch_is_not_halved():
    share = BatchShard(range(1), 2)
    assert share.rows_at_once(3) == 2  # one rank has two of the three rows, the other one
    assert share.halved(3) is None


def test_hidden_states_are_cut_as_the_rows_are():
    states = {start: [(torch.arange(start, start + 4.0).view(1, 4, 1), torch.ones(1, 4, 1))] for start in (0, 4)}
    cut = cut_states(states, [range(4), range(4, 8)], [range(3), range(3, 6), range(6, 8)])
    assert {start: layers[0][0].flatten().tolist() for start, layers in cut.items()} == {
        0: [0, 1, 2],
        3: [3, 4, 5],
        6: [6, 7],
    }
    assert cut_states({}, [range(4)], [range(2), range(2, 4)]) == {}
    assert cut_states({0: []}, [range(4)], [range(2), range(2, 4)]) == {0: [], 2: []}


def test_what_means_out_of_memory():
    assert figures_of(torch.OutOfMemoryError(MESSAGE)) == FIGURES
    assert figures_of(RuntimeError("a\nb")) == "a"
    assert is_out_of_memory(torch.OutOfMemoryError("HIP out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(UserError, match=r"^predict: out of memory \(Tried .*\): give less$"), explain("predict"):
        raise torch.OutOfMemoryError(MESSAGE)
    with pytest.raises(RuntimeError, match="shapes"), explain("predict"):
        raise RuntimeError("shapes")


def explain(what: str) -> Any:
    return explain_out_of_memory(what, "give less")


def test_an_evaluation_names_what_to_do(runtime: Runtime, store: TokenStore):
    learner = lm_learner(config_of(), runtime, store)

    def update(*_: Any) -> None:
        raise torch.OutOfMemoryError(MESSAGE)

    with pytest.raises(UserError, match=r"evaluate on rank 0: out of memory \(Tried .*\): start more ranks"):
        read_batches(learner.model.eval(), learner.dls.valid, update, runtime)
