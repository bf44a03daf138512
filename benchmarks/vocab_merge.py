"""Duration and peak memory of the merge of token counts into the vocabulary, which `prepare` does on one rank.

    python -m benchmarks.vocab_merge [--tokens 10000000] [--shards 200] [--draws 200000] [--repeats 3]

The corpus is generated: each shard has the counts of draws from a Zipf distribution, and its share of a tail of tokens that
occur once, so all shards together have exactly that many distinct tokens. `in memory` is the merge as it was before it was
bounded: all distinct tokens in one Arrow table. `bounded` is the package's. Each merge runs in a process of its own, in
turn; memory is the peak above what the process has after its imports. The vocabularies must be equal.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from benchmarks.machine import machine
from ulmfit_dist.data.vocab import build_vocab, token_counts
from ulmfit_dist.utils.files import write_table

MAX_VOCAB, MIN_FREQ = 60_000, 3
CONTENDERS = ("in memory", "bounded")


def write_shards(folder: Path, num_tokens: int, num_shards: int, num_draws: int) -> int:
    """Write the counts of each shard; return the number of rows."""
    num_rows = 0
    for shard in range(num_shards):
        rng = np.random.default_rng(shard)
        drawn = np.exp(rng.random(num_draws) * math.log(num_tokens)).astype(np.int64)  # P(k) falls as 1/k
        ids = np.concatenate([drawn, np.arange(shard, num_tokens, num_shards)])
        tokens, first, counts = np.unique(ids, return_index=True, return_counts=True)
        order = np.argsort(first)
        table = token_counts([f"t{token * 2654435761 % 2**32:x}" for token in tokens[order].tolist()], counts[order])
        write_table(folder / f"{shard:05d}", table)
        num_rows += len(table)
    return num_rows


def read_shards(folder: Path) -> Iterator[pa.Table]:
    """Yield the counts of each shard, as `TokenStoreBuilder.merge` reads them."""
    for file in sorted(folder.glob("[0-9]*")):
        yield pa.ipc.open_file(file.read_bytes()).read_all()


def merge_in_memory(shards: Iterable[pa.Table], min_freq: int) -> Counter[str]:
    """Return the sum of the counts of all shards, as before the merge was bounded."""
    total, pending = token_counts([], []), []
    for counts in shards:
        pending.append(counts)
        if sum(map(len, pending)) > max(1_000_000, 2 * len(total)):
            total, pending = _sum_counts([total, *pending]), []
    total = _sum_counts([total, *pending])
    frequent = total.filter(pc.greater_equal(total["count"], min_freq))
    return Counter(dict(zip(frequent["token"].to_pylist(), frequent["count"].to_pylist(), strict=True)))


def _sum_counts(tables: Sequence[pa.Table]) -> pa.Table:
    joined = pa.concat_tables(tables)
    tokens = joined["token"].combine_chunks().dictionary_encode()
    counts = np.zeros(len(tokens.dictionary), dtype=np.int64)
    np.add.at(counts, tokens.indices.to_numpy(), joined["count"].to_numpy())
    return token_counts(tokens.dictionary, counts)


def merge(folder: Path, contender: str) -> None:
    """Merge in this process, and print seconds, MiB and a hash of the vocabulary as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if contender == "in memory":
        counts = merge_in_memory(read_shards(folder), MIN_FREQ)
    else:
        from ulmfit_dist.data.vocab_merge import frequent_tokens

        counts = frequent_tokens(read_shards(folder), MIN_FREQ, MAX_VOCAB, folder / "spilled")
    vocab = build_vocab(counts, MIN_FREQ, MAX_VOCAB)
    seconds = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps([seconds, peak, xxhash.xxh3_64_hexdigest(json.dumps(vocab).encode())]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--merge", nargs=2, metavar=("FOLDER", "CONTENDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.merge:
        merge(Path(args.merge[0]), args.merge[1])
        return
    print(f"$ python -m benchmarks.vocab_merge {' '.join(sys.argv[1:])}".rstrip())
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = write_shards(folder, args.tokens, args.shards, args.draws)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        print(
            f"{args.tokens:,} distinct tokens, {rows:,} counts in {args.shards} shards, {size:,.0f} MiB of files", flush=True
        )
        measured: dict[str, list[list[Any]]] = {contender: [] for contender in CONTENDERS}
        for _ in range(args.repeats):
            for contender, runs in measured.items():
                command = [sys.executable, "-m", "benchmarks.vocab_merge", "--merge", temporary, contender]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    for contender, runs in measured.items():
        seconds, peaks, _ = zip(*runs, strict=True)
        median, peak = statistics.median(seconds), statistics.median(peaks)
        print(f"{contender:<10} {median:6.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), peak {peak:7,.0f} MiB")
    equal = len({run[2] for runs in measured.values() for run in runs}) == 1
    print("vocabularies: equal" if equal else "vocabularies: DIFFERENT")


if __name__ == "__main__":
    main()
