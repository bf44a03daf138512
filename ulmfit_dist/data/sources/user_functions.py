"""User-defined functions for splits and labels: `data.splitter` and `data.get_y`, after fastai's `splitter` and `get_y`.

Both take one document at a time: its path in a folder, its row as a mapping in a table. So memory does not grow with the
corpus; the trade-off is that fastai's splitters of all items cannot be used. The splitter is called once per document, by
the process that opens the source first; the results are cached, one byte each, and read by all ranks and later starts.
`get_y` is called when a document is read, on all ranks and workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_dist.config.schema import SPLITS, DataConfig
from ulmfit_dist.data.sources.base import Items, Source, TextDataset, digest
from ulmfit_dist.data.sources.cells import BadCell, label_name
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import make_folder, write_bytes
from ulmfit_dist.utils.imports import Function, call, identity_of, import_path

LEFT_OUT = 255
"""Cached value of a document that a splitter leaves out."""
DOCUMENTS_AT_ONCE = 1000
"""Documents that are read together for a splitter."""


@dataclass
class RelabelledDataset:
    """Documents with labels from a user-defined function.

    Attributes:
        documents: documents of the source.
        function, path: the function, and its name in the config.
        label_delim, missing_label: as in the config.
    """

    documents: Items
    function: Function
    path: str
    label_delim: str
    missing_label: str | None

    def __len__(self) -> int:
        return len(self.documents)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        texts, _ = self.documents.read(start, stop)
        return texts, [self._label(name, item) for name, item in self.documents.items(start, stop)]

    def _label(self, name: str, item: Any) -> str | None:
        if item is None:
            return None
        label = call(self.function, item, f"data.get_y={self.path}", name)
        if not isinstance(label, (str, int, float, list, tuple, np.generic, type(None))):
            raise UserError(f"data.get_y={self.path} returned a {type(label).__name__} for {name}: return a string or None")
        label = label.item() if isinstance(label, np.generic) else label
        try:
            return label_name(label, self.label_delim, self.missing_label)
        except BadCell as error:
            raise UserError(f"data.get_y={self.path} for {name}{error}") from None


def apply_functions(source: Source, config: DataConfig) -> Source:
    """Return the source with splits and labels from the user-defined functions of the config.

    Raises:
        UserError: a function cannot be imported, fails, or returns an invalid value.
    """
    if config.splitter is not None:
        source = _split(source, config, config.splitter)
    if config.get_y is None:
        return source
    function = import_path(config.get_y, "data.get_y")
    arguments = (function, config.get_y, config.label_delim, config.missing_label)
    splits = {
        split: documents if split == "unlabelled" else RelabelledDataset(documents, *arguments)  # type: ignore[arg-type]
        for split, documents in source.splits.items()
    }
    return Source(splits, {**source.identity, "get_y": identity_of(function, config.get_y)}, source.notices)


def _split(source: Source, config: DataConfig, path: str) -> Source:
    if source.splits.keys() != {"train"}:
        others = ", ".join(split for split in source.splits if split != "train")
        raise UserError(f"data.splitter={path}: the source also has splits ({others}): leave data.splitter or them out")
    function = import_path(path, "data.splitter")
    identity = {**source.identity, "splitter": identity_of(function, path)}
    documents: Items = source.splits["train"]  # type: ignore[assignment]
    folder = Path(config.cache_dir) / "splits"
    cached = folder / f"{digest([config.source, config.path, identity])[:16]}.u8"
    if not cached.is_file():
        indices = np.fromiter(_call_splitter(documents, function, path), np.uint8, len(documents))
        make_folder(folder, "data.cache_dir")
        write_bytes(cached, indices.tobytes())
    indices = np.fromfile(cached, np.uint8)
    if len(indices) != len(documents):
        raise UserError(f"{cached}: has {len(indices)} entries for {len(documents)} documents: delete it")
    splits: dict[str, TextDataset] = {}
    for number, split in enumerate(SPLITS):
        if split in ("train", "valid") or (indices == number).any():
            splits[split] = documents.pick(np.flatnonzero(indices == number), labelled=split != "unlabelled")
    return Source(splits, identity, source.notices)


def _call_splitter(documents: Items, function: Function, path: str) -> Iterator[int]:
    for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
        for name, item in documents.items(start, min(start + DOCUMENTS_AT_ONCE, len(documents))):
            result = "train" if item is None else call(function, item, f"data.splitter={path}", name)
            yield _split_index(result, path, name)


def _split_index(result: Any, path: str, name: str) -> int:
    """Return the index of a split in `SPLITS` from its name or from True for valid; `LEFT_OUT` for None."""
    if isinstance(result, (bool, np.bool_)):
        result = "valid" if result else "train"
    if result is None:
        return LEFT_OUT
    if result not in SPLITS:
        raise UserError(
            f"data.splitter={path} returned {result!r} for {name}: return one of {', '.join(SPLITS)}, True (valid) or False "
            f"(train), or None"
        )
    return SPLITS.index(result)
