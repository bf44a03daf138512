"""`python rank_notes.py FOLDER WORD ...`: a command of ulmfit_dist that notes, on each rank, what it has trained.

A line of JSON for each phase of a stage: rank, stage, device, a hash of all weights, and on the simulated GPU the LSTM
calls, those from scattered weights, the collectives, and the waits of the steps between `FIRST_STEP` and `LAST_STEP`.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from small_runs import simulated_counters

from ulmfit_dist.cli import main
from ulmfit_dist.training.accelerate import AccelerateCallback
from ulmfit_dist.training.learner import DistributedLearner

FIRST_STEP, LAST_STEP = 2, 5


def note_weights(folder: Path) -> None:
    """Have each rank note its weights after each fit."""
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
            line |= {"lstms": counters.lstms, "scattered": counters.scattered, "waits": WAITS}
            line["collectives"] = {name: n for name, n in counters.kernels.items() if name.startswith("c10d.")}
            counters.clear()
        with (folder / f"rank{self.runtime.rank}.jsonl").open("a") as file:
            print(json.dumps(line), file=file)

    AccelerateCallback.after_fit = noted


WAITS: dict[str, int] = {}


def note_waits() -> None:
    """Keep the simulated GPU's waits between two steps of a stage."""
    step = DistributedLearner._do_one_batch
    before: dict[str, int] = {}

    def watched(self) -> None:
        counters = simulated_counters()
        if counters and self.training and self.stage_step == FIRST_STEP:
            before.clear()
            before.update(counters.waits)
        if counters and self.training and self.stage_step == LAST_STEP:
            WAITS.clear()
            WAITS.update({wait: n - before.get(wait, 0) for wait, n in counters.waits.items() if n > before.get(wait, 0)})
        step(self)

    DistributedLearner._do_one_batch = watched


if __name__ == "__main__":
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    note_weights(Path(sys.argv[1]))
    note_waits()
    sys.exit(main(sys.argv[2:]))
