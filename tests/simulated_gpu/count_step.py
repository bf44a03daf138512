"""Cost of one training step of each stage on a GPU, counted on the simulated one.

    python tests/simulated_gpu/count_step.py [fp32|bf16|fp16 ...] [--details] [key=value ...]
    python tests/simulated_gpu/count_step.py --loss [fp32|bf16|fp16 ...] [--details]     # decoder and loss at full size

The language model reads 64 x 72 tokens, the classifier 64 documents. Layers are narrow and the vocabulary is small, so that
a step takes seconds: the numbers of kernels and waits do not depend on them, bytes do (override model and data.token_store).
The third step is counted, up to the beginning of the fourth, in a run whose log lines and checkpoints come later.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
TESTS = FOLDER.parent
PATHS = (FOLDER / "startup", TESTS.parent, TESTS, TESTS / "gpu")

COUNTED_STEP = 2
RUN = (
    "model={emb_sz: 8, n_hid: 16, n_layers: 3}",
    "lm={global_batch_size: 64, seq_len: 72, drop_mult: 1.0}",
    "classifier={global_batch_size: 64, seq_len: 72, max_len: 144, drop_mult: 1.0}",
    "lm.phases=[{epochs: 1, lr: 1e-2}]",
    "classifier.phases=[{epochs: 1, lr: 1e-2}]",
    "checkpoint={interval_steps: null, interval_minutes: null}",
    "tracking={wandb_mode: disabled, log_interval: 1000}",
)
DOCUMENTS = 480
NUM_TOKENS, NUM_WORDS, WIDTH = 64 * 72, 60_000, 400
"""Tokens per step, vocabulary and width of the full AWD-LSTM's decoder."""


def count(precision: str, overrides: list[str]) -> dict[str, tuple[Any, int]]:
    """Return counters and peak memory of a step, by stage."""
    import small_runs
    import torch

    from ulmfit_dist.training.train_steps import ClassifierLearner, LMLearner

    actual: dict[str, tuple[Any, int]] = {}
    real_steps = {kind: kind._train_step for kind in (LMLearner, ClassifierLearner)}
    for kind, train_step in real_steps.items():
        kind._train_step = counted(train_step, actual)
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            texts = small_runs.make_texts(Path(folder) / "texts", DOCUMENTS)
            words = (*RUN, f"runtime.precision={precision}", *overrides)
            config = small_runs.small_config(texts, Path(folder) / "runs", *words)
            small_runs.train(config, "lm", "classifier", device=torch.device("cuda"))
    finally:
        for kind, train_step in real_steps.items():
            kind._train_step = train_step
    return actual


def counted(train_step: Any, actual: dict[str, tuple[Any, int]]) -> Any:
    """Return a learner's training step that stores the counts of the counted step in `found`."""
    from simulated_gpu.counters import COUNTERS, MEMORY

    def step(self: Any) -> None:
        if self.stage_step == COUNTED_STEP:
            COUNTERS.clear()
            MEMORY.reset_peak()
        elif self.stage_step == COUNTED_STEP + 1:
            actual[self.stage] = copy.deepcopy(COUNTERS), MEMORY.peak
        train_step(self)

    return step


def count_loss(precision: str) -> tuple[Any, int]:
    """Return counters and peak memory of decoder and loss, forward and backward, at the full model's sizes."""
    import torch
    from torch import nn

    from simulated_gpu.counters import COUNTERS, MEMORY
    from ulmfit_dist.models.fused_cross_entropy import PRODUCT_DTYPES, DecoderLoss

    dtype = PRODUCT_DTYPES[precision]
    decoder = nn.Linear(WIDTH, NUM_WORDS).to("cuda")
    x_bTE = torch.randn(64, NUM_TOKENS // 64, WIDTH).to("cuda", dtype).requires_grad_()
    y_bT = torch.randint(NUM_WORDS, (64, NUM_TOKENS // 64)).to("cuda")
    loss = DecoderLoss(decoder, dtype)
    for _ in range(2):  # the first call compiles
        COUNTERS.clear()
        MEMORY.reset_peak()
        loss(x_bTE, y_bT).backward()
        decoder.zero_grad()
        x_bTE.grad = None
    return copy.deepcopy(COUNTERS), MEMORY.peak


def report(name: str, counters: Any, peak: int, details: bool) -> None:
    print(
        f"{name}: {counters.kernels.total()} kernels, {counters.lstms} LSTM calls ({counters.scattered} from scattered "
        f"weights), {counters.waits.total()} waits, {counters.bytes.total() / 1e6:.1f} MB, peak memory {peak / 1e6:.1f} MB"
    )
    for wait, number in counters.waits.most_common():
        print(f"    waits {number} times: {wait}")
    for kernel, number in counters.kernels.most_common() if details else ():
        print(f"    {number:5} {kernel}: {counters.bytes[kernel] / 1e6:.2f} MB")


def main() -> int:
    arguments = parser().parse_args()
    if str(FOLDER / "startup") not in os.environ.get("PYTHONPATH", ""):
        path = os.pathsep.join(map(str, PATHS))
        environment = {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "false", "WANDB_MODE": "offline"}
        return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment, check=False).returncode
    import torch  # noqa: F401  first, because its import installs the simulated GPU

    precisions = [argument for argument in arguments.argv if "=" not in argument] or ["fp32", "bf16", "fp16"]
    overrides = [argument for argument in arguments.argv if "=" in argument]
    for precision in precisions:
        if arguments.loss:
            report(f"decoder and loss {precision}", *count_loss(precision), arguments.details)
            continue
        for stage, (counters, peak) in count(precision, overrides).items():
            report(f"{stage} {precision}", counters, peak, arguments.details)
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("argv", nargs="*", metavar="PRECISION or KEY=VALUE", help="fp32, bf16, fp16; overrides")
    options.add_argument("--loss", action="store_true", help="only decoder and loss, at the full model's sizes")
    options.add_argument("--details", action="store_true", help="kernels and bytes by operation")
    return options


if __name__ == "__main__":
    sys.exit(main())
