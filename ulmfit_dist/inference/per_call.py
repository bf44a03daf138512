"""Copies of a network per call, which share its weights but not its state, so that threads can share a model.

A forward pass writes to its modules: hidden states by row, the current chunk, the recurrent weights that fastai's dropout
sets each time. In training that state must outlive the pass; in inference it belongs to the call. So each call computes with
a copy of the modules, which shares all tensors with the original. Trade-off: a copy takes about a millisecond.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def for_one_call(model: Network) -> Network:
    """Return a copy of the modules that shares the tensors they hold: parameters, buffers and attributes.

    A user-defined encoder (`model.arch`) must assign its state to attributes: a tensor that it modifies in place in
    evaluation mode is shared by all threads.
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        for attributes in (vars(module), module._parameters, module._buffers):
            shared.update((id(value), value) for value in attributes.values() if isinstance(value, Tensor))
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            shared[id(module)] = _copy_of_rnn(module)
    return copy.deepcopy(model, shared)


def _copy_of_rnn(rnn: nn.RNNBase) -> nn.RNNBase:
    """Copy an RNN without its `__getstate__`, which may rearrange the weights of the original."""
    copied: nn.RNNBase = rnn.__new__(type(rnn))
    lists = {name: value[:] for name, value in vars(rnn).items() if name.startswith("_flat_weight")}
    registries = {name: getattr(rnn, name).copy() for name in ("_parameters", "_buffers", "_modules")}
    vars(copied).update(vars(rnn) | lists | registries)
    return copied
