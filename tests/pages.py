"""The project's pages as their reader sees them: links, anchors, blocks of code, commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

from ulmfit_dist.cli.parser import EXAMPLES

PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples/README.md",
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HERE_DOCUMENT = re.compile(r"^([^\n]*)<<\s*'?(\w+)'?([^\n]*)\n(.*?)^\2$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"^# +((?:[A-Z_]+=\S+ )*(?:bash launch/|sbatch -|ulmfit-dist ).*)$", re.MULTILINE)


@dataclass
class Snippet:
    """A piece of a page that must stay true.

    Attributes:
        place: page and line, as an editor opens them.
        language: of a fenced block, empty where it says none; `inline` for code in a line of text.
    """

    place: str
    language: str
    text: str


def fenced(page: Path) -> list[Snippet]:
    """The blocks between lines of ```."""
    text = page.read_text(encoding="utf-8")
    return [Snippet(_place(page, text, actual.start()), actual[1], actual[2]) for actual in FENCED.finditer(text)]


def inline(page: Path) -> list[Snippet]:
    """Code in lines of text, between single backticks."""
    text = prose(page)
    return [Snippet(_place(page, text, actual.start()), "inline", actual[1]) for actual in re.finditer(r"`([^`\n]+)`", text)]


def prose(page: Path) -> str:
    """A page without its fenced blocks, of as many lines."""
    return FENCED.sub(lambda block: "\n" * block[0].count("\n"), page.read_text(encoding="utf-8"))


def links(page: Path) -> list[Snippet]:
    """The targets of links, and of pictures."""
    text = re.sub(r"`[^`\n]+`", lambda code: "_" * len(code[0]), prose(page))
    return [Snippet(_place(page, text, actual.start()), "", actual[1]) for actual in re.finditer(r"\]\(([^)\n]*)\)", text)]


def anchors(page: Path) -> set[str]:
    """Return the #anchors of a page: its headings, as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def written(language: str, by: str) -> list[Snippet]:
    """The blocks of a language on all pages, and what is within `<<EOF` and `EOF` of commands that match `by`."""
    actual = []
    for block in (block for page in PAGES for block in fenced(page)):
        if block.language == language:
            actual.append(block)
        if block.language == "bash":
            here = HERE_DOCUMENT.finditer(block.text)
            actual += [Snippet(block.place, language, text[4]) for text in here if re.search(by, text[1])]
    return actual


def commands() -> Iterator[tuple[str, list[str]]]:
    """Commands that a user is shown, as place and words: on the pages, in `--help`, in comments of scripts and recipes."""
    yield from _commands_of_pages()
    for line in EXAMPLES.splitlines():
        yield from (("--help", words) for words in _split(re.split(r" {3,}", line.strip())[0]))
    for pattern in ("launch/*.sh", "slurm/*.sbatch", "configs/**/*.yaml"):
        for script in ROOT.glob(pattern):
            for line in COMMENT.findall(script.read_text(encoding="utf-8")):
                yield from ((str(script.relative_to(ROOT)), words) for words in _split(line))


def _commands_of_pages() -> Iterator[tuple[str, list[str]]]:
    """Those in `bash` blocks, and those in lines of text."""
    for page in PAGES:
        for block in fenced(page):
            if block.language == "bash":
                for line in HERE_DOCUMENT.sub(r"\1\3", block.text).replace("\\\n", " ").splitlines():
                    yield from ((block.place, words) for words in _split(line))
        for code in inline(page):
            yield from ((code.place, words) for words in _split(code.text))


def _split(line: str) -> Iterator[list[str]]:
    """The simple commands of a line, without comments, and without variables in front."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for word in [*lexer, ";"]:
            if word and set(word) <= set("|&;<>"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)
    except ValueError:  # prose with an apostrophe
        return


def _place(page: Path, text: str, start: int) -> str:
    return f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, start) + 1}"
