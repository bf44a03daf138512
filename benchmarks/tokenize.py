"""Text to ids on one core: fastai's implementation and ours, on the same texts.

fastai: `TokenizeWithRules` around its `WordTokenizer`, `make_vocab`, `Numericalize`, ids in memory. Ours:
`TokenStoreBuilder`, ids in a token store on disk, shard by shard. The texts are BBC News, or the column `text` of the
Parquet files in the folder ULMFIT_DIST_BENCHMARK_TEXTS. After fastai's measurement, the same process also builds our store,
and compares every token of every text, and the vocabularies: `equal`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from fastai.text.core import TokenizeWithRules, WordTokenizer
from fastai.text.data import Numericalize, make_vocab

from benchmarks.harness import Benchmark, Measured
from ulmfit_dist.config.schema import DataConfig, TokenizerConfig
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.base import Source
from ulmfit_dist.data.store_builder import TokenStoreBuilder
from ulmfit_dist.data.token_store import FORMAT, TokenStore

BBC_NEWS = "BBC News"
SHARD_DOCUMENTS = 2000


class Texts:
    """Source in memory, so that both sides read the same strings."""

    def __init__(self, texts: Sequence[str | None]):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        return list(self.texts[start:stop]), [None] * (min(stop, len(self.texts)) - start)


def fastai(case: str) -> Measured:
    texts = read_texts(case)
    begin = time.perf_counter()
    documents, vocab = fastai_ids(texts)
    seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        store = our_ids(texts, Path(folder))
        same = all(np.array_equal(store.document(i), document) for i, document in enumerate(documents))
        same = same and vocab == store.vocab and len(documents) == len(store)
    return Measured(sum(map(len, documents)) / seconds, {"seconds": seconds, "equal": "yes" if same else "NO"})


def ours(case: str) -> Measured:
    texts = read_texts(case)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        store = our_ids(texts, Path(folder))
        seconds = time.perf_counter() - begin
        num_tokens = int(store.lengths.sum())
    return Measured(num_tokens / seconds, {"seconds": seconds, "texts": len(texts), "tokens": num_tokens})


def read_texts(case: str) -> list[str | None]:
    """Return the texts of BBC News, or of the folder that is the case."""
    if case == BBC_NEWS:
        documents = open_source(DataConfig(source="bbc_news")).splits["train"]
        return documents.read(0, len(documents))[0]
    return [text for file in sorted(Path(case).glob("*.parquet")) for text in pq.read_table(file)["text"].to_pylist()]


def fastai_ids(texts: Sequence[str | None]) -> tuple[list[np.ndarray], list[str]]:
    """Return ids and vocabulary, computed as in `TextBlock`."""
    tokens = list(TokenizeWithRules(WordTokenizer("en"))(texts))
    counts = Counter(token for document in tokens for token in document)
    vocab = make_vocab(counts, min_freq=3, max_vocab=60000)
    numericalize = Numericalize(vocab)
    numericalize.setup(None)
    return [np.array(numericalize(document)) for document in tokens], vocab


def our_ids(texts: Sequence[str | None], folder: Path) -> TokenStore:
    """Build and return a token store."""
    builder = TokenStoreBuilder(folder, Source({"train": Texts(texts)}, {}), TokenizerConfig(), SHARD_DOCUMENTS)
    shards = range(len(builder.shards))
    builder.tokenize(shards, num_workers=1, shown=False)
    builder.merge()
    builder.map(shards, num_workers=1)
    builder.finish({"format": FORMAT, "documents_per_shard": SHARD_DOCUMENTS})
    return TokenStore(folder)


BENCHMARK = Benchmark(
    title="text to ids, on one core",
    unit="tokens/s",
    contenders={"fastai": fastai, "ours": ours},
    cases=[os.environ.get("ULMFIT_DIST_BENCHMARK_TEXTS", BBC_NEWS)],
)
