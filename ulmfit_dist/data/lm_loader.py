"""Language model loader: one token stream, divided into rows.

The documents of an epoch, in its order, are one stream of tokens. It is divided into `global_batch_size` rows of equal
length, and step t reads the t-th `seq_len` tokens of each row, so a row's hidden state carries over from step to step. Of W
canonical ranks, rank r owns the rows `[r*B/W, (r+1)*B/W)` and reads only those, through the memory map: the cost of a step
does not depend on the size of the corpus.

Several steps are read together, so the documents of a row are located once for all of them. Trade-off: these steps are held
in memory, and reading a single step reads all of them.

Training drops the fewer than `global_batch_size` tokens after the last full row, different ones each epoch. Validation drops
nothing: its last row is padded with positions that have no loss.

B: rows of all ranks, b: rows of a rank or of a micro-batch, T: tokens of one step or several, p: pieces of documents.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ulmfit_dist.data.batches import IGNORED, BatchLayout, BatchShard, MicroBatch
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.errors import UserError
from ulmfit_dist.rng.counter_based import permutation

STEPS_READ = 16
"""Steps that are read together."""


class LMLoader:
    """Loader of a rank's rows of a token stream.

    Args:
        store: the token store.
        documents: indices of the documents in the store.
        layout: rows over all ranks, tokens of a row per step, shard and direction.
        seed: shuffles the documents each epoch; None keeps their order and every token, for validation.

    Raises:
        UserError: fewer tokens than rows, or rows that do not divide evenly.
    """

    def __init__(self, store: TokenStore, documents: np.ndarray, layout: BatchLayout, seed: int | None = None):
        layout.shard.check(layout.global_batch_size, "lm.global_batch_size")
        self.store, self.documents, self.seed = store, documents, seed
        self.global_batch_size, self.seq_len = layout.global_batch_size, layout.seq_len
        self.backwards = layout.backwards
        self.set_shard(layout.shard)
        self.num_tokens = int(store.lengths[documents].sum())
        targets = self.num_tokens - 1
        full_len = targets // self.global_batch_size
        self.row_len = full_len if seed is not None else -(-targets // self.global_batch_size)
        if self.row_len < 1:
            raise UserError(
                f"{self.num_tokens} tokens to {'validate' if seed is None else 'train'} on are too few for "
                f"{self.global_batch_size} rows: lower lm.global_batch_size, or give more text"
            )
        self.set_epoch(0)

    def __len__(self) -> int:
        return -(-self.row_len // self.seq_len)

    def to(self, device: torch.device) -> None:
        """Do nothing: micro-batches are moved one step ahead by `data/prefetch.py`."""

    def set_shard(self, shard: BatchShard) -> None:
        """Divide the following steps into other micro-batches of the same rows."""
        rows_per_rank = self.global_batch_size // shard.num_canonical_ranks
        owned = [range(rank * rows_per_rank, (rank + 1) * rows_per_rank) for rank in shard.canonical_ranks]
        self.shard = shard
        self.row_ranges = [rows for part in owned for rows in shard.cut(part, self.global_batch_size)]

    def set_epoch(self, epoch: int) -> None:
        """Order the documents for an epoch."""
        order = self.documents
        if self.seed is not None:
            order = order[permutation(len(order), self.seed, "lm", "order", epoch)]
        self._order, self._ends = order, np.cumsum(self.store.lengths[order])
        self._steps_read = range(0)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self.from_step(0)

    def from_step(self, first: int) -> Iterator[list[MicroBatch]]:
        """Yield the steps of the epoch from step `first` on, without reading the steps before it."""
        return map(self.step, range(first, len(self)))

    def step(self, step: int) -> list[MicroBatch]:
        """Return the micro-batches of one step of the epoch."""
        if step not in self._steps_read:
            self._steps_read, self._tokens_bT = range(step, step + STEPS_READ), self._read(step)
        begin = (step - self._steps_read.start) * self.seq_len
        tokens_bT = self._tokens_bT[:, begin : begin + self.seq_len + 1]
        return [self._micro_batch(rows, tokens_bT) for rows in self.row_ranges]

    def _micro_batch(self, rows: range, tokens_bT: np.ndarray) -> MicroBatch:
        first = self.row_ranges[0].start
        own_bT = tokens_bT[rows.start - first : rows.stop - first]
        x_bT, y_bT = own_bT[:, :-1].copy(), own_bT[:, 1:].copy()
        x_bT[x_bT == IGNORED] = PAD_ID
        global_tokens = self.global_batch_size * x_bT.shape[1]
        return MicroBatch(torch.from_numpy(x_bT), torch.from_numpy(y_bT), rows, self.global_batch_size, global_tokens)

    def _read(self, step: int) -> np.ndarray:
        """Return `STEPS_READ` steps of this rank's rows, and one token more, int64 [b, T].

        Positions after the end of the stream are `IGNORED`.
        """
        width = min(STEPS_READ * self.seq_len, self.row_len - step * self.seq_len) + 1
        rows_b = np.arange(self.row_ranges[0].start, self.row_ranges[-1].stop)
        begins_b = np.minimum(rows_b * self.row_len + step * self.seq_len, self.num_tokens)
        ends_b = np.minimum(begins_b + width, self.num_tokens)
        tokens_bT = np.full((len(rows_b), width), IGNORED, dtype=np.int64)
        # Only the last row of the stream may be shorter, and rows after it are empty: the concatenated pieces are the rows.
        if pieces := self._pieces(begins_b, ends_b):
            np.concatenate(pieces, out=tokens_bT.reshape(-1)[: (ends_b - begins_b).sum()])
        return tokens_bT

    def _pieces(self, begins_b: np.ndarray, ends_b: np.ndarray) -> list[np.ndarray]:
        """Return the pieces of documents between these positions of the stream."""
        first_b = np.searchsorted(self._ends, begins_b, side="right")
        stop_b = np.searchsorted(self._ends, ends_b) + 1
        in_order_p = np.concatenate([np.arange(first, stop) for first, stop in zip(first_b, stop_b, strict=True)])
        documents_p = self._order[in_order_p]
        lengths_p = self.store.lengths[documents_p]
        offsets_p = self._ends[in_order_p] - lengths_p
        begins_p = np.maximum(np.repeat(begins_b, stop_b - first_b) - offsets_p, 0)
        ends_p = np.minimum(np.repeat(ends_b, stop_b - first_b) - offsets_p, lengths_p)
        if self.backwards:
            return [piece[::-1] for piece in self.store.pieces(documents_p, lengths_p - ends_p, lengths_p - begins_p)]
        return self.store.pieces(documents_p, begins_p, ends_p)
