"""Splits that are made of a source's documents by chance: a test split, and fewer documents of each."""

from __future__ import annotations

import numpy as np

from ulmfit_dist.data.sources.base import Source, Subset, TextDataset
from ulmfit_dist.errors import UserError
from ulmfit_dist.rng.counter_based import permutation


def cut_test_split(source: Source, share: float | None) -> Source:
    """Return the source with a share of its training documents as its test split; itself where the share is None.

    The documents do not depend on the seed of a run: runs of several seeds are measured on the same ones.

    Raises:
        UserError: the source has a test split, or too few documents to cut one.
    """
    if share is None:
        return source
    train = source.splits.get("train")
    if "test" in source.splits:
        raise UserError(
            f"data.test_pct={share} cuts a test split from the training documents, and there is one of "
            f"{len(source.splits['test']):,} documents: set data.test_pct=null, or leave that one out by data.splits"
        )
    number = 0 if train is None else int(len(train) * share)
    if train is None or number == 0:
        raise UserError(
            f"data.test_pct={share} of {0 if train is None else len(train)} training documents is none: raise it, or set it "
            f"to null"
        )
    order = permutation(len(train), 0, "test")
    splits = {
        **source.splits,
        "train": Subset(train, np.sort(order[number:])),
        "test": Subset(train, np.sort(order[:number])),
    }
    return Source(splits, {**source.identity, "test_pct": share}, source.notices)


def limit_documents(source: Source, limit: int | None, seed: int) -> Source:
    """Return the source with at most `limit` documents of each split, drawn by seed; itself where the limit is None."""
    if limit is None:
        return source
    splits: dict[str, TextDataset] = {}
    for split, documents in source.splits.items():
        drawn = permutation(len(documents), seed, "limit", split)[:limit]
        splits[split] = Subset(documents, np.sort(drawn))
    return Source(splits, {**source.identity, "max_documents": limit, "seed": seed}, source.notices)
