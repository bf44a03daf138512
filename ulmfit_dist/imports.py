"""Parts of the user's own, by the import path that a config names them with: `module.name`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from ulmfit_dist.errors import UserError


def import_path(path: str, key: str, what: str = "module.function") -> Any:
    """What a path names; modules in the working directory are found however the program was started.

    Args:
        key: of the config, for the message.
        what: the path's form, for the message.

    Raises:
        UserError: there is none, or its module fails, or it cannot be called.
    """
    module, _, name = path.rpartition(".")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does at its import
        raise UserError(f"{key}: {path!r} cannot be imported ({error}): give it as {what}") from None
    if not callable(found):
        raise UserError(f"{key}: {path!r} cannot be called: give it as {what}")
    return found


def path_and_arguments(entry: Any, key: str) -> tuple[str, dict[str, Any]]:
    """An entry of a list of parts: `module.name`, or `{path: module.name, argument: value, ...}`. Raises UserError."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and isinstance(entry.get("path"), str):
        return entry["path"], {str(name): value for name, value in entry.items() if name != "path"}
    raise UserError(f"{key}: {entry!r}: give module.name, or {{path: module.name, argument: value}}")
