"""Cache folders of other libraries if the home folder is not writable.

matplotlib, W&B and Hugging Face keep caches below the home folder, which a container or a batch job may lack. All of them
read the XDG variables: those whose folder cannot be created are set to a temporary folder of this user. The trade-off:
downloads in it are lost with it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

FOLDERS = {"XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share"}
"""Default of each variable of the XDG base directory specification, relative to the home folder."""


def replace_unwritable_home() -> str | None:
    """Set the variables for this process and its children. Returns a message to print, or None."""
    missing = unwritable_folders(os.environ)
    if not missing:
        return None
    folder = _temporary_folder()
    os.environ.update({name: str(folder / FOLDERS[name]) for name in missing})
    listed = ", ".join(missing.values())
    return f"{listed} not writable: caches go to {folder}; to keep them set HOME, or {', '.join(missing)}"


def unwritable_folders(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the default folders that are not writable, by variable. Variables that are set are skipped."""
    home = environ.get("HOME") or os.path.expanduser("~")
    defaults = {name: Path(home, relative) for name, relative in FOLDERS.items() if not environ.get(name)}
    return {name: str(path) for name, path in defaults.items() if not _is_writable(path)}


def _is_writable(folder: Path) -> bool:
    """Return whether files can be created in a folder, which may not exist yet."""
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:
        return False


def _temporary_folder() -> Path:
    """Return the temporary folder that all processes of this user share; a new one if another user owns it."""
    path = Path(tempfile.gettempdir(), f"ulmfit-dist-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        state = path.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="ulmfit-dist-"))
    is_ours = path.is_dir() and not path.is_symlink() and state.st_uid == os.getuid() and not state.st_mode & 0o022
    return path if is_ours else Path(tempfile.mkdtemp(prefix="ulmfit-dist-"))
