"""Text in: the documents of each split, whatever they are stored in.

A source is opened, not read: `Documents.read(start, stop)` fetches a slice, so a rank reads only the shards that it
tokenizes.
"""

from __future__ import annotations

from ulmfit_dist.config import DataConfig
from ulmfit_dist.data.texts.choices import by_functions
from ulmfit_dist.data.texts.documents import Source
from ulmfit_dist.data.texts.named_files import open_named_files
from ulmfit_dist.data.texts.tables import open_hub, open_table
from ulmfit_dist.data.texts.text_files import open_folder
from ulmfit_dist.errors import UserError


def open_source(config: DataConfig) -> Source:
    """Open the source that the config names, without reading its texts.

    Raises:
        UserError: no such file, folder, column, split or data set; nothing in it; a line in it that cannot be read; a
            function of yours that fails.
    """
    openers = {"bbc_news": open_folder, "folder": open_folder, "hub": open_hub}
    opener = open_named_files if config.text_file is not None else openers.get(config.source, open_table)
    source = by_functions(opener(config), config)
    for split, documents in source.splits.items():
        if len(documents) == 0:
            raise UserError(f"{config.path or config.source}: the {split} split has no documents")
    return source
