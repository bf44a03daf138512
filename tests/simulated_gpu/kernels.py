"""Operations of torch on the simulated GPU: kernel launches, waits, and bytes read and written.

Operations that only GPUs have are computed here from those of a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from simulated_gpu.counters import bytes_of

aten = torch.ops.aten

WAITING = {
    "_local_scalar_dense": "a number is read",
    "is_nonzero": "a number is read",
    "equal": "a number is read",
    "nonzero": "the size of a result is read",
    "masked_select": "the size of a result is read",
    "bincount": "the size of a result is read",
    "_unique2": "the size of a result is read",
    "unique_dim": "the size of a result is read",
    "unique_consecutive": "the size of a result is read",
    "repeat_interleave": "the size of a result is read",
}
"""Operations for whose result the host waits, and the reason."""

NO_KERNEL = frozenset(
    "_local_scalar_dense _reshape_alias _unsafe_view alias as_strided chunk detach diagonal empty empty_like empty_strided "
    "expand lift_fresh narrow new_empty new_empty_strided permute record_stream reshape resize_ select set_ slice split "
    "split_with_sizes squeeze t transpose unbind unfold unsqueeze view view_as_real".split()
)
"""Operations that launch nothing: views, and uninitialized memory."""

READING_ROWS = frozenset({"embedding", "gather", "index", "index_select"})
"""Operations that read as much of their first argument as they return."""
WRITING_ROWS = frozenset({"index_add_", "index_put_", "_index_put_impl_", "scatter_", "scatter_add_", "index_copy_"})
"""Operations that read and write as much of their first argument as their last one has."""
OVERWRITING = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_"})
"""Operations that do not read their first argument."""


def traffic(name: str, args: tuple, kwargs: dict, results: Any) -> int:
    """Return the minimum number of bytes that an operation reads and writes."""
    outputs = [x for x in tree_leaves(results) if isinstance(x, Tensor)]
    inputs = [x for x in tree_leaves((args, {k: v for k, v in kwargs.items() if k != "out"})) if isinstance(x, Tensor)]
    if name in READING_ROWS:
        inputs = [*inputs[1:], *outputs]
    elif name in WRITING_ROWS:
        outputs, inputs = inputs[-1:], [*inputs[1:], *inputs[-1:]]
    elif name in OVERWRITING:
        inputs = inputs[1:]
    elif name == "_foreach_zero_":
        outputs, inputs = inputs, []
    elif not outputs:  # in place over lists: all arguments are read, and those of the first list written
        outputs = [x for x in tree_leaves(args[:1]) if isinstance(x, Tensor)]
    return sum(map(bytes_of, inputs)) + sum(map(bytes_of, outputs))


def _lstm_cell(
    input_gates: Tensor, hidden_gates: Tensor, c: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    gates = input_gates + hidden_gates
    if input_bias is not None:
        gates = gates + input_bias + hidden_bias
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c, torch.cat([i, f, g, o], 1)


def _mm(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """Compute a product with sums in fp32, as on a GPU: the CPU's own products in fp16 take minutes."""
    if a.dtype == torch.float64:
        return torch.mm(a, b)
    return torch.mm(a.float(), b.float()).to(out_dtype or a.dtype)


def _addmm(
    added: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    if a.dtype == torch.float64:
        return torch.addmm(added, a, b, beta=beta, alpha=alpha)
    return torch.addmm(added.float(), a.float(), b.float(), beta=beta, alpha=alpha).to(out_dtype or a.dtype)


def _mm_out(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None, *, out: Tensor) -> Tensor:
    return out.copy_(_mm(a, b, out_dtype))


def _addmm_out(
    added: Tensor,
    a: Tensor,
    b: Tensor,
    out_dtype: torch.dtype | None = None,
    *,
    beta: float = 1,
    alpha: float = 1,
    out: Tensor,
) -> Tensor:
    return out.copy_(_addmm(added, a, b, out_dtype, beta=beta, alpha=alpha))


def _addmm_in_place(added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return added.copy_(_addmm(added, a, b, beta=beta, alpha=alpha))


COMPUTED = {
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten.mm.default: _mm,
    aten.mm.out: _mm_out,
    aten.mm.dtype: _mm,
    aten.mm.dtype_out: _mm_out,
    aten.addmm.default: _addmm,
    aten.addmm.out: _addmm_out,
    aten.addmm_.default: _addmm_in_place,
    aten.addmm.dtype: _addmm,
    aten.addmm.dtype_out: _addmm_out,
}
"""Operations that only GPUs have, and those that GPUs compute with a different accumulation dtype."""
