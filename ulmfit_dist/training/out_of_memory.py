"""Repetition of a training step with smaller micro-batches after a rank has run out of memory.

A GPU raises `torch.OutOfMemoryError` at an allocation, on one rank, while the others start to exchange gradients. The failed
rank completes that exchange with meaningless values (`gradient_exchange.py`); then all ranks compare their status on the
host, and if one has failed, all drop their gradients, halve the micro-batch size and repeat the step from its beginning.
Dropout masks depend on positions only and hidden states are kept by row, so the model is that of a run with the smaller
size. The failed attempt does not reach optimizer and loss scaler.

Trade-off: several ranks exchange one integer per step (two in a classifier step, one in a validation step), over the CPU, so
nothing waits for the device; and the running statistics of the head's batch norm are copied before each step. Callbacks get
`after_pred`, `after_loss` and the backward events again when a step is repeated.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ulmfit_dist.errors import UserError, mark_collective
from ulmfit_dist.models.encoder import Hidden
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.utils.log import get_logger
from ulmfit_dist.utils.memory import figures_of, is_out_of_memory

logger = get_logger(__name__)

if TYPE_CHECKING:
    from ulmfit_dist.training.learner import DistributedLearner

Value = TypeVar("Value")

ADVICE = {
    "lm": "lower lm.seq_len, model.n_hid or model.emb_sz, or use a GPU with more memory",
    "classifier": "lower classifier.max_len, model.n_hid or model.emb_sz, or use a GPU with more memory",
}
"""Advice by stage, for micro-batches that cannot be smaller."""


class RankOutOfMemoryError(Exception):
    """Out of memory on a rank. Raised on all ranks, at the same point.

    Args:
        figures: sizes from the error message, by failed rank.
    """

    def __init__(self, figures: dict[int, str]):
        super().__init__(figures)
        self.figures = figures

    def __str__(self) -> str:
        ranks = ", ".join(str(rank) for rank in self.figures)
        return f"{'ranks' if len(self.figures) > 1 else 'rank'} {ranks} ({next(iter(self.figures.values()))})"


def agree_on_memory(learner: DistributedLearner, part: Callable[[], Value], has_exchange: bool = False) -> Value:
    """Run a part of a step on every rank; return its value, or fail on all ranks. Collective.

    Args:
        part: calls no collective except DDP's gradient exchange.
        has_exchange: whether it contains that exchange, which a failed rank then completes.

    Raises:
        RankOutOfMemoryError: a rank has run out of memory in it.
    """
    runtime, value, figures = learner.accelerate.runtime, None, None
    try:
        value = part()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        figures = figures_of(error)
    if figures is not None:  # outside of `except`, where the error's traceback would hold the memory of the failed part
        release(learner)
        if has_exchange:
            learner.accelerate.complete_exchange()
    if runtime.highest(int(figures is not None)):
        of_ranks = enumerate(runtime.all_gather_object(figures))
        raise RankOutOfMemoryError({rank: figures for rank, figures in of_ranks if figures is not None})
    return value  # type: ignore[return-value]


def repeat_when_out_of_memory(learner: DistributedLearner, compute_gradients: Callable[[], None]) -> None:
    """Compute the gradients of a step, again with smaller micro-batches if a rank runs out of memory. Collective.

    Args:
        compute_gradients: computes those of `learner.micro_batches`; runs its parts through `agree_on_memory`.

    Raises:
        UserError: the micro-batches cannot be smaller, or gradients of earlier steps would be lost.
    """
    accelerate = learner.accelerate
    learner.recut_micro_batches()  # the loader may have prepared this step before the size changed
    saved, is_repeatable = StepState.of(learner), not accelerate.has_gradients
    while True:
        accelerate.has_gradients = True
        accelerate.begin_exchange()
        try:
            compute_gradients()
            return
        except RankOutOfMemoryError as error:
            failure = error.with_traceback(None)  # its frames would hold memory
        release(learner)
        smaller = _smaller_size(learner, failure, is_repeatable)
        accelerate.renew()
        learner.limit_micro_batches(smaller)
        learner.recut_micro_batches()
        saved.restore(learner)


def refuse_validation(learner: DistributedLearner, failure: RankOutOfMemoryError) -> UserError:
    """Return the error, for all ranks, of a validation in which a rank has run out of memory."""
    shard, global_rows = learner.accelerate.shard, learner.dl.global_batch_size  # a rank may have no row of a last batch
    rows, smaller = shard.rows_at_once(global_rows), shard.halved(global_rows)
    advice = ADVICE[learner.stage] if smaller is None else f"set runtime.micro_batch_size={smaller}"
    return mark_collective(
        UserError(f"{learner.stage}: out of memory in validation at {rows} row(s) per micro-batch on {failure}: {advice}")
    )


def release(learner: DistributedLearner) -> None:
    """Free the graph of a failed attempt and the device's cached memory."""
    learner.release()
    gc.collect()
    if learner.accelerate.runtime.device.type == "cuda":
        torch.cuda.empty_cache()


def _smaller_size(learner: DistributedLearner, failure: RankOutOfMemoryError, is_repeatable: bool) -> int:
    """Return half the micro-batch size, the same on all ranks, and print it. Raises UserError."""
    shard, global_rows = learner.accelerate.shard, learner.rows_of_step
    rows = shard.rows_at_once(global_rows)
    smaller: int | None = shard.halved(global_rows)
    error = f"{learner.stage}: out of memory at {rows} row(s) per micro-batch on {failure}"
    if smaller is None:
        raise mark_collective(UserError(f"{error}, the smallest possible: {ADVICE[learner.stage]}"))
    if not is_repeatable:
        raise mark_collective(UserError(f"{error}, with accumulated gradients: set runtime.micro_batch_size={smaller}"))
    logger.info(f"{error}: continuing with {smaller}; set runtime.micro_batch_size={smaller} to start there")
    return smaller


@dataclass
class StepState:
    """Copy of the state that an attempt at a step changes.

    Attributes:
        rows: rows of each micro-batch.
        hidden_states: hidden states of the encoder by first row. A step replaces their tensors and does not change them.
        buffers: copies of the model's buffers, such as the running statistics of batch norm.
    """

    rows: list[range]
    hidden_states: dict[int, Hidden]
    buffers: list[Tensor]

    @classmethod
    def of(cls, learner: DistributedLearner) -> StepState:
        rows, hidden_states = [batch.rows for batch in learner.micro_batches], encoder_of(learner.model).hidden_states
        return cls(rows, dict(hidden_states), [buffer.clone() for buffer in learner.model.buffers()])

    def restore(self, learner: DistributedLearner) -> None:
        """Restore it, hidden states cut to the current micro-batches."""
        for buffer, saved in zip(learner.model.buffers(), self.buffers, strict=True):
            buffer.copy_(saved)
        rows = [batch.rows for batch in learner.micro_batches]
        encoder_of(learner.model).hidden_states = cut_states(self.hidden_states, self.rows, rows)


def cut_states(states: dict[int, Hidden], old_rows: Sequence[range], new_rows: Sequence[range]) -> dict[int, Hidden]:
    """Return hidden states by first row, cut into other micro-batches; empty if not all rows have one.

    Args:
        states: by first row of the old micro-batches.
        old_rows, new_rows: rows of the old and the new micro-batches, in the same order.
    """
    if not all(rows.start in states for rows in old_rows):
        return {}
    pieces = [states[rows.start] for rows in old_rows]
    whole = [tuple(torch.cat(parts, dim=1) for parts in zip(*layer, strict=True)) for layer in zip(*pieces, strict=True)]
    ends = list(accumulate(len(rows) for rows in new_rows))
    return {
        rows.start: [tuple(part[:, end - len(rows) : end].contiguous() for part in layer) for layer in whole]
        for rows, end in zip(new_rows, ends, strict=True)
    }
