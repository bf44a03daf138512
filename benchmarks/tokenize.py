"""Text to ids: this package against fastai, on the same texts, one process each, alternately.

    python -m benchmarks.tokenization FOLDER [--limit N] [--repeats 5]

FOLDER holds Parquet files with a column `text`. fastai: `TokenizeWithRules` around its `WordTokenizer`, `make_vocab`,
`Numericalize`, ids in memory. Ours: `StoreBuilder`, ids in a token store on disk, shard by shard. The first round also
compares every token of every text, and the vocabularies.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from fastai.text.core import TokenizeWithRules, WordTokenizer
from fastai.text.data import Numericalize, make_vocab

from ulmfit_dist.config import TokenizerConfig
from ulmfit_dist.data.builder import StoreBuilder
from ulmfit_dist.data.store import FORMAT, TokenStore
from ulmfit_dist.data.texts.documents import Source

SHARD_DOCUMENTS = 2000


class Texts:
    """A source in memory, so that both read the same strings."""

    def __init__(self, texts: list[str]):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        return list(self.texts[start:stop]), [None] * (min(stop, len(self.texts)) - start)


def fastai_ids(texts: list[str]) -> tuple[list[np.ndarray], list[str]]:
    """Ids and vocabulary, as `TextBlock` makes them."""
    tokens = list(TokenizeWithRules(WordTokenizer("en"))(texts))
    counts = Counter(token for document in tokens for token in document)
    vocab = make_vocab(counts, min_freq=3, max_vocab=60000)
    numericalize = Numericalize(vocab)
    numericalize.setup(None)
    return [np.array(numericalize(document)) for document in tokens], vocab


def our_ids(texts: list[str], folder: Path) -> TokenStore:
    """A finished token store."""
    folder.mkdir()
    builder = StoreBuilder(folder, Source({"train": Texts(texts)}, {}), TokenizerConfig(), SHARD_DOCUMENTS)
    shards = range(len(builder.shards))
    builder.tokenize(shards, num_workers=1, shown=False)
    builder.merge()
    builder.map(shards, num_workers=1)
    builder.finish({"format": FORMAT, "shard_documents": SHARD_DOCUMENTS})
    return TokenStore(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, help="take this many texts, evenly from all")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    texts = [text for file in sorted(args.folder.glob("*.parquet")) for text in pq.read_table(file)["text"].to_pylist()]
    if args.limit is not None:
        texts = texts[:: max(1, len(texts) // args.limit)][: args.limit]
    print(f"{len(texts):,} texts, {sum(map(len, texts)):,} characters; {machine()}", flush=True)
    seconds: dict[str, list[float]] = {"fastai": [], "ours": []}
    num_tokens = 0
    for repeat in range(args.repeats):
        started = time.perf_counter()
        documents, vocab = fastai_ids(texts)
        seconds["fastai"].append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            store = our_ids(texts, Path(folder) / "store")
            seconds["ours"].append(time.perf_counter() - started)
            num_tokens = int(store.lengths.sum())
            if repeat == 0:
                differing = sum(not np.array_equal(store.document(i), document) for i, document in enumerate(documents))
                same = "equal" if vocab == store.vocab else "DIFFERENT"
                print(f"{differing} texts differ; the vocabularies are {same}", flush=True)
        print(f"round {repeat + 1}: fastai {seconds['fastai'][-1]:.1f} s, ours {seconds['ours'][-1]:.1f} s", flush=True)
    for name, values in seconds.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        rate = num_tokens / middle
        print(f"{name:<7} median {middle:7.1f} s  min {low:7.1f} s  max {high:7.1f} s  {rate:10,.0f} tokens/s a core")
    print(f"ratio of the medians: {statistics.median(seconds['fastai']) / statistics.median(seconds['ours']):.1f}")


def machine() -> str:
    """Processor and versions that a result depends on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    packages = ", ".join(f"{name} {version(name)}" for name in ("fastai", "spacy", "numpy"))
    return f"{model}, Python {sys.version.split()[0]}, {packages}"


if __name__ == "__main__":
    main()
