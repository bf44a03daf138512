"""White space as spaCy treats it: single spaces separate words, all other white space is a token.

Line breaks, nearly the only other white space in texts, have a path without regular expressions.
"""

from __future__ import annotations

import re

from ulmfit_dist.data.tokenizers.rules import BOS, rm_useless_spaces

_RARE = (*"\t\x0b\x0c\r\x1c\x1d\x1e\x1f", "▁")  # ASCII white space, and ▁, which must not be confused with a space
_OTHER_SPACE = re.compile(r" ?([^\S ]\s*)")


def space_out(text: str) -> str:
    """Return xxbos and the text, with one space between chunks. Other white space is a chunk, with its spaces as ▁."""
    if "  " in text:
        text = rm_useless_spaces(text)
    text = text.strip()
    if any(space in text for space in _RARE) or not (text.isascii() or text.replace("\n", "").isprintable()):
        text = _OTHER_SPACE.sub(_set_apart, text)
    elif "\n" in text:
        text = _set_line_breaks_apart(text)
    return f"{BOS} {text}" if text else BOS


def _set_line_breaks_apart(text: str) -> str:
    """Return the same as `_set_apart`, faster, for a text whose only other white space is line breaks."""
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
    """Return a run of white space as a chunk; a space before it ends the word, as in spaCy."""
    return f" {run[1].replace(' ', '▁')} "
