"""Language model batches of 64 x 72 tokens, from fastai's loader and from ours, at two corpus sizes.

The documents are random, with lengths similar to IMDb's. fastai's loader has them as tensors in memory, its fastest input,
or as the output of a `TextBlock`: words, which are converted to ids each time that a document is read. Ours are in a token
store. Our loader reads 16 steps at once, so the benchmark times stretches of 16 steps, never single ones.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.data.core import Datasets
from fastai.text.data import LMDataLoader, Numericalize

from benchmarks.harness import Benchmark, Measured
from benchmarks.workloads import fastai_documents
from ulmfit_dist.data.batches import BatchLayout, BatchShard
from ulmfit_dist.data.lm_loader import LMLoader
from ulmfit_dist.data.token_store import FORMAT, TokenStore, shard_stem, write_shard
from ulmfit_dist.utils.files import write_json

ROWS, TOKENS = 64, 72
WARM_UP, STRETCH, STRETCHES = 16, 16, 12
"""Steps of warm-up, steps per stretch, and number of stretches: together less than an epoch of a million tokens."""
MEDIAN_LENGTH, SPREAD = 200, 0.8
"""Parameters of the log-normal distribution of document lengths in tokens, similar to IMDb's."""
SHARD_DOCUMENTS = 2000
"""Documents per shard."""
NUM_WORDS = 60_000
"""Vocabulary size."""


def fastai(case: str) -> Measured:
    with random_store(case) as store:
        documents = fastai_documents(store, np.arange(len(store)))
    return _fastai([(document,) for document in documents], store.lengths)


def fastai_text_block(case: str) -> Measured:
    vocab = [str(i) for i in range(NUM_WORDS)]
    with random_store(case) as store:
        documents = [[vocab[i] for i in store.document(number)] for number in range(len(store))]
    return _fastai(Datasets(documents, [[Numericalize(vocab)]]), store.lengths)


def _fastai(documents: Sequence[Any], lengths: np.ndarray) -> Measured:
    return _measured(iter(LMDataLoader(documents, lens=lengths.tolist(), bs=ROWS, seq_len=TOKENS, shuffle=True)))


def ours(case: str) -> Measured:
    with random_store(case) as store:
        return _measured(iter(LMLoader(store, np.arange(len(store)), BatchLayout(ROWS, TOKENS, BatchShard()), seed=1)))


@contextmanager
def random_store(case: str) -> Iterator[TokenStore]:
    """Yield a token store of random documents, with approximately the number of tokens of the case."""
    rng = np.random.default_rng(0)
    num_documents = int(int(case.split()[0]) * 1e6 / (MEDIAN_LENGTH * np.exp(SPREAD**2 / 2)))
    num_shards = -(-num_documents // SHARD_DOCUMENTS)
    lengths = np.maximum(2, rng.lognormal(np.log(MEDIAN_LENGTH), SPREAD, num_documents)).astype(np.int64)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shard, part in enumerate(np.array_split(lengths, num_shards)):
            tokens = rng.integers(2, NUM_WORDS, part.sum(), dtype=np.uint16)
            stem, no_labels = folder / shard_stem(shard, num_shards), np.full(len(part), -1)
            write_shard(stem, tokens, np.cumsum([0, *part]), no_labels, np.zeros(len(part)))
        meta = {"format": FORMAT, "fingerprint": "random", "dtype": "uint16", "splits": {}, "labels": []}
        write_json(folder / "vocab.json", [])
        write_json(folder / "meta.json", meta | {"num_documents": num_documents, "num_shards": num_shards})
        yield TokenStore(folder)


def _measured(batches: Iterator[Any]) -> Measured:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(WARM_UP - 1):
        next(batches)
    seconds = []
    for _ in range(STRETCHES):
        begin = time.perf_counter()
        for _ in range(STRETCH):
            next(batches)
        seconds.append((time.perf_counter() - begin) / STRETCH)
    return Measured(statistics.median(seconds) * 1000, {"first batch ms": first * 1000})


BENCHMARK = Benchmark(
    title="batches of the language model, 64 x 72 tokens, on one thread",
    unit="ms per batch",
    contenders={"fastai": fastai, "fastai TextBlock": fastai_text_block, "ours": ours},
    cases=["1 million tokens", "20 million tokens"],
    higher_is_better=False,
)
