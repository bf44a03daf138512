"""Out of memory on a GPU: the repeated step, with a loss scaler and with steps that were sent ahead."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import PRECISIONS, make_texts, needs_gpu, small_config, train

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
        found, expected = (load_file(run / stage / "model.safetensors") for run in (failed, whole))
        assert all(torch.equal(found[name], expected[name]) for name in expected), stage
