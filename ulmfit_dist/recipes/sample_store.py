"""Token store of a sample of the texts, on which `init` times training steps before `prepare` has run.

Trade-off: labels are replaced by two balanced classes, so the classifier's loss is meaningless, and its duration accurate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.profile.survey import Survey
from ulmfit_dist.data.sources.base import Source, TextDataset
from ulmfit_dist.data.store_builder import TokenStoreBuilder
from ulmfit_dist.data.token_store import FORMAT, TokenStore

DOCUMENTS = 4000
"""Maximum number of documents of the sample."""
CHARACTERS = 2_000_000
"""Maximum number of characters of the sample."""
FEWEST = 24
"""Minimum number of documents per split, if it has so many."""


@dataclass
class SampledDocuments:
    """Sampled texts and labels as a split of a source."""

    texts: Sequence[str]
    labels: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        return list(self.texts[start:stop]), list(self.labels[start:stop])


def make_sample_store(folder: Path, survey: Survey, tokenizer: TokenizerConfig) -> tuple[TokenStore, float]:
    """Write a store of a sample.

    Labels are replaced by two alternating classes, so that every split has both.

    Args:
        folder: existing folder for the store.

    Returns:
        The store, and the number of documents of the corpus over those in the store.
    """
    sample = [text for split in survey.splits.values() for text, _ in split.sample]
    mean = sum(map(len, sample)) / max(len(sample), 1)
    share = min(1.0, DOCUMENTS / max(len(sample), 1), CHARACTERS / max(mean * len(sample), 1))
    splits: dict[str, TextDataset] = {}
    for name, split in survey.splits.items():
        size = min(len(split.sample), max(round(len(split.sample) * share), FEWEST))
        chosen = [split.sample[i * len(split.sample) // size] for i in range(size)]
        labels = [None if label is None else "ab"[i % 2] for i, (_, label) in enumerate(chosen)]
        splits[name] = SampledDocuments([text for text, _ in chosen], labels)
    builder = TokenStoreBuilder(folder, Source(splits, {}), tokenizer, DOCUMENTS)
    builder.train_tokenizer()
    shards = range(len(builder.shards))
    builder.tokenize(shards, num_workers=0, shown=False)
    builder.merge()
    builder.map(shards, num_workers=0)
    builder.finish({"format": FORMAT, "tokenizer": dict(vars(tokenizer))})
    store = TokenStore(folder)
    return store, survey.num_documents / max(len(store), 1)
