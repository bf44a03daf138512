"""User-defined metrics, computed once per evaluation on all validation documents.

Metrics such as F1 or AUC are not means over batches or ranks. So the logits of all ranks are gathered, and rank 0 computes
the metric on all documents in the order of the store and broadcasts it. Trade-off: the logits of all validation documents
are held in memory, a few numbers each.

N: validation documents, b: rows of a micro-batch, C: classes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.imports import import_path, path_and_arguments

KEY = "classifier.metrics"
OURS = (
    *("train_loss", "valid_loss", "accuracy", "f1_macro", "f1_micro", "rmse", "mae", "r2"),
    *("examples_per_second", "epoch_seconds", "loss", "loss_smoothed"),
)
"""Built-in metric names of metrics.jsonl."""


@dataclass(frozen=True)
class UserMetric:
    """User-defined metric.

    Attributes:
        name: name in metrics.jsonl.
        path: import path of the function or class.
        compute: function of logits [N, C] and targets [N], both on the CPU, that returns a number.
    """

    name: str
    path: str
    compute: Callable[[Tensor, Tensor], Any]

    def __call__(self, logits_NC: Tensor, y_N: Tensor) -> float:
        """Return the value of the metric. Raises UserError if it fails or is not a number."""
        try:
            return float(self.compute(logits_NC, y_N))
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{KEY}: {self.path} fails on {logits_NC.shape[1]} classes ({reason}): check its arguments"
            ) from None


class UserMetrics:
    """User-defined metrics, with the logits and targets of the running evaluation."""

    def __init__(self, metrics: Iterable[UserMetric] = ()):
        self.metrics = list(metrics)
        self.reset()

    def reset(self) -> None:
        """Drop all logits and targets."""
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, logits_bC: Tensor, batch: MicroBatch) -> None:
        """Keep the logits and targets of a micro-batch."""
        if self.metrics and batch.documents is not None:
            self._batches.append((torch.from_numpy(batch.documents), logits_bC.detach().float(), batch.y))

    def compute(self, runtime: Runtime) -> dict[str, float]:
        """Return each metric over the documents of all ranks. Collective. Raises UserError if one fails."""
        if not self.metrics:
            return {}
        local = [tuple(part.cpu().numpy() for part in batch) for batch in self._batches]
        batches = [batch for rank in runtime.all_gather_object(local) for batch in rank]
        self.reset()
        values: dict[str, float] = {}
        with runtime.fail_together():
            if runtime.is_main:
                columns = (torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*batches, strict=True))
                documents_N, logits_NC, y_N = columns
                order_N = documents_N.argsort()
                values = {metric.name: metric(logits_NC[order_N], y_N[order_N]) for metric in self.metrics}
        return runtime.broadcast_object(values)


def metric_names(entries: Iterable[Any]) -> list[str]:
    """Return the names of metrics in metrics.jsonl: `name`, or the last part of the path. Nothing is imported.

    Raises:
        UserError: an entry is invalid, or a name is already used.
    """
    names: list[str] = []
    for entry in entries:
        path, arguments = path_and_arguments(entry, KEY)
        name = str(arguments.get("name", path.rpartition(".")[2]))
        if name in (*OURS, *names):
            raise UserError(
                f"{KEY}: {path} has the name of another metric, {name}: give it another name by {{path: {path}, name: ...}}"
            )
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"{KEY}: name {name!r}: use only letters, digits and '_'")
        names.append(name)
    return names


def build_metrics(entries: list[Any], outputs: Tensor, y: Tensor) -> UserMetrics:
    """Return the metrics of `classifier.metrics`, each tested on sample outputs, so that errors are raised before training.

    Args:
        entries: `module.name`, or `{path: module.name, name: ..., argument: value, ...}`: a function of logits and targets,
            or a factory of one: a class, or a function such as fastai's F1Score, which returns a fastai Metric.
        outputs, y: sample outputs [N, C] and targets, [N] or [N, C].

    Raises:
        UserError: the path does not exist, its arguments are wrong, or the metric fails or is not a number.
    """
    metrics = []
    for name, entry in zip(metric_names(entries), entries, strict=True):
        path, arguments = path_and_arguments(entry, KEY)
        arguments.pop("name", None)
        metrics.append(UserMetric(name, path, _build(path, arguments)))
    for metric in metrics:
        metric(outputs, y)
    return UserMetrics(metrics)


def _build(path: str, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Any]:
    factory = import_path(path, KEY)
    if not inspect.isclass(factory) and _num_required(factory) >= 2:
        return lambda logits_NC, y_N: factory(logits_NC, y_N, **arguments)
    try:
        metric = factory(**arguments)
    except Exception as error:
        raise UserError(f"{KEY}: {path} cannot be created ({type(error).__name__}: {error}): check its arguments") from None
    from fastai.learner import Metric  # two seconds, which inference need not wait

    if isinstance(metric, Metric):
        return lambda logits_NC, y_N: _value(metric, logits_NC, y_N)
    if not callable(metric):
        raise UserError(
            f"{KEY}: {path} returns a {type(metric).__name__}: give a function of logits and targets, or a fastai Metric"
        )
    function: Callable[[Tensor, Tensor], Any] = metric
    return function


def _value(metric: Any, logits_NC: Tensor, y_N: Tensor) -> Any:
    """Return the value of a fastai Metric on all documents as one batch; its own gathering over ranks is disabled."""
    metric.reset()
    metric.accumulate(
        SimpleNamespace(pred=logits_NC, y=y_N, yb=(y_N,), xb=(y_N,), to_detach=lambda tensor, *_, **__: tensor.detach())
    )
    return metric.value


def _num_required(function: Callable[..., Any]) -> int:
    """Return the number of positional arguments without a default; 2 for C functions without a signature."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return 2
    return sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters)
