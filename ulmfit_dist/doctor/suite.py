"""All checks of `doctor`, in order, over all ranks, and their report.

Checks that cannot hang come first: launch variables and rendezvous, then devices and folders, then the process group, then
training steps. Ranks exchange results through the rendezvous store, so there is a report even if the process group fails
(`doctor/monitor.py`). The trade-off: every collective check begins with a barrier through that store.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.env import rank_name, silence_warnings
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.doctor import hardware, numerics, performance, ranks, report, services, storage
from ulmfit_dist.doctor.checks import COLLECTIVE_LIMIT, QUICK, Check, Context, Finding, Result, Status, ok, run_checks
from ulmfit_dist.doctor.monitor import Monitor
from ulmfit_dist.doctor.rendezvous import JoinError, Launch, join, read_launch
from ulmfit_dist.errors import USER_ERROR, UserError
from ulmfit_dist.stages.classifier import classifier_learner
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.train_steps import ClassifierLearner

if TYPE_CHECKING:
    from torch.distributed import Store

RENDEZVOUS = "rendezvous"
"""Name of the check that runs before all others."""


def checks_of(config: Config) -> list[Check]:
    """Return the checks of a config in order."""

    def quick(name: str, function: object) -> Check:
        return Check(name, function, limit=QUICK)  # type: ignore[arg-type]

    def exchanging(name: str, function: object) -> Check:
        return Check(name, function, collective=True, limit=COLLECTIVE_LIMIT)  # type: ignore[arg-type]

    def training(name: str, function: object) -> Check:
        return Check(name, function, collective=True, needs_runtime=True)  # type: ignore[arg-type]

    before = [
        quick("versions", hardware.check_versions),
        quick("device", hardware.check_device),
        quick("driver, CUDA, cuDNN", hardware.check_cuda),
        quick("kernels for this GPU", hardware.check_kernels),
        Check("precision", hardware.check_precision),
        quick("batch sizes", ranks.check_batches),
    ]
    folders = [
        check
        for key, name in (("runs_dir", "run directory"), ("data.cache_dir", "cache"))
        for check in (quick(name, storage.writable(key)), exchanging(f"{name}, shared", storage.shared(key)))
    ]
    return [
        *before,
        *folders,
        quick("free disk", storage.check_disk),
        quick("W&B", services.check_wandb),
        quick("SLURM", services.check_slurm),
        exchanging("one device each", ranks.check_devices),
        exchanging("same versions", ranks.check_agreement),
        Check("process group", ranks.check_process_group, collective=True, limit=COLLECTIVE_LIMIT + 10),
        Check("heartbeat", ranks.check_heartbeat, needs_runtime=True, limit=QUICK),
        Check("all-reduce", ranks.check_all_reduce, collective=True, needs_runtime=True, limit=COLLECTIVE_LIMIT),
        Check("object collectives", ranks.check_objects, collective=True, needs_runtime=True, limit=COLLECTIVE_LIMIT),
        Check("Philox", numerics.check_philox),
        Check("LSTM", numerics.check_lstm),
        Check("fused loss", numerics.check_loss),
        *(Check(f"{stage}: a step against the CPU", numerics.step_against_cpu(stage)) for stage in config.stages),
        *(training(f"{stage}: the same steps twice", numerics.same_steps_twice(stage)) for stage in config.stages),
        training("no GPU syncs", performance.check_syncs),
        training("speed", performance.check_speed),
        training("largest batch", performance.check_largest_batch),
    ]


class _Reporter:
    """Printer of the report, used once: at the end, or early by the monitor's thread."""

    def __init__(self, config: Config, as_json: bool, launch: Launch | None):
        self.names = [RENDEZVOUS, *(check.name for check in checks_of(config))]
        self.config, self.as_json, self.launch = config, as_json, launch
        self.world_size = 1 if launch is None else launch.world_size
        self.context: Context | None = None

    def rows(self, results: dict[int, list[Result]]) -> list[report.Row]:
        return report.rows(self.names, results, self.world_size)

    def print(self, results: dict[int, list[Result]]) -> None:
        rows = self.rows(results)
        measured = {} if self.context is None else self.context.measured
        suggestion = report.overrides(self.config, None if self.context is None else self.context.resolved, measured)
        if self.as_json:
            print(report.as_json(rows, self.world_size, measured, suggestion), flush=True)
            return
        processes = "1 process" if self.world_size == 1 else f"{self.world_size} ranks"
        print(report.as_table(f"doctor: {self.config.name}, {processes}", rows))
        print(*report.last_lines(measured, suggestion), sep="\n", flush=True)


def doctor(config: Config, as_json: bool = False) -> None:
    """Run all checks on every rank, and print the report on rank 0.

    Raises:
        UserError: if a check has failed; on every rank.
    """
    silence_warnings()
    launch = None
    try:
        launch = read_launch()
        stores, names, joined = _join(launch)
    except JoinError as error:
        _end_without_ranks(config, as_json, launch, error.finding)
    reporter = _Reporter(config, as_json, launch)
    monitor = Monitor(launch.rank, names, stores, reporter.print)
    learners: dict[str, Callable[..., Any]] = {"lm": lm_learner, "classifier": _fresh_classifier}
    context = Context(config, launch.rank, launch.world_size, launch.local_rank, monitor, learners)
    reporter.context = context
    monitor.publish(Result(RENDEZVOUS, joined))
    try:
        run_checks(checks_of(config), context)
        results = monitor.finish()
        storage.remove_created(context)
    finally:
        sys.stdout.flush()
    if launch.rank == 0:
        reporter.print(results)
    monitor.reported()
    failed = [row.check for row in reporter.rows(results) if row.status is Status.FAILURE]
    _leave(context, failed)
    if failed:
        raise _error(failed)


def _join(launch: Launch) -> tuple[list[Store], list[str], Finding]:
    if launch.world_size == 1:
        return [], [rank_name()], ok("one process")
    return join(launch)


def _fresh_classifier(config: Config, runtime: Runtime, store: TokenStore) -> ClassifierLearner:
    """Return the classifier's learner on an encoder with random weights."""
    return classifier_learner(config, runtime, store, needs_encoder=False)


def _leave(context: Context, failed: Sequence[str]) -> None:
    """Leave the process group; after a failed collective, exit without waiting for the other ranks."""
    if context.runtime is None:
        return
    if context.monitor.broken is not None:
        print(f"ulmfit-dist: error: {_error(failed)}", file=sys.stderr, flush=True)
        os._exit(USER_ERROR)
    context.runtime.__exit__(None, None, None)


def _end_without_ranks(config: Config, as_json: bool, launch: Launch | None, finding: Finding) -> NoReturn:
    """Report the failed rendezvous and the checks of one rank, on the first rank of each node, and raise UserError."""
    reporter, failed = _Reporter(config, as_json, launch), [RENDEZVOUS]
    if launch is None:
        reporter.print({0: [Result(RENDEZVOUS, finding)]})
    elif launch.local_rank == 0:
        monitor = Monitor(launch.rank, [f"rank {rank}" for rank in range(launch.world_size)], [], reporter.print)
        monitor.publish(Result(RENDEZVOUS, finding))
        context = Context(config, launch.rank, launch.world_size, launch.local_rank, monitor, {})
        run_checks([check for check in checks_of(config) if check.is_quick], context)
        storage.remove_created(context)
        results = monitor.finish()
        reporter.print(results)
        monitor.reported()
        failed = [row.check for row in reporter.rows(results) if row.status is Status.FAILURE]
    raise _error(failed)


def _error(failed: Sequence[str]) -> UserError:
    return UserError(f"doctor: {len(failed)} check(s) failed: {', '.join(failed)}")
