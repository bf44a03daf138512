"""Texts in tables: CSV, JSON lines, Parquet, a data set of the hub, or texts given in Python (`frames.py`).

All come through `datasets`, which maps them into memory as Arrow files. Parquet and the hub are its own to read; lines of
CSV and JSON are read in `table_lines.py`, which says where a bad one is. The order of documents is that of the rows.
"""

from __future__ import annotations

import glob
import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ulmfit_dist.config import DataConfig
from ulmfit_dist.data.texts.documents import Source, as_flag, digest, existing_path, label_name, stamp
from ulmfit_dist.data.texts.table_lines import UNREADABLE, VERSION, column_names, read_lines
from ulmfit_dist.errors import UserError

TABLE_SUFFIXES = {"csv": (".csv", ".tsv"), "json": (".jsonl", ".json"), "parquet": (".parquet",), "frame": (".parquet",)}
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
        label_delim: what joins the labels of a row that has a list of them.
        no_label: label that means none.
        numbers: which rows, int64; None for all of them.
    """

    table: Any
    text: Sequence[str]
    label: str | None
    on_error: str
    origin: str
    label_delim: str
    no_label: str | None
    numbers: np.ndarray | None = None
    _read_since: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.table) if self.numbers is None else len(self.numbers)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        rows, numbers = self._fetch(start, stop)
        texts = join_fields([self._read_column(rows[column], numbers) for column in self.text])
        readable = [None if self._is_skipped(text) else text for text in texts]
        if self.label is None:
            return readable, [None] * len(texts)
        how = (self.label_delim, self.no_label, getattr(self.table.features[self.label], "names", None))
        return readable, [label_name(value, *how) for value in rows[self.label].to_pylist()]

    def items(self, start: int, stop: int) -> Iterator[tuple[str, dict[str, Any] | None]]:
        rows, numbers = self._fetch(start, stop)
        columns = [self._read_column(rows[column], numbers) for column in rows.column_names]
        for number, values in zip(numbers, zip(*columns, strict=True), strict=True):
            row = dict(zip(rows.column_names, values, strict=True))
            yield (
                f"{self.origin}, row {number + 1}",
                None if any(self._is_skipped(row[column]) for column in self.text) else row,
            )

    def pick(self, numbers: np.ndarray, labelled: bool) -> Rows:
        mine = numbers if self.numbers is None else self.numbers[numbers]
        return replace(self, numbers=mine, label=self.label if labelled else None)

    def flags(self, column: str) -> np.ndarray:
        """A column of true and false, bool [rows]. Raises UserError for what is neither."""
        flags = np.zeros(len(self), dtype=bool)
        for start in range(0, len(self), MAPPED_ROWS):
            rows, numbers = self._fetch(start, start + MAPPED_ROWS)
            for i, value in enumerate(rows[column].to_pylist()):
                flag = False if self.on_error == "skip" and value == UNREADABLE else as_flag(value)
                if flag is None:
                    raise UserError(
                        f"{self.origin}, row {numbers[i] + 1}: {value!r} in data.valid_col={column} is no true or false"
                    )
                flags[start + i] = flag
        return flags

    def _fetch(self, start: int, stop: int) -> tuple[pa.Table, Sequence[int]]:
        """Rows as a table, and their numbers."""
        self._map_anew(stop - start)
        if self.numbers is None:
            return self.table[start:stop], range(start, min(stop, len(self.table)))
        numbers = self.numbers[start:stop].tolist()
        return self.table[numbers], numbers

    def _map_anew(self, num_rows: int) -> None:
        """Now and then, map the files into memory anew: the pages read so far no longer count as this process's."""
        self._read_since += num_rows
        if self._read_since > MAPPED_ROWS and self.table.cache_files:
            pickled, self.table = pickle.dumps(self.table), None  # never mapped twice
            self.table = pickle.loads(pickled)
            self._read_since = 0

    def _is_skipped(self, text: Any) -> bool:
        return self.on_error == "skip" and isinstance(text, str) and UNREADABLE in text

    def _read_column(self, column: Any, numbers: Sequence[int]) -> list[Any]:
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            values = column.cast(pa.large_binary()).to_pylist()
            return [None if v is None else self._decode(v, number) for number, v in zip(numbers, values, strict=True)]

    def _decode(self, value: bytes, number: int) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            if self.on_error == "strict":
                where = f"{self.origin}, row {number + 1}"
                raise UserError(
                    f"{where}: the text is not UTF-8: mend it, or set data.on_error to replace or skip"
                ) from None
            return UNREADABLE if self.on_error == "skip" else value.decode(errors="replace")


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
    known_by = {"frame": path.name} if config.source == "frame" else {"files": digest(listing)}
    identity = {**known_by, "on_error": config.on_error, **_columns(config)}
    return Source(dict(_rows(tables, config, str(path))), identity)


def _load_files(names: list[str], config: DataConfig, split: str) -> Any:
    """The files of one split. Each split has column types of its own: in an unlabelled one, a label may be of any."""
    if config.source in ("parquet", "frame"):
        return _load(config, "parquet", data_files={"train": names}, split="train")
    import datasets

    label = _label_column(config, split)
    for name in names:
        _check_columns(column_names(config.source, Path(name)), config, split, name)
    columns = tuple(
        dict.fromkeys([*config.text, *([label] if label is not None else []), *_others(names[0], config, split)])
    )
    text, others = tuple(config.text), columns[len(config.text) + (label is not None) :]
    reading = {"kind": config.source, "files": names, "text": text, "label": label}
    reading |= {"on_error": config.on_error, "label_delim": config.label_delim}
    if others:
        reading["columns"] = columns  # tuples, for `datasets` takes any list for one of files
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
    return Source(dict(_rows(tables, config, config.path or "")), identity)


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


def _rows(tables: Any, config: DataConfig, origin: str) -> dict[str, Rows]:
    splits: dict[str, Rows] = {}
    for split in ("train", "valid", "unlabelled"):
        if split not in tables:
            continue
        table = tables[split]
        _check_columns(table.column_names, config, split, origin)
        arrow, label = table.with_format("arrow"), _label_column(config, split)
        splits[split] = Rows(arrow, config.text, label, config.on_error, origin, config.label_delim, config.no_label)
    return splits if config.valid_col is None else _cut_by_column(splits, config.valid_col)


def _cut_by_column(splits: dict[str, Rows], column: str) -> dict[str, Rows]:
    """The train split cut in two, by a column that is true for what is to validate on."""
    if "valid" in splits:
        raise UserError(f"data.valid_col={column}: there is a valid split already: leave one of the two out")
    flags = splits["train"].flags(column)
    parts = {"train": np.flatnonzero(~flags), "valid": np.flatnonzero(flags)}
    cut = {split: splits["train"].pick(numbers, labelled=True) for split, numbers in parts.items()}
    return {**splits, **cut} if "unlabelled" not in splits else {**cut, "unlabelled": splits["unlabelled"]}


def _check_columns(present: Sequence[str], config: DataConfig, split: str, origin: str) -> None:
    wanted = dict.fromkeys(config.text, "text" if config.text_file is None else "text_file")
    if (label := _label_column(config, split)) is not None:
        wanted[label] = "label"
    if config.valid_col is not None and split == "train":
        wanted[config.valid_col] = "valid_col"
    for column, key in wanted.items():
        if column not in present:
            raise UserError(f"{origin}: no column {column!r} for data.{key}; its columns are: {', '.join(present)}")


def _columns(config: DataConfig) -> dict[str, Any]:
    """What of a table is read, and how: in the fingerprint of its token store, as far as it is not the default."""
    keys = ("valid_col", "label_delim", "no_label")
    changed = {key: value for key in keys if (value := getattr(config, key)) != getattr(DataConfig, key)}
    return {"text": list(config.text), "label": config.label if config.get_label is None else None, **changed}


def _label_column(config: DataConfig, split: str) -> str | None:
    return None if split == "unlabelled" or config.get_label is not None else config.label


def _others(file: str, config: DataConfig, split: str) -> list[str]:
    """Columns that are needed beside texts and labels: all of them where a function of the user's is given rows."""
    if config.get_label is not None or config.splitter is not None:
        return column_names(config.source, Path(file))
    return [config.valid_col] if config.valid_col is not None and split == "train" else []
