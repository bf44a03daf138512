"""Explicit settings of the launcher: flags of `accelerate launch`, its config file, Accelerate's environment variables.

Accelerate sets `ACCELERATE_MIXED_PRECISION=no` on every rank by default, and passes the number of accumulation steps on for
DeepSpeed only. So the variables of a rank do not distinguish a request from a default. This module therefore reads the
command line, the config file and the environment of the launcher: the nearest ancestor process that is one. An explicit
value counts, `no` included; a default of Accelerate's does not. The trade-off: it depends on the process tree (`psutil`).

An explicit value replaces `runtime.precision: auto` or `runtime.micro_batch_size: null` of the config, and is an error if it
contradicts any other value there.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from yaml import YAMLError

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.env import TRUE
from ulmfit_dist.errors import UserError

PRECISION_VARIABLE = "ACCELERATE_MIXED_PRECISION"
"""Accelerate's variable for the mixed precision."""
NOTEBOOK_VARIABLE = "MIXED_PRECISION"
"""Variable that notebook_launcher sets in the processes that it forks, `no` by default."""
STEPS_VARIABLE = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
"""Accelerate's variable for the number of accumulation steps."""
MIXED_PRECISIONS = ("no", "bf16", "fp16")
"""Supported values of Accelerate's `mixed_precision`."""

WITHOUT_ANCESTOR = (
    "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DEBUG_RDV_FILE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE",
)  # fmt: skip
"""Variables of launchers that are not always ancestors of their ranks: Accelerate's own, its debug_launcher, and mpirun on
another node."""

DATA_PARALLEL = "use data parallel training (accelerate launch --multi_gpu), and runtime.micro_batch_size to save memory"
"""Alternative to sharded training."""
UNSUPPORTED = {
    "FSDP": DATA_PARALLEL,
    "DeepSpeed": DATA_PARALLEL,
    "Megatron-LM": DATA_PARALLEL,
    "tensor, context or sequence parallelism": DATA_PARALLEL,
    "a TPU": "use GPUs (accelerate launch --multi_gpu) or CPUs",
    "Amazon SageMaker's launcher": "start accelerate launch --multi_gpu on the machines themselves",
    "torch.compile of the model": "leave the dynamo backend at `no`; the functions that benefit are already compiled",
}
"""Features of Accelerate that this package does not support, and the alternative."""

UNSUPPORTED_VARIABLES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
    "ACCELERATE_IN_TPU_POD": "a TPU",
    "ACCELERATE_USE_SAGEMAKER": "Amazon SageMaker's launcher",
}
"""Boolean variables of Accelerate's launchers, by the feature that they enable."""

UNSUPPORTED_TYPES = {
    "FSDP": "FSDP",
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "XLA": "a TPU",
}
"""Values of distributed_type in Accelerate's config file, by the feature that they enable."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Named(Generic[Value]):
    """An explicit value, and its source in messages, such as the command-line flag."""

    value: Value
    source: str


@dataclass(frozen=True)
class Launcher:
    """Command line and environment of `accelerate launch`, or of `ulmfit_dist.launch`.

    Attributes:
        argv: the launcher's own options, without the script and the script's arguments.
        environ: the launcher's environment.
        folder: the launcher's working directory, to resolve relative paths.
    """

    argv: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()

    def mixed_precision(self) -> Named[str] | None:
        """Return the mixed precision of the command line, the config file or the environment, in this order."""
        options = _parse(self.argv)
        if options.mixed_precision is not None:
            return Named(options.mixed_precision, f"accelerate launch --mixed_precision {options.mixed_precision}")
        path = self._config_file(options)
        if path is not None and (value := read_config_file(path).mixed_precision) is not None:
            return Named(value, f"mixed_precision: {value} in {path}")
        return _variable(self.environ, PRECISION_VARIABLE)

    def accumulation_steps(self) -> Named[str] | None:
        """Return the accumulation steps of the command line or the environment; config files hold DeepSpeed's only."""
        steps = _parse(self.argv).gradient_accumulation_steps
        if steps is not None:
            return Named(steps, f"accelerate launch --gradient_accumulation_steps {steps}")
        return _variable(self.environ, STEPS_VARIABLE)

    def _config_file(self, options: argparse.Namespace) -> Path | None:
        if options.config_file is not None:
            return self.folder / str(options.config_file)
        from accelerate.commands.config import default_config_file

        path = Path(default_config_file)
        return path if path.is_file() and not options.cpu else None


@dataclass(frozen=True)
class LaunchSettings:
    """Explicit settings of the launcher; None for settings left at their default."""

    mixed_precision: Named[str] | None = None
    accumulation_steps: Named[int] | None = None

    def applied_to(self, settings: RuntimeConfig, has_gpu: bool) -> RuntimeConfig:
        """Return the runtime section of the config, with the launcher's precision in place of `auto`.

        Raises:
            UserError: if the config has a different precision, or a micro-batch size in addition to accumulation steps; or
                if the launcher sets fp16 and no GPU is visible.
        """
        steps, precision = self.accumulation_steps, self.mixed_precision
        if steps is not None and settings.micro_batch_size is not None:
            raise UserError(
                f"{steps.source} and runtime.micro_batch_size={settings.micro_batch_size} both set the size of a "
                "micro-batch: leave one of them out"
            )
        if precision is None:
            return settings
        same = ("fp32", "fp64", "no") if precision.value == "no" else (precision.value,)
        if settings.precision not in ("auto", *same):
            raise UserError(
                f"{precision.source} and runtime.precision={settings.precision} differ: leave one of them out, or give "
                "both the same value"
            )
        if precision.value == "fp16" and not has_gpu:
            raise UserError(f"{precision.source}: fp16 needs a GPU, but none is visible: use bf16, or leave it out")
        return replace(settings, precision=same[0]) if settings.precision == "auto" else settings

    def check_agreement(self, all_ranks: Sequence[LaunchSettings]) -> None:
        """Raise UserError if ranks were launched with different settings, as can happen on several nodes."""
        for rank, other in enumerate(all_ranks):
            for name in ("mixed_precision", "accumulation_steps"):
                first, named = getattr(all_ranks[0], name), getattr(other, name)
                if (first and first.value) != (named and named.value):
                    raise UserError(
                        f"rank {rank} was launched with {named.source if named else f'no {name}'}, but rank 0 with "
                        f"{first.source if first else f'no {name}'}: launch all nodes with the same flags and variables"
                    )

    def describe(self) -> list[str]:
        """Return a line per explicit setting, for --verbose."""
        steps = self.accumulation_steps
        return [] if steps is None else [f"micro-batches per rank and step: {steps.value} ({steps.source})"]


def read_launch_settings(environ: Mapping[str, str] | None = None, launcher: Launcher | None = None) -> LaunchSettings:
    """Return the explicit settings of this process's launcher.

    Args:
        environ: environment of this process.
        launcher: launcher to read, for tests; None: the result of `find_launcher`.

    Raises:
        UserError: if a feature, a mixed precision or a number of steps is not supported.
    """
    environ = os.environ if environ is None else environ
    launcher = launcher or find_launcher()
    refuse_unsupported(environ)
    return LaunchSettings(_mixed_precision(environ, launcher), _accumulation_steps(environ, launcher))


def refuse_unsupported(environ: Mapping[str, str]) -> None:
    """Raise UserError if Accelerate's variables request a feature that this package does not support."""
    for variable, name in UNSUPPORTED_VARIABLES.items():
        if environ.get(variable, "").lower() in TRUE:
            raise unsupported(f"{variable}={environ[variable]}", name)
    if environ.get("PJRT_DEVICE", "").upper() == "TPU":
        raise unsupported("PJRT_DEVICE=TPU", "a TPU")
    backend = environ.get("ACCELERATE_DYNAMO_BACKEND", "") or "no"
    if backend.lower() != "no":
        raise unsupported(f"ACCELERATE_DYNAMO_BACKEND={backend}", "torch.compile of the model")


def unsupported(source: str, name: str) -> UserError:
    """Return the error for a feature in `UNSUPPORTED`."""
    return UserError(f"{source} requests {name}, which ulmfit-dist does not support: {UNSUPPORTED[name]}")


def no_precision(source: str, value: str) -> UserError:
    """Return the error for a mixed precision that is not in `MIXED_PRECISIONS`."""
    return UserError(f"{source}: ulmfit-dist does not support mixed precision {value}: use bf16, fp16 or no")


def read_config_file(path: str | Path) -> Any:
    """Read Accelerate's config file, as `ClusterConfig` or `SageMakerConfig`. Raises UserError if it cannot be read."""
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        return load_config_from_file(str(path))
    except (OSError, TypeError, ValueError, AttributeError, YAMLError) as error:
        raise UserError(f"{path}: Accelerate's config file cannot be read: {' '.join(str(error).split())}") from None


def find_launcher() -> Launcher | None:
    """Return the nearest ancestor process that is `accelerate launch` or `ulmfit_dist.launch`; None if there is none."""
    import psutil

    child = psutil.Process()
    try:
        for parent in child.parents():
            argv = launcher_argv(parent.cmdline())
            if argv is not None:
                options = without_script(argv, child.cmdline())
                return Launcher(options, parent.environ(), Path(parent.cwd()))
            child = parent
    except psutil.Error:
        return None  # a process of another user, which is no descendant of this user's launcher
    return None


def launcher_argv(cmdline: Sequence[str]) -> Sequence[str] | None:
    """Return the arguments of `accelerate launch` in a command line; None if it is another command.

    It may be a script, with or without an interpreter before it, or a module.
    """
    names = [Path(argument).name.removesuffix(".exe") for argument in cmdline]
    for i, name in enumerate(names[:8]):
        if name == "accelerate-launch" or cmdline[i].endswith("accelerate/commands/launch.py"):
            return cmdline[i + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and names[i + 1 : i + 2] == ["launch"]:
            return cmdline[i + 2 :]
        if cmdline[i] == "-m" and names[i + 1 : i + 2] in (["accelerate.commands.launch"], ["ulmfit_dist.launch"]):
            return cmdline[i + 2 :]
    return None


def without_script(argv: Sequence[str], started: Sequence[str]) -> Sequence[str]:
    """Return a launcher's own options: its arguments without the suffix that it shares with its child's command line."""
    count = 0
    while count < min(len(argv), len(started)) and argv[-1 - count] == started[-1 - count]:
        count += 1
    return argv[: len(argv) - count]


def _mixed_precision(environ: Mapping[str, str], launcher: Launcher | None) -> Named[str] | None:
    setting, local = launcher.mixed_precision() if launcher else None, _variable(environ, PRECISION_VARIABLE)
    if environ.get("FORK_LAUNCHED") == "1" and environ.get(NOTEBOOK_VARIABLE, "no") != "no":
        local = _variable(environ, NOTEBOOK_VARIABLE)
    if local is not None and local.value.lower() == "no" and (launcher or any(name in environ for name in WITHOUT_ANCESTOR)):
        local = None  # Accelerate's default, or the launcher's explicit value
    if local is not None and (setting is None or local.value.lower() != setting.value.lower()):
        setting = local  # set between the launcher and this process
    if setting is None:
        return None
    value = setting.value.lower()
    if value not in MIXED_PRECISIONS:
        raise no_precision(setting.source, value)
    return Named(value, setting.source)


def _accumulation_steps(environ: Mapping[str, str], launcher: Launcher | None) -> Named[int] | None:
    named = (launcher.accumulation_steps() if launcher else None) or _variable(environ, STEPS_VARIABLE)
    if named is None:
        return None
    if not named.value.isdecimal() or int(named.value) < 1:
        raise UserError(f"{named.source}: give a whole number of at least 1")
    return Named(int(named.value), named.source)


def _variable(environ: Mapping[str, str], name: str) -> Named[str] | None:
    value = environ.get(name)
    return Named(value, f"{name}={value}") if value else None


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("mixed_precision", "gradient_accumulation_steps", "config_file"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name)
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_known_args(list(argv))[0]
