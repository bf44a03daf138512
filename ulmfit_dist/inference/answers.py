"""Predictions of an exported classifier for documents of a token store, and their metrics.

N: documents, C: classes, or 1 for a regression.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit_dist.config.schema import ClassifierConfig, Config
from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.data.classifier_loader import ClassifierLoader, classifier_batches
from ulmfit_dist.data.targets import Targets, num_outputs, read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.inference.evaluation import classifier_figures, in_precision, read_batches
from ulmfit_dist.inference.outputs import answers_of, outputs_of
from ulmfit_dist.metrics.accumulators import ClassifierMetrics
from ulmfit_dist.metrics.intervals import metric_intervals
from ulmfit_dist.metrics.objective import build_objective_metrics
from ulmfit_dist.models.bundle import ModelBundle
from ulmfit_dist.models.quantization import load_quantized


def compute_answers(
    exported: ModelBundle,
    store: TokenStore,
    documents_N: np.ndarray,
    runtime: Runtime,
    trust: bool = False,
    quantize: str | None = None,
) -> Tensor:
    """Return class probabilities, or the values of a regression, float64 [N, C], on every rank. Collective.

    Args:
        documents_N: indices in the store, ascending.
        trust: call user-defined functions of the model's config.
        quantize: as for `TextClassifier`; what is not quantized is then fp32.
    """
    target = exported.config.classifier.target
    outputs = num_outputs(target, exported.labels or [])
    answers_NC = torch.zeros(len(documents_N), outputs, dtype=torch.float64, device=runtime.device)

    def store_answers(prediction: Tensor, batch: MicroBatch) -> None:
        assert batch.documents is not None  # always set in the classifier's batches
        answers_NC[np.searchsorted(documents_N, batch.documents)] = answers_of(prediction, target)

    with runtime.fail_together():
        batches: ClassifierLoader = classifier_batches(exported.config, runtime, store, documents_N)
        model = load_quantized(exported, runtime.device, trust, quantize)
        if quantize is None:
            model = in_precision(model, "classifier", runtime)
        read_batches(model, batches, store_answers, runtime)
    return runtime.all_reduce_sum(answers_NC)


def figures_of_answers(
    answers_NC: Tensor, y_N: Tensor, targets: Targets, settings: ClassifierConfig, runtime: Runtime
) -> dict[str, Any]:
    """Return the metrics of answers that every rank holds: each rank counts its part of the documents. Collective."""
    local = slice(runtime.rank, None, runtime.world_size)
    metrics = build_objective_metrics(targets, settings, trust=False)
    metrics.reset(runtime.device)
    metrics.add(outputs_of(answers_NC, targets.kind)[local], y_N.to(runtime.device)[local])
    if isinstance(metrics, ClassifierMetrics):
        return classifier_figures(metrics, targets.names, runtime)
    return dict(metrics.compute(runtime))


def figures_of_documents(
    exported: ModelBundle, store: TokenStore, documents_N: np.ndarray, answers_NC: Tensor, runtime: Runtime
) -> dict[str, Any]:
    """Return the metrics of documents of a store, with intervals as in `with_intervals`. Collective."""
    config = exported.config
    targets = read_targets(store, config.classifier, config.data.label_delim)
    y_N = targets.of(store.labels[documents_N])
    figures = figures_of_answers(answers_NC, y_N, targets, config.classifier, runtime)
    return with_intervals(figures, answers_NC, y_N, config)


def with_intervals(figures: dict[str, Any], answers_NC: Tensor, y_N: Tensor, config: Config) -> dict[str, Any]:
    """Return figures of documents that no choice depends on, with the 95 % interval of each metric.

    Args:
        figures: as `figures_of_answers` returns them.
        answers_NC: probabilities or values, float64 [N, C].
        y_N: the targets.
        config: config of the classifier.

    Returns:
        `num_documents`, `loss`, the metrics by name, and for each `<name>_interval`, [low, high].
    """
    figures = {"num_documents": len(y_N), "loss": figures.pop("valid_loss"), **figures}
    intervals = metric_intervals(answers_NC.cpu().numpy(), y_N.cpu().numpy(), config.classifier, config.seed)
    return figures | {f"{name}_interval": interval for name, interval in intervals.items() if name in figures}
