"""A training step that is repeated with smaller micro-batches when a rank has run out of memory.

A GPU raises `torch.OutOfMemoryError` at an allocation, on one rank, while the others start to exchange gradients. The failed
rank completes that exchange with meaningless values (`gradient_exchange.py`); then all ranks vote, on the host, and if
one has failed, all drop their gradients, halve the micro-batch size and repeat the step from its beginning. Dropout masks
follow from positions and hidden states are kept by row, so the model is that of a run with the smaller size. Optimizer and
loss scaler have not seen the failed attempt.

The trade-off: several ranks exchange one integer per step (two of a classifier's, one of a validation's), over the CPU, so
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
"""Advice for a stage whose micro-batches cannot be made smaller."""


class RankOutOfMemoryError(Exception):
    """A rank has run out of memory. Raised on all ranks, at the same place.

    Args:
        figures: by failed rank, those of its error.
    """

    def __init__(self, figures: dict[int, str]):
        super().__init__(figures)
        self.figures = figures

    def __str__(self) -> str:
        ranks = ", ".join(str(rank) for rank in self.figures)
        return f"{'ranks' if len(self.figures) > 1 else 'rank'} {ranks} ({next(iter(self.figures.values()))})"


def agree_on_memory(learner: DistributedLearner, part: Callable[[], Value], has_exchange: bool = False) -> Value:
    """Run a part of a step on every rank; return what it returns, or fail on all ranks. Collective.

    Args:
        part: holds no collective but DDP's exchange of gradients.
        has_exchange: whether it holds that exchange, which a failed rank then completes.

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
    if figures is not None:  # not within `except`, where the error's traceback would hold the memory of the failed part
        release(learner)
        if has_exchange:
            learner.accelerate.complete_exchange()
    if runtime.highest(int(figures is not None)):
        raise RankOutOfMemoryError(
            {rank: each for rank, each in enumerate(runtime.all_gather_object(figures)) if each is not None}
        )
    return value  # type: ignore[return-value]


def repeat_when_out_of_memory(learner: DistributedLearner, compute_gradients: Callable[[], None]) -> None:
    """Compute the gradients of a step, again with smaller micro-batches if a rank runs out of memory. Collective.

    Args:
        compute_gradients: of `learner.micro_batches`; its parts agree by `agree_on_memory`.

    Raises:
        UserError: the micro-batches cannot be made smaller, or gradients of earlier steps would be lost.
    """
    accelerate = learner.accelerate
    learner.cut_again()  # the loader may have prepared this step before the size changed
    begin, is_repeatable = StepState.of(learner), not accelerate.has_gradients
    while True:
        accelerate.has_gradients = True
        accelerate.begin_exchange()
        try:
            compute_gradients()
            return
        except RankOutOfMemoryError as error:
            failure = error.with_traceback(None)  # whose frames would hold memory
        release(learner)
        smaller = _smaller_size(learner, failure, is_repeatable)
        accelerate.renew()
        learner.limit_micro_batches(smaller)
        learner.cut_again()
        begin.restore(learner)


def refuse_validation(learner: DistributedLearner, failure: RankOutOfMemoryError) -> UserError:
    """The error, on all ranks, of a validation in which a rank has run out of memory."""
    share, global_rows = learner.accelerate.share, learner.dl.global_batch_size  # a rank may have no row of a last batch
    rows, smaller = share.rows_at_once(global_rows), share.halved(global_rows)
    advice = ADVICE[learner.stage] if smaller is None else f"set runtime.micro_batch_size={smaller}"
    return mark_collective(
        UserError(f"{learner.stage}: out of memory in a validation at {rows} row(s) per micro-batch on {failure}: {advice}")
    )


def release(learner: DistributedLearner) -> None:
    """Free the graph of a failed attempt, and give the device's unused memory back."""
    learner.release()
    gc.collect()
    if learner.accelerate.runtime.device.type == "cuda":
        torch.cuda.empty_cache()


def _smaller_size(learner: DistributedLearner, failure: RankOutOfMemoryError, is_repeatable: bool) -> int:
    """Half the micro-batch size, the same on all ranks, with a line that says so. Raises UserError."""
    share, batch = learner.accelerate.share, learner.micro_batches[0]
    rows, smaller = share.rows_at_once(batch.global_rows), share.halved(batch.global_rows)
    found = f"{learner.stage}: out of memory at {rows} row(s) per micro-batch on {failure}"
    if smaller is None:
        raise mark_collective(UserError(f"{found}, the smallest possible: {ADVICE[learner.stage]}"))
    if not is_repeatable:
        raise mark_collective(UserError(f"{found}, with gradients of earlier steps: set runtime.micro_batch_size={smaller}"))
    logger.info(f"{found}: continuing with {smaller}; set runtime.micro_batch_size={smaller} to start there")
    return smaller


@dataclass
class StepState:
    """The state that an attempt at a step changes, as it was before.

    Attributes:
        rows: of the micro-batches.
        hidden_states: of the encoder, by first row. Their tensors are replaced by a step, not changed.
        buffers: copies of the model's, such as the running statistics of batch norm.
    """

    rows: list[range]
    hidden_states: dict[int, Hidden]
    buffers: list[Tensor]

    @classmethod
    def of(cls, learner: DistributedLearner) -> StepState:
        rows, hidden_states = [batch.rows for batch in learner.micro_batches], encoder_of(learner.model).hidden_states
        return cls(rows, dict(hidden_states), [buffer.clone() for buffer in learner.model.buffers()])

    def restore(self, learner: DistributedLearner) -> None:
        """Put it back, hidden states cut to the micro-batches of now."""
        for buffer, saved in zip(learner.model.buffers(), self.buffers, strict=True):
            buffer.copy_(saved)
        now = [batch.rows for batch in learner.micro_batches]
        encoder_of(learner.model).hidden_states = cut_states(self.hidden_states, self.rows, now)


def cut_states(states: dict[int, Hidden], before: Sequence[range], now: Sequence[range]) -> dict[int, Hidden]:
    """Hidden states by first row, of the same rows cut in another way; empty where not all rows have one.

    Args:
        before, now: the rows of the micro-batches, in the same order.
    """
    if not all(rows.start in states for rows in before):
        return {}
    pieces = [states[rows.start] for rows in before]
    whole = [tuple(torch.cat(parts, dim=1) for parts in zip(*layer, strict=True)) for layer in zip(*pieces, strict=True)]
    ends = list(accumulate(len(rows) for rows in now))
    return {
        rows.start: [tuple(part[:, end - len(rows) : end].contiguous() for part in layer) for layer in whole]
        for rows, end in zip(now, ends, strict=True)
    }
