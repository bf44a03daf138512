"""Helpers for the tests on a GPU: a synthetic token store, and small runs of the real stages on it.

Without a GPU, `bash launch/test.sh --simulated-gpu` runs them on a simulated one (tests/simulated_gpu), and
ULMFIT_DIST_GPU_TESTS_ON=cpu on the CPU, except what only a GPU can do.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from fastai.text.core import defaults
from stores import make_store

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, TokenizerConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.run import run_stage
from ulmfit_dist.utils.files import write_json

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for runtime.deterministic: too late once cuBLAS has begun

DEVICE = torch.device(os.environ.get("ULMFIT_DIST_GPU_TESTS_ON", "cuda"))
IS_SIMULATED = "simulated" in (torch.cuda.get_device_name() if DEVICE.type == "cuda" and torch.cuda.is_available() else "")
"""True for the GPU of tests/simulated_gpu, which computes at the speed of a CPU."""
needs_gpu = pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no GPU is visible")
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="on a GPU alone")
HAS_NO_BF16 = DEVICE.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8
PRECISIONS = [
    pytest.param("bf16", marks=pytest.mark.skipif(HAS_NO_BF16, reason="this GPU has no bf16")),
    pytest.param("fp16", marks=needs_cuda),
]

SCATTERED = "RNN module weights are not part of single contiguous chunk of memory"
"""torch's warning about weights that cuDNN compacts before each use."""

SPECIAL: list[str] = defaults.text_spec_tok
V, TOPICS, WORDS_OF_A_TOPIC = 120, 3, 35

SMALL = (
    "data.valid_pct=0.2",
    "model={emb_sz: 24, n_hid: 40, n_layers: 2}",
    "lm={global_batch_size: 8, seq_len: 12, drop_mult: 0.3}",
    "lm.phases=[{epochs: 1, lr: 1e-2, freeze_to: -1}, {epochs: 2, lr: 2e-2}]",
    "classifier={global_batch_size: 16, seq_len: 12, max_len: 24, drop_mult: 0.3, baseline: false}",
    "classifier.phases=[{epochs: 1, lr: 2e-2, freeze_to: -1}, {epochs: 3, lr: [8e-3, 1e-2]}]",
    "checkpoint.interval_steps=7",
    "tracking={wandb_mode: disabled, log_interval: 1}",
)
"""Overrides with which a config runs in seconds."""


def make_texts(folder: Path, documents: int = 120) -> Path:
    """Build a token store of three topics with distinct words, in which most words are followed by the next one."""
    rng = np.random.default_rng(0)
    topics = rng.integers(0, TOPICS, documents)
    walks = [
        np.where(rng.random(n) < 0.9, 1, rng.integers(0, WORDS_OF_A_TOPIC, n)).cumsum()
        for n in rng.integers(20, 60, documents)
    ]
    ids = [
        V - TOPICS * WORDS_OF_A_TOPIC + topic * WORDS_OF_A_TOPIC + walk % WORDS_OF_A_TOPIC
        for topic, walk in zip(topics, walks, strict=True)
    ]
    store = make_store(folder, ids, topics, [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), V))])
    num_tokens = int(store.lengths.sum())
    metadata = {
        "num_tokens": num_tokens,
        "vocab_size": V,
        "longest": int(store.lengths.max()),
        "tokens": {"train": num_tokens},
    }
    metadata |= {"unknown": {"train": 0}, "num_empty": 0, "num_skipped": 0, "tokenizer": asdict(TokenizerConfig())}
    write_json(folder / "meta.json", {**store.meta, **metadata})
    return folder


def small_words(texts: Path, runs: Path, *overrides: str) -> list[str]:
    """Return the config of a run over a token store, loaded as by the command line."""
    return [*SMALL, f"data.token_store={texts}", f"runs_dir={runs}", *overrides]


def small_config(texts: Path, runs: Path, *overrides: str) -> Config:
    return load_config(None, small_words(texts, runs, *overrides))


@contextmanager
def running(config: Config, device: torch.device = DEVICE) -> Iterator[Runtime]:
    """Yield a runtime on a device, and reset Accelerate's state, so that a later one may have a different precision."""
    before = os.environ.get("ACCELERATE_USE_CPU", "false")
    os.environ["ACCELERATE_USE_CPU"] = str(device.type == "cpu").lower()
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with Runtime(config.runtime) as runtime:
            assert runtime.device.type == device.type
            yield runtime
    finally:
        os.environ["ACCELERATE_USE_CPU"] = before
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.use_deterministic_algorithms(False)


def train(config: Config, *stages: str, device: torch.device = DEVICE) -> Path:
    """Run stages like the command line, and return the run directory."""
    for stage in stages:
        with running(config, device) as runtime:
            run_stage(config, runtime, stage)
    return config.run_dir


@contextmanager
def without_tf32() -> Iterator[None]:
    """Disable TF32, with which cuDNN's LSTM rounds factors to 10 bits of mantissa."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def simulated_counters() -> Any:
    """Return the simulated GPU's counters; None on a real GPU or a CPU."""
    if not IS_SIMULATED:
        return None
    from simulated_gpu.counters import COUNTERS

    return COUNTERS


@contextmanager
def flat_lstm_weights() -> Iterator[None]:
    """Fail if a block computes an LSTM with non-contiguous weights, by torch's warning and the simulated GPU's counter."""
    counters = simulated_counters()
    before = (counters.lstms, counters.scattered) if counters else (0, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert not [warning for warning in caught if SCATTERED in str(warning.message)]
    if counters:
        assert counters.lstms > before[0]
        assert counters.scattered == before[1]
