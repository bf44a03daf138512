"""Training step of a classifier with the losses of `classifier.unlabelled`, beside that of the labels only.

Documents are random tokens, 400 each, all of which are pooled: 16 with a label and 16 without one in a step, with all layers
trained. The last contender computes each pass again for its gradient (`runtime.micro_batch_size`). Steps are measured in
seconds of one CPU thread, which other processes of the machine hardly change.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from fastai.callback.core import Callback, CancelFitException

from benchmarks.harness import Benchmark, Measured
from benchmarks.workloads import configured
from ulmfit_dist.config.schema import UnlabelledConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.doctor.synthetic import RandomStore
from ulmfit_dist.stages.classifier import classifier_learner

NUM_WORDS, NUM_TOKENS, BATCH, NUM_STEPS = 15_000, 400, 16, 3
LOSSES = {
    "labels": UnlabelledConfig(),
    "entropy": UnlabelledConfig(BATCH, entropy_weight=1.0),
    "AT": UnlabelledConfig(adversarial_weight=1.0),
    "VAT": UnlabelledConfig(BATCH, virtual_adversarial_weight=1.0),
    "all": UnlabelledConfig(BATCH, 1.0, 1.0, 1.0),
}
"""Losses by contender."""


class CpuSeconds(Callback):
    """CPU seconds of the first steps of a fit, which it ends."""

    order, run_valid = 200, False

    def __init__(self, num_steps: int = NUM_STEPS):
        self.num_steps = num_steps

    def before_fit(self) -> None:
        self.seconds: list[float] = []

    def before_batch(self) -> None:
        self.started = time.process_time()

    def after_batch(self) -> None:
        self.seconds.append(time.process_time() - self.started)
        if len(self.seconds) == self.num_steps:
            raise CancelFitException()


def measure(losses: UnlabelledConfig, *overrides: str) -> Measured:
    sizes = "model={emb_sz: 200, n_hid: 400, n_layers: 2, pretrained: null}"
    config = configured(sizes, "runtime.precision=fp32", f"classifier.max_len={NUM_TOKENS}", *overrides)
    classifier = replace(config.classifier, unlabelled=losses, global_batch_size=BATCH, encoder=None)
    config = replace(config, classifier=classifier)
    store = RandomStore(NUM_WORDS, 8 * BATCH, NUM_TOKENS, seed=0, unlabelled=8 * BATCH)
    learner = classifier_learner(config, Runtime(config.runtime), store, needs_encoder=False)
    torch.set_num_threads(1)
    steps = CpuSeconds()
    learner.fit(1, 1e-3, cbs=steps)
    return Measured(min(steps.seconds))


BENCHMARK = Benchmark(
    title="step of a classifier, 16 + 16 documents of 400 tokens, 200/400/2, fp32",
    unit="CPU seconds",
    contenders={
        **{name: lambda case, losses=losses: measure(losses) for name, losses in LOSSES.items()},  # type: ignore[misc]
        "all, one pass at a time": lambda case: measure(LOSSES["all"], f"runtime.micro_batch_size={BATCH}"),
    },
    baseline="labels",
    higher_is_better=False,
)
