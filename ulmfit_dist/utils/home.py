"""Folders for other libraries' caches where the home folder cannot be written.

matplotlib, W&B and Hugging Face keep caches below the home folder, which a container or a batch job may not have. They all
take the XDG variables: those whose folder cannot be made get a temporary one of this user. The trade-off: what is downloaded
there is lost with it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

FOLDERS = {"XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share"}
"""Variables of the XDG base directory specification, and the folder in the home folder that each stands for."""


def replace_unwritable_home() -> str | None:
    """Set the variables, for this process and those that it starts; returns a message if there is one to print."""
    missing = unwritable_folders(os.environ)
    if not missing:
        return None
    place = _temporary_folder()
    os.environ.update({name: str(place / FOLDERS[name]) for name in missing})
    listed = ", ".join(missing.values())
    return f"{listed} cannot be written: caches go to {place}; set HOME, or {', '.join(missing)}, to keep them"


def unwritable_folders(environ: Mapping[str, str]) -> dict[str, str]:
    """Folders that cannot be written, by variable. A folder that such a variable already names is left as it is."""
    home = environ.get("HOME") or os.path.expanduser("~")
    defaults = {name: Path(home, below) for name, below in FOLDERS.items() if not environ.get(name)}
    return {name: str(path) for name, path in defaults.items() if not _is_writable(path)}


def _is_writable(folder: Path) -> bool:
    """Return whether files can be made in a folder, or in one that is still to be made."""
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:
        return False


def _temporary_folder() -> Path:
    """The same one for all processes of a user, so that they share the caches; a new one where somebody else has made it."""
    path = Path(tempfile.gettempdir(), f"ulmfit-dist-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        state = path.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="ulmfit-dist-"))
    is_ours = path.is_dir() and not path.is_symlink() and state.st_uid == os.getuid() and not state.st_mode & 0o022
    return path if is_ours else Path(tempfile.mkdtemp(prefix="ulmfit-dist-"))
