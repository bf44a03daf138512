"""Special tokens in the vocabularies of earlier versions of fastai and of SentencePiece, by their names today."""

from __future__ import annotations

from collections.abc import Sequence

from ulmfit_dist.data.tokenizers.rules import SPECIAL_TOKENS

PIECE = "\u2581"
"""SentencePiece's marker of the beginning of a word."""
_PIECES = {f"{PIECE}{token}": token for token in SPECIAL_TOKENS}
"""Special tokens by their pieces: fastai's SentencePiece models learn these, and not the rows of the tokens themselves."""
_EARLIER = {
    **{"_unk_": "xxunk", "_pad_": "xxpad", "xbos": "xxbos", "xfld": "xxfld"},  # fastai 0.7
    **{"tk_rep": "xxrep", "tk_wrep": "xxwrep", "t_up": "xxup"},
    **{"<unk>": "xxunk", "<pad>": "xxpad"},
}


def translate_tokens(tokens: Sequence[str]) -> list[str]:
    """Return tokens with the names of special tokens in this package, which are fastai 2's."""
    present = set(tokens)
    names = {**{old: new for old, new in _EARLIER.items() if new not in present}, **_PIECES}
    return [names.get(token, token) for token in tokens]
