"""Source of text files that a table names: a CSV of file names and labels beside a folder of texts.

The table is read when the source is opened, and the existence of all files is checked, so a missing file is reported before
any is tokenized. Trade-off: one `stat` call per file at each start. Texts are read in place, as those of a folder.
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
    """Open the files in the column `data.file_col`, relative to the table's folder, in the order of its rows.

    Raises:
        UserError: as `open_table`; a file does not exist, unless `data.on_error` is skip.
    """
    assert config.file_col is not None
    path = existing_path(config)
    folder = path.parent if path.is_file() else path
    table = open_table(replace(config, text_col=[config.file_col]), cache)
    splits: dict[str, TextDataset] = {}
    contents = []
    for split, rows in table.splits.items():
        names, labels = rows.read(0, len(rows))
        missing = {row for row, name in enumerate(names) if name is not None and not os.path.isfile(folder / name)}
        if missing and config.on_error != "skip":
            row = min(missing)
            raise UserError(
                f"{path}: column {config.file_col!r} names {names[row]!r:.80} in row {row + 1} of {split}: no such file in "
                f"{folder}; {len(missing):,} of {len(names):,} are missing: set data.on_error=skip to leave such rows out"
            )
        files = [None if name is None or row in missing else folder / name for row, name in enumerate(names)]
        contents.append([split, labels, cache.hash_files([file for file in files if file is not None])])
        splits[split] = FolderSource(files, labels, config.on_error, config.encoding)
    return Source(splits, {**table.identity, "named": digest(contents)}, table.notices)
