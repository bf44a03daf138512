"""Tokens as running text: fastai's marks undone, and white space where the language puts it.

Tokens hold no white space, so rules decide each gap. Two facts make them better than a list of punctuation: fastai puts
xxmaj and xxup only behind white space, so a mark is a space; and spaCy splits a word only at its exceptions and infixes, so
what it alone splits is joined. docs/tokens.md has the share of gaps that come out right, and what cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ulmfit_dist.data.tokenizers import punctuation as marks
from ulmfit_dist.data.tokenizers.rules import BOS, EOS, FLD, PAD, TK_MAJ, TK_REP, TK_UP, TK_WREP, UNK
from ulmfit_dist.data.tokenizers.spec_tokens import MOST_REPETITIONS, words_of_pieces

UNKNOWN = "<unk>"
"""Shown for xxunk: a word that the vocabulary lacks."""
LINE_BREAK = "\n"
JOINED_AS_ARE = ("/", "\\", "#")
"""Characters that fastai puts spaces around, so a mark behind one is not evidence of a space."""


@dataclass
class Piece:
    """A token as it is shown.

    Attributes:
        text: in lower case, as in the vocabulary; `LINE_BREAK` between lines.
        capitals: `first` or `all`, from xxmaj or xxup.
        is_repeated: made of one character by xxrep.
    """

    text: str
    capitals: str = ""
    is_repeated: bool = False

    @property
    def mark(self) -> str:
        """The character that decides about white space: the first of `!!!!` and `?!`; other tokens as they are."""
        is_one_mark = len(set(self.text)) == 1 or set(self.text) <= marks.SENTENCE_ENDS
        return self.text[0] if is_one_mark else self.text

    @property
    def is_break(self) -> bool:
        return self.text == LINE_BREAK


def detokenize(tokens: Iterable[str], kind: str, lang: str = "en", keep_lines: bool = False) -> str:
    """Return the running text of tokens.

    Args:
        kind: as tokenizer.type. SentencePiece's pieces hold their white space: only fastai's marks are undone.
        lang: as tokenizer.lang: decides about contractions, elisions, quotation marks and spaced punctuation.
        keep_lines: keep line breaks, in place of a space for each.
    """
    if kind == "sentencepiece":
        pieces = list(_pieces(iter(words_of_pieces(list(tokens)))))
        text = "".join(_written(pieces, [False] * len(pieces), None))
    else:
        pieces = list(_pieces(iter(tokens)))
        text = "".join(_written(pieces, _Gaps(pieces, lang).decide(), lang))
    if not keep_lines:
        return " ".join(text.split())
    return "\n".join(" ".join(line.split()) for line in text.split("\n")).strip("\n")


def _pieces(tokens: Iterator[str]) -> Iterator[Piece]:
    capitals = ""
    for token in tokens:
        if token in (TK_MAJ, TK_UP):
            capitals = "first" if token == TK_MAJ else "all"
        elif token in (TK_REP, TK_WREP):
            count, repeated = next(tokens, ""), next(tokens, "")
            times = max(1, min(int(count), MOST_REPETITIONS)) if count.isdecimal() else 1
            if token == TK_REP and repeated:
                yield Piece(repeated * times, capitals, is_repeated=True)
            elif repeated:
                yield from (Piece(repeated, capitals if i == 0 else "") for i in range(times))
            capitals = ""
        elif token in (BOS, EOS):
            yield Piece(LINE_BREAK)
        elif token in (PAD, FLD):
            continue
        elif not token.strip("▁ \t\r\n\u00a0"):
            yield from [Piece(LINE_BREAK)] * min(token.count("\n"), 2)
        else:
            yield Piece(UNKNOWN if token == UNK else token.replace("▁", " "), capitals)
            capitals = ""


class _Gaps:
    """Decides for each piece whether it is joined to the one before.

    Args:
        pieces: of the text.
        lang: spaCy's code of the language.
    """

    def __init__(self, pieces: Sequence[Piece], lang: str):
        self.pieces, self.lang = pieces, lang
        self.pairs = marks.split_pairs(lang)
        self.open: list[str] = []
        """Opening marks of brackets and quotations that are not closed yet."""
        self.joins_next = False

    def decide(self) -> list[bool]:
        found = []
        for i, piece in enumerate(self.pieces):
            if piece.is_break:
                self.open.clear()  # a quotation that is not closed ends with its paragraph
                is_joined, self.joins_next = True, False
            else:
                is_joined, self.joins_next = self._decide(i, piece)
            found.append(is_joined)
        return found

    def _decide(self, i: int, piece: Piece) -> tuple[bool, bool]:
        """Return whether a piece is joined to the one before, and the next one to it."""
        left, after = self._left(i), self._after(i)
        if piece.text in marks.STRAIGHT:
            return self._straight(i, piece.text, left, after)
        if piece.mark in marks.CLOSED_BY or piece.mark in marks.OPENING:
            return self._bracket(piece.mark, left)
        if piece.text in ("/", "\\"):
            return bool(left), after is not None and after.text not in marks.CLOSING
        if piece.text == "#":
            return self.joins_next, after is not None
        if piece.text.endswith(marks.CURRENCIES):
            return self._currency(left, after)
        if piece.text in marks.DASHES and left and after is not None:
            return self._dash(i, piece.text, left, after)
        is_elided = self.lang in marks.ELIDING and marks.ELIDED.match(piece.text) is not None
        return self.joins_next or (bool(left) and self._follows(i, piece, left)), is_elided

    def _left(self, i: int) -> str:
        return "" if i == 0 or self.pieces[i - 1].is_break else self.pieces[i - 1].text

    def _after(self, i: int) -> Piece | None:
        return None if i + 1 == len(self.pieces) or self.pieces[i + 1].is_break else self.pieces[i + 1]

    def _follows(self, i: int, piece: Piece, left: str) -> bool:
        """Return whether a piece is joined to its left by what it is: punctuation, or a part of a word."""
        text, mark = piece.text, piece.mark
        if marks.UNSPACED.match(text) and (marks.UNSPACED.match(left[-1]) or left in ("”", "’")):
            return True
        if piece.capitals:
            return False
        if mark in marks.CLOSING:
            if self.lang == "fr" and mark in ";:!?":
                return left[-1] in "!?"
            return mark not in "%‰" or self.lang not in marks.SPACED_PERCENT
        if piece.is_repeated and text.isdigit() and left in (",", ".") and i > 1:
            return self.pieces[i - 2].text[-1].isdigit()  # 82,000, whose zeros are a repetition to fastai
        if piece.is_repeated and text[0].isalnum() and left[-1].isalnum():
            return text[0].isalpha() == left[-1].isalpha()
        if self.pieces[i - 1].is_repeated and text[0] == ".":
            return True  # www.
        if marks.ENCLITIC.match(text) and left[-1].isalnum():
            return self.lang == "en" or text[0] in "'’"
        if (left, text) in self.pairs or (marks.HYPHENATED.match(text) and left[-1].isalpha()):
            return True
        return self.lang == "en" and text in marks.TIGHT_UNITS and left[-1].isdigit()

    def _currency(self, left: str, after: Piece | None) -> tuple[bool, bool]:
        if self.lang == "en" and left[-1:].isdigit():
            return True, False
        return self.joins_next, after is not None and after.text[0].isdigit()

    def _dash(self, i: int, dash: str, left: str, after: Piece) -> tuple[bool, bool]:
        """A hyphen where spaCy splits a word, but before a word that hardly any compound ends with."""
        if after.capitals or self.joins_next:
            return self.joins_next, False
        word = f"{left}{dash}{after.text}"
        is_hyphen = any(match.start() == len(left) for match in marks.infixes(self.lang).finditer(word))
        is_in_chain = any(0 <= j < len(self.pieces) and self.pieces[j].text == dash for j in (i - 2, i + 2))
        if is_hyphen and not is_in_chain and dash != "--":
            is_hyphen = after.text not in marks.dash_words(self.lang)
        return is_hyphen, is_hyphen

    def _bracket(self, mark: str, left: str) -> tuple[bool, bool]:
        """Brackets, and quotation marks that differ by side."""
        openers = marks.CLOSED_BY.get(mark, "") + (mark if self.lang in marks.SAME_ON_BOTH_SIDES else "")
        opened = next((opener for opener in reversed(self.open) if opener in openers), None)
        is_spaced = self.lang == "fr" and mark in "«»"
        if opened is not None:
            self.open.remove(opened)
            return bool(left) and not is_spaced, False
        may_open = mark in marks.OPENING or (
            mark in marks.CLOSED_BY
            and self.lang in (marks.OPENED_BY_GUILLEMET if mark in "»›" else marks.SAME_ON_BOTH_SIDES)
        )
        if not may_open:
            return bool(left) and not is_spaced, False
        self.open.append(mark)
        return self.joins_next or marks.UNSPACED.match(left[-1:]) is not None, not is_spaced

    def _straight(self, i: int, mark: str, left: str, after: Piece | None) -> tuple[bool, bool]:
        """Quotation marks that are the same on both sides, and apostrophes at the ends of words."""
        is_open = mark in self.open
        closes = self._closes(i, mark, left, after)
        if is_open:
            self.open.remove(mark)
        if closes:
            return True, False
        is_quotation = self._is_closed_later(i, mark)
        if is_quotation:
            self.open.append(mark)
        return self.joins_next, is_quotation or mark != "*"

    def _closes(self, i: int, mark: str, left: str, after: Piece | None) -> bool:
        is_open = mark in self.open
        if not left or (self.joins_next and not is_open):
            return False
        if after is None or after.capitals or (after.mark in marks.CLOSING and after.mark != "…"):
            return is_open or mark != "*"
        if left == "." and after.text != "a" and after.text[0].isalpha():
            return False  # a word that begins a sentence has its xxmaj, but for behind a quotation mark
        if is_open:
            return True
        if left[-1] in ",:" and mark != "'":
            return left[-1] == "," and after.text in marks.SPEECH
        if self._is_closed_later(i, mark, within_sentence=left.endswith("s")):
            return False
        return left[-1].isdigit() or (mark == "'" and left.endswith(("s", "in", "z", "x")))

    def _is_closed_later(self, i: int, mark: str, within_sentence: bool = False) -> bool:
        for piece in self.pieces[i + 1 : i + 1 + marks.QUOTED_AHEAD]:
            if piece.is_break or (within_sentence and piece.mark in marks.SENTENCE_ENDS):
                return False
            if piece.text == mark:
                return True
        return False


def _written(pieces: Sequence[Piece], is_joined: Sequence[bool], lang: str | None) -> Iterator[str]:
    """Yield the texts of pieces with their gaps and capitals.

    xxup is for all that was one chunk of text (`FA-CUP`). Words of one letter, and those behind an opening quotation mark,
    lose their xxmaj to fastai's rules: where a language is given, they get a capital back at the beginning of a sentence.
    """
    is_upper, begins, before = False, True, ""
    for piece, joined in zip(pieces, is_joined, strict=True):
        if not joined:
            yield " "
        is_upper = piece.capitals == "all" or (is_upper and joined and before not in JOINED_AS_ARE)
        text = piece.text
        is_word = text[0].isalnum()
        has_lost_capital = (text == "i" and lang == "en") or (is_word and begins and (joined or len(text) == 1))
        if is_upper:
            text = text.upper()
        elif piece.capitals or (has_lost_capital and lang is not None):
            text = text[0].upper() + text[1:]
        yield text
        opens = piece.text in marks.QUOTATIONS and not joined
        begins = (
            piece.is_break
            or (begins and not is_word and piece.text not in marks.DASHES)
            or piece.mark in marks.SENTENCE_ENDS
            or (opens and before in (",", ":"))
        )
        before = piece.text
