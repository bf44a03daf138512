"""Masks by each of the ways in which a GPU may compute them, against those of a CPU; masks of a step, computed together."""

from collections.abc import Sequence

import cuda_on_cpu
import pytest
import torch
from torch import Tensor

from ulmfit_dist.cuda.compile import CompilationError
from ulmfit_dist.models import masks as masks_module
from ulmfit_dist.models.dropout import DropoutContext
from ulmfit_dist.models.masks import Mask, StepMasks, Use, compute_masks
from ulmfit_dist.rng import philox

CPU = torch.device("cpu")
KEYS = [(2**64 - 3, 2**63), (5, 2**64 - 1), (7, 8), (9, 10), (11, 12)]
MASKS = [
    Mask(KEYS[0], range(1), 12_345, 0.5, torch.float32),
    Mask(KEYS[1], range(3, 60, 4), 1150, 0.25, torch.bfloat16),
    Mask(KEYS[2], range(17, 18), 16, 0.02, torch.float16),
    Mask(KEYS[3], range(4, 4), 40, 0.5, torch.bfloat16),
    Mask(KEYS[4], range(0, 7), 33, 0.9999999, torch.float64),
]
"""Masks of all types; rows in steps, one row, no row; widths that fill no block."""

needs_compiler = pytest.mark.skipif(not cuda_on_cpu.HAS_COMPILER, reason="no g++ is installed")


def assert_equal(computed: Sequence[Tensor]) -> None:
    """To what a CPU computes of each mask alone."""
    for mask, tensor in zip(MASKS, computed, strict=True):
        assert tensor.dtype == mask.dtype
        assert tensor.shape == (len(mask.rows), mask.num_features)
        if mask.rows:
            assert torch.equal(tensor, compute_masks([mask], CPU)[0])


@pytest.mark.distributed
@needs_compiler
def test_the_cuda_kernel_computes_the_masks_of_a_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(masks_module, "compile_source", cuda_on_cpu.compile_source)
    assert_equal(masks_module._from_kernel(masks_module._from_nvrtc(CPU), MASKS, CPU))


def test_a_kernel_that_computes_other_masks_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(masks_module, "compile_source", lambda name: lambda blocks, arguments: arguments[1].zero_())
    with pytest.raises(CompilationError, match="differ from those of a CPU"):
        masks_module._from_nvrtc(CPU)


def test_torchs_operations_compute_the_masks_of_a_cpu_in_one_call_of_the_generator(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def counted(counter: Tensor, key: Tensor) -> Tensor:
        calls.append(counter.shape)
        return philox.philox(counter, key)

    monkeypatch.setattr(philox, "_kernel", lambda device_type: counted)
    assert_equal(masks_module._from_words(MASKS, CPU))
    assert calls == [(4, sum(mask.num_blocks for mask in MASKS))]


def test_a_kernel_fills_the_masks_of_its_device(monkeypatch: pytest.MonkeyPatch):
    """On the meta device, where tensors have no values."""
    calls = []
    monkeypatch.setattr(masks_module, "_kernel", lambda device_type: lambda *arguments: calls.append(arguments))
    computed = compute_masks(MASKS, torch.device("meta"))
    for mask, tensor in zip(MASKS, computed, strict=True):
        assert tensor.device.type == "meta"
        assert (tensor.dtype, tensor.shape) == (mask.dtype, (len(mask.rows), mask.num_features))
    ((table, buffer, num_blocks),) = calls
    assert (table.shape, table.dtype, buffer.dtype) == ((len(MASKS), 10), torch.int64, torch.int64)
    assert num_blocks == sum(mask.num_blocks for mask in MASKS)
    assert 8 * len(buffer) == sum(mask.num_blocks * 16 * mask.dtype.itemsize for mask in MASKS)
    calls.clear()
    assert compute_masks([MASKS[3]], torch.device("meta"))[0].shape == (0, 40)
    assert calls == []  # nothing to compute


def test_a_probability_is_rounded_to_levels_and_kept_elements_are_scaled_by_the_rounded_one():
    for p, dropped in ((0.5, 1 << 15), (0.25, 1 << 14), (2**-16, 1), (0.4 * 2**-16, 0), (1 - 2**-20, (1 << 16) - 1)):
        mask = Mask(KEYS[0], range(1), 33, p, torch.float32)
        assert (mask.dropped, mask.threshold) == (dropped, dropped - (1 << 15))
        assert mask.scale == 1 / (1 - dropped / 2**16)
        assert (mask.blocks_per_row, mask.width, mask.num_blocks) == (3, 48, 3)
    assert Mask(KEYS[0], range(3, 60, 4), 32, 0.5, torch.float32).num_blocks == 15 * 2


def test_masks_of_a_step_are_computed_at_its_first_request_once_they_are_known():
    computed: list[list[str]] = []
    masks = StepMasks()

    def use(site: str) -> Use:
        return Use(site, 8, 0.5, torch.float32, True)

    def step(at: object, *sites: str) -> None:
        def compute(uses: Sequence[Use]) -> list[Tensor]:
            computed.append([use.site for use in uses])
            return [torch.full((), hash((at, use.site))) for use in uses]

        for site in sites:
            assert masks.get(at, use(site), compute) == torch.full((), hash((at, site)))

    step(0, "a", "b", "c")
    assert computed == [["a"], ["b"], ["c"]]
    step(1, "a", "b", "c")
    step(2, "head")
    step(3, "a", "c")  # one is not used any more
    step(4, "a", "c", "d", "a")  # one is new, one is used twice
    step(5, "head", "a")
    assert computed[3:] == [["a", "b", "c"], ["head"], ["a", "b", "c"], ["a", "c"], ["d"], ["a"], ["head"], ["a"]]
    step(6, "a", "c", "d")
    assert computed[-1] == ["a", "c", "d"]


def test_a_positions_masks_are_the_same_alone_and_in_advance_and_kept_by_nobody():
    position = DropoutContext(seed=42, stage="lm", rows=range(1, 9, 2))
    uses = [Use("words", 50, 0.1, torch.float32, False), Use("hidden", 30, 0.3, torch.bfloat16, True)]
    for position.step in range(3):
        for use in uses:
            rows = position.rows if use.per_row else range(1)
            alone = compute_masks([Mask(position.key(use.site), rows, *use[1:4])], CPU)[0]
            assert torch.equal(position._of_step(use, CPU), alone)
        assert not position._step_masks._ready
