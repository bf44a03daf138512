"""SHA-256 digests of exported models: two models with the same digest have bitwise equal weights.

    python -m benchmarks.weights_hash RUN [RUN ...]

One line per model of each run (`lm`, `classifier`). A digest is computed from the name, dtype, shape and bytes of each
tensor, in the order of the names, and from nothing else in the file. If a model differs from that of the first run, the last
lines name it, and the exit code is 1. The trade-off: a digest does not show how large a difference is;
`benchmarks/world_size.py` does.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = "model.safetensors"
DIFFERENT, USAGE = 1, 2
"""Exit codes: models differ; a run has no model."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, as 64 hexadecimal digits."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def digests(run: Path) -> dict[str, str]:
    """Return the digest of each model in a run directory by its folder.

    Raises:
        ValueError: there is no model, or one cannot be read.
    """
    files = sorted(run.glob(f"*/{WEIGHTS}"))
    if not files:
        raise ValueError(f"{run}: no model here (no */{WEIGHTS}): give the directory of a completed run")
    try:
        return {file.parent.name: digest(load_file(file)) for file in files}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{run}: a model cannot be read ({error})") from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.weights_hash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    runs: list[Path] = parser.parse_args(argv).runs
    try:
        by_run = [digests(run) for run in runs]
    except ValueError as error:
        print(f"weights_hash: error: {error}", file=sys.stderr)
        return USAGE
    for run, models in zip(runs, by_run, strict=True):
        for model, text in models.items():
            print(f"{text}  {run / model}")
    different = [
        f"{run / model} differs from {runs[0] / model}"
        for run, models in zip(runs, by_run, strict=True)
        for model in sorted(by_run[0].keys() | models.keys())
        if models.get(model) != by_run[0].get(model)
    ]
    print(*different, sep="\n", end="\n" if different else "")
    return DIFFERENT if different else 0


if __name__ == "__main__":
    sys.exit(main())
