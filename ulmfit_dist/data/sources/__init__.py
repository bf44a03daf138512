"""Sources of texts: the documents of each split, from folders, tables, the hub or Python.

A source is opened, not loaded: `TextDataset.read(start, stop)` reads a slice, so a rank reads only the shards that it
tokenizes. Opening assigns files to splits, checks all rows of CSV and JSON files, and hashes the content. Trade-off: a file
is read once more than necessary, but a bad row is reported before anything is tokenized.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.sources.base import Source
from ulmfit_dist.data.sources.content_cache import ContentCache
from ulmfit_dist.data.sources.file_column import open_named_files
from ulmfit_dist.data.sources.folder import open_folder
from ulmfit_dist.data.sources.hub import open_hub
from ulmfit_dist.data.sources.table_source import open_table
from ulmfit_dist.data.sources.user_functions import apply_functions
from ulmfit_dist.errors import UserError


def open_source(config: DataConfig, verify: bool = False) -> Source:
    """Open the source of a config; texts are read later.

    Args:
        verify: hash all files again, ignoring the cache.

    Raises:
        UserError: no such file, folder, column, split or data set; an empty split; a row that cannot be read; a user-defined
            function that fails.
    """
    openers = {"bbc_news": open_folder, "folder": open_folder, "hub": open_hub}
    opener = open_named_files if config.file_col is not None else openers.get(config.source, open_table)
    source = apply_functions(opener(config, ContentCache(Path(config.cache_dir) / "sources", verify)), config)
    for split, documents in source.splits.items():
        if len(documents) == 0:
            raise UserError(f"{config.path or config.source}: the {split} split has no documents")
    return replace(source, notices=list(dict.fromkeys(source.notices)))
