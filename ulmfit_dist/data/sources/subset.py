"""Random subsets of a source: a test split cut from train, and a limit on the documents of each split.

The test split does not depend on the seed, so runs with several seeds are measured on the same documents; the trade-off is
that their spread does not include the choice of test documents.
"""

from __future__ import annotations

import numpy as np

from ulmfit_dist.data.sources.base import Source, Subset, TextDataset
from ulmfit_dist.errors import UserError
from ulmfit_dist.rng.counter_based import permutation


def cut_test_split(source: Source, fraction: float | None) -> Source:
    """Return the source with a fraction of its training documents as the test split; unchanged if it is None.

    Raises:
        UserError: the source has a test split, or too few documents.
    """
    if fraction is None:
        return source
    train = source.splits.get("train")
    if "test" in source.splits:
        raise UserError(
            f"data.test_pct={fraction} cuts a test split from the training documents, but the source has a test split of "
            f"{len(source.splits['test']):,} documents: set data.test_pct=null, or leave that split out of data.splits"
        )
    number = 0 if train is None else int(len(train) * fraction)
    if train is None or number == 0:
        raise UserError(
            f"data.test_pct={fraction} of {0 if train is None else len(train)} training documents is less than one "
            f"document: raise it, or set it to null"
        )
    order = permutation(len(train), 0, "test")
    splits = {
        **source.splits,
        "train": Subset(train, np.sort(order[number:])),
        "test": Subset(train, np.sort(order[:number])),
    }
    return Source(splits, {**source.identity, "test_pct": fraction}, source.notices)


def limit_documents(source: Source, limit: int | None, seed: int) -> Source:
    """Return the source with at most `limit` random documents per split; unchanged if the limit is None."""
    if limit is None:
        return source
    splits: dict[str, TextDataset] = {}
    for split, documents in source.splits.items():
        drawn = permutation(len(documents), seed, "limit", split)[:limit]
        splits[split] = Subset(documents, np.sort(drawn))
    return Source(splits, {**source.identity, "max_documents": limit, "seed": seed}, source.notices)
