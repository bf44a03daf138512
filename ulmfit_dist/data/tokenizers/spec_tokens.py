"""Tokens as a text that people read.

fastai's `decode_spec_tokens` goes on repeating all that follows a repetition, up to the next capital; here one token is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ulmfit_dist.data.tokenizers.rules import BOS, PAD, SPECIAL_TOKENS, TK_MAJ, TK_REP, TK_UP, TK_WREP

LEFT_OUT = {BOS, PAD}
MOST_REPETITIONS = 100
"""Of a token: a model may make up any number."""


def readable(tokens: Iterable[str], kind: str) -> str:
    """A text of which these are the tokens: fastai's marks for capitals and repetitions are carried out.

    Args:
        kind: as tokenizer.type.
    """
    shown = [token for token in tokens if token not in LEFT_OUT]
    return " ".join(_carried_out(iter(words_of_pieces(shown) if kind == "sentencepiece" else shown)))


def words_of_pieces(pieces: Sequence[str]) -> list[str]:
    """The words that SentencePiece's pieces make up."""
    return "".join(f"▁{piece}▁" if piece in SPECIAL_TOKENS else piece for piece in pieces).replace("▁", " ").split()


def _carried_out(tokens: Iterator[str]) -> Iterator[str]:
    """Words, where xxmaj, xxup, xxrep and xxwrep say what is to be done with the next ones."""
    for token in tokens:
        if token == TK_MAJ:
            yield next(tokens, "").capitalize()
        elif token == TK_UP:
            yield next(tokens, "").upper()
        elif token in (TK_REP, TK_WREP):
            count, repeated = next(tokens, ""), next(tokens, "")
            times = min(int(count), MOST_REPETITIONS) if count.isdecimal() else 1
            yield repeated * times if token == TK_REP else " ".join([repeated] * times)
        else:
            yield token
