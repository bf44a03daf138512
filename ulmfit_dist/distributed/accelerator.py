"""Construction of Accelerate's `Accelerator`, with the options of DDP that training relies on.

Buffers are not broadcast, because all ranks compute equal ones, and gradients are views of DDP's buckets, which saves a copy
of them. The trade-off: a callback must not replace a parameter's `.grad`.
"""

from __future__ import annotations

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DDPCommunicationHookType


def build_accelerator(precision: str, gradient_compression: str | None, has_gpu: bool) -> Accelerator:
    """Return the accelerator of a run, in the process group that this process has joined.

    Args:
        precision: "fp32", "bf16", "fp16" or "fp64".
        gradient_compression: dtype of exchanged gradients, "fp16" or "bf16"; None: their own.
    """
    hook = DDPCommunicationHookType(gradient_compression or "no")
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, comm_hook=hook, gradient_as_bucket_view=True)
    mixed = precision if precision in ("bf16", "fp16") else "no"
    return Accelerator(mixed_precision=mixed, cpu=not has_gpu, kwargs_handlers=[ddp])
