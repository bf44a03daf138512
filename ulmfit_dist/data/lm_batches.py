"""Batches for the language model: one stream, cut into rows.

The documents of an epoch, in its order, are one stream of tokens. It is cut into `global_batch_size` rows of equal
length, and step t gives each row its t-th `seq_len` tokens, so a row's hidden state carries over from step to step. Of W
(virtual) ranks r owns the rows `[r*B/W, (r+1)*B/W)`, and reads only those, through the memory map: a step costs the same
whatever the size of the corpus.

Training drops the less than `global_batch_size` tokens behind the last full row, other ones each epoch; validation drops
nothing: its last row is filled up with positions that do not count.

B: rows of all ranks, b: rows of a micro-batch, T: tokens of a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ulmfit_dist.data.batches import IGNORED, MicroBatch, Share
from ulmfit_dist.data.store import TokenStore
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.errors import UserError
from ulmfit_dist.randomness import permutation


class LMBatches:
    """A rank's rows of a stream of documents.

    Args:
        store: the corpus.
        documents: indices of the documents in the store.
        global_batch_size, seq_len: rows over all ranks, and tokens of a row per step.
        share: which of the rows are this rank's.
        seed: shuffles the documents each epoch; None keeps their order and every token, for validation.
        backwards: read each document from its end.

    Raises:
        UserError: fewer tokens than rows, or rows that cannot be shared evenly.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: np.ndarray,
        global_batch_size: int,
        seq_len: int,
        share: Share,
        seed: int | None = None,
        backwards: bool = False,
    ):
        share.check(global_batch_size, "lm.global_batch_size")
        self.store, self.documents, self.share, self.seed = store, documents, share, seed
        self.global_batch_size, self.seq_len = global_batch_size, seq_len
        each = global_batch_size // share.num_virtual_ranks
        owned = [range(rank * each, (rank + 1) * each) for rank in share.virtual_ranks]
        self.row_ranges = [rows for part in owned for rows in share.cut(part, global_batch_size)]
        self.direction = -1 if backwards else 1
        self.num_tokens = int(store.lengths[documents].sum())
        targets = self.num_tokens - 1
        whole_rows = targets // global_batch_size
        self.row_len = whole_rows if seed is not None else -(-targets // global_batch_size)
        if self.row_len < 1:
            raise UserError(
                f"{self.num_tokens} tokens to {'validate' if seed is None else 'train'} on are too few for "
                f"{global_batch_size} rows: "
                f"lower lm.global_batch_size, or give more text"
            )
        self.set_epoch(0)

    def __len__(self) -> int:
        return -(-self.row_len // self.seq_len)

    def to(self, device: torch.device) -> None:
        """Nothing to move: micro-batches go to the device as they are used."""

    def set_epoch(self, epoch: int) -> None:
        """Lay the documents in the order of the epoch."""
        order = self.documents
        if self.seed is not None:
            order = order[permutation(len(order), self.seed, "lm", "order", epoch)]
        self._order, self._ends = order, np.cumsum(self.store.lengths[order])

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self.from_step(0)

    def from_step(self, first: int) -> Iterator[list[MicroBatch]]:
        """The steps of the epoch from one on: nothing before it is read."""
        return map(self.step, range(first, len(self)))

    def step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of one step of the epoch."""
        return [self._micro_batch(rows, step) for rows in self.row_ranges]

    def _micro_batch(self, rows: range, step: int) -> MicroBatch:
        width = min(self.seq_len, self.row_len - step * self.seq_len)
        tokens_bT1 = np.full((len(rows), width + 1), PAD_ID, dtype=np.int64)
        counts = [
            self._read(row * self.row_len + step * self.seq_len, out) for row, out in zip(rows, tokens_bT1, strict=True)
        ]
        x_bT, y_bT = tokens_bT1[:, :-1].copy(), tokens_bT1[:, 1:].copy()
        for y_T, count in zip(y_bT, counts, strict=True):
            y_T[max(count - 1, 0) :] = IGNORED
        global_tokens = self.global_batch_size * width
        return MicroBatch(torch.from_numpy(x_bT), torch.from_numpy(y_bT), rows, self.global_batch_size, global_tokens)

    def _read(self, position: int, out: np.ndarray) -> int:
        """Fill `out` with the stream from `position` on; returns how many tokens the stream still had."""
        i = int(np.searchsorted(self._ends, position, side="right"))
        filled = 0
        while filled < len(out) and i < len(self._order):
            document = self.store.document(self._order[i])[:: self.direction]
            begin = position + filled - int(self._ends[i] - len(document))
            piece = document[begin : begin + len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
            i += 1
        return filled
