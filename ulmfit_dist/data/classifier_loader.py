"""Classifier loader: batches of documents of similar length, strided over the ranks.

An epoch shuffles the documents, sorts each run of fifty batches by length, divides it into batches and shuffles those, as
fastai's `SortedDL` does; here everything is a function of `(seed, epoch)`. A batch is sorted from longest to shortest and
strided over the canonical ranks, so their lengths are nearly equal. Documents that do not fill a last batch are spread over
the others: no document is left out, and no batch is too small for the ranks or for batch norm.

Every micro-batch is padded to the longest document of the global batch, so a row's padding, and with it AR and TAR, does not
depend on the world size. Trade-off: a few more padding tokens. Padding comes first, in whole chunks of `seq_len`, which the
encoder skips, as in fastai's `Pad_Chunk`.

b: documents of a micro-batch, T: tokens of the longest document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import BatchLayout, BatchShard, MicroBatch, make_batch_shard
from ulmfit_dist.data.targets import Targets, one_class_each, read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.rng.counter_based import permutation

BATCHES_SORTED_TOGETHER = 50
"""Batches of a run of documents that is sorted by length."""
EVALUATED_TOGETHER = 32
"""Maximum documents of a batch without training, where training has smaller ones: 8 took 1.6 times as long per document."""


class ClassifierLoader:
    """Loader of a rank's documents of each global batch.

    Args:
        store: the token store.
        documents: indices of labelled documents in the store.
        layout: batch size, chunk length, shard and direction.
        seed: shuffles each epoch; None sorts from longest to shortest, for validation.
        max_doc_tokens: maximum tokens of a document, from its beginning; None for all.
        targets: targets of the store's labels; None makes each label a class.

    Attributes:
        streams: names of the orders of documents and of batches: each name gives other permutations.
        batch_size_key: config key of the batch size, for messages.
        unlabelled: loader of the unlabelled documents of each step, whose micro-batches follow the labelled ones; or None.

    Raises:
        UserError: fewer training documents than ranks, or batches that do not divide evenly.
    """

    streams = ("order", "batches")
    batch_size_key = "classifier.global_batch_size"
    unlabelled: UnlabelledLoader | None = None

    def __init__(
        self,
        store: TokenStore,
        documents: np.ndarray,
        layout: BatchLayout,
        seed: int | None = None,
        max_doc_tokens: int | None = None,
        targets: Targets | None = None,
    ):
        shard = layout.shard
        shard.check(layout.global_batch_size, self.batch_size_key)
        if seed is not None and len(documents) < shard.num_canonical_ranks:
            raise UserError(f"{len(documents)} labelled documents for {shard.num_canonical_ranks} ranks: start fewer ranks")
        self.store, self.documents, self.shard, self.seed = store, documents, shard, seed
        self.targets = targets or one_class_each(store.label_names)
        self.global_batch_size, self.seq_len = layout.global_batch_size, layout.seq_len
        self.direction = -1 if layout.backwards else 1
        self.lengths = store.lengths if max_doc_tokens is None else np.minimum(store.lengths, max_doc_tokens)
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._batches)

    def to(self, device: torch.device) -> None:
        """Do nothing: micro-batches are moved one step ahead by `data/prefetch.py`."""

    def set_shard(self, shard: BatchShard) -> None:
        """Divide the following steps into other micro-batches of the same documents."""
        self.shard = shard
        if self.unlabelled is not None:
            self.unlabelled.set_shard(shard)

    def set_epoch(self, epoch: int) -> None:
        """Form the global batches of the epoch."""
        self.epoch = epoch
        self._batches = self._sorted() if self.seed is None else self._shuffled(self.seed, epoch)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self.from_step(0)

    def from_step(self, first: int) -> Iterator[list[MicroBatch]]:
        """Yield the steps of the epoch from step `first` on, without reading the steps before it."""
        return map(self.step, range(first, len(self)))

    def documents_of_step(self, step: int) -> list[np.ndarray]:
        """Return the labelled documents of a global batch, and the unlabelled ones if there are any, longest first."""
        batch = self._batches[step]
        if self.unlabelled is None:
            return [batch]
        return [batch, self.unlabelled.batch_of(self.epoch * len(self) + step)]

    def step(self, step: int) -> list[MicroBatch]:
        """Return the micro-batches of a step; empty if the batch has no document for this rank."""
        batch = self._batches[step]
        labelled = self._of_rank(batch)
        if self.unlabelled is None:
            return labelled
        return [*labelled, *self.unlabelled.at(self.epoch * len(self) + step, len(batch))]

    def _of_rank(self, batch: np.ndarray) -> list[MicroBatch]:
        strided = [range(rank, len(batch), self.shard.num_canonical_ranks) for rank in self.shard.canonical_ranks]
        micro_batches = [rows for part in strided if part for rows in self.shard.cut(part, len(batch))]
        return [self._micro_batch(batch, rows) for rows in micro_batches]

    def _sorted(self) -> list[np.ndarray]:
        by_length = self._longest_first(self.documents)
        return [by_length[i : i + self.global_batch_size] for i in range(0, len(by_length), self.global_batch_size)]

    def _shuffled(self, seed: int, epoch: int) -> list[np.ndarray]:
        num_batches = max(1, len(self.documents) // self.global_batch_size)
        shuffled = self.documents[permutation(len(self.documents), seed, "classifier", self.streams[0], epoch)]
        num_runs = -(-num_batches // BATCHES_SORTED_TOGETHER)
        sorted_runs = [self._longest_first(run) for run in np.array_split(shuffled, num_runs)]
        batches = np.array_split(np.concatenate(sorted_runs), num_batches)
        order = permutation(num_batches, seed, "classifier", self.streams[1], epoch)
        batches = [self._longest_first(batches[i]) for i in order]
        longest = max(range(num_batches), key=lambda i: self.lengths[batches[i][0]])
        batches.insert(0, batches.pop(longest))  # a batch that does not fit in memory fails in the first step
        return batches

    def _longest_first(self, documents: np.ndarray) -> np.ndarray:
        return documents[np.argsort(-self.lengths[documents], kind="stable")]

    def _micro_batch(self, batch: np.ndarray, rows: range) -> MicroBatch:
        documents = batch[rows.start : rows.stop : rows.step]
        tokens = self.store.pieces(documents, np.zeros_like(documents), self.lengths[documents])
        width = int(self.lengths[batch[0]])
        x_bT = pad_chunks([piece[:: self.direction] for piece in tokens], width, self.seq_len)
        y = self.targets.of(self.store.labels[documents])
        chunk_rows = rows_by_chunk(self.lengths[documents], width, self.seq_len)
        return MicroBatch(x_bT, y, rows, len(batch), int(self.lengths[batch].sum()), documents, chunk_rows)


class UnlabelledLoader(ClassifierLoader):
    """Loader of a rank's unlabelled documents of each step: passes over all of them, whatever the epochs of the labelled.

    Its batches depend on the step of the stage only, so a resumed run reads the same ones.
    """

    streams = ("unlabelled", "unlabelled batches")
    batch_size_key = "classifier.unlabelled.batch_size"

    def batch_of(self, stage_step: int) -> np.ndarray:
        """Return the documents of a step of the stage, over all ranks."""
        number, step = divmod(stage_step, len(self))
        if number != self.epoch:
            self.set_epoch(number)
        return self._batches[step]

    def at(self, stage_step: int, first_row: int) -> list[MicroBatch]:
        """Return the micro-batches of a step of the stage, their rows counted from `first_row`."""
        batches = self._of_rank(self.batch_of(stage_step))
        return [replace(batch, rows=_shifted(batch.rows, first_row), has_labels=False) for batch in batches]

    def _micro_batch(self, batch: np.ndarray, rows: range) -> MicroBatch:
        return replace(super()._micro_batch(batch, rows), y=torch.zeros(0))


def _shifted(rows: range, first: int) -> range:
    return range(rows.start + first, rows.stop + first, rows.step)


def rows_by_chunk(lengths_b: np.ndarray, width: int, seq_len: int) -> list[int]:
    """Return, for each chunk of the output of `pad_chunks`, the documents that have begun; all read the last chunk."""
    begun_b = (width - lengths_b) // seq_len
    num_chunks = -(-width // seq_len)
    return [*(int((begun_b <= chunk).sum()) for chunk in range(num_chunks - 1)), len(lengths_b)]


def pad_chunks(documents: list[np.ndarray], width: int, seq_len: int) -> torch.Tensor:
    """Return documents as one tensor, int64 [b, width]: whole chunks of `seq_len` are padded first, the rest last."""
    x_bT = np.full((len(documents), width), PAD_ID, dtype=np.int64)
    for x_T, tokens in zip(x_bT, documents, strict=True):
        begin = (width - len(tokens)) // seq_len * seq_len
        x_T[begin : begin + len(tokens)] = tokens
    return torch.from_numpy(x_bT)


def classifier_batches(
    config: Config, runtime: Runtime, store: TokenStore, documents: np.ndarray, seed: int | None = None
) -> ClassifierLoader:
    """Return this rank's loader of documents, by index in the store.

    Without a seed, for evaluation, they are sorted by length, and small batches are read several at a time.
    """
    settings, shard = config.classifier, _shard(config, runtime)
    targets = read_targets(store, settings, config.data.label_delim)
    size = settings.global_batch_size
    if seed is None:
        size *= max(1, EVALUATED_TOGETHER // size)
    layout = BatchLayout(size, settings.seq_len, shard, config.model.backwards)
    return ClassifierLoader(store, documents, layout, seed, settings.max_doc_tokens, targets)


def unlabelled_batches(config: Config, runtime: Runtime, store: TokenStore, documents: np.ndarray) -> UnlabelledLoader:
    """Return this rank's loader of unlabelled documents, by index in the store.

    Raises:
        UserError: fewer documents than a step needs, or batches that do not divide evenly.
    """
    settings, size = config.classifier, config.classifier.unlabelled.batch_size
    assert size is not None
    if len(documents) < size:
        raise UserError(
            f"classifier.unlabelled.batch_size={size}, but there are {len(documents)} unlabelled documents: add "
            f"an unlabelled split (data.splits), lower it, or set it to null"
        )
    layout = BatchLayout(size, settings.seq_len, _shard(config, runtime), config.model.backwards)
    return UnlabelledLoader(store, documents, layout, config.seed, settings.max_doc_tokens)


def _shard(config: Config, runtime: Runtime) -> BatchShard:
    """Return this rank's part of the classifier's batches."""
    shard = make_batch_shard(runtime.rank, runtime.world_size, config.runtime, runtime.micro_batch_size)
    size = config.classifier.global_batch_size
    return shard.in_steps(runtime.launch.accumulation_steps, size, ClassifierLoader.batch_size_key)
