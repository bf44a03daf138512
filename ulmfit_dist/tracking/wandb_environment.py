"""W&B's environment variables beside the config: which of the two decides.

A default of ours yields to the variable, and a value in the recipe or on the command line wins; where both are set and
differ, one line names both. A value that equals its default counts as not set: config.yaml of a run directory has every
key, and must not turn defaults into choices. Variables that no key corresponds to are read by W&B itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ulmfit_dist.config.schema import Config, TrackingConfig
from ulmfit_dist.errors import UserError

MODES = {"run": "online", "shared": "online", "dryrun": "offline"}
"""W&B's other names of its modes."""
SECRETS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
"""Variables whose value no message may repeat."""
SECONDS_TO_START = 30
"""Time limit for a server that answers, in seconds, before the run continues offline. WANDB_INIT_TIMEOUT sets another."""
SETTINGS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "silent": (True, ("WANDB_SILENT",)),
    "console": ("off", ("WANDB_CONSOLE",)),
    "disable_git": (True, ("WANDB_DISABLE_GIT",)),  # it would upload changes that are not committed
    "disable_code": (True, ("WANDB_DISABLE_CODE", "WANDB_SAVE_CODE")),
    "init_timeout": (SECONDS_TO_START, ("WANDB_INIT_TIMEOUT",)),
}
"""Our defaults of W&B's settings, and the variables that each yields to."""


class InitArguments(NamedTuple):
    """Arguments of `wandb.init`, and messages about those that it does not get.

    Attributes:
        run_id: W&B's id of the run; None: a random one.
        arguments: project, name, group, tags and resume; only those that are to override W&B's own reading.
        settings: for `wandb.Settings`.
        messages: one line each.
    """

    run_id: str | None
    arguments: dict[str, Any]
    settings: dict[str, Any]
    messages: list[str]


def init_arguments(config: Config, environ: Mapping[str, str], resumed: str | None = None) -> InitArguments:
    """Decide between config and environment.

    Args:
        environ: an environment; empty variables count as not set.
        resumed: id of the W&B run that the run directory resumes; None for a new one.
    """
    environ = set_variables(environ)
    arguments, messages = _arguments(config, environ)
    named = _in_fold(environ.get("WANDB_RUN_ID"), config)
    if _is_in_sweep(environ) and named is not None:
        resumed = None if named != resumed else resumed
    if resumed is not None:
        messages += _ignored_by_resumption(resumed, named, config, environ)
    if resumed is not None or environ.get("WANDB_RESUME") == "auto":  # auto has W&B keep a note of its own, beside ours
        arguments["resume"] = "allow"
    if (folder := environ.get("WANDB_DIR")) is not None and Path(folder).resolve() != config.run_dir.resolve():
        where = config.run_dir / "wandb"
        messages.append(f"WANDB_DIR={folder} is not used: W&B's files are in {where}, from which the run resumes")
    settings = {name: value for name, (value, names) in SETTINGS.items() if not environ.keys() & set(names)}
    return InitArguments(resumed or named, arguments, settings, messages)


def wandb_project(tracking: TrackingConfig, environ: Mapping[str, str]) -> str:
    """W&B's project: the recipe's, else WANDB_PROJECT, else our default."""
    named = set_variables(environ).get("WANDB_PROJECT")
    return named if named is not None and tracking.project == TrackingConfig.project else tracking.project


def mode_of_environment(environ: Mapping[str, str]) -> str | None:
    """online, offline or disabled by WANDB_DISABLED or WANDB_MODE; None where neither decides.

    Raises:
        UserError: WANDB_MODE is none of W&B's modes.
    """
    if environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    said = environ.get("WANDB_MODE", "")
    mode = MODES.get(said, said)
    if mode not in ("", "online", "offline", "disabled"):
        raise UserError(f"WANDB_MODE={said}: give online, offline or disabled")
    return mode or None


def mode_messages(tracking: TrackingConfig, environ: Mapping[str, str]) -> list[str]:
    """A line where the recipe's mode wins over another one of the environment."""
    other = mode_of_environment(environ) if tracking.wandb_mode != "auto" else None
    if other in (None, tracking.wandb_mode) or (tracking.wandb_mode, other) == (
        "disabled",
        "offline",
    ):  # neither sends anything
        return []
    name = "WANDB_DISABLED" if environ.get("WANDB_DISABLED") and other == "disabled" else "WANDB_MODE"
    return [f"tracking.wandb_mode={tracking.wandb_mode} is used, not {name}={environ[name]}"]


def set_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """W&B's variables that have a value: `WANDB_TAGS=$TAGS` in a script may leave an empty one."""
    return {name: value for name, value in environ.items() if name.startswith("WANDB_") and value.strip()}


def check_variables(environ: Mapping[str, str]) -> None:
    """Raise UserError, which names the variable, for a value that W&B does not take."""
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
    name = _in_fold(environ.get("WANDB_NAME"), config)
    choices = [
        ("project", "tracking.project", tracking.project, default.project, "WANDB_PROJECT", environ.get("WANDB_PROJECT")),
        ("name", "name", config.name, _in_fold(Config.name, config), "WANDB_NAME", name),
        ("group", "tracking.group", tracking.group, default.group, "WANDB_RUN_GROUP", environ.get("WANDB_RUN_GROUP")),
        ("tags", "tracking.tags", list(tracking.tags), default.tags, "WANDB_TAGS", tags or None),
    ]
    arguments: dict[str, Any] = {}
    messages: list[str] = []
    for argument, key, value, usual, variable, other in choices:
        is_set, wins = value != usual, not (_is_in_sweep(environ) and argument == "project" and other is not None)
        arguments[argument] = value if other is None or (is_set and wins) else other
        if is_set and other is not None and other != value:
            ours, theirs = f"{key}={_shown(value)}", f"{variable}={environ[variable]}"
            messages.append(
                f"{ours} is used, not {theirs}" if wins else f"{theirs} is used, as in all of a sweep, not {ours}"
            )
    return arguments, messages


def _is_in_sweep(environ: Mapping[str, str]) -> bool:
    """Return whether W&B takes project and id from its agent's variables, whatever `wandb.init` gets."""
    return "WANDB_SWEEP_ID" in environ or "WANDB_LAUNCH" in environ


def _ignored_by_resumption(resumed: str, named: str | None, config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    why = f"{config.run_dir} resumes W&B's run {resumed} (--fresh starts another)"
    if named not in (None, resumed):
        yield f"WANDB_RUN_ID={named} is not used: {why}"
    if environ.get("WANDB_RESUME") == "never":
        yield f"WANDB_RESUME=never is not used: {why}"


def _in_fold(name: str | None, config: Config) -> str | None:
    """The name of a whole cross-validation, as that of one of its folds."""
    ending = f"-fold-{config.data.fold}"
    is_fold = name is not None and config.data.fold is not None and config.name.endswith(ending)
    return f"{name}{ending}" if is_fold else name


def _shown(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)


def _reason(error: Exception) -> str:
    """W&B's message on one line; pydantic's without its address and types."""
    details = getattr(error, "errors", None)
    message = str(details()[0]["msg"]) if callable(details) else f"{error}"
    return " ".join(message.removeprefix("Value error, ").split()).rstrip(".")
