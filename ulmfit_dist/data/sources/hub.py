"""Source of Hugging Face data sets, from the hub or a local folder, through the library `datasets`.

Trade-off: `datasets` keeps a copy of the data in its cache, which reading files in place does not need. With
`data.stream_documents`, only the first rows are fetched, and kept in `streams` of `data.cache_dir`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from ulmfit_dist.config.schema import SPLITS, DataConfig
from ulmfit_dist.data.sources.base import Source, digest
from ulmfit_dist.data.sources.content_cache import ContentCache
from ulmfit_dist.data.sources.parquet import BATCH, DatasetRows
from ulmfit_dist.data.sources.split_names import find_splits, listed
from ulmfit_dist.data.sources.table_source import cut_splits, make_split
from ulmfit_dist.data.sources.tables import TableSource, columns_identity
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import make_folder


def open_hub(config: DataConfig, cache: ContentCache) -> Source:
    """Open the splits of a data set. Raises UserError."""
    datasets, notices = open_datasets(config, cache.verify)
    splits: dict[str, TableSource] = {}
    contents = []
    for split in SPLITS:
        if split in datasets:
            files = [
                (f"{config.path}, {name}", DatasetRows(dataset, f"{config.path}, {name}", config.on_error))
                for name, dataset in datasets[split].items()
            ]
            splits[split] = make_split(files, config, split, notices)
            contents.append([split, [_content(dataset, config, cache) for dataset in datasets[split].values()]])
    identity = {"contents": contents, **columns_identity(config)}
    return Source(cut_splits(splits, config), identity, notices)


def open_datasets(config: DataConfig, renew: bool = False) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return data sets by split and name, and a message about unused ones.

    Args:
        renew: stream rows again that have been stored.

    Raises:
        UserError: no such data set or split, or it cannot be read.
    """
    if config.splits:
        if "train" not in config.splits:
            raise UserError(f"data.splits={dict(config.splits)} names no train split: add one, such as train: train")
        return {split: {name: _open(config, name, renew)} for split, name in config.splits.items()}, []
    present = _load(config)
    notices = []
    if Path(config.path or "").is_dir():
        notices.append(
            f"data.path={config.path}: a local folder, from which `datasets` reads {listed(present)}: set data.source to "
            f"csv, json or parquet to read all splits by their names"
        )
    splits, unused = find_splits(present)
    if "train" not in splits:
        raise UserError(f"data.path={config.path}: no split is named train; it has {listed(present)}: set data.splits")
    streams = config.stream_documents is not None
    parts = [name if streams else f"{name} ({len(present[name]):,} rows)" for name in unused]
    notices += [f"data.path={config.path}: not used: {', '.join(parts)}"] if parts else []
    opened = {
        split: {name: _open(config, name, renew) if streams else present[name] for name in names}
        for split, names in splits.items()
    }
    return opened, notices


def _content(dataset: Any, config: DataConfig, cache: ContentCache) -> list[Any]:
    """Return the identity of a data set's rows: a hash of cells, because cache files depend on the version of `datasets`."""
    files = [Path(file["filename"]) for file in dataset.cache_files]
    used = [*config.text_col, *[column for column in (config.label_col, config.valid_col) if column is not None]]
    uses_all = config.get_y is not None or config.splitter is not None
    columns = [column for column in dataset.column_names if uses_all or column in used]

    def read() -> str:
        state = xxhash.xxh3_128(json.dumps(columns).encode())
        for batch in dataset.select_columns(columns).with_format("arrow").iter(BATCH):
            state.update(json.dumps(batch.to_pydict(), default=str).encode("utf-8", "surrogatepass"))
        return str(state.hexdigest())

    return [len(dataset), cache.hash_once(files, [str(dataset.split), columns], read) if files else read()]


def _open(config: DataConfig, split: str, renew: bool) -> Any:
    """Return one split, downloaded, or its first `data.stream_documents` rows, stored once. Raises UserError."""
    if config.stream_documents is None:
        return _load(config, split=split)
    import datasets

    key = digest([config.path, config.subset, split, config.stream_documents])
    file = Path(config.cache_dir) / "streams" / f"{key}.arrow"
    if renew or not file.exists():
        _store_rows(_load(config, split=split), config.stream_documents, file, config)
    return datasets.Dataset.from_file(str(file))


def _store_rows(stream: Any, num_rows: int, file: Path, config: DataConfig) -> None:
    """Write the first rows of a streamed data set to an Arrow file, atomically. Raises UserError."""
    from datasets.arrow_writer import ArrowWriter

    make_folder(file.parent, "data.cache_dir")
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with _one_line_errors(config), ArrowWriter(path=str(temporary), features=stream.features) as writer:
            for batch in stream.take(num_rows).with_format("arrow").iter(BATCH):
                writer.write_table(batch)
            writer.finalize()
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _load(config: DataConfig, **arguments: Any) -> Any:
    """Call `datasets.load_dataset`. Raises UserError with its error on one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with _one_line_errors(config):
        streaming = config.stream_documents is not None
        return datasets.load_dataset(config.path or "", name=config.subset, streaming=streaming, **arguments)


@contextmanager
def _one_line_errors(config: DataConfig) -> Iterator[None]:
    """Raise errors of the library as UserErrors, on one line."""
    import datasets

    try:
        yield
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise UserError(
            f"data.path={config.path}: no such data set on the hub, or no network to reach it ({_short(error)}): "
            f"on a machine without a network, set data.source to csv, json or parquet and data.path to a local copy"
        ) from None
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise UserError(f"data.path={config.path}: a split has no documents ({_short(error)})") from None
        raise UserError(f"data.path={config.path}: cannot be read as a hub data set: {_short(error)}") from None


def _short(error: BaseException) -> str:
    """Return the innermost cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
