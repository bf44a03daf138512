"""`python recorded.py FOLDER WORD ...`: a command of ulmfit_dist that notes what each training step reads.

A line for each row of each step, before the step is made: stage, step, row of the global batch, and its token ids. A file
for each process, so what a killed one has noted stays.
"""

import os
import sys
from functools import partial
from pathlib import Path

from ulmfit_dist.cli.main import main
from ulmfit_dist.distributed.exit import exit_process
from ulmfit_dist.training.train_steps import ClassifierLearner, LMLearner


def recording(kind: type) -> type:
    """The training step of a learner, noted."""
    train_step = kind._train_step

    def noted(self) -> None:
        for batch in self.micro_batches:
            for row, ids in zip(batch.rows, batch.x.tolist(), strict=True):
                print(self.stage, self.stage_step, row, ",".join(map(str, ids)), file=NOTES)
        NOTES.flush()
        train_step(self)

    kind._train_step = noted


if __name__ == "__main__":
    NOTES = (Path(sys.argv[1]) / f"{os.getpid()}.txt").open("w")
    recording(LMLearner)
    recording(ClassifierLearner)
    exit_process(partial(main, sys.argv[2:], ends_process=True))
