"""Cost of dropout masks, ours and fastai's, relative to a training step of the language model.

    python -m benchmarks.masks CONFIG [key=value ...] [--steps 12] [--repeats 30]

The step is that of the config's stage on its texts: forward, backward, optimizer. Masks are timed individually, ours and
fastai's in turn; figures are medians. "all" is the sum over the masks of a step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.text.models.awdlstm import dropout_mask
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import machine
from ulmfit_dist.config.loading import load_config
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.awd_lstm import AWDLSTM
from ulmfit_dist.models.dropout import RowDropout, row_mask, shared_mask
from ulmfit_dist.models.networks import awd_lstm_of
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.training.train_steps import LMLearner

Mask = tuple[str, Callable[[], Tensor], Callable[[], Tensor]]
"""Position in the network, our function that computes the mask, and fastai's."""


class StepTimes(Callback):
    """Callback that records the duration of each training step, and ends the fit after some steps.

    Args:
        steps: number of steps.
    """

    def __init__(self, steps: int):
        self.steps, self.seconds = steps, list[float]()

    def before_batch(self) -> None:
        self.started = time.perf_counter()

    def after_batch(self) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        if len(self.seconds) == self.steps:
            raise CancelFitException()


def masks_of_a_step(learner: LMLearner, rows: range) -> Iterator[Mask]:
    """Yield all masks of a training step."""
    encoder = awd_lstm_of(learner.model)
    like = encoder.encoder.weight.detach()
    embedding = encoder.encoder_dp
    yield _shared(encoder, embedding.site, len(like), embedding.embed_p, like)
    for rnn in encoder.rnns:
        raw = rnn.weight_hh_l0_raw.detach()
        yield (
            f"{rnn.site}, {tuple(raw.shape)}",
            partial(shared_mask, encoder.position.key(rnn.site), raw.numel(), rnn.weight_p, raw),
            partial(F.dropout, raw, rnn.weight_p),
        )
    widths = [rnn.module.hidden_size for rnn in encoder.rnns]
    for dropout, width in zip(encoder.hidden_dps, widths[:-1], strict=False):  # the last one is not used
        assert isinstance(dropout, RowDropout)
        yield _row(encoder, dropout, rows, width, like)
    yield _row(encoder, encoder.input_dp, rows, like.shape[1], like)
    yield _row(encoder, learner.model[1].output_dp, rows, like.shape[1], like)


def _shared(encoder: AWDLSTM, site: str, size: int, p: float, like: Tensor) -> Mask:
    return (
        f"{site}, {size} words",
        partial(shared_mask, encoder.position.key(site), size, p, like),
        partial(dropout_mask, like, [size, 1], p),
    )


def _row(encoder: AWDLSTM, dropout: RowDropout, rows: range, width: int, like: Tensor) -> Mask:
    return (
        f"{dropout.site}, {len(rows)} rows of {width}",
        partial(row_mask, encoder.position.key(dropout.site), rows, width, dropout.p, like),
        partial(dropout_mask, like, [len(rows), 1, width], dropout.p),
    )


def seconds_of(make: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    make()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    config = load_config(args.config, [*args.overrides, "runtime.canonical_ranks=null"])
    runtime = Runtime(config.runtime)
    learner = lm_learner(config, runtime, prepare(config, runtime))
    times = StepTimes(args.steps)
    learner.fit_one_cycle(1, 1e-3, cbs=times)
    step = statistics.median(times.seconds[2:])
    batch = f"{config.lm.global_batch_size} x {config.lm.seq_len} tokens"
    print(f"{machine()}, {torch.get_num_threads()} threads")
    print(f"a step of {batch}, {sum(p.numel() for p in learner.model.parameters()):,} parameters: {step * 1e3:.0f} ms")
    print(f"{'mask':<32}{'ours':>10}{'fastai':>10}   of the step")
    total, total_fastai = 0.0, 0.0
    for site, ours, fastais in masks_of_a_step(learner, range(config.lm.global_batch_size)):
        pairs = [(seconds_of(ours), seconds_of(fastais)) for _ in range(args.repeats)]
        seconds, seconds_fastai = (statistics.median(times) for times in zip(*pairs, strict=True))
        total, total_fastai = total + seconds, total_fastai + seconds_fastai
        print_line(site, seconds, seconds_fastai, step)
    print_line("all", total, total_fastai, step)


def print_line(name: str, ours: float, fastais: float, step: float) -> None:
    print(f"{name:<32}{ours * 1e3:7.2f} ms{fastais * 1e3:7.2f} ms   {ours / step:.2%}")


if __name__ == "__main__":
    main()
