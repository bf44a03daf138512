"""Command of ulmfit_dist that records the training of each rank: `python rank_notes.py FOLDER ARGUMENT ...`.

One line of JSON per phase of a stage: rank, stage, device, a hash of all weights, and on the simulated GPU the LSTM calls,
those with non-contiguous weights, the collectives, and the waits in the steps after the first, null without such steps.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from small_runs import simulated_counters

from ulmfit_dist.cli.main import main
from ulmfit_dist.training.callbacks.accelerate import AccelerateCallback
from ulmfit_dist.training.learner import DistributedLearner


def note_weights(folder: Path) -> None:
    """Patch each rank to record its weights after each fit."""
    after_fit = AccelerateCallback.after_fit

    def noted(self) -> None:
        after_fit(self)
        weights = hashlib.sha256()
        for parameter in self.learn.model.parameters():
            weights.update(parameter.detach().cpu().numpy().tobytes())
        line = {
            "rank": self.runtime.rank,
            "stage": self.learn.stage,
            "device": str(self.runtime.device),
            "weights": weights.hexdigest(),
        }
        counters = simulated_counters()
        if counters:
            line |= {"lstms": counters.lstms, "scattered": counters.scattered, "waits": WAITS.pop(self.learn.stage, None)}
            line["collectives"] = {name: n for name, n in counters.kernels.items() if name.startswith("c10d.")}
            counters.clear()
        with (folder / f"rank{self.runtime.rank}.jsonl").open("a") as file:
            print(json.dumps(line), file=file)

    AccelerateCallback.after_fit = noted


WAITS: dict[str, Counter[str]] = {}
"""Recorded waits by stage, until they are written."""


def note_waits() -> None:
    """Record the simulated GPU's waits in the steps of an epoch except the first, callbacks included."""
    one_batch = DistributedLearner.one_batch

    def watched(self, *arguments) -> None:
        counters = simulated_counters()
        before = Counter(counters.waits) if counters else Counter()
        one_batch(self, *arguments)
        if counters and self.training and self.iter > 0:
            WAITS.setdefault(self.stage, Counter()).update(counters.waits - before)

    DistributedLearner.one_batch = watched


if __name__ == "__main__":
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    note_weights(Path(sys.argv[1]))
    note_waits()
    sys.exit(main(sys.argv[2:]))
