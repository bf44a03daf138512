"""Decoding of special tokens, for tokens shown one by one.

fastai's `decode_spec_tokens` repeats everything after a repetition up to the next capital; this module repeats one token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ulmfit_dist.data.tokenizers.rules import BOS, PAD, SPECIAL_TOKENS, TK_MAJ, TK_REP, TK_UP, TK_WREP

LEFT_OUT = {BOS, PAD}
"""Tokens that are not shown."""
MOST_REPETITIONS = 100
"""Maximum count of a repetition: a language model may generate any number."""


def readable(tokens: Iterable[str], tokenizer_type: str) -> str:
    """Return tokens joined by spaces, with capitals and repetitions decoded.

    Args:
        tokenizer_type: `tokenizer.type`.
    """
    shown = [token for token in tokens if token not in LEFT_OUT]
    return " ".join(_decode(iter(words_of_pieces(shown) if tokenizer_type == "sentencepiece" else shown)))


def words_of_pieces(pieces: Sequence[str]) -> list[str]:
    """Return the words of SentencePiece's tokens."""
    return "".join(f"▁{piece}▁" if piece in SPECIAL_TOKENS else piece for piece in pieces).replace("▁", " ").split()


def _decode(tokens: Iterator[str]) -> Iterator[str]:
    """Yield words, with xxmaj, xxup, xxrep and xxwrep applied to the next ones."""
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
