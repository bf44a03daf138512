"""Texts in tables: CSV, JSON lines, Parquet, or a data set of the hub.

All come through `datasets`, which maps them into memory as Arrow files. Parquet and the hub are its own to read; lines of
CSV and JSON are read in `table_lines.py`, which says where a bad one is. The order of documents is that of the rows.
"""

from __future__ import annotations

import glob
import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ulmfit_dist.config import DataConfig
from ulmfit_dist.data.texts.documents import Documents, Source, digest, existing_path, stamp
from ulmfit_dist.data.texts.table_lines import UNREADABLE, VERSION, column_names, read_lines
from ulmfit_dist.errors import UserError

TABLE_SUFFIXES = {"csv": (".csv", ".tsv"), "json": (".jsonl", ".json"), "parquet": (".parquet",)}
FLD = "xxfld"
MAPPED_ROWS = 10_000
"""Rows that are read before their files are mapped into memory anew."""


@dataclass
class Rows:
    """Rows of a `datasets.Dataset`.

    Attributes:
        table: the data set, in the format of Arrow.
        text, label: its columns.
        on_error: what to do with text that is not UTF-8: strict, replace or skip.
        origin: what the table is called in messages.
    """

    table: Any
    text: Sequence[str]
    label: str | None
    on_error: str
    origin: str
    _read_since: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.table)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        self._map_anew(stop - start)
        rows = self.table[start:stop]
        texts = join_fields([self._read_column(rows[column], start) for column in self.text])
        readable = [None if UNREADABLE in text and self.on_error == "skip" else text for text in texts]
        if self.label is None:
            return readable, [None] * len(texts)
        return readable, [self._label_name(value) for value in rows[self.label].to_pylist()]

    def _map_anew(self, num_rows: int) -> None:
        """Now and then, map the files into memory anew: the pages read so far no longer count as this process's."""
        self._read_since += num_rows
        if self._read_since > MAPPED_ROWS and self.table.cache_files:
            pickled, self.table = pickle.dumps(self.table), None  # never mapped twice
            self.table = pickle.loads(pickled)
            self._read_since = 0

    def _read_column(self, column: Any, start: int) -> list[Any]:
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            values = column.cast(pa.large_binary()).to_pylist()
            return [None if value is None else self._decode(value, row) for row, value in enumerate(values, start + 1)]

    def _decode(self, value: bytes, row: int) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            if self.on_error == "strict":
                raise UserError(
                    f"{self.origin}, row {row}: the text is not UTF-8: mend it, or set data.on_error to replace or skip"
                ) from None
            return UNREADABLE if self.on_error == "skip" else value.decode(errors="replace")

    def _label_name(self, value: Any) -> str | None:
        if value in (None, -1, "-1", "") or value != value:  # the last is NaN
            return None
        names = getattr(self.table.features[self.label], "names", None)
        if names is not None:
            return str(names[value])
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def join_fields(columns: Sequence[Sequence[Any]]) -> list[str]:
    """Texts of several columns as one, each marked by xxfld and its number, as fastai's `mark_fields` does."""
    if len(columns) == 1:
        return ["" if value is None else str(value) for value in columns[0]]
    rows = zip(*columns, strict=True)
    return [" ".join(f"{FLD} {i} {'' if v is None else v}" for i, v in enumerate(row, 1)) for row in rows]


def open_table(config: DataConfig) -> Source:
    path = existing_path(config)
    files = _table_files(path, config)
    tables = {split: _load_files(names, config, split) for split, names in files.items()}
    listing = [[split, Path(name).name, *stamp(Path(name))] for split, names in files.items() for name in names]
    identity = {"files": digest(listing), "on_error": config.on_error, **_columns(config)}
    return Source(_rows(tables, config, str(path)), identity)


def _load_files(names: list[str], config: DataConfig, split: str) -> Any:
    """The files of one split. Each split has column types of its own: in an unlabelled one, a label may be of any."""
    if config.source == "parquet":
        return _load(config, config.source, data_files={"train": names}, split="train")
    import datasets

    label = None if split == "unlabelled" else config.label
    for name in names:
        _check_columns(column_names(config.source, Path(name)), config, split, name)
    reading = {"kind": config.source, "files": names, "text": list(config.text), "label": label, "on_error": config.on_error}
    columns = [*config.text, *([label] if label is not None else [])]
    return _load(
        config,
        generator=read_lines,
        features=datasets.Features(dict.fromkeys(columns, datasets.Value("large_string"))),
        gen_kwargs=reading,
        fingerprint=digest([VERSION, reading, [stamp(Path(name)) for name in names]]),
    )


def open_hub(config: DataConfig) -> Source:
    wanted = config.splits or {"train": "train"}
    tables = {split: _load(config, config.path or "", name=config.subset, split=name) for split, name in wanted.items()}
    identity = {"hub": config.path, "subset": config.subset, "splits": wanted, **_columns(config)}
    identity["versions"] = {split: str(table.info.version) for split, table in tables.items()}
    identity["rows"] = {split: len(table) for split, table in tables.items()}
    return Source(_rows(tables, config, config.path or ""), identity)


def _load(config: DataConfig, *args: Any, **kwargs: Any) -> Any:
    """`datasets.load_dataset`, or `Dataset.from_generator` if a generator is given; their failures told in one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return (datasets.Dataset.from_generator if "generator" in kwargs else datasets.load_dataset)(*args, **kwargs)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise UserError(
            f"data.path={config.path}: no such data set on the hub, or no network to reach it ({_short(error)}); "
            f"on a machine without a network set data.source to csv, json or parquet and data.path to a local copy"
        ) from None
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, UserError):
            raise cause from None
        if "corresponds to no data" in str(error):
            raise UserError(f"data.path={config.path}: a split has no documents ({_short(error)})") from None
        raise UserError(f"data.path={config.path}: cannot be read as {config.source}: {_short(error)}") from None


def _cause(error: BaseException) -> BaseException:
    """The innermost cause of an error: `datasets` wraps what the reader said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _short(error: BaseException) -> str:
    """The innermost cause of an error on one line."""
    cause = _cause(error)
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:300]


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
        _check_columns(table.column_names, config, split, origin)
        label = None if split == "unlabelled" else config.label
        splits[split] = Rows(table.with_format("arrow"), config.text, label, config.on_error, origin)
    return splits


def _check_columns(present: Sequence[str], config: DataConfig, split: str, origin: str) -> None:
    wanted = dict.fromkeys(config.text, "text" if config.text_file is None else "text_file")
    if config.label is not None and split != "unlabelled":
        wanted[config.label] = "label"
    for column, key in wanted.items():
        if column not in present:
            raise UserError(f"{origin}: no column {column!r} for data.{key}; its columns are: {', '.join(present)}")


def _columns(config: DataConfig) -> dict[str, Any]:
    return {"text": list(config.text), "label": config.label}
