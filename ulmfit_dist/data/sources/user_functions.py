"""Splits and labels that functions of yours decide: `data.splitter` and `data.get_y`, fastai's `splitter` and `get_y`.

Both are asked about one document at a time: its path in a folder, its row as a mapping in a table. So memory does not grow
with the texts, as it would with a splitter that takes all items at once. A splitter is asked once, by whoever opens the
source first; its answers are kept in the cache, a byte each, and all ranks and later starts go by them. A label is asked for
when its document is read, so ranks and workers share that.
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
"""Stands for a document that a splitter puts in no split."""
ASKED_AT_ONCE = 1000


@dataclass
class RelabelledDataset:
    """Documents with the labels that a function gives them.

    Attributes:
        documents: as they lie on disk.
        function, path: the function, and its name in the config.
        label_delim, missing_label: how labels are read, as in the config.
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
            raise UserError(f"data.get_y={self.path} gives a {type(label).__name__} for {name}: give a string, or None")
        label = label.item() if isinstance(label, np.generic) else label
        try:
            return label_name(label, self.label_delim, self.missing_label)
        except BadCell as error:
            raise UserError(f"data.get_y={self.path} for {name}{error}") from None


def by_functions(source: Source, config: DataConfig) -> Source:
    """The source with splits and labels as the functions that the config names say.

    Raises:
        UserError: no such function, it fails, or says what is no split.
    """
    if config.splitter is not None:
        source = _split(source, config, config.splitter)
    if config.get_y is None:
        return source
    function = import_path(config.get_y, "data.get_y")
    how = (function, config.get_y, config.label_delim, config.missing_label)
    splits = {
        split: documents if split == "unlabelled" else RelabelledDataset(documents, *how)  # type: ignore[arg-type]
        for split, documents in source.splits.items()
    }
    return Source(splits, {**source.identity, "get_y": identity_of(function, config.get_y)}, source.notices)


def _split(source: Source, config: DataConfig, path: str) -> Source:
    if source.splits.keys() != {"train"}:
        there = ", ".join(split for split in source.splits if split != "train")
        raise UserError(f"data.splitter={path}: the source has splits already ({there}): leave data.splitter or them out")
    function = import_path(path, "data.splitter")
    identity = {**source.identity, "splitter": identity_of(function, path)}
    documents: Items = source.splits["train"]  # type: ignore[assignment]
    folder = Path(config.cache_dir) / "splits"
    kept = folder / f"{digest([config.source, config.path, identity])[:16]}.u8"
    if not kept.is_file():
        answers = np.fromiter(_answers(documents, function, path), np.uint8, len(documents))
        make_folder(folder, "data.cache_dir")
        write_bytes(kept, answers.tobytes())
    answers = np.fromfile(kept, np.uint8)
    if len(answers) != len(documents):
        raise UserError(f"{kept}: is not of these texts: delete it")
    splits: dict[str, TextDataset] = {}
    for number, split in enumerate(SPLITS):
        if split in ("train", "valid") or (answers == number).any():
            splits[split] = documents.pick(np.flatnonzero(answers == number), labelled=split != "unlabelled")
    return Source(splits, identity, source.notices)


def _answers(documents: Items, function: Function, path: str) -> Iterator[int]:
    for start in range(0, len(documents), ASKED_AT_ONCE):
        for name, item in documents.items(start, min(start + ASKED_AT_ONCE, len(documents))):
            answer = "train" if item is None else call(function, item, f"data.splitter={path}", name)
            yield _number(answer, path, name)


def _number(answer: Any, path: str, name: str) -> int:
    """The number of a split from its name, from whether a document validates, or from None for no split."""
    if isinstance(answer, (bool, np.bool_)):
        answer = "valid" if answer else "train"
    if answer is None:
        return LEFT_OUT
    if answer not in SPLITS:
        raise UserError(
            f"data.splitter={path} gives {answer!r} for {name}: give {', '.join(SPLITS)}, True (validates) or False, or None"
        )
    return SPLITS.index(answer)
