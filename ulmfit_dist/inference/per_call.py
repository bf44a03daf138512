"""A network for one call: the same weights, a state of its own, so that several threads can compute with one model at once.

A forward pass writes to its modules: hidden states by row, the chunk that is read, the recurrent weights that fastai's
dropout sets anew. In training that state must outlive the pass; in inference it belongs to the call. So a call computes with
a copy of the modules, which takes about a millisecond and shares all tensors with the original; the original is never run.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def for_one_call(model: Network) -> Network:
    """Return a copy of the modules that shares the tensors they hold: parameters, buffers and attributes.

    What an encoder of the user's (`model.arch`) keeps between tokens is the copy's own as long as it is assigned. A tensor
    that is written in place in evaluation mode is shared by all threads.
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        for held in (vars(module), module._parameters, module._buffers):
            shared.update((id(value), value) for value in held.values() if isinstance(value, Tensor))
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            shared[id(module)] = _copy_of_rnn(module)
    return copy.deepcopy(model, shared)


def _copy_of_rnn(rnn: nn.RNNBase) -> nn.RNNBase:
    """Copy an RNN without its `__getstate__`, which may rearrange the weights of the original."""
    twin: nn.RNNBase = rnn.__new__(type(rnn))
    lists = {name: value[:] for name, value in vars(rnn).items() if name.startswith("_flat_weight")}
    registries = {name: getattr(rnn, name).copy() for name in ("_parameters", "_buffers", "_modules")}
    vars(twin).update(vars(rnn) | lists | registries)
    return twin
