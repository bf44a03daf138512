"""Comparison of the vocabulary of pretrained weights with that of the texts.

What counts is not how many tokens match, but how much of the texts they are. Below `ENOUGH`, the tokens themselves usually
show the reason: another script, other capitals, other pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.fastai_tokens import PIECE
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

ENOUGH = 0.8
"""Share of the texts' tokens with a pretrained embedding below which a warning is printed."""
MOST = 0.5
"""Share of the missing tokens that a reason must explain."""


@dataclass(frozen=True)
class VocabMatch:
    """Tokens of the texts and tokens of pretrained weights.

    Attributes:
        tokens: tokens of the weights by id.
        known: for each token of the texts' vocabulary whether the weights have it, [V].
    """

    tokens: Sequence[str]
    known: Sequence[bool]

    @property
    def num_known(self) -> int:
        return sum(self.known)

    def share(self, counts: np.ndarray) -> float:
        """Return the share of the texts' tokens that the weights have, for counts [V]."""
        return float(counts[np.array(self.known, dtype=bool)].sum() / max(counts.sum(), 1))


def match_vocab(tokens: Sequence[str], vocab: Sequence[str]) -> VocabMatch:
    """Return the match of the tokens of pretrained weights and a vocabulary."""
    known = set(tokens)
    return VocabMatch(tokens, [token in known for token in vocab])


def report_match(name: str, match: VocabMatch, store: TokenStore, runtime: Runtime) -> None:
    """Log how much of the texts the pretrained weights know, on rank 0, with a warning if that is little.

    Args:
        name: value of the key of the config that names the weights.
    """
    if not runtime.is_main:
        return
    counts = store.token_counts()
    share = match.share(counts)
    logger.info(
        f"pretrained {name}: {match.num_known:,} of {len(match.known):,} tokens of the vocabulary have a pretrained "
        f"embedding ({share:.1%} of the texts), the others get the mean embedding"
    )
    if share < ENOUGH:
        logger.warning(
            f"pretrained {name}: only {share:.1%} of the texts' tokens have a pretrained embedding, expected at least "
            f"{ENOUGH:.0%}: {likely_reason(match, store.vocab, counts)}"
        )


def likely_reason(match: VocabMatch, vocab: Sequence[str], counts: np.ndarray) -> str:
    """Return why tokens are missing, judged by the missing ones, each as often as it occurs."""
    missing = {token: int(count) for token, count, known in zip(vocab, counts, match.known, strict=True) if not known}
    total = max(sum(missing.values()), 1)
    lowered, with_mark = {token.lower() for token in match.tokens}, {token.removeprefix(PIECE) for token in match.tokens}
    alphabet = {char for token in match.tokens for char in token}

    def explains(condition: str, is_explained: Sequence[str]) -> str | None:
        return condition if sum(missing[token] for token in is_explained) > MOST * total else None

    known = set(match.tokens)
    cased = [token for token in missing if token in lowered or token.lower() in known]
    marked = [token for token in missing if token.removeprefix(PIECE) in with_mark]
    foreign = [token for token in missing if not set(token) <= alphabet]
    return (
        explains("the weights are of cased texts and these are lower-cased, or the other way round", cased)
        or explains("the weights are of texts in another script, so probably of another language", foreign)
        or explains(
            "the weights are of another tokenizer: set tokenizer.type and tokenizer.sp_model to those of the weights", marked
        )
        or "the weights are probably of another language, or of another tokenizer or SentencePiece model"
    )
