"""Differences between runs on several ranks and on one rank, with real processes and the whole config.

    python -m benchmarks.world_size CONFIG [key=value ...] [--precisions fp64 fp32] [--canonical-ranks 4]

One rank, two, four, and one that accumulates four micro-batches train the config's language model, and then its classifier
on the encoder of the first run; in fp32 also with `--canonical-ranks` canonical ranks ("bits"). The table shows the largest
relative difference in the training loss of a step, over the first 200 steps and over all steps, the largest absolute
difference in a final weight, and the final metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.machine import machine
from ulmfit_dist.config.loading import load_config

STAGES = ("lm", "classifier")
FIRST_STEPS = 200
"""Number of steps in the first column."""


def train(folder: Path, name: str, processes: int, argv: dict[str, list[str]]) -> None:
    """Train both stages in `<name>-lm` and `<name>`; the classifier starts from the encoder of `one-lm`."""
    (folder / name).mkdir()
    (folder / name / "lm").symlink_to(folder / "one-lm" / "lm")
    launcher = [sys.executable]
    if processes > 1:
        accelerate = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/multi_gpu.yaml"]
        launcher += [*accelerate, "--num_processes", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for stage in STAGES:
        command = ["-m", "ulmfit_dist", stage, *argv[stage], f"name={folder_of(name, stage)}"]
        subprocess.run([*launcher, *command], env=environment, check=True, capture_output=True)


def folder_of(cut: str, stage: str) -> str:
    return f"{cut}-lm" if stage == "lm" else cut


def losses(run: Path, stage: str) -> torch.Tensor:
    """Return the training loss of each step, float64 [steps]."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    values = [line[f"{stage}/loss"] for line in lines if f"{stage}/loss" in line]
    return torch.tensor(values, dtype=torch.float64)


def compare(folder: Path, name: str, stage: str, reference: str) -> str:
    """Return one line with the differences between a run and the reference."""
    run, one = (folder / folder_of(cut, stage) for cut in (name, reference))
    expected = losses(one, stage)
    relative = ((losses(run, stage) - expected) / expected).abs()
    weights, others = (load_file(path / stage / "model.safetensors") for path in (run, one))
    largest = max((weights[key] - others[key]).abs().max().item() for key in weights)
    metrics = json.loads((run / "summary.json").read_text())[stage]
    shown = "  ".join(f"{key} {value:.6f}" for key, value in metrics.items() if not key.endswith("_per_second"))
    first = relative[:FIRST_STEPS].max().item()
    return f"{first:9.1e}{relative.max().item():9.1e}{largest:9.1e}  {len(expected)} steps  {shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--precisions", nargs="+", default=["fp64", "fp32"])
    parser.add_argument("--canonical-ranks", type=int, default=4)
    args = parser.parse_args()
    print(f"{machine()}, one thread per process", flush=True)
    print(f"{'':<34}{'200':>9}{'all':>9}{'weights':>9}", flush=True)
    config = load_config(args.config, args.overrides)
    sizes = {"lm": config.lm.global_batch_size, "classifier": config.classifier.global_batch_size}
    whole = dict.fromkeys(STAGES, "runtime.micro_batch_size=null")
    quarters = {stage: f"runtime.micro_batch_size={size // 4}" for stage, size in sizes.items()}
    bits = dict.fromkeys(STAGES, f"runtime.canonical_ranks={args.canonical_ranks}")
    cuts = {"one": (1, whole), "two": (2, whole), "four": (4, whole), "accumulated": (1, quarters)}
    cuts |= {"one-bits": (1, bits), "two-bits": (2, bits), "four-bits": (4, bits)}
    for precision in args.precisions:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            fixed = [str(args.config), *args.overrides, f"runs_dir={folder}", f"runtime.precision={precision}"]
            fixed += ["runtime.canonical_ranks=null", "tracking.log_interval=1", "tracking.wandb_mode=disabled"]
            for name, (processes, cut) in cuts.items():
                if precision == "fp64" and cut is bits:
                    continue
                train(folder, name, processes, {stage: [*fixed, cut[stage]] for stage in STAGES})
                reference = "one-bits" if name.endswith("bits") else "one"
                for stage in STAGES:
                    print(f"{precision:<6}{stage:<12}{name:<16}{compare(folder, name, stage, reference)}", flush=True)


if __name__ == "__main__":
    main()
