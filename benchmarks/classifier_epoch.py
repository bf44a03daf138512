"""Epoch of the classifier with all layers unfrozen, and its validation: fastai's learner and ours, with their own loaders.

Both start from the same untrained encoder, so the accuracy is that of one epoch from scratch, not of the whole config. The
first steps of a process have a learning rate of zero, and are not timed.
"""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Benchmark, Measured
from benchmarks.workloads import (
    configured,
    fastai_classifier_learner,
    fastai_classifier_loaders,
    seconds_per_step,
)
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.data.splits import DocumentSplits, split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.networks import build_language_model, encoder_of
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages.classifier import classifier_learner
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.training.schedule import learning_rate


def fastai(case: str) -> Measured:
    config, store, documents = workload(case)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = fastai_classifier_learner(config, store, fastai_classifier_loaders(config, store, documents, device))
    encoder = encoder_of(untrained(config, store))
    learner.model[0].module.load_state_dict(encoder.state_dict())
    seconds = seconds_of_epoch(learner, config)
    precision = "fp16" if device.type == "cuda" else "fp32"
    return Measured(seconds, {"accuracy": learner.recorder.values[-1][-1], "precision": precision})


def ours(case: str, precision: str, *overrides: str) -> Measured:
    config, store, documents = workload(case, *overrides)
    runtime = Runtime(RuntimeConfig(precision=precision))
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, runs_dir=folder)
        training = {"data_fingerprint": store.fingerprint}
        save_bundle(config.run_dir / "lm", untrained(config, store), config, store, labels=None, training=training)
        learner = classifier_learner(config, runtime, store)
    chosen = (documents.classifier_train, documents.classifier_valid)
    for batches, indices in zip(learner.dls.loaders, chosen, strict=True):
        batches.documents = indices
        batches.set_epoch(0)
    seconds = seconds_of_epoch(learner, config)
    return Measured(seconds, {"accuracy": learner.valid_metrics["accuracy"], "precision": runtime.precision})


def workload(case: str, *overrides: str) -> tuple[Config, TokenStore, DocumentSplits]:
    """Return config and token store of a case, and its documents: all of them, or a given number at equal distances."""
    max_len, limit = re.fullmatch(r"max_len (\d+)(?:, (\d+) articles)?", case).groups()  # type: ignore[union-attr]
    config = configured(f"classifier.max_len={max_len}", *overrides)
    store = prepare(config, Runtime(RuntimeConfig(precision="fp32")))
    documents = split_documents(store, config)
    if limit is not None:
        stride = len(store) // int(limit)
        train, valid = documents.classifier_train[::stride], documents.classifier_valid[::stride]
        documents = replace(documents, classifier_train=train, classifier_valid=valid)
    return config, store, documents


def untrained(config: Config, store: TokenStore) -> nn.Module:
    """Return a language model with the initial encoder of both contenders."""
    seed_torch("benchmark")
    return build_language_model(len(store.vocab), config.model, config.lm)


def seconds_of_epoch(learner: Any, config: Config) -> float:
    """Return the duration of one epoch with the last phase's learning rates, and its validation, in seconds."""
    learner.unfreeze()
    seconds_per_step(learner, 0.0, warm_up=1, steps=1)
    with learner.no_bar(), learner.no_logging():
        begin = _now()
        learner.fit_one_cycle(1, learning_rate(config.classifier.phases[-1]))
        return _now() - begin


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


BENCHMARK = Benchmark(
    title="an epoch of the classifier, BBC News: 1,780 articles and 445 to validate on, 16 a batch, AWD-LSTM 200/400/2",
    unit="seconds per epoch",
    contenders={
        "fastai": fastai,
        "ours fp32": lambda case: ours(case, "fp32"),
        "ours": lambda case: ours(case, "auto"),
    },
    cases=["max_len 1440", "max_len 432"],
    higher_is_better=False,
)
