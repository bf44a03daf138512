"""Tests of errors of a runtime on a GPU, and of its precision on GPUs without bf16. Skipped without a GPU."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_runs import needs_cuda, needs_gpu, running, small_config

from ulmfit_dist.distributed.precision import FIRST_WITH_BF16_LSTMS
from ulmfit_dist.errors import UserError

pytestmark = [needs_gpu, needs_cuda]


@pytest.mark.parametrize(
    ("capability", "cudnn", "expected"),
    [
        ((7, 5), FIRST_WITH_BF16_LSTMS, "fp16"),
        ((8, 0), FIRST_WITH_BF16_LSTMS - 1, "fp16"),
        ((8, 0), FIRST_WITH_BF16_LSTMS, "bf16"),
    ],
)
def test_auto_is_bf16_where_gpu_and_cudnn_have_it(
    capability: tuple[int, int], cudnn: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    with running(small_config(tmp_path, tmp_path, "runtime.precision=auto")) as runtime:
        assert runtime.precision == expected
        assert (runtime.accelerator.scaler is not None) == (expected == "fp16")


def test_fp64_is_refused(tmp_path: Path):
    config = small_config(tmp_path, tmp_path, "runtime.precision=fp64")
    with pytest.raises(UserError, match=r"runtime\.precision=fp64 .*use bf16, fp16 or auto on a GPU"), running(config):
        pass


def test_scaled_gradients_are_not_compressed_to_fp16(tmp_path: Path):
    config = small_config(tmp_path, tmp_path, "runtime.precision=fp16", "runtime.gradient_compression=fp16")
    with pytest.raises(UserError, match=r"set runtime\.gradient_compression=bf16 or null"), running(config):
        pass


def test_a_process_group_of_cpus_is_refused(tmp_path: Path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with (
            pytest.raises(UserError, match="process group uses gloo, but GPUs need nccl: set ACCELERATE_USE_CPU before"),
            running(small_config(tmp_path, tmp_path, "runtime.precision=fp32")),
        ):
            pass
    finally:
        dist.destroy_process_group()
