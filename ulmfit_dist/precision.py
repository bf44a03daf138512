"""Which numbers a run computes in: what `runtime.precision` comes to on this machine.

Parameters and sums are fp32 in every mixed precision; what differs is the type of the matrix products. On a GPU that has
it bf16 is fast and safe, on others it is fp16 with a scaled loss. On a CPU the instructions alone do not tell: a server of
Intel's without AMX has bf16 and computes it at half the speed of fp32, where others are twice as fast. So auto measures it,
in some tenths of a second. The price: a measurement could come out differently another time. So it must be clear, all ranks
go by the slowest of them, and a run that goes on keeps the precision that it began with.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from ulmfit_dist.errors import UserError

CLEARLY_FASTER = 1.25
"""How many times as fast as fp32 bf16 must be to be chosen on a CPU."""

FIRST_WITH_BF16_LSTMS = 91_300
"""Version of cuDNN from which on torch gives it LSTMs in bf16 (pytorch issue 164411); before, they go step by step."""

ROWS, TOKENS, WIDTH, HIDDEN, WORDS = 16, 16, 200, 400, 2048
"""A small step of a language model, which the types are measured by."""


def resolve_precision(wanted: str, has_gpu: bool) -> str:
    """What `runtime.precision` comes to: "no" (fp32), "bf16", "fp16", "fp64".

    Raises:
        UserError: what the machine cannot do.
    """
    if wanted == "fp16" and not has_gpu:
        raise UserError("runtime.precision=fp16 needs a GPU, and none is visible: use bf16, or auto")
    if wanted == "fp64" and has_gpu:
        raise UserError("runtime.precision=fp64 compares runs on CPUs: use bf16, fp16 or auto on a GPU")
    if wanted != "auto":
        return wanted
    if not has_gpu:
        return "bf16" if speed_of_bf16() >= CLEARLY_FASTER else "no"
    return "bf16" if torch.cuda.get_device_capability()[0] >= 8 and _cudnn() >= FIRST_WITH_BF16_LSTMS else "fp16"


def slowest(precisions: list[str]) -> str:
    """What ranks agree on that have found different ones: what all of them can do."""
    return next(precision for precision in ("no", "fp16", *precisions) if precision in precisions)


def precision_of_run(folder: Path) -> str | None:
    """What the newest checkpoint of a run directory was computed in; None where there is none to be read."""
    states = sorted(folder.glob("checkpoints/*/step-*/state.json"), key=_time, reverse=True)
    for path in states:
        try:
            return str(json.loads(path.read_bytes())["precision"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # whoever reads the checkpoint says what is wrong with it
    return None


def speed_of_bf16() -> float:
    """How many times as fast as fp32 this CPU computes an LSTM and the products of a decoder in bf16."""
    return _seconds(torch.float32) / _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype, repeats: int = 3) -> float:
    lstm = nn.LSTM(WIDTH, HIDDEN, batch_first=True, dtype=torch.float32)
    x_bTE = torch.ones(ROWS, TOKENS, WIDTH, dtype=torch.float32)
    decoded_NH, weight_VH = torch.ones(ROWS * TOKENS, HIDDEN, dtype=dtype), torch.ones(WORDS, HIDDEN, dtype=dtype)
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        with torch.enable_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            lstm(x_bTE)[0].float().sum().backward()
        logits_NV = decoded_NH @ weight_VH.t()
        logits_NV @ weight_VH
        logits_NV.t() @ decoded_NH
        found.append(time.perf_counter() - started)
    return median(found[1:])  # the first one prepares the kernels


def _cudnn() -> int:
    return torch.backends.cudnn.version() or 0


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
