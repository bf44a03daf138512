"""Metrics of the user's own: computed once per evaluation, from all validation documents.

F1, or an area under a curve, is no mean over batches or ranks. So the ranks put their logits together, rank 0 computes the
metric of all documents in the order of the store, and tells the others. The price: the logits of all validation documents,
a few numbers each, in memory.

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
"""Names that lines of metrics.jsonl have already."""


@dataclass(frozen=True)
class OwnMetric:
    """A metric by its name.

    Attributes:
        compute: from logits [N, C] and targets [N], both on the CPU, to a number.
    """

    name: str
    path: str
    compute: Callable[[Tensor, Tensor], Any]

    def __call__(self, logits_NC: Tensor, y_N: Tensor) -> float:
        """Raises UserError where it fails, or gives no number."""
        try:
            return float(self.compute(logits_NC, y_N))
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{KEY}: {self.path} fails on {logits_NC.shape[1]} classes ({what}): check its arguments"
            ) from None


class UserMetrics:
    """Logits and targets of an evaluation, kept until it ends."""

    def __init__(self, metrics: Iterable[OwnMetric] = ()):
        self.metrics = list(metrics)
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, logits_bC: Tensor, batch: MicroBatch) -> None:
        """Keep a micro-batch's."""
        if self.metrics and batch.documents is not None:
            self._kept.append((torch.from_numpy(batch.documents), logits_bC.detach().float(), batch.y))

    def compute(self, runtime: Runtime) -> dict[str, float]:
        """Each metric over the documents of all ranks, on every rank. Collective. Raises UserError where one fails."""
        if not self.metrics:
            return {}
        mine = [tuple(part.cpu().numpy() for part in kept) for kept in self._kept]
        pieces = [piece for theirs in runtime.all_gather_object(mine) for piece in theirs]
        self.reset()
        found: dict[str, float] = {}
        with runtime.fail_together():
            if runtime.is_main:
                columns = (torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*pieces, strict=True))
                documents_N, logits_NC, y_N = columns
                order_N = documents_N.argsort()
                found = {metric.name: metric(logits_NC[order_N], y_N[order_N]) for metric in self.metrics}
        return runtime.broadcast_object(found)


def metric_names(entries: Iterable[Any]) -> list[str]:
    """What metrics are called in metrics.jsonl: by `name`, or else by the last part of their path. Nothing is imported.

    Raises:
        UserError: an entry that is none, a name that is taken.
    """
    names: list[str] = []
    for entry in entries:
        path, arguments = path_and_arguments(entry, KEY)
        name = str(arguments.get("name", path.rpartition(".")[2]))
        if name in (*OURS, *names):
            raise UserError(f"{KEY}: there is a metric {name} already: give {path} another, as {{path: {path}, name: ...}}")
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"{KEY}: name {name!r}: give letters, digits and '_'")
        names.append(name)
    return names


def build_metrics(entries: list[Any], outputs: Tensor, y: Tensor) -> UserMetrics:
    """The metrics of `classifier.metrics`, each tried on made-up answers, so that a wrong one fails before the training.

    Args:
        outputs, y: the answers, [N, C], and what is true, [N] or [N, C].
        entries: `module.name`, or `{path: module.name, name: ..., argument: value, ...}`. It names a function of logits and
            targets, or what makes one: a class, or a function such as fastai's F1Score, which gives a Metric of fastai's.

    Raises:
        UserError: no such path, wrong arguments, a metric that fails or gives no number.
    """
    metrics = []
    for name, entry in zip(metric_names(entries), entries, strict=True):
        path, arguments = path_and_arguments(entry, KEY)
        arguments.pop("name", None)
        metrics.append(OwnMetric(name, path, _build(path, arguments)))
    for metric in metrics:
        metric(outputs, y)
    return UserMetrics(metrics)


def _build(path: str, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Any]:
    found = import_path(path, KEY)
    if not inspect.isclass(found) and _num_required(found) >= 2:
        return lambda logits_NC, y_N: found(logits_NC, y_N, **arguments)
    try:
        metric = found(**arguments)
    except Exception as error:
        raise UserError(f"{KEY}: {path} cannot be made ({type(error).__name__}: {error}): check its arguments") from None
    from fastai.learner import Metric  # two seconds, which inference need not wait

    if isinstance(metric, Metric):
        return lambda logits_NC, y_N: _value(metric, logits_NC, y_N)
    if not callable(metric):
        raise UserError(f"{KEY}: {path} makes a {type(metric).__name__}: give a function of logits and targets, or a Metric")
    return metric


def _value(metric: Any, logits_NC: Tensor, y_N: Tensor) -> Any:
    """Of fastai's Metric, given all documents as one batch, and without its own gathering over ranks."""
    metric.reset()
    metric.accumulate(
        SimpleNamespace(pred=logits_NC, y=y_N, yb=(y_N,), xb=(y_N,), to_detach=lambda tensor, *_, **__: tensor.detach())
    )
    return metric.value


def _num_required(function: Callable) -> int:
    """Positional arguments without a default; two, as of a metric, where a function written in C does not say."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return 2
    return sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters)
