"""Interface of the encoders of language model and classifier: token ids to one vector per token, with state per row.

AWD-LSTM (`awd_lstm.py`) is the default; `model.arch` names another one. The state is stored per row, not in the
module, because the micro-batches of a step alternate. Trade-off: the caller must set `position.rows` before each forward.

b: rows of a micro-batch, T: tokens of a step, E: width of the embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.models.dropout import DropoutContext

Hidden = list[tuple[Tensor, ...]]
"""State of each layer: one tensor or two, [1, b, width]; empty for a network without state."""


class Encoder(nn.Module, ABC):
    """Base class of the encoders.

    Attributes:
        encoder: the embedding, `nn.Embedding` of [V, E], which the language model's decoder shares.
        position: position of the next input: determines the dropout masks (`dropout.py`) and the rows whose state is used.
        hidden_states: state by first row; rows without an entry begin with `zero_state`.
        perturbation: added to the embeddings of the next input by `perturbed`, [b, T, E]; None: nothing.
        can_be_perturbed: True if `read` calls `perturbed`, which adversarial training needs.
    """

    can_be_perturbed: ClassVar[bool] = False

    encoder: nn.Embedding
    perturbation: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.position = DropoutContext()
        self.reset()

    @abstractmethod
    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        """Return the output of each token, [b, T, E], and the state after the last token.

        Args:
            x_bT: token ids, int64; shorter documents are padded at the beginning with xxpad.
            state: state of the rows after their previous tokens.
        """

    @abstractmethod
    def zero_state(self, num_rows: int) -> Hidden:
        """Return the initial state of rows; `[]` for an encoder without state."""

    @abstractmethod
    def layer_groups(self) -> list[nn.Module]:
        """Return the groups for freezing and learning rates: `model.n_layers` modules, lowest first; not the embedding."""

    def reset(self) -> None:
        """Reset the hidden states of all rows."""
        self.hidden_states: dict[int, Hidden] = {}

    def forward(self, x_bT: Tensor) -> Tensor:
        """Encode the next tokens of the rows `position.rows`, or of the first of them, [b, T, E]."""
        num_rows = len(x_bT)
        if num_rows == 1 and self.training:  # a one-row product is split over threads: its rounding depends on their number
            x_bT = torch.cat([x_bT, x_bT])
        output, state = self.read(x_bT, self._state(len(x_bT)))
        detached = [tuple(part[:, :num_rows].detach() for part in layer) for layer in state]
        self.hidden_states[self.position.rows.start] = detached
        return output[:num_rows]

    def perturbed(self, embedded_bTE: Tensor) -> Tensor:
        """Return the embeddings of the input with the perturbation added, if there is one."""
        return embedded_bTE if self.perturbation is None else embedded_bTE + self.perturbation

    def _state(self, num_rows: int) -> Hidden:
        """Return the stored state of the rows, truncated or padded with zeros to the rows of the input."""
        stored = self.hidden_states.get(self.position.rows.start)
        if stored is None:
            return self.zero_state(num_rows)
        return [tuple(_fit_rows(part, num_rows) for part in layer) for layer in stored]


def _fit_rows(state_1bH: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - state_1bH.shape[1]
    return F.pad(state_1bH, (0, 0, 0, missing)) if missing > 0 else state_1bH[:, :num_rows].contiguous()
