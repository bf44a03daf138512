"""Merge of the token counts of all shards, in bounded memory.

Counts are summed in memory as long as they have few distinct tokens. When there are more, the sums so far are written to
disk, divided by a hash of the token into parts, and the next sums begin; at the end one part is merged after the other, and
only the most frequent tokens of all parts are kept. Memory is bounded by `DISTINCT_IN_MEMORY`, the distinct tokens of one
part and `max_vocab`. Trade-off: counts of a large corpus are written and read once more; those of a small one never are.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ulmfit_dist.data.vocab import token_counts
from ulmfit_dist.errors import UserError

COUNTS_AT_ONCE = 1_000_000
"""Number of counts that are merged at once: about 30 MB."""
DISTINCT_IN_MEMORY = 1_000_000
"""Number of distinct tokens whose counts are summed in memory before they are written to disk."""
PARTS = 64
"""Number of parts that spilled tokens are divided into."""
HASHED_BYTES = 8
"""Number of bytes at the beginning and at the end of a token that determine its part."""


def frequent_tokens(shards: Iterable[pa.Table], min_freq: int, max_vocab: int, spill: Path) -> Counter[str]:
    """Return the sums of the `token_counts` of shards: the `max_vocab` largest, of at least `min_freq`.

    Tokens are in descending order of their count, ties in the order of first occurrence.

    Args:
        shards: counts, in the order of the documents, each in the order of first occurrence.
        spill: path of a temporary file.

    Raises:
        UserError: the temporary file cannot be written.
    """
    sums = _sum_runs(shards)
    run = next(sums)
    if len(run) <= DISTINCT_IN_MEMORY:  # the only one
        return _as_counter(_most_frequent(_with_order(run, 0), min_freq, max_vocab))
    runs = itertools.chain([run], sums)
    del run  # it is released once it has been written
    try:
        num_runs = _write_parts(runs, spill)
        return _as_counter(_merge_parts(spill, num_runs, min_freq, max_vocab))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UserError(f"{spill}: cannot be written ({reason})") from None
    finally:
        spill.unlink(missing_ok=True)


def _sum_runs(shards: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield sums of consecutive shards; each but the last has more than `DISTINCT_IN_MEMORY` tokens."""
    total, pending = token_counts([], []), []
    for counts in shards:
        pending.append(counts)
        if sum(map(len, pending)) > max(COUNTS_AT_ONCE, 2 * len(total)):  # merge rarely: each merge reads the total
            total, pending = _sum_counts([total, *pending]), []
            if len(total) > DISTINCT_IN_MEMORY:
                yield total
                total = token_counts([], [])
    yield _sum_counts([total, *pending])


def _sum_counts(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the sum of counts by token, in order of first occurrence; four times as fast as Arrow's ordered `group_by`."""
    joined = pa.concat_tables(tables)
    tokens = joined["token"].combine_chunks().dictionary_encode()  # indices by first occurrence
    indices = tokens.indices.to_numpy()
    counts = np.zeros(len(tokens.dictionary), dtype=np.int64)
    np.add.at(counts, indices, joined["count"].to_numpy())
    table = token_counts(tokens.dictionary, counts)
    if "order" not in joined.column_names:
        return table
    order = np.zeros(len(counts), dtype=np.int64)
    order[indices[::-1]] = joined["order"].to_numpy()[::-1]  # the last of several writes to an index wins
    return table.append_column("order", pa.array(order))


def _with_order(counts: pa.Table, start: int) -> pa.Table:
    """Return counts with the order of first occurrence as a column, from `start` on."""
    return counts.append_column("order", pa.array(np.arange(start, start + len(counts))))


def _write_parts(runs: Iterable[pa.Table], path: Path) -> int:
    """Write sums, each divided into `PARTS` batches by the hash of the token; return the number of sums."""
    schema = _with_order(token_counts([], []), 0).schema
    num_runs, num_rows = 0, 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for run in runs:
            for batch in _divide(_with_order(run, num_rows)):
                writer.write_batch(batch)
            num_runs, num_rows = num_runs + 1, num_rows + len(run)
            del run  # before the next one is summed
    return num_runs


def _divide(counts: pa.Table) -> Iterator[pa.RecordBatch]:
    """Yield the counts of each part."""
    parts = _parts(counts["token"].combine_chunks())
    sorted_counts = counts.take(np.argsort(parts, kind="stable"))
    columns = [column.combine_chunks() for column in sorted_counts.columns]
    bounds = np.cumsum([0, *np.bincount(parts, minlength=PARTS)]).tolist()
    for begin, end in itertools.pairwise(bounds):
        yield pa.record_batch([column[begin:end] for column in columns], schema=counts.schema)


def _merge_parts(path: Path, num_runs: int, min_freq: int, max_vocab: int) -> pa.Table:
    """Return the most frequent tokens of all parts, with their order."""
    best = _with_order(token_counts([], []), 0)
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        for part in range(PARTS):
            batches = [reader.get_batch(run * PARTS + part) for run in range(num_runs)]
            of_part = _most_frequent(_sum_counts([pa.Table.from_batches(batches)]), min_freq, max_vocab)
            best = _most_frequent(pa.concat_tables([best, of_part]), min_freq, max_vocab)
    return best


def _most_frequent(counts: pa.Table, min_freq: int, max_vocab: int) -> pa.Table:
    """Return the `max_vocab` largest of counts that are at least `min_freq`, in descending order, ties by their order."""
    frequent = counts.filter(pc.greater_equal(counts["count"], min_freq))
    ranked = np.lexsort((frequent["order"].to_numpy(), -frequent["count"].to_numpy()))[:max_vocab]
    return frequent.take(ranked).combine_chunks()


def _parts(tokens: pa.LargeStringArray) -> np.ndarray:
    """Return the part of each token, a hash of its length and of the bytes at its beginning and end, int64."""
    _, offsets, data = tokens.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[tokens.offset : tokens.offset + len(tokens) + 1]
    begins, lasts = bounds[:-1], np.maximum(bounds[1:] - 1, bounds[:-1])
    content = np.append(np.frombuffer(data, dtype=np.uint8), np.uint8(0)) if data else np.zeros(1, np.uint8)
    lengths = np.diff(bounds)
    hashes, is_filled = lengths.astype(np.uint64), lengths > 0
    for i in range(HASHED_BYTES):
        for positions in (np.minimum(begins + i, lasts), np.maximum(lasts - i, begins)):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + content[positions] * is_filled  # no byte of an empty token
    return (hashes >> np.uint64(40)).astype(np.int64) % PARTS


def _as_counter(counts: pa.Table) -> Counter[str]:
    return Counter(dict(zip(counts["token"].to_pylist(), counts["count"].to_pylist(), strict=True)))
