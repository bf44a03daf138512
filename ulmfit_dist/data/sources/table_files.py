"""Files of tables by split: as `data.splits` names them, or as their names do, or one file for all."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.sources.folder_walk import is_hidden, walk
from ulmfit_dist.data.sources.line_stream import COMPRESSED_SUFFIXES
from ulmfit_dist.data.sources.split_names import count_files, files_by_ending, find_splits, listed, natural_order
from ulmfit_dist.errors import UserError

SUFFIXES = {
    "csv": (".csv", ".tsv", ".tab"),
    "json": (".jsonl", ".json", ".ndjson"),
    "parquet": (".parquet",),
    "frame": (".parquet",),
}
"""Endings of the files of a source, in lower case; CSV and JSON may be compressed."""
Files = dict[str, list[Path]]
"""Files of each split, in order."""


def find_table_files(path: Path, config: DataConfig) -> tuple[Files, list[str]]:
    """Return the files of each split, and a line that names what is not used.

    Raises:
        UserError: no file, no train split, a file in two splits.
    """
    if path.is_file() and config.splits:
        raise UserError(f"data.path={path} is a single file: name its folder for data.splits, or leave data.splits out")
    if path.is_file():
        return {"train": [path]}, []
    present = [
        Path(entry) for entry in sorted(os.scandir(path), key=lambda e: natural_order(e.name)) if not is_hidden(entry.name)
    ]
    files = _named_files(path, config) if config.splits else _files_by_name(path, present, config)
    for split, names in files.items():
        files[split] = _once(names)
    _check_disjoint(files)
    return files, unused_line(path, present, {file for names in files.values() for file in names}, config)


def unused_line(path: Path, present: Iterable[Path], used: set[Path], config: DataConfig) -> list[str]:
    """Return one line about the entries of a folder that are not used; none where all are."""
    real = {os.path.realpath(file) for file in used}
    tables, parts, endings = list[str](), list[str](), dict[str, list[str]]()
    for entry in present:
        inside = [file for file in _walk(entry) if os.path.realpath(file) not in real]
        if entry.is_dir() and inside and not any(file.is_relative_to(entry) for file in used):
            parts.append(f"{entry.name}/ ({count_files(len(inside))})")
            continue
        for file in inside:
            name = str(file.relative_to(path))
            (tables if is_table(file, config) else endings.setdefault(file.suffix, [])).append(name)
    tables_part = [f"{listed(tables)} ({count_files(len(tables))})"] if tables else []
    parts = [*tables_part, *parts, *files_by_ending(endings)]
    return [f"data.path={path}: not used: {'; '.join(parts)}"] if parts else []


def is_table(file: Path, config: DataConfig) -> bool:
    """Return whether a file is one of the source, by its ending."""
    return table_stem(file.name, config) is not None


def table_stem(name: str, config: DataConfig) -> str | None:
    """Return the name of a file without its endings; None where it is no file of the source."""
    lower = name.lower()
    for suffix in COMPRESSED_SUFFIXES if config.source in ("csv", "json") else ():
        lower = lower.removesuffix(suffix)
    ending = next((ending for ending in SUFFIXES[config.source] if lower.endswith(ending)), None)
    return None if ending is None else name[: len(lower) - len(ending)]


def _files_by_name(path: Path, present: list[Path], config: DataConfig) -> Files:
    tables = [entry for entry in present if entry.is_file() and is_table(entry, config)]
    by_name: dict[str, list[Path]] = {}
    for entry in tables:
        by_name.setdefault(table_stem(entry.name, config) or "", []).append(entry)
    for entry in present:
        if entry.is_dir() and any(is_table(file, config) for file in _walk(entry)):
            by_name.setdefault(entry.name, []).append(entry)
    if not by_name:
        endings = " or ".join(SUFFIXES[config.source])
        raise UserError(f"{path}: no {endings} file in it, as data.source={config.source} expects")
    splits, _ = find_splits(by_name)
    if "train" not in splits:
        if len(tables) == len(by_name) == 1 and not splits:
            return {"train": tables}
        first = next(iter(by_name.values()))[0].name
        raise UserError(
            f"{path}: which file is what? None is named train, there is {listed(sorted(by_name))}: set data.splits, such as "
            f"data.splits={{train: {first}}}"
        )
    return {
        split: [file for name in names for file in _tables_of(_preferred(by_name[name], config), config)]
        for split, names in splits.items()
    }


def _preferred(entries: list[Path], config: DataConfig) -> Path:
    """The one of several entries that differ in their endings alone, such as train.csv and train.csv.gz."""
    return min(entries, key=lambda entry: (entry.is_dir(), len(entry.name), entry.name))


def _tables_of(entry: Path, config: DataConfig) -> list[Path]:
    return [file for file in _walk(entry) if is_table(file, config)] if entry.is_dir() else [entry]


def _named_files(path: Path, config: DataConfig) -> Files:
    if "train" not in config.splits:
        raise UserError(f"data.splits={dict(config.splits)} names no train split: add one, such as train: train")
    files = {}
    for split, name in config.splits.items():
        files[split] = _matches(path, name, config)
        if not files[split]:
            raise UserError(f"{path / name}: no such file, named by data.splits.{split}")
    return files


def _matches(path: Path, name: str, config: DataConfig) -> list[Path]:
    """The files that a name stands for: itself, with the ending of a table, or as a pattern."""
    endings = [suffix + packed for suffix in SUFFIXES[config.source] for packed in ("", *COMPRESSED_SUFFIXES)]
    for ending in ("", *endings):
        if (path / f"{name}{ending}").exists():
            whole = path / f"{name}{ending}"
            return _tables_of(whole, config) if whole.is_dir() and ending == "" and list(_walk(whole)) else [whole]
    found = [Path(file) for file in glob.glob(str(Path(glob.escape(str(path))) / name), recursive=True)]
    if not found:
        found = [Path(f) for ending in endings for f in glob.glob(f"{Path(glob.escape(str(path))) / name}{ending}")]
    return sorted((file for file in found if file.is_file()), key=lambda file: natural_order(str(file.relative_to(path))))


def _walk(entry: Path) -> list[Path]:
    """The files in a folder and below, hidden ones left out, links followed once; or the file itself."""
    if not entry.is_dir():
        return [entry]
    below = walk(entry)
    return sorted(
        [*below.texts, *below.others, *below.dangling], key=lambda file: natural_order(str(file.relative_to(entry)))
    )


def _once(files: list[Path]) -> list[Path]:
    """Files without those that are there before, by another name or link."""
    return list({os.path.realpath(file): file for file in reversed(files)}.values())[::-1]


def _check_disjoint(files: Files) -> None:
    places: dict[str, str] = {}
    for split, names in files.items():
        for file in names:
            other = places.setdefault(os.path.realpath(file), split)
            if other != split:
                raise UserError(f"{file} is in the splits {other} and {split}: a document must be in one: set data.splits")
