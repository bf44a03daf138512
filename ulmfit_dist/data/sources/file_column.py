"""Texts in files of their own, which a table names: a CSV of file names and labels beside a folder of texts.

The table is read when the source is opened, and each file is looked for then, so one that is missing is named before any is
tokenized. The texts are read where they lie, as those of a folder by class are.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.sources.base import Source, TextDataset, digest, existing_path
from ulmfit_dist.data.sources.content_cache import ContentCache
from ulmfit_dist.data.sources.folder import FolderSource
from ulmfit_dist.data.sources.table_source import open_table
from ulmfit_dist.errors import UserError


def open_named_files(config: DataConfig, cache: ContentCache) -> Source:
    """The files that the column `data.file_col` names, by paths from the table's folder, in the order of its rows.

    Raises:
        UserError: whatever is wrong with the table; a file that it names is not there.
    """
    assert config.file_col is not None
    place = existing_path(config)
    folder = place.parent if place.is_file() else place
    table = open_table(replace(config, text_col=[config.file_col]), cache)
    splits: dict[str, TextDataset] = {}
    contents = []
    for split, rows in table.splits.items():
        names, labels = rows.read(0, len(rows))
        missing = {row for row, name in enumerate(names) if name is not None and not os.path.isfile(folder / name)}
        if missing and config.on_error != "skip":
            row = min(missing)
            raise UserError(
                f"{place}: column {config.file_col!r} names {names[row]!r:.80} in row {row + 1} of {split}, no such file "
                f"in {folder}; {len(missing):,} of {len(names):,} are missing: data.on_error=skip leaves such rows out"
            )
        files = [None if name is None or row in missing else folder / name for row, name in enumerate(names)]
        contents.append([split, labels, cache.hash_files([file for file in files if file is not None])])
        splits[split] = FolderSource(files, labels, config.on_error, config.encoding)
    return Source(splits, {**table.identity, "named": digest(contents)}, table.notices)
