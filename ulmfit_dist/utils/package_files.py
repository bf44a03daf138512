"""Files of the project that are no Python modules: recipes, scripts for SLURM.

A checkout has them at its top, in `configs/`, `slurm/` and `launch/`; a wheel has copies in `ulmfit_dist/share/`, with the
same layout, so scripts find each other by the same relative paths. Trade-off: they have a path only in an unpacked package,
not in a zip file.
"""

from __future__ import annotations

from pathlib import Path

import ulmfit_dist
from ulmfit_dist.errors import UserError

PACKAGE = Path(ulmfit_dist.__file__).parent
"""Folder of the package."""


def files_root() -> Path:
    """Return the folder that contains `configs/` and `slurm/`: `share/` of an installed package, or the root of a checkout.

    Raises:
        UserError: neither contains the recipes.
    """
    for folder in (PACKAGE / "share", PACKAGE.parent):
        if (folder / "configs" / "quickstart.yaml").is_file():
            return folder
    raise UserError(f"{PACKAGE} was installed without its recipes and scripts: install ulmfit-dist again, or use a checkout")


def is_checkout() -> bool:
    """Return whether the package runs from a checkout, which has `launch/setup.sh`."""
    return (PACKAGE.parent / "launch" / "setup.sh").is_file()
