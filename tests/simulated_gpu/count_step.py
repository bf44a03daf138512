"""Print what one training step of each stage costs a GPU, counted on the simulated one.

    python tests/simulated_gpu/count_step.py [no|bf16|fp16 ...] [--stage lm|classifier] [--details] [key=value ...]

The language model reads 64 x 72 tokens, the classifier 64 documents. Layers are narrow and the vocabulary is small, so that
a step takes seconds: kernels and waits do not depend on it, bytes do. `--wide` counts with the widths of AWD-LSTM and 60,000
words, which takes minutes and some 8 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TESTS = FOLDER.parent
PATHS = (FOLDER / "startup", TESTS.parent, TESTS, TESTS / "gpu")

STEPS = {"lm": 2, "classifier": 2}
"""The step that is counted; those before it begin what stays, such as the optimizer's state."""
SMALL = (
    "model={emb_sz: 8, n_hid: 16, n_layers: 3}",
    "lm={global_batch_size: 64, seq_len: 72, drop_mult: 1.0}",
    "classifier={global_batch_size: 64, seq_len: 72, max_len: 144, drop_mult: 1.0}",
    "lm.phases=[{epochs: 1, lr: 1e-2}]",
    "classifier.phases=[{epochs: 1, lr: 1e-2}]",
    "checkpoint={every_steps: null, every_minutes: null}",
    "tracking.log_every=1000",
)
DOCUMENTS = 480


class CountedError(Exception):
    """Ends training after the step that is counted."""


def count(stage: str, precision: str, overrides: list[str]) -> None:
    """Leave in COUNTERS what one step of a stage took, from its beginning to that of the next one."""
    import small_runs
    import torch

    from simulated_gpu.counters import COUNTERS, MEMORY
    from ulmfit_dist.training.steps import ClassifierLearner, LMLearner

    kind = {"lm": LMLearner, "classifier": ClassifierLearner}[stage]
    train_step = kind._train_step

    def counted(self) -> None:
        if self.stage_step == STEPS[stage]:
            COUNTERS.clear()
            MEMORY.reset_peak()
        if self.stage_step == STEPS[stage] + 1:
            raise CountedError
        train_step(self)

    with tempfile.TemporaryDirectory() as folder:
        texts = small_runs.make_texts(Path(folder) / "texts", DOCUMENTS)
        words = (*SMALL, f"runtime.precision={precision}", *overrides)
        config = small_runs.small_config(texts, Path(folder) / "runs", *words)
        if stage == "classifier":
            config.classifier.encoder = "random"
        kind._train_step = counted
        try:
            small_runs.train(config, stage, device=torch.device("cuda"))
        except CountedError:
            return
        finally:
            kind._train_step = train_step
    raise RuntimeError(f"{stage}: fewer than {STEPS[stage] + 2} steps in an epoch")


def main() -> int:
    arguments = parser().parse_args()
    if str(FOLDER / "startup") not in os.environ.get("PYTHONPATH", ""):
        path = os.pathsep.join(map(str, PATHS))
        environment = {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "false", "WANDB_MODE": "offline"}
        return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment, check=False).returncode
    precisions = [word for word in arguments.words if "=" not in word] or ["no", "bf16", "fp16"]
    overrides = [word for word in arguments.words if "=" in word]
    from contextlib import redirect_stdout
    from io import StringIO

    import torch  # noqa: F401  first, because its import installs the simulated GPU

    from simulated_gpu.counters import COUNTERS, MEMORY

    for stage in [arguments.stage] if arguments.stage else ["lm", "classifier"]:
        for precision in precisions:
            with redirect_stdout(StringIO()):
                count(stage, precision, overrides)
            print(
                f"{stage} {precision}: {COUNTERS.kernels.total()} kernels, {COUNTERS.lstms} LSTM calls "
                f"({COUNTERS.scattered} from scattered weights), {COUNTERS.waits.total()} waits, "
                f"{COUNTERS.bytes.total() / 1e6:.1f} MB, peak memory {MEMORY.peak / 1e6:.1f} MB"
            )
            for wait, number in COUNTERS.waits.most_common():
                print(f"    waits {number} times: {wait}")
            if arguments.details:
                for name, number in COUNTERS.kernels.most_common():
                    print(f"    {number:5} {name}: {COUNTERS.bytes[name] / 1e6:.2f} MB")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    made.add_argument("words", nargs="*", metavar="precision or key=value")
    made.add_argument("--stage", choices=["lm", "classifier"])
    made.add_argument("--details", action="store_true", help="kernels and bytes by operation")
    return made


if __name__ == "__main__":
    sys.exit(main())
