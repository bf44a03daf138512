"""Functions of yours that a config names as `module.function`: imported, told apart by their source, and called.

They are found where Python finds modules, and in the current folder. A config may have come with somebody else's model: so
whoever opens one says whether its functions may be called.
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
    """What a path names: a function, or a class.

    Args:
        key: of the config, for messages.
        what: the path's form, for messages.

    Raises:
        UserError: there is none, or its module fails, or it cannot be called.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # which a console script does not search
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UserError(f"{key}: {path!r} cannot be imported ({on_one_line(error)}): give it as {what}") from None
    if not callable(function):
        raise UserError(f"{key}: {path!r} cannot be called: give it as {what}")
    return function


def path_and_arguments(entry: Any, key: str) -> tuple[str, dict[str, Any]]:
    """An entry of a list of parts: `module.name`, or `{path: module.name, argument: value, ...}`. Raises UserError."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and isinstance(entry.get("path"), str):
        return entry["path"], {str(name): value for name, value in entry.items() if name != "path"}
    raise UserError(f"{key}: {entry!r}: give module.name, or {{path: module.name, argument: value}}")


def identity_of(function: Function, path: str) -> list[str]:
    """What changes when the function does: its path and its source, but not that of what it calls."""
    try:
        return [path, xxhash.xxh3_64_hexdigest(inspect.getsource(function).encode())]
    except (OSError, TypeError):  # not written in Python, or not in a file
        return [path]


def call(function: Function, item: Any, key: str, document: str) -> Any:
    """What the function says of an item. Raises UserError, naming the document, where it fails."""
    try:
        return function(item)
    except Exception as error:
        raise UserError(f"{key} fails on {document}: {type(error).__name__}: {on_one_line(error)}") from None


def check_trust(named: Mapping[str, Sequence[str]], folder: Path, trusted: bool) -> None:
    """Raise UserError if the config of a model names functions to be called, and nobody has said that it may.

    Args:
        named: paths of functions by the key that names them.
    """
    for key, paths in named.items():
        if paths and not trusted:
            raise UserError(
                f"{folder}: its {key} would call {', '.join(paths)}: if you trust whoever made this model, say "
                f"--trust-remote-code (in Python: trust_remote_code=True)"
            )


def on_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
