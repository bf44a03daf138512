"""Tests of out of memory on a GPU: the repeated step with a loss scaler, with prefetched steps, and on two ranks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import PRECISIONS, make_texts, needs_gpu, small_config, small_words, train
from test_gpu_ranks import HAS_TWO_GPUS, launch

FAILURES = {
    "lm": "lm.callbacks=[{path: out_of_memory.OutOfMemory, place: backward, step: 0}]",
    "classifier": "classifier.callbacks=[{path: out_of_memory.OutOfMemory, place: pooled, step: 0}]",
}


@needs_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_out_of_memory_in_its_first_steps_is_one_of_smaller_micro_batches(tmp_path: Path, precision: str):
    texts = make_texts(tmp_path / "texts", 60)
    words = [f"runtime.precision={precision}", "runtime.deterministic=true", "lm.phases=[{epochs: 1, lr: 1e-2}]"]
    words += ["classifier.phases=[{epochs: 1, lr: [8e-3, 1e-2]}]"]
    failed = train(small_config(texts, tmp_path, *words, *FAILURES.values(), "name=failed"), *FAILURES)
    summary = json.loads((failed / "summary.json").read_text())
    for stage in FAILURES:
        size = summary[stage]["micro_batch_size"]
        assert 4 <= size < 16
        whole = train(small_config(texts, tmp_path, *words, "name=whole", f"runtime.micro_batch_size={size}"), stage)
        actual, expected = (load_file(run / stage / "model.safetensors") for run in (failed, whole))
        assert all(torch.equal(actual[name], expected[name]) for name in expected), stage


@pytest.mark.skipif(not HAS_TWO_GPUS, reason="two GPUs are needed")
def test_two_gpus_repeat_a_step_in_which_one_fails(tmp_path: Path, recipe: Path):
    texts = make_texts(tmp_path / "texts", 48)
    words = ["name=run", "runtime.precision=bf16", "checkpoint.interval_steps=null", "lm.phases=[{epochs: 1, lr: 1e-2}]"]
    words += ["lm.callbacks=[{path: out_of_memory.OutOfMemory, place: backward, step: 2, rank: 1}]"]
    words += ["classifier.phases=[{epochs: 1, lr: [8e-3, 1e-2]}]"]
    words += ["classifier.callbacks=[{path: out_of_memory.OutOfMemory, place: pooled, step: 1, rank: 0}]"]
    printed = launch(tmp_path, ["run", str(recipe), *small_words(texts, tmp_path, *words)])
    assert "lm: out of memory at 4 row(s) per micro-batch on rank 1" in printed
    assert "classifier: out of memory at 2 row(s) per micro-batch on rank 0" in printed
    of_ranks = [(tmp_path / f"rank{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    first, second = ([(line["stage"], line["weights"]) for line in map(json.loads, lines)] for lines in of_ranks)
    assert first == second
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [summary[stage]["micro_batch_size"] for stage in ("lm", "classifier")] == [2, 1]
