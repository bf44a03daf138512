"""fastai's layers that torch does not have, reimplemented without importing fastai.

Keys, initial weights and outputs are fastai's, so a `state_dict` can be exchanged, and a seed gives the same network.
Trade-off: `isinstance` with a fastai class is False. fastai's learner and callbacks do not need it: they call `reset()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

BATCH_NORM_BIAS = 1e-3
"""Initial bias of a batch norm in fastai."""


class SequentialRNN(nn.Sequential):
    """Modules in sequence; those with a `reset` method have hidden states."""

    if TYPE_CHECKING:

        def __getitem__(self, index: Any) -> Any:
            """Return a module; typed as Any because the attributes depend on its class."""

    def reset(self) -> None:
        """Reset the hidden states of all modules."""
        for module in self:
            reset_hidden_states(module)


class SigmoidRange(nn.Module):
    """Sigmoid scaled to the range from `low` to `high`."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * (self.high - self.low) + self.low


def reset_hidden_states(module: nn.Module) -> None:
    """Call the `reset` method of a module, if it has one."""
    reset = getattr(module, "reset", None)
    if reset is not None:
        reset()


def head_block(n_in: int, n_out: int, dropout: nn.Module | None, activation: nn.Module | None) -> nn.Sequential:
    """Return batch norm, dropout, linear layer without bias and activation: fastai's `LinBnDrop`.

    Args:
        n_in, n_out: input and output features.
        dropout, activation: None for a block without it.
    """
    norm = nn.BatchNorm1d(n_in)
    nn.init.constant_(norm.bias, BATCH_NORM_BIAS)
    linear = nn.Linear(n_in, n_out, bias=False)
    return nn.Sequential(*(layer for layer in (norm, dropout, linear, activation) if layer is not None))
