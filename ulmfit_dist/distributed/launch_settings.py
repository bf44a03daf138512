"""Settings that the launcher names: flags of `accelerate launch`, its config file, Accelerate's environment variables.

Accelerate gives every rank `ACCELERATE_MIXED_PRECISION=no` where nothing is named, and passes the number of accumulation
steps on for DeepSpeed only. So the variables of a rank do not tell a request from a default. This module therefore reads the
command line, the config file and the environment of the launcher, which is the nearest ancestor process that is one. A value
that is named there counts, `no` included; a default of Accelerate's does not.

A named value takes effect where the recipe leaves it open (`runtime.precision: auto`, `runtime.micro_batch_size: null`), and
is an error where the recipe has another one.
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
NOTEBOOK_VARIABLE = "MIXED_PRECISION"
"""The variable that notebook_launcher sets in the processes that it forks, `no` by default."""
STEPS_VARIABLE = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
MIXED_PRECISIONS = ("no", "bf16", "fp16")

WITHOUT_ANCESTOR = (
    "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DEBUG_RDV_FILE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE",
)  # fmt: skip
"""Variables of launchers that may not be found among the ancestors of their ranks: Accelerate's own, its debug_launcher, and
mpirun on another node."""

DATA_PARALLEL = "use data parallel training (accelerate launch --multi_gpu), and runtime.micro_batch_size to save memory"
UNSUPPORTED = {
    "FSDP": DATA_PARALLEL,
    "DeepSpeed": DATA_PARALLEL,
    "Megatron-LM": DATA_PARALLEL,
    "tensor, context or sequence parallelism": DATA_PARALLEL,
    "a TPU": "use GPUs (accelerate launch --multi_gpu) or CPUs",
    "Amazon SageMaker's launcher": "start accelerate launch --multi_gpu on the machines themselves",
    "torch.compile of the model": "leave the dynamo backend at `no`; the functions that gain by it are compiled already",
}
"""Ways of training that Accelerate has and this package does not, and what to use instead."""

UNSUPPORTED_VARIABLES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
    "ACCELERATE_IN_TPU_POD": "a TPU",
    "ACCELERATE_USE_SAGEMAKER": "Amazon SageMaker's launcher",
}
"""Variables that Accelerate's launchers set to true, or to 1."""

UNSUPPORTED_TYPES = {
    "FSDP": "FSDP",
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "XLA": "a TPU",
}
"""Values of distributed_type in a config file of Accelerate's."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Named(Generic[Value]):
    """A value, and the words with which the user has named it, for messages."""

    value: Value
    source: str


@dataclass(frozen=True)
class Launcher:
    """The command line of `accelerate launch`, or of `ulmfit_dist.launch`.

    Attributes:
        argv: its own options, without the script and the script's arguments.
        environ: the environment that it was started in.
        folder: its working directory, for relative paths.
    """

    argv: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()

    def mixed_precision(self) -> Named[str] | None:
        """The mixed precision that the command line, the config file or the environment names, in this order."""
        options = _parse(self.argv)
        if options.mixed_precision is not None:
            return Named(options.mixed_precision, f"accelerate launch --mixed_precision {options.mixed_precision}")
        path = self._config_file(options)
        if path is not None and (value := read_config_file(path).mixed_precision) is not None:
            return Named(value, f"mixed_precision: {value} in {path}")
        return _variable(self.environ, PRECISION_VARIABLE)

    def accumulation_steps(self) -> Named[str] | None:
        """Accumulation steps that the command line or the environment names; config files have them for DeepSpeed only."""
        steps = _parse(self.argv).gradient_accumulation_steps
        if steps is not None:
            return Named(steps, f"accelerate launch --gradient_accumulation_steps {steps}")
        return _variable(self.environ, STEPS_VARIABLE)

    def _config_file(self, options: argparse.Namespace) -> Path | None:
        if options.config_file is not None:
            return self.folder / options.config_file
        from accelerate.commands.config import default_config_file

        path = Path(default_config_file)
        return path if path.is_file() and not options.cpu else None


@dataclass(frozen=True)
class LaunchSettings:
    """Settings that the launcher names; None for those that it does not."""

    mixed_precision: Named[str] | None = None
    accumulation_steps: Named[int] | None = None

    def applied_to(self, settings: RuntimeConfig, has_gpu: bool) -> RuntimeConfig:
        """The runtime section of the recipe, with the named precision where it says `auto`.

        Raises:
            UserError: the recipe has another precision, or a micro-batch size beside named accumulation steps; fp16 is
                named and there is no GPU.
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
            raise UserError(f"{precision.source}: fp16 needs a GPU, and none is visible: use bf16, or leave it out")
        return replace(settings, precision=same[0]) if settings.precision == "auto" else settings

    def check_agreement(self, all_ranks: Sequence[LaunchSettings]) -> None:
        """Raise UserError where ranks were launched with different settings, as two nodes may be."""
        for rank, other in enumerate(all_ranks):
            for name in ("mixed_precision", "accumulation_steps"):
                first, named = getattr(all_ranks[0], name), getattr(other, name)
                if (first and first.value) != (named and named.value):
                    raise UserError(
                        f"rank {rank} was launched with {named.source if named else f'no {name}'}, and rank 0 with "
                        f"{first.source if first else f'no {name}'}: launch all nodes with the same flags and variables"
                    )

    def describe(self) -> list[str]:
        """A line for each named setting, for --verbose."""
        steps = self.accumulation_steps
        return [] if steps is None else [f"micro-batches of a rank in a step: {steps.value} ({steps.source})"]


def read_launch_settings(environ: Mapping[str, str] | None = None, launcher: Launcher | None = None) -> LaunchSettings:
    """The settings of this process's launcher.

    Args:
        environ: the environment of this process.
        launcher: the launcher to read, for tests; None: the one that `find_launcher` finds.

    Raises:
        UserError: a way of training, a mixed precision or a number of steps that there is none of.
    """
    environ = os.environ if environ is None else environ
    launcher = launcher or find_launcher()
    refuse_unsupported(environ)
    return LaunchSettings(_mixed_precision(environ, launcher), _accumulation_steps(environ, launcher))


def refuse_unsupported(environ: Mapping[str, str]) -> None:
    """Raise UserError where Accelerate's variables ask for a way of training that this package does not have."""
    for variable, name in UNSUPPORTED_VARIABLES.items():
        if environ.get(variable, "").lower() in TRUE:
            raise unsupported(f"{variable}={environ[variable]}", name)
    if environ.get("PJRT_DEVICE", "").upper() == "TPU":
        raise unsupported("PJRT_DEVICE=TPU", "a TPU")
    backend = environ.get("ACCELERATE_DYNAMO_BACKEND", "") or "no"
    if backend.lower() != "no":
        raise unsupported(f"ACCELERATE_DYNAMO_BACKEND={backend}", "torch.compile of the model")


def unsupported(source: str, name: str) -> UserError:
    """The error for a way of training in `UNSUPPORTED`."""
    return UserError(f"{source} requests {name}, which ulmfit-dist does not support: {UNSUPPORTED[name]}")


def no_precision(source: str, value: str) -> UserError:
    """The error for a mixed precision that is not in `MIXED_PRECISIONS`."""
    return UserError(f"{source}: ulmfit-dist has no mixed precision {value}: use bf16, fp16 or no")


def read_config_file(path: str | Path) -> Any:
    """A config file of Accelerate's, as its `ClusterConfig` or `SageMakerConfig`. Raises UserError if it cannot be read."""
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        return load_config_from_file(str(path))
    except (OSError, TypeError, ValueError, AttributeError, YAMLError) as error:
        raise UserError(f"{path}: Accelerate's config file cannot be read: {' '.join(str(error).split())}") from None


def find_launcher() -> Launcher | None:
    """The nearest ancestor of this process that is `accelerate launch` or `ulmfit_dist.launch`; None if there is none."""
    import psutil

    child = psutil.Process()
    try:
        for parent in child.parents():
            argv = launcher_argv(parent.cmdline())
            if argv is not None:
                own = without_script(argv, child.cmdline())
                return Launcher(own, parent.environ(), Path(parent.cwd()))
            child = parent
    except psutil.Error:
        return None  # another user's process: this user's launcher is not above it
    return None


def launcher_argv(cmdline: Sequence[str]) -> Sequence[str] | None:
    """The arguments of `accelerate launch` in a command line; None if it is another command.

    It may be a script, with or without an interpreter in front, or a module.
    """
    names = [Path(word).name.removesuffix(".exe") for word in cmdline]
    for i, name in enumerate(names[:8]):
        if name == "accelerate-launch" or cmdline[i].endswith("accelerate/commands/launch.py"):
            return cmdline[i + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and names[i + 1 : i + 2] == ["launch"]:
            return cmdline[i + 2 :]
        if cmdline[i] == "-m" and names[i + 1 : i + 2] in (["accelerate.commands.launch"], ["ulmfit_dist.launch"]):
            return cmdline[i + 2 :]
    return None


def without_script(argv: Sequence[str], started: Sequence[str]) -> Sequence[str]:
    """A launcher's own options: its arguments without those that the command line of the process it started ends with."""
    count = 0
    while count < min(len(argv), len(started)) and argv[-1 - count] == started[-1 - count]:
        count += 1
    return argv[: len(argv) - count]


def _mixed_precision(environ: Mapping[str, str], launcher: Launcher | None) -> Named[str] | None:
    named, own = launcher.mixed_precision() if launcher else None, _variable(environ, PRECISION_VARIABLE)
    if environ.get("FORK_LAUNCHED") == "1" and environ.get(NOTEBOOK_VARIABLE, "no") != "no":
        own = _variable(environ, NOTEBOOK_VARIABLE)
    if own is not None and own.value.lower() == "no" and (launcher or any(name in environ for name in WITHOUT_ANCESTOR)):
        own = None  # Accelerate's default, or named as well
    if own is not None and (named is None or own.value.lower() != named.value.lower()):
        named = own  # set between the launcher and this process
    if named is None:
        return None
    value = named.value.lower()
    if value not in MIXED_PRECISIONS:
        raise no_precision(named.source, value)
    return Named(value, named.source)


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
