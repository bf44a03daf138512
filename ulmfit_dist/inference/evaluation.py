"""Forward passes of an exported model over the batches of an evaluation, and the metrics of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_dist.data.batches import MicroBatch, RankLoader
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.accumulators import ClassifierMetrics
from ulmfit_dist.metrics.calibration import class_scores, expected_calibration_error, reliability
from ulmfit_dist.models.layers import SequentialRNN
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.utils.memory import explain_out_of_memory
from ulmfit_dist.utils.progress import Progress


def classifier_figures(metrics: ClassifierMetrics, labels: Sequence[str], runtime: Runtime) -> dict[str, Any]:
    """Return all figures of an evaluation of a classifier. Collective.

    Returns:
        The metrics; `expected_calibration_error` and `reliability`, the table that it is computed from; `brier_score`;
        `classes` with precision, recall, F1 and support of each; and `confusion_matrix`, documents by true class (rows) and
        predicted class, in the order of the labels.
    """
    figures: dict[str, Any] = dict(metrics.compute(runtime))
    confusion_CC, bins_K3 = metrics.confusion_CC.numpy(), metrics.bins_K3.numpy()
    figures["expected_calibration_error"] = expected_calibration_error(bins_K3)
    figures["brier_score"] = metrics.brier_score
    figures["reliability"] = [entry._asdict() for entry in reliability(bins_K3)]
    figures["classes"] = [scores._asdict() for scores in class_scores(labels, confusion_CC)]
    figures["confusion_matrix"] = confusion_CC.astype(int).tolist()
    return figures


def in_precision(model: nn.Module, stage: str, runtime: Runtime) -> nn.Module:
    """Return the model with the same modules in mixed precision as in training, and their outputs in fp32.

    These are the modules that `replace_modules` of the stage's learner replaces: a classifier pools in fp32.
    """

    def prepare_module(module: nn.Module) -> nn.Module:
        prepared: nn.Module = runtime.accelerator.prepare_model(module, evaluation_mode=True)
        return prepared

    if stage == "lm":
        return prepare_module(model)
    assert isinstance(model, SequentialRNN)
    model[0], model[1].layers = prepare_module(model[0]), prepare_module(model[1].layers)
    return model


@torch.no_grad()
def read_batches(
    model: nn.Module, valid: RankLoader, update: Callable[[Tensor, MicroBatch], None], runtime: Runtime
) -> None:
    """Run a model on this rank's batches, and call `update` with the output and the micro-batch.

    Raises:
        UserError: out of memory.
    """
    encoder = encoder_of(model)
    encoder.reset()
    with (
        explain_out_of_memory(f"evaluate on rank {runtime.rank}", "start more ranks, or set ACCELERATE_USE_CPU=true"),
        Progress("evaluating", len(valid), runtime.is_main) as progress,
    ):
        for batches in valid:
            for batch in batches:
                encoder.position.rows = batch.rows
                update(model(batch.to(runtime.device).x)[0], batch.to(runtime.device))
            progress.advance()
