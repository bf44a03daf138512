"""Tokens of a sample: lengths of texts, fraction of unknown tokens, and speed of the tokenizer.

Tokenization stops after some seconds, so `init` takes as long for a large corpus as for a small one. Trade-off: counts are
estimates.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.token_store import MODEL_FILE
from ulmfit_dist.data.tokenizers.base import TextTokenizer
from ulmfit_dist.data.tokenizers.word import open_tokenizer
from ulmfit_dist.data.vocab import build_vocab

MOST_SECONDS = 6.0
"""Time limit of tokenization, in seconds."""
AT_ONCE = 200
"""Texts per call of the tokenizer."""
PIECES_CHARACTERS = 2_000_000
"""Maximum number of characters for training a SentencePiece model of the sample."""
GROWTH = 0.6
"""Exponent of Heaps' law: growth of distinct tokens with the number of tokens."""


@dataclass(frozen=True)
class TokenSample:
    """Tokens of some texts.

    Attributes:
        lengths: tokens of each text, int64 [texts].
        per_character: tokens per character of text.
        characters_per_second: speed of the tokenizer with a warm cache.
        start_seconds: start-up time of the tokenizer.
        unknown: fraction of the tokens of every second text that are not in the vocabulary of the others.
        num_frequent: number of distinct tokens that occur at least `min_freq` times.
    """

    lengths: np.ndarray
    per_character: float
    characters_per_second: float
    start_seconds: float
    unknown: float
    num_frequent: int

    def vocab_size(self, growth: float, max_vocab: int) -> int:
        """Return the expected vocabulary size for `growth` times as many texts."""
        return min(int(self.num_frequent * max(growth, 1.0) ** GROWTH) + 9, max_vocab) // 8 * 8


def sample_tokens(texts: Sequence[str], config: TokenizerConfig) -> TokenSample:
    """Tokenize texts for up to `MOST_SECONDS`, and count tokens. Raises UserError if the tokenizer cannot be created."""
    started = time.perf_counter()
    tokenizer = _tokenizer(texts, config)
    tokenizer.encode(["A first text."])
    start_seconds = time.perf_counter() - started
    sides: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    lengths: list[int] = []
    characters, seconds = list[int](), list[float]()
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        started = time.perf_counter()
        (ids, sizes), tokens = tokenizer.encode_with_tokens(part)
        seconds.append(time.perf_counter() - started)
        characters.append(sum(map(len, part)))
        owners = np.repeat(np.arange(len(part)) % 2, sizes)
        for side in (0, 1):
            counts = np.bincount(ids[owners == side], minlength=len(tokens))
            for i in np.flatnonzero(counts).tolist():
                sides[side][tokens[i]] += int(counts[i])
        lengths += sizes.tolist()
        if sum(seconds) > MOST_SECONDS:
            break
    known = set(build_vocab(sides[0], config.min_freq, config.max_vocab))
    num_unknown = sum(number for token, number in sides[1].items() if token not in known)
    late = slice(len(seconds) // 2, None)
    return TokenSample(
        lengths=np.array(lengths, dtype=np.int64),
        per_character=sum(lengths) / max(sum(characters), 1),
        characters_per_second=sum(characters[late]) / max(sum(seconds[late]), 1e-6),
        start_seconds=start_seconds,
        unknown=num_unknown / max(sides[1].total(), 1),
        num_frequent=sum(number >= config.min_freq for number in (sides[0] + sides[1]).values()),
    )


def _tokenizer(texts: Sequence[str], config: TokenizerConfig) -> TextTokenizer:
    if config.type == "word":
        return open_tokenizer(config, Path())
    from ulmfit_dist.data.tokenizers.sentencepiece import make_model

    part, left = list[str](), PIECES_CHARACTERS
    for text in texts:
        part.append(text)
        left -= len(text)
        if left < 0:
            break
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL_FILE).write_bytes(make_model(config, part))
        return open_tokenizer(config, Path(folder))
