"""Perplexity of the language model after one cycle of about two hundred steps, to verify that faster steps learn as much.

fastai's learner and ours train on the same documents from the same weights, with the same schedule, dropouts and
regularization. Both weights are evaluated by our code in fp32, on the same held-out documents; their names are equal. A seed
determines documents, splits and initial weights, equal on both sides. The order of documents and the dropout masks differ,
and the spread between seeds is larger for shorter training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fastai.torch_core import set_seed

from benchmarks.harness import Benchmark, Measured
from benchmarks.lm_step import BATCH
from benchmarks.workloads import configured, fastai_lm_learner
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.data.vocab import FILLER
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.accumulators import LMMetrics
from ulmfit_dist.models.fused_cross_entropy import DecoderLoss
from ulmfit_dist.models.networks import build_language_model, encoder_of
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages.lm import lm_learner, lm_loaders
from ulmfit_dist.stages.prepare import prepare

SEEDS = (1, 2, 3)
ARTICLES, EPOCHS, LEARNING_RATE = 750, 3, 1e-2
"""Articles per seed, a fifth of them for validation, epochs of about 67 steps, and learning rate."""


def fastai(case: str) -> Measured:
    runtime = Runtime(RuntimeConfig(precision="fp32"))

    def learner(config: Config, store: TokenStore) -> Any:
        set_seed(config.seed)
        return fastai_lm_learner(config, store, runtime.device)

    return _measured(case, learner, runtime, "fp16" if runtime.device.type == "cuda" else "fp32")


def ours(case: str, precision: str) -> Measured:
    runtime = Runtime(RuntimeConfig(precision=precision))
    return _measured(case, lambda config, store: lm_learner(config, runtime, store), runtime, runtime.precision)


def _measured(case: str, learner_of: Callable[[Config, TokenStore], Any], runtime: Runtime, precision: str) -> Measured:
    num_words = int(case.split()[0])
    perplexities, seconds, steps = [], 0.0, []
    for seed in SEEDS:
        config = configured(*BATCH, f"tokenizer.max_vocab={num_words}", f"data.max_documents={ARTICLES}", f"seed={seed}")
        store = prepare(config, runtime)
        store.vocab += [FILLER] * (num_words - len(store.vocab))
        learner = learner_of(config, store)
        learner.model.load_state_dict(initial_weights(config, store))
        steps.append(EPOCHS * len(learner.dls.train))
        begin = time.perf_counter()
        with learner.no_bar(), learner.no_logging():
            learner.fit_one_cycle(EPOCHS, LEARNING_RATE)
        seconds += time.perf_counter() - begin
        perplexities.append(perplexity(learner.model.state_dict(), config, store, runtime))
    details: dict[str, float | str] = {"by seed": " ".join(f"{value:.1f}" for value in perplexities)}
    details["seconds per seed"] = seconds / len(SEEDS)
    return Measured(statistics.mean(perplexities), {**details, "precision": precision, "steps": " ".join(map(str, steps))})


def initial_weights(config: Config, store: TokenStore) -> Mapping[str, torch.Tensor]:
    """Return the initial weights of a language model for a seed; fastai's model has the same names."""
    seed_torch(config.seed, "benchmark")
    return build_language_model(len(store.vocab), config.model, config.lm).state_dict()


@torch.no_grad()
def perplexity(weights: Mapping[str, torch.Tensor], config: Config, store: TokenStore, runtime: Runtime) -> float:
    """Return the perplexity of the held-out documents, computed in fp32 for any training precision."""
    model = build_language_model(len(store.vocab), config.model, config.lm)
    model.load_state_dict(weights)
    model.to(runtime.device).eval()
    metrics = LMMetrics(DecoderLoss(model[1].decoder, torch.float32))
    metrics.reset(runtime.device)
    encoder_of(model).reset()
    for batches in lm_loaders(config, runtime, store)[1]:
        for batch in batches:
            encoder_of(model).position.rows = batch.rows
            metrics.update(model(batch.to(runtime.device).x)[0], batch.to(runtime.device))
    return metrics.compute(runtime)["perplexity"]


BENCHMARK = Benchmark(
    title=f"held-out perplexity after one cycle of two hundred steps, 64 x 72 tokens each; mean of {len(SEEDS)} seeds",
    unit="perplexity",
    contenders={
        "fastai": fastai,
        "ours fp32": lambda case: ours(case, "fp32"),
        "ours bf16": lambda case: ours(case, "bf16"),
        "ours auto": lambda case: ours(case, "auto"),
    },
    cases=["15000 words", "60000 words"],
    higher_is_better=False,
)
