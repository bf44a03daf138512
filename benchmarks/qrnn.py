"""QRNN beside AWD-LSTM of the same sizes: a step of the language model, an epoch of the classifier, and `predict`.

The workloads are those of `lm_step`, `classifier_epoch` and `predict`: loaders, loss, optimizer and tokenization count.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import classifier_epoch, predict
from benchmarks.harness import Benchmark, Measured
from benchmarks.lm_step import BATCH, FULL_SIZE
from benchmarks.workloads import configured, filled_store, seconds_per_step
from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.lm import lm_learner

NUM_WORDS = 15_000


def lm_step(*overrides: str) -> Measured:
    """Measure a step of 64 x 72 tokens."""
    config = configured(*BATCH, f"tokenizer.max_vocab={NUM_WORDS}", *overrides)
    runtime = Runtime(RuntimeConfig(precision="fp32"))
    learner = lm_learner(config, runtime, filled_store(config, NUM_WORDS, runtime))
    return Measured(seconds_per_step(learner, 1e-2, warm_up=1, steps=4))


def prediction(*overrides: str) -> Measured:
    """Measure `predict` of 445 articles."""
    config, store, texts, model = predict.workload("445 articles", *overrides)
    (classifier,) = predict.exported(config, store, model, [None])
    return Measured(predict.seconds_of(lambda: classifier.predict(texts)))


def epoch(*overrides: str) -> Measured:
    """Measure an epoch of the classifier and its validation."""
    return classifier_epoch.ours("max_len 432", "fp32", *overrides)


CASES: dict[str, tuple[Callable[..., Measured], list[str]]] = {
    "LM step, 400/1152/3": (lm_step, FULL_SIZE),
    "classifier epoch, 200/400/2": (epoch, []),
    "predict, 200/400/2": (prediction, []),
    "predict, 400/1152/3": (prediction, FULL_SIZE),
}
"""Measurement and overrides of the sizes, by case."""


def measure(case: str, arch: str) -> Measured:
    function, sizes = CASES[case]
    return function(*sizes, f"model.arch={arch}")


BENCHMARK = Benchmark(
    title="QRNN and AWD-LSTM of the same sizes, BBC News, fp32",
    unit="seconds",
    contenders={"AWD-LSTM": lambda case: measure(case, "null"), "QRNN": lambda case: measure(case, "qrnn")},
    cases=[*CASES],
    baseline="AWD-LSTM",
    higher_is_better=False,
)
