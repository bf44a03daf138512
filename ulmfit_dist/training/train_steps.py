"""Training steps of both stages: from a rank's micro-batches of a global batch to one optimizer step.

The language model's loss is a mean over tokens: micro-batches run forward and backward one after the other, their losses
weighted by their share of the rows, and DDP sums the gradients over the ranks.

The classifier's head has a batch norm, so its loss is not a mean over documents. The ranks therefore exchange the encoder's
pooled output of all documents, a few numbers each, and every rank computes head and loss of the whole global batch: the same
numbers on all of them. Then each rank propagates the gradient through its own documents. Trade-off: where micro-batches save
memory, the encoder runs forward twice, once for the head and once for the gradient, which is a third more work. (Both passes
build a graph: without one torch's LSTM takes another code path on a CPU, which rounds differently.)

B: documents of the global batch, b: rows of a micro-batch, T: tokens of a step, E: width of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fastai.callback.core import CancelBackwardException
from torch import Tensor, nn

from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.models.networks import concat_pool
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.out_of_memory import agree_on_memory

Encoded = tuple[Tensor, Tensor]
"""Pooled output of each document, [b, 3E], which is the head's input, and the encoder's output, [b, T, E]."""


class LMLearner(DistributedLearner):
    """Trains a language model. `after_pred`, `after_loss` and the backward events occur per micro-batch, others per step."""

    keeps_hidden_states = True

    def replace_modules(self, replace: Callable[[nn.Module], nn.Module]) -> None:
        self.model = replace(self.model)  # type: ignore[assignment]

    def _compute_gradients(self) -> None:
        agree_on_memory(self, self._forward_and_backward, has_exchange=True)
        self.accelerate.finish_exchange()

    def _forward_and_backward(self) -> None:
        rank_weight = sum(batch.weight for batch in self.micro_batches)
        loss = torch.zeros((), device=self.dls.device)
        for number, batch in enumerate(self.micro_batches):
            with self.accelerate.gradients(self.model, number, len(self.micro_batches)):
                self._forward(batch)
                self.loss_grad = self.loss_func(self.pred, *self.yb)
                self.loss = self.loss_grad.detach()
                loss += self.loss * (batch.weight / rank_weight)
                self("after_loss")
                regularized = self.loss_grad + self.regularization(self.rnn.out, self.rnn.raw_out)
                self.loss_grad = regularized * (batch.weight * self.accelerate.scale)
                self._with_events(self._backward, "backward", CancelBackwardException)
        self.loss = loss

    def _backward(self) -> None:
        self.accelerate.backward(self.loss_grad)


class ClassifierLearner(DistributedLearner):
    """Trains a classifier. All events occur once per step; `pred` and `yb` are those of the global batch.

    Attributes:
        pooled: pooled encoder output of the global batch, [B, 3E], the head's input.
        targets: targets of the global batch, [B] or [B, classes].
        encoded: encoder output of each micro-batch, or only of the last one where the encoder runs twice.
    """

    keeps_hidden_states = False

    pooled: Tensor
    targets: Tensor
    encoded: list[Encoded]

    def replace_modules(self, replace: Callable[[nn.Module], nn.Module]) -> None:
        self.model[0], self.model[1].layers = replace(self.model[0]), replace(self.model[1].layers)

    def _compute_gradients(self) -> None:
        runtime = self.accelerate.runtime
        agree_on_memory(self, self._encode_documents)
        self.pooled, self.targets = (
            runtime.all_reduce_sum(self.pooled).requires_grad_(),
            runtime.all_reduce_sum(self.targets),
        )
        agree_on_memory(self, self._classify, has_exchange=True)
        self.encoded = []
        self.accelerate.finish_exchange()

    def release(self) -> None:
        super().release()
        self.encoded = []
        self.__dict__.pop("pooled", None)

    def _encode_documents(self) -> None:
        """Compute the head's input and the targets of this rank's documents, in their rows of the global batch."""
        batches = self.micro_batches
        self.runs_twice = len(batches) > 1 and self.accelerate.shard.micro_batch_size is not None
        self.encoded = []
        pooled: list[Tensor] = []
        for batch in batches:
            if self.runs_twice:
                self.encoded = [self._encode_without_graph(batch)]
            else:
                self.encoded.append(self._encode(batch))
            pooled.append(self.encoded[-1][0].detach())
        self.pooled, self.targets = in_rows(pooled, batches), in_rows([batch.y for batch in batches], batches)

    def _classify(self) -> None:
        """Compute head, loss and gradients of the global batch."""
        output_bTE = self.encoded[-1][1]
        self.xb = (torch.cat([batch.x for batch in self.micro_batches]),)
        self.yb = (self.targets,)
        self.set_dropout_context(range(len(self.pooled)))
        with one_thread(self.pooled.device):
            self.pred = (self.model[1].layers(self.pooled), output_bTE, output_bTE)
        self("after_pred")
        self.loss_grad = self.loss_func(self.pred, *self.yb)
        self.loss = self.loss_grad.detach()
        self("after_loss")
        self._with_events(self._backward, "backward", CancelBackwardException)

    def _predict(self, batch: MicroBatch) -> Any:
        return self.model[1](self.model[0](batch.x, batch.chunk_rows))

    def _encode(self, batch: MicroBatch) -> Encoded:
        self.set_dropout_context(batch.rows)
        output_bTE, padding_bT = self.model[0](batch.x, batch.chunk_rows)
        return concat_pool(output_bTE, padding_bT), output_bTE

    def _encode_without_graph(self, batch: MicroBatch) -> Encoded:
        with self.accelerate.without_exchange(self.model[0]):
            pooled_bE, output_bTE = self._encode(batch)
        return pooled_bE.detach(), output_bTE.detach()

    def _backward(self) -> None:
        """Propagate through the head, then through the encoder: from its stored outputs, or from a second forward pass."""
        with one_thread(self.pooled.device):
            self.accelerate.backward(self.loss_grad)
        pooled_grad_BE = self.pooled.grad
        assert pooled_grad_BE is not None
        if not any(parameter.requires_grad for parameter in self.model[0].parameters()):
            return
        for number, batch in enumerate(self.micro_batches):
            with self.accelerate.gradients(self.model[0], number, len(self.micro_batches)):
                pooled_bE, output_bTE = self._encode(batch) if self.runs_twice else self.encoded[number]
                scale = self.accelerate.scale
                regularization = self.regularization(output_bTE, output_bTE) * (batch.weight * scale)
                self.accelerate.backward(regularization, (pooled_bE, pooled_grad_BE[rows_slice(batch.rows)] * scale))


def in_rows(pieces: Sequence[Tensor], batches: Sequence[MicroBatch]) -> Tensor:
    """Return rows [b, ...] of micro-batches at their positions in the global batch [B, ...], zeros elsewhere."""
    rows_B = pieces[0].new_zeros(batches[0].global_rows, *pieces[0].shape[1:])
    for piece_b, batch in zip(pieces, batches, strict=True):
        rows_B[rows_slice(batch.rows)] = piece_b
    return rows_B


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute on one CPU thread, because sums of the head's small products round differently when split over threads.

    Does nothing for a GPU, where compiled functions would be compiled again for another number of threads.
    """
    if device.type != "cpu":
        yield
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def rows_slice(rows: range) -> slice:
    return slice(rows.start, rows.stop, rows.step)
