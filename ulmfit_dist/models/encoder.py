"""What reads a text for a language model or a classifier: token ids in, a vector for each token out, its state kept by row.

AWD-LSTM (`awd_lstm.py`) is one; `model.arch` names another, a class of the user's. Rows are computed in micro-batches that
take turns, so the state is that of rows, and not of the module.

b: rows of a micro-batch, T: tokens of a step, E: width of the embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.models.dropout import DropoutContext

Hidden = list[tuple[Tensor, ...]]
"""State of each layer: one tensor or two, [1, b, width]; empty for a network that reads each step for itself."""


class Encoder(nn.Module, ABC):
    """An encoder of texts.

    Attributes:
        encoder: the embedding, `nn.Embedding` of [V, E], which the language model's decoder shares.
        position: where the next input stands: what dropout masks are computed from (`dropout.py`), and whose state to go on
            with.
        hidden_states: the state by first row; a row that is not there begins with `zero_state`.
    """

    encoder: nn.Embedding

    def __init__(self) -> None:
        super().__init__()
        self.position = DropoutContext()
        self.reset()

    @abstractmethod
    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        """The output for each token, [b, T, E], and the state behind the last one.

        Args:
            x_bT: token ids, int64; xxpad in front of a document that is shorter than others.
            state: of the rows, behind what they have read before.
        """

    @abstractmethod
    def zero_state(self, num_rows: int) -> Hidden:
        """The state of rows that have read nothing; `[]` where none is kept."""

    @abstractmethod
    def layer_groups(self) -> list[nn.Module]:
        """What freezing and learning rates tell apart: `model.n_layers` modules, the lowest first, without the embedding."""

    def reset(self) -> None:
        """Forget all rows."""
        self.hidden_states: dict[int, Hidden] = {}

    def forward(self, x_bT: Tensor) -> Tensor:
        """Read the next tokens of the rows `position.rows`, or of the first of them."""
        num_rows = len(x_bT)
        if num_rows == 1 and self.training:  # a product with a single row is split over threads, and rounds by their number
            x_bT = torch.cat([x_bT, x_bT])
        output, state = self.read(x_bT, self._state(len(x_bT)))
        kept = [tuple(part[:, :num_rows].detach() for part in layer) for layer in state]
        self.hidden_states[self.position.rows.start] = kept
        return output[:num_rows]

    def _state(self, num_rows: int) -> Hidden:
        """The state to go on with, cut or filled up with zeros to the rows of the input."""
        known = self.hidden_states.get(self.position.rows.start)
        if known is None:
            return self.zero_state(num_rows)
        return [tuple(_fit_rows(part, num_rows) for part in layer) for layer in known]


def _fit_rows(state_1bH: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - state_1bH.shape[1]
    return F.pad(state_1bH, (0, 0, 0, missing)) if missing > 0 else state_1bH[:, :num_rows].contiguous()
