"""Precedence of the config and W&B's environment variables.

A variable replaces a default of the config, and a value set in the recipe or on the command line overrides the variable; if
both are set and differ, a warning names both. Trade-off: a value that equals its default counts as not set, because
config.yaml of a run directory contains every key. W&B itself reads variables without a corresponding key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ulmfit_dist.config.schema import Config, TrackingConfig
from ulmfit_dist.errors import UserError

MODES = {"run": "online", "shared": "online", "dryrun": "offline"}
"""Modes by their aliases in W&B."""
SECRETS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
"""Variables whose values are never printed."""
SECONDS_TO_START = 30
"""Time limit for a server that answers, in seconds, before the run continues offline. WANDB_INIT_TIMEOUT sets another."""
SETTINGS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "silent": (True, ("WANDB_SILENT",)),
    "console": ("off", ("WANDB_CONSOLE",)),
    "disable_git": (True, ("WANDB_DISABLE_GIT",)),  # W&B would upload uncommitted changes
    "disable_code": (True, ("WANDB_DISABLE_CODE", "WANDB_SAVE_CODE")),
    "init_timeout": (SECONDS_TO_START, ("WANDB_INIT_TIMEOUT",)),
}
"""Our defaults of W&B's settings, each with the variables that replace it."""


class InitArguments(NamedTuple):
    """Arguments of `wandb.init`, and messages about ignored values.

    Attributes:
        run_id: id of the W&B run; None: a random one.
        arguments: project, name, group, tags and resume, as far as they override W&B's defaults.
        settings: arguments of `wandb.Settings`.
        messages: one line per ignored value.
    """

    run_id: str | None
    arguments: dict[str, Any]
    settings: dict[str, Any]
    messages: list[str]


def init_arguments(config: Config, environ: Mapping[str, str], resumed: str | None = None) -> InitArguments:
    """Return the arguments of `wandb.init` from config and environment.

    Args:
        environ: environment variables; empty ones count as not set.
        resumed: id of the W&B run that the run directory resumes; None for a new one.
    """
    environ = set_variables(environ)
    arguments, messages = _arguments(config, environ)
    requested = _of_part(environ.get("WANDB_RUN_ID"), config)
    if _is_in_sweep(environ) and requested is not None:
        resumed = None if requested != resumed else resumed
    if resumed is not None:
        messages += _ignored_by_resumption(resumed, requested, config, environ)
    if resumed is not None or environ.get("WANDB_RESUME") == "auto":  # with auto, W&B stores its own run id
        arguments["resume"] = "allow"
    if (folder := environ.get("WANDB_DIR")) is not None and Path(folder).resolve() != config.run_dir.resolve():
        path = config.run_dir / "wandb"
        messages.append(f"ignoring WANDB_DIR={folder}: W&B's files are in {path}, from which the run resumes")
    settings = {name: value for name, (value, names) in SETTINGS.items() if not environ.keys() & set(names)}
    return InitArguments(resumed or requested, arguments, settings, messages)


def wandb_project(tracking: TrackingConfig, environ: Mapping[str, str]) -> str:
    """Return W&B's project: tracking.project if set, else WANDB_PROJECT, else our default."""
    project = set_variables(environ).get("WANDB_PROJECT")
    return project if project is not None and tracking.project == TrackingConfig.project else tracking.project


def mode_of_environment(environ: Mapping[str, str]) -> str | None:
    """Return the mode (online, offline, disabled) of WANDB_DISABLED or WANDB_MODE; None if neither is set.

    Raises:
        UserError: WANDB_MODE is not one of W&B's modes.
    """
    if environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    value = environ.get("WANDB_MODE", "")
    mode = MODES.get(value, value)
    if mode not in ("", "online", "offline", "disabled"):
        raise UserError(f"WANDB_MODE={value}: give online, offline or disabled")
    return mode or None


def mode_messages(tracking: TrackingConfig, environ: Mapping[str, str]) -> list[str]:
    """Return a message if tracking.wandb_mode overrides another mode of the environment."""
    other = mode_of_environment(environ) if tracking.wandb_mode != "auto" else None
    if other in (None, tracking.wandb_mode):
        return []
    if (tracking.wandb_mode, other) == ("disabled", "offline"):  # neither sends anything
        return []
    name = "WANDB_DISABLED" if environ.get("WANDB_DISABLED") and other == "disabled" else "WANDB_MODE"
    return [f"ignoring {name}={environ[name]}: tracking.wandb_mode={tracking.wandb_mode} is set"]


def set_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return W&B's non-empty variables: `WANDB_TAGS=$TAGS` in a script may set an empty one."""
    return {name: value for name, value in environ.items() if name.startswith("WANDB_") and value.strip()}


def check_variables(environ: Mapping[str, str]) -> None:
    """Raise UserError, which names the variable, for a value that W&B rejects."""
    import wandb

    for name, value in sorted(set_variables(environ).items()):
        try:
            wandb.Settings().update_from_env_vars({name: value})
        except (wandb.Error, ValueError) as error:
            shown = "..." if name in SECRETS else value
            raise UserError(f"{name}={shown}: {_reason(error)}: set another value, or unset it") from None


def _arguments(config: Config, environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    tracking, default = config.tracking, TrackingConfig()
    tags = [tag.strip() for tag in environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    name = _of_part(environ.get("WANDB_NAME"), config)
    candidates = [
        ("project", "tracking.project", tracking.project, default.project, "WANDB_PROJECT", environ.get("WANDB_PROJECT")),
        ("name", "name", config.name, _of_part(Config.name, config), "WANDB_NAME", name),
        ("group", "tracking.group", tracking.group, default.group, "WANDB_RUN_GROUP", environ.get("WANDB_RUN_GROUP")),
        ("tags", "tracking.tags", list(tracking.tags), default.tags, "WANDB_TAGS", tags or None),
    ]
    arguments: dict[str, Any] = {}
    messages: list[str] = []
    for argument, key, value, default_value, variable, other in candidates:
        is_set, wins = value != default_value, not (_is_in_sweep(environ) and argument == "project" and other is not None)
        arguments[argument] = value if other is None or (is_set and wins) else other
        if is_set and other is not None and other != value:
            from_config, from_environment = f"{key}={_shown(value)}", f"{variable}={environ[variable]}"
            messages.append(
                f"ignoring {from_environment}: {from_config} is set"
                if wins
                else f"ignoring {from_config}: the sweep sets {from_environment}"
            )
    return arguments, messages


def _is_in_sweep(environ: Mapping[str, str]) -> bool:
    """Return True if W&B takes project and id from its agent's variables instead of the arguments of `wandb.init`."""
    return "WANDB_SWEEP_ID" in environ or "WANDB_LAUNCH" in environ


def _ignored_by_resumption(resumed: str, requested: str | None, config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    reason = f"{config.run_dir} resumes the W&B run {resumed} (--fresh starts a new one)"
    if requested not in (None, resumed):
        yield f"ignoring WANDB_RUN_ID={requested}: {reason}"
    if environ.get("WANDB_RESUME") == "never":
        yield f"ignoring WANDB_RESUME=never: {reason}"


def _of_part(name: str | None, config: Config) -> str | None:
    """Return the name of a group with the suffix of the current run: a fold, a round of self-training, or a direction."""
    if name is None:
        return None
    direction = "-backward" if config.model.backwards else "-forward"
    has_folds = config.data.folds is not None
    ending = f"-fold-{config.data.fold}" if has_folds else direction
    is_part = (has_folds or config.tracking.group is not None) and config.name.endswith(ending)
    round_ending = re.search(r"-round-\d+$", config.name)
    return name + (round_ending[0] if round_ending else ending if is_part else "")


def _shown(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)


def _reason(error: Exception) -> str:
    """Return an error message of W&B or pydantic on one line."""
    details = getattr(error, "errors", None)
    message = str(details()[0]["msg"]) if callable(details) else f"{error}"
    return " ".join(message.removeprefix("Value error, ").split()).rstrip(".")
