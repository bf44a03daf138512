"""White space as spaCy sees it: single spaces part words, all else is a token."""

from __future__ import annotations

import re

from ulmfit_dist.data.tokenizers.rules import BOS, rm_useless_spaces

_RARE = (*"\t\x0b\x0c\r\x1c\x1d\x1e\x1f", "▁")  # in ASCII; and ▁, which stands for a space, so not for itself
_OTHER_SPACE = re.compile(r" ?([^\S ]\s*)")


def space_out(text: str) -> str:
    """xxbos and the text, a space between all chunks. Other white space is a chunk, the spaces in it written as ▁."""
    if "  " in text:
        text = rm_useless_spaces(text)
    text = text.strip()
    if any(space in text for space in _RARE) or not (text.isascii() or text.replace("\n", "").isprintable()):
        text = _OTHER_SPACE.sub(_set_apart, text)
    elif "\n" in text:
        text = _set_line_breaks_apart(text)
    return f"{BOS} {text}" if text else BOS


def _set_line_breaks_apart(text: str) -> str:
    """What `_set_apart` does, faster, for a text whose only other white space are line breaks."""
    first, *lines = text.split("\n")
    parts, run = [first.strip(" ")], ""
    for line in lines:
        run += "\n▁" if line.startswith(" ") else "\n"
        words = line.strip(" ")
        if words:
            parts += [run, words]
            run = ""
    return " ".join(parts)


def _set_apart(run: re.Match[str]) -> str:
    """spaCy takes a space before other white space as the end of the word, and what follows as a token."""
    return f" {run[1].replace(' ', '▁')} "
