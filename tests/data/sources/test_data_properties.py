"""Made corpora: no document is ever on two sides, none is lost without being named, and the content alone identifies it."""

import itertools
import os
import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.base import Source
from ulmfit_dist.data.sources.split_names import SPLIT_NAMES
from ulmfit_dist.errors import UserError

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "25"))
BASE = load_config(None, ["data.path=."]).data
NAMES = [*itertools.chain(*SPLIT_NAMES.values()), "extra", "train-1", "train-2", "Val", "notes"]
FORMS = ("csv", "json", "parquet", "folder")


@dataclass(frozen=True)
class Part:
    """A file of a table, or a folder of texts.

    Attributes:
        name: without its ending.
        size: documents.
        is_hidden, is_other: whether its name begins with a dot; whether it has an ending that is not the source's.
        link: whether a link of this name to it is there, too; None: no link.
    """

    name: str
    size: int
    is_hidden: bool = False
    is_other: bool = False
    link: str | None = None


parts = st.builds(
    Part,
    name=st.sampled_from(NAMES),
    size=st.integers(1, 4),
    is_hidden=st.sampled_from([False, False, False, True]),
    is_other=st.sampled_from([False, False, False, True]),
    link=st.sampled_from([None, None, None, "train-3", "copy"]),
)


def write(folder: Path, form: str, corpus: list[Part]) -> dict[str, str]:
    """Write a corpus; returns for each text the name of its file or folder."""
    texts: dict[str, str] = {}
    for number, part in enumerate(corpus):
        rows = [(f"text {number} {i}", "ab"[i % 2]) for i in range(part.size)]
        name = f"{'.' if part.is_hidden else ''}{part.name}"
        place = write_part(folder, form, name, part, rows)
        texts |= dict.fromkeys((text for text, _ in rows), place.name)
        link = folder / f"{part.link}{place.suffix if form != 'folder' else ''}"
        if part.link is not None and not os.path.lexists(link):
            os.symlink(place.name, link)
    return texts


def write_part(folder: Path, form: str, name: str, part: Part, rows: list[tuple[str, str]]) -> Path:
    if form == "folder":
        for i, (text, label) in enumerate(rows):
            file = folder / name / label / f"{i}.{'dat' if part.is_other else 'txt'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return folder / name
    place = folder / f"{name}.{'dat' if part.is_other else form}"
    if form == "parquet" and not part.is_other:
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        pyarrow.parquet.write_table(pyarrow.table(columns), place)
    elif form == "json":
        place.write_text("".join(f'{{"text": "{text}", "label": "{label}"}}\n' for text, label in rows))
    else:
        place.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return place


def opened(form: str, folder: Path) -> Source:
    return open_source(replace(BASE, source=form, path=str(folder), cache_dir=str(folder.parent / "cache")))


def opened_or_refused(form: str, folder: Path) -> Source | None:
    try:
        return opened(form, folder)
    except UserError:
        return None


def read(source: Source) -> dict[str, list[str | None]]:
    return {split: documents.read(0, len(documents))[0] for split, documents in source.splits.items()}


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.sampled_from(FORMS), st.lists(parts, min_size=1, max_size=6, unique_by=lambda part: part.name), st.randoms())
def test_no_document_is_on_two_sides_and_none_is_lost_without_a_word(form: str, corpus: list[Part], rng: random.Random):
    if rng.random() < 0.8:  # else some have no train split, and are refused
        corpus = [*(part for part in corpus if part.name != "train"), Part("train", 3)]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "in"
        place.mkdir()
        texts = write(place, form, corpus)
        source = opened_or_refused(form, place)
        if source is None:
            return
        splits = read(source)
        together = [text for split in splits.values() for text in split]
        assert len(together) == len(set(together))
        notices = " ".join(source.notices)
        for text, file in texts.items():
            if text not in together and not file.startswith("."):
                stem, ending = (file, "") if form == "folder" else os.path.splitext(file)
                assert stem in notices or (ending and ending in notices), (text, file, notices)

        elsewhere = Path(name) / "elsewhere" / "in"
        shutil.copytree(place, elsewhere, symlinks=True)
        for file in elsewhere.rglob("*"):
            if file.is_file() and not file.is_symlink():
                os.utime(file, (rng.randint(1, 10**9), rng.randint(1, 10**9)))
        assert opened(form, elsewhere).identity == source.identity
