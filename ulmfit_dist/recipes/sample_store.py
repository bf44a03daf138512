"""A token store of a sample, in a temporary folder, to measure the steps of a recipe on before there is a store."""

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
CHARACTERS = 2_000_000
"""Documents of the sample at most, and their characters."""
FEWEST = 24
"""Documents of a split that are taken where there are so many."""


@dataclass
class SampledDocuments:
    """Texts and labels of a sample, as a split of a source."""

    texts: Sequence[str]
    labels: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        return list(self.texts[start:stop]), list(self.labels[start:stop])


def make_sample_store(folder: Path, survey: Survey, tokenizer: TokenizerConfig) -> tuple[TokenStore, float]:
    """Write a store of a sample.

    Labels are replaced by two classes, which both halves of any cut have: the time of a step hardly depends on them.

    Args:
        folder: where it is written; it exists.

    Returns:
        The store, and the number of documents of the whole over those in it.
    """
    sample = [text for split in survey.splits.values() for text, _ in split.sample]
    mean = sum(map(len, sample)) / max(len(sample), 1)
    share = min(1.0, DOCUMENTS / max(len(sample), 1), CHARACTERS / max(mean * len(sample), 1))
    splits: dict[str, TextDataset] = {}
    for name, split in survey.splits.items():
        number = min(len(split.sample), max(round(len(split.sample) * share), FEWEST))
        chosen = [split.sample[i * len(split.sample) // number] for i in range(number)]
        labels = [None if label is None else "ab"[i % 2] for i, (_, label) in enumerate(chosen)]
        splits[name] = SampledDocuments([text for text, _ in chosen], labels)
    builder = TokenStoreBuilder(folder, Source(splits, {}), tokenizer, DOCUMENTS)
    builder.train_tokenizer()
    everything = range(len(builder.shards))
    builder.tokenize(everything, num_workers=0, shown=False)
    builder.merge()
    builder.map(everything, num_workers=0)
    builder.finish({"format": FORMAT, "tokenizer": dict(vars(tokenizer))})
    store = TokenStore(folder)
    return store, survey.num_documents / max(len(store), 1)
