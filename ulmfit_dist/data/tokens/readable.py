"""Tokens as a text that people read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastai.text.core import BOS, PAD, defaults
from fastai.text.learner import decode_spec_tokens

LEFT_OUT = {BOS, PAD}


def readable(tokens: Iterable[str], kind: str) -> str:
    """A text of which these are the tokens: fastai's marks for capitals and repetitions are carried out.

    Args:
        kind: as tokenizer.kind.
    """
    shown = [token for token in tokens if token not in LEFT_OUT]
    return " ".join(decode_spec_tokens(words_of_pieces(shown) if kind == "sentencepiece" else shown))


def words_of_pieces(pieces: Sequence[str]) -> list[str]:
    """The words that SentencePiece's pieces make up."""
    return "".join(f"▁{piece}▁" if piece in defaults.text_spec_tok else piece for piece in pieces).replace("▁", " ").split()
