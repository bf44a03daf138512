"""Sources of texts: the documents of each split, whatever they are stored in.

A source is opened, not read: `TextDataset.read(start, stop)` fetches a slice, so a rank reads only the shards that it
tokenizes. Opening checks all rows of CSV and JSON files, hashes the content, and finds which file is which split.
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
from ulmfit_dist.data.sources.user_functions import by_functions
from ulmfit_dist.errors import UserError


def open_source(config: DataConfig, verify: bool = False) -> Source:
    """Open the source that the config names, without keeping its texts.

    Args:
        verify: hash all files again, whatever the cache holds of them.

    Raises:
        UserError: no such file, folder, column, split or data set; nothing in it; a row that cannot be read; a user-defined
            function that fails.
    """
    openers = {"bbc_news": open_folder, "folder": open_folder, "hub": open_hub}
    opener = open_named_files if config.file_col is not None else openers.get(config.source, open_table)
    source = by_functions(opener(config, ContentCache(Path(config.cache_dir) / "sources", verify)), config)
    for split, documents in source.splits.items():
        if len(documents) == 0:
            raise UserError(f"{config.path or config.source}: the {split} split has no documents")
    return replace(source, notices=list(dict.fromkeys(source.notices)))
