"""User-defined functions that a config references as `module.function`: import, identity and calls.

They are imported from Python's module path and the current folder. A config may come with a model of another author, so the
functions of a model are called only if the caller trusts it. The trade-off: such a model needs an extra flag.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from ulmfit_dist.errors import UserError

Function = Callable[[Any], Any]


def import_path(path: str, key: str, what: str = "module.function") -> Any:
    """Import the function or class at a path.

    Args:
        key: config key, for messages.
        what: form of the path, for messages.

    Raises:
        UserError: if it does not exist, its module raises an error, or it is not callable.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # not on the path of a console script
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UserError(f"{key}: {path!r} cannot be imported ({on_one_line(error)}): give it as {what}") from None
    if not callable(function):
        raise UserError(f"{key}: {path!r} is not callable: give it as {what}")
    return function


def path_and_arguments(entry: Any, key: str) -> tuple[str, dict[str, Any]]:
    """Split an entry, `module.name` or `{path: module.name, argument: value, ...}`, into path and arguments.

    Raises:
        UserError: if the entry has neither form.
    """
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and isinstance(entry.get("path"), str):
        return entry["path"], {str(name): value for name, value in entry.items() if name != "path"}
    raise UserError(f"{key}: {entry!r}: give module.name, or {{path: module.name, argument: value}}")


def identity_of(function: Function, path: str) -> list[str]:
    """Return an identity that changes with the function: its path and a hash of its source, without its callees."""
    try:
        return [path, xxhash.xxh3_64_hexdigest(inspect.getsource(function).encode())]
    except (OSError, TypeError):  # not written in Python, or not in a file
        return [path]


def call(function: Function, item: Any, key: str, document: str) -> Any:
    """Return the function's result for an item. Raises UserError with the name of the document if it fails."""
    try:
        return function(item)
    except Exception as error:
        raise UserError(f"{key} fails on {document}: {type(error).__name__}: {on_one_line(error)}") from None


def check_trust(named: Mapping[str, Sequence[str]], folder: Path, trusted: bool) -> None:
    """Raise UserError if the config of a model references functions, and the caller does not trust it.

    Args:
        named: paths of functions by config key.
        folder: folder of the model, for messages.
        trusted: whether the caller trusts the model.
    """
    for key, paths in named.items():
        if paths and not trusted:
            raise UserError(
                f"{folder}: its {key} would call {', '.join(paths)}: if you trust the author of this model, pass "
                f"--trust-remote-code (in Python: trust_remote_code=True)"
            )


def on_one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split())
