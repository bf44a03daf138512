"""Table files by split: by `data.splits`, by file name, or one file for all.

Every file that is not used is named in a message, so a forgotten split does not go unnoticed.
"""

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
"""File name endings by source, in lower case; CSV and JSON may have a compression suffix."""
Files = dict[str, list[Path]]
"""Files by split, in order."""


def find_table_files(path: Path, config: DataConfig) -> tuple[Files, list[str]]:
    """Return the files of each split, and a message that names unused ones.

    Raises:
        UserError: no file, no train split, or a file in two splits.
    """
    if path.is_file() and config.splits:
        raise UserError(f"data.path={path} is a single file: set it to the folder, or leave data.splits out")
    if path.is_file():
        return {"train": [path]}, []
    present = [
        Path(entry) for entry in sorted(os.scandir(path), key=lambda e: natural_order(e.name)) if not is_hidden(entry.name)
    ]
    files = _named_files(path, config) if config.splits else _files_by_name(path, present, config)
    for split, names in files.items():
        files[split] = _without_links(names)
    _check_disjoint(files)
    return files, unused_line(path, present, {file for names in files.values() for file in names}, config)


def unused_line(path: Path, present: Iterable[Path], used: set[Path], config: DataConfig) -> list[str]:
    """Return one message about the unused entries of a folder; an empty list if all are used."""
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
    """Return whether a file has an ending of the source."""
    return table_stem(file.name, config) is not None


def table_stem(name: str, config: DataConfig) -> str | None:
    """Return a file name without its endings; None if it has no ending of the source."""
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
            f"{path}: no file is named train; it has {listed(sorted(by_name))}: set data.splits, such as "
            f"data.splits={{train: {first}}}"
        )
    return {
        split: [file for name in names for file in _tables_of(_preferred(by_name[name], config), config)]
        for split, names in splits.items()
    }


def _preferred(entries: list[Path], config: DataConfig) -> Path:
    """Return one of several entries that differ only in their endings, such as train.csv and train.csv.gz."""
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
    """Return the files for a name in `data.splits`: exact, with an ending of the source, or as a pattern."""
    endings = [suffix + packed for suffix in SUFFIXES[config.source] for packed in ("", *COMPRESSED_SUFFIXES)]
    for ending in ("", *endings):
        if (path / f"{name}{ending}").exists():
            whole = path / f"{name}{ending}"
            return _tables_of(whole, config) if whole.is_dir() and ending == "" and list(_walk(whole)) else [whole]
    matches = [Path(file) for file in glob.glob(str(Path(glob.escape(str(path))) / name), recursive=True)]
    if not matches:
        matches = [Path(f) for ending in endings for f in glob.glob(f"{Path(glob.escape(str(path))) / name}{ending}")]
    return sorted((file for file in matches if file.is_file()), key=lambda file: natural_order(str(file.relative_to(path))))


def _walk(entry: Path) -> list[Path]:
    """Return the files below a folder, without hidden ones, links followed once; or the file itself."""
    if not entry.is_dir():
        return [entry]
    below = walk(entry)
    return sorted(
        [*below.texts, *below.others, *below.dangling], key=lambda file: natural_order(str(file.relative_to(entry)))
    )


def _without_links(files: list[Path]) -> list[Path]:
    """Return the files without links to others of them."""
    return list({os.path.realpath(file): file for file in reversed(files)}.values())[::-1]


def _check_disjoint(files: Files) -> None:
    split_of: dict[str, str] = {}
    for split, names in files.items():
        for file in names:
            other = split_of.setdefault(os.path.realpath(file), split)
            if other != split:
                raise UserError(f"{file} is in the splits {other} and {split}: a document must be in one: set data.splits")
