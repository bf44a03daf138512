"""Names of recipes: `quickstart` is `quickstart.yaml` in the working directory, else the recipe that the package brings.

So the same command works in a checkout, in an empty folder, and with an edited copy of a packaged recipe. The trade-off: a
file in the working directory changes what a name means; messages and `config.yaml` of the run contain what was read.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.package_files import files_root

LIST = "`ulmfit-dist config --list`"


def packaged_recipes() -> dict[str, Path]:
    """Return the paths of the recipes that the package brings, by name in alphabetical order. Raises UserError."""
    return {path.stem: path for path in sorted((files_root() / "configs").glob("*.yaml"))}


def find_recipe(config: str | Path) -> Path:
    """Return the path of a recipe.

    Args:
        config: a path, or the name of a recipe, without a suffix: a file in the working directory, else of the package.

    Raises:
        UserError: there is no such recipe.
    """
    path = local_recipe(Path(), config) or packaged_recipe(config)
    if path is not None:
        return path
    name = Path(config).stem
    recipes = packaged_recipes()
    if is_name(config):
        near = difflib.get_close_matches(name, recipes, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"{config}: no such config file or recipe: {hint}{LIST} prints the recipes of the package")
    if name in recipes:
        raise UserError(
            f"{config}: no such config file; {name!r} is a recipe of the package: give its name, without folder and suffix"
        )
    raise UserError(f"{config}: no such config file; {LIST} prints the recipes of the package")


def local_recipe(folder: Path, config: str | Path) -> Path | None:
    """Return the file that a path or a name stands for in a folder; None without one."""
    path = folder / config
    if path.is_file():
        return path
    with_suffix = path.with_name(f"{path.name}.yaml") if is_name(config) else path
    return with_suffix if with_suffix.is_file() else None


def packaged_recipe(config: str | Path) -> Path | None:
    """Return the path of the packaged recipe of this name; None if it is no name of one."""
    return packaged_recipes().get(str(config)) if is_name(config) else None


def is_name(config: str | Path) -> bool:
    """Return whether a config is given as a name: no folder, no suffix."""
    text = str(config)
    return "/" not in text and not Path(text).suffix and text not in ("", ".", "..")


def summary_of(path: Path) -> str:
    """Return the first comment line of a recipe, which describes it."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""
