"""Tests of random numbers and masks on a GPU against those on the CPU. Skipped without a GPU."""

import pytest
import torch

from ulmfit_dist.models import masks, softmax_gradient
from ulmfit_dist.models.dropout import DropoutContext, row_mask, shared_mask
from ulmfit_dist.models.masks import Mask, compute_masks
from ulmfit_dist.rng.philox import philox, random_words

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")

KEY = DropoutContext(seed=42, stage="lm", step=3).key("input")


@pytest.mark.parametrize(("first", "count"), [(0, 1), (5, 1000), (2**40, 331_776)])
def test_a_gpu_computes_the_numbers_of_a_cpu(first: int, count: int):
    assert torch.equal(random_words(KEY, first, count, "cuda").cpu(), random_words(KEY, first, count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_are_those_of_a_cpu(dtype: torch.dtype):
    on_cpu, on_gpu = (torch.empty(0, dtype=dtype, device=device) for device in ("cpu", "cuda"))
    assert torch.equal(
        row_mask(KEY, range(3, 60, 4), 1150, 0.25, on_gpu).cpu(), row_mask(KEY, range(3, 60, 4), 1150, 0.25, on_cpu)
    )
    assert torch.equal(shared_mask(KEY, 12_345, 0.5, on_gpu).cpu(), shared_mask(KEY, 12_345, 0.5, on_cpu))


MASKS = [
    Mask(KEY, range(1), 1150 * 4600, 0.2, torch.float32),
    Mask((1, 2), range(3, 60, 4), 1150, 0.25, torch.bfloat16),
    Mask((3, 4), range(0, 64), 400, 0.1, torch.float16),
]


@pytest.mark.parametrize("way", ["kernel", "compiled words", "words"])
def test_masks_of_a_step_are_those_of_a_cpu_however_they_are_computed(way: str, monkeypatch: pytest.MonkeyPatch):
    if way != "kernel":
        monkeypatch.setattr(masks, "_kernel", lambda device_type: None)
    if way == "words":
        monkeypatch.setattr("ulmfit_dist.rng.philox._kernel", lambda device_type: philox)
    on_gpu, on_cpu = (compute_masks(MASKS, torch.device(device)) for device in ("cuda", "cpu"))
    for actual, expected in zip(on_gpu, on_cpu, strict=True):
        assert torch.equal(actual.cpu(), expected)


def test_kernels_need_no_compiler():
    assert masks._kernel("cuda") is not None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert softmax_gradient._from_nvrtc(dtype, torch.device("cuda")) is not None
