"""Training step of the language model: fastai's learner and ours, each with its own loader, loss and optimizer."""

from __future__ import annotations

import torch

from benchmarks.harness import Benchmark, Measured
from benchmarks.workloads import configured, fastai_lm_learner, filled_store, seconds_per_step
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.lm import lm_learner

BATCH = ["lm.global_batch_size=64", "lm.seq_len=72", "tokenizer.max_vocab=60000", "tokenizer.min_freq=1"]
FULL_SIZE = ["model={emb_sz: 400, n_hid: 1152, n_layers: 3}"]
CASES = {"15000 words": [], "60000 words": [], "full AWD-LSTM, 60000 words": FULL_SIZE}
"""Overrides of the quick start's model, which has embeddings of 200 and two layers of 400, by case."""


def config_of(case: str) -> tuple[Config, int]:
    """Return the config and the vocabulary size of a case."""
    num_words = int(case.split()[-2])
    return configured(*BATCH, *CASES[case], f"tokenizer.max_vocab={num_words}"), num_words


def fastai(case: str) -> Measured:
    config, num_words = config_of(case)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = filled_store(config, num_words, Runtime(RuntimeConfig(precision="fp32")))
    learner = fastai_lm_learner(config, store, device)
    return _measured(learner, config, "fp16" if device.type == "cuda" else "fp32")


def ours(case: str, precision: str) -> Measured:
    config, num_words = config_of(case)
    runtime = Runtime(RuntimeConfig(precision=precision))
    return _measured(lm_learner(config, runtime, filled_store(config, num_words, runtime)), config, runtime.precision)


def _measured(learner: object, config: Config, precision: str) -> Measured:
    warm_up, steps = (20, 100) if torch.cuda.is_available() else (2, 5)
    seconds = seconds_per_step(learner, 1e-2, warm_up, steps)
    tokens = config.lm.global_batch_size * config.lm.seq_len
    return Measured(tokens / seconds, {"ms": seconds * 1000, "precision": precision})


BENCHMARK = Benchmark(
    title="language model training, 64 x 72 tokens per step, AWD-LSTM 200/400/2, or full (400/1152/3)",
    unit="tokens/s",
    contenders={
        "fastai": fastai,
        "ours fp32": lambda case: ours(case, "fp32"),
        "ours bf16": lambda case: ours(case, "bf16"),
        "ours auto": lambda case: ours(case, "auto"),
    },
    cases=["full AWD-LSTM, 60000 words"] if torch.cuda.is_available() else ["15000 words", "60000 words"],
)
