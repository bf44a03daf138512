"""The inputs that people reported, as `prepare` reads them: what is printed, the exit code, and the store."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, command_here, made_once, succeed_here

from ulmfit_dist.data.token_store import NO_LABEL, TokenStore

CASES = ROOT.parent / "shared" / "cases" / "make.py"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the reported inputs are not here")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        before = sys.argv
        sys.argv = [str(CASES), str(folder)]
        try:
            runpy.run_path(str(CASES), run_name="__main__")
        finally:
            sys.argv = before

    return made_once(tmp_path_factory, "cases", make)


def words(recipe: Path, cases: Path, cache: Path, source: str, path: str, *others: str) -> list[object]:
    place = [f"data.source={source}", f"data.path={cases / path}", f"data.cache_dir={cache}", "tokenizer.min_freq=1"]
    return ["prepare", recipe, *place, *others]


def prepared(printed: str) -> TokenStore:
    (path,) = re.findall(r"\(([^()]+)\)$", printed.strip().splitlines()[-1])
    return TokenStore(Path(path))


def labels(store: TokenStore) -> dict[str, Counter[str]]:
    """Documents of each label, by split; "" stands for none."""
    names = {NO_LABEL: "", **dict(enumerate(store.label_names))}
    actual = {
        split: Counter(names[label] for label in store.labels[store.split(split)].tolist()) for split in store.meta["splits"]
    }
    return {split: counts for split, counts in actual.items() if counts}


HALVES = Counter(neg=20, pos=20)


@pytest.mark.parametrize(
    ("source", "path", "others", "expected", "output"),
    [
        ("parquet", "02", ["data.splits={train: 'part-*'}"], {"train": Counter(neg=30, pos=30)}, ""),
        ("csv", "03", [], {"train": HALVES, "valid": Counter(neg=10, pos=10)}, ""),
        ("csv", "04", [], {"train": HALVES, "valid": Counter(neg=5, pos=5), "test": Counter(neg=5, pos=5)}, ""),
        ("folder", "05", [], {"train": HALVES, "valid": Counter(neg=10, pos=10)}, ""),
        ("folder", "06", [], {"train": HALVES}, ""),
        ("folder", "07", [], {"train": HALVES}, ""),
        ("folder", "08", [], {"train": HALVES, "unlabelled": Counter({"": 10}), "test": Counter(neg=10, pos=10)}, ""),
        ("csv", "09/x.csv", [], {"train": HALVES}, ""),
        ("csv", "10/x.csv.gz", [], {"train": HALVES}, ""),
        ("csv", "11/x.csv", ["data.on_error=strict"], {"train": HALVES}, ""),
        ("csv", "13/x.tsv", [], {"train": HALVES}, ""),
        ("json", "14/x.jsonl", [], {"train": Counter({"": 10, "neg": 10, "pos": 20})}, ""),
        ("csv", "15/x.csv", [], {"train": Counter({"": 20, "1": 20})}, "20 documents have no label: an empty one, or -1"),
        ("csv", "15/x.csv", ["data.missing_label=null"], {"train": Counter({"-1": 20, "1": 20})}, ""),
    ],
)
def test_an_input_is_read(
    source: str,
    path: str,
    others: list[str],
    expected: dict[str, Counter],
    output: str,
    recipe: Path,
    cases: Path,
    tmp_path: Path,
):
    result = command_here(words(recipe, cases, tmp_path, source, path, *others))
    assert result.returncode == 0, result.stderr
    store = prepared(result.stdout)
    assert labels(store) == expected
    assert "\x00" not in "".join(store.vocab)
    assert "\ufeff" not in "".join(store.vocab)
    lines = [line for line in result.stderr.splitlines() if "equal texts in two splits" not in line]
    assert len(lines) == bool(output), lines
    assert output in result.stderr


def test_a_file_of_the_same_name_size_and_time_is_another(recipe: Path, cases: Path, tmp_path: Path):
    stores = [prepared(succeed_here(words(recipe, cases, tmp_path, "csv", f"01/{name}/train.csv"))) for name in "ab"]
    first, second = ([store.label_names[label] for label in store.labels.tolist()] for store in stores)
    assert [{"neg": "pos", "pos": "neg"}[label] for label in first] == second


def test_a_column_that_is_there_twice_is_one_line(recipe: Path, cases: Path, tmp_path: Path):
    result = command_here(words(recipe, cases, tmp_path, "csv", "12/x.csv"))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "x.csv" in line
    assert "'text'" in line


def test_a_single_class_of_minus_ones_says_what_minus_one_is(recipe: Path, cases: Path, tmp_path: Path):
    place = words(recipe, cases, tmp_path, "csv", "15/x.csv", f"runs_dir={tmp_path / 'runs'}")[1:]
    result = command_here(["run", *place])
    assert result.returncode == 2
    assert "a single class, '1'" in result.stderr
    assert "20 documents have no label: an empty one, or -1 (data.missing_label=-1; null if -1 is a class)" in result.stderr


def test_linked_folders_are_followed_and_a_dangling_link_is_one_line(recipe: Path, cases: Path, tmp_path: Path):
    texts = shutil.copytree(cases / "07", tmp_path / "texts")
    (tmp_path / "elsewhere").mkdir()
    (texts / "neg").rename(tmp_path / "elsewhere" / "neg")
    (texts / "neg").symlink_to(tmp_path / "elsewhere" / "neg")
    store = prepared(succeed_here(words(recipe, tmp_path, tmp_path / "cache", "folder", "texts")))
    assert labels(store) == {"train": HALVES}
    (texts / "pos" / "gone.txt").symlink_to(tmp_path / "nowhere")
    result = command_here(words(recipe, tmp_path, tmp_path / "cache", "folder", "texts"))
    assert len([line for line in result.stderr.splitlines() if "gone.txt" in line]) == 1


def test_a_language_that_takes_another_library_names_sentencepiece(recipe: Path, cases: Path, tmp_path: Path):
    result = command_here(words(recipe, cases, tmp_path, "csv", "16/x.csv", "tokenizer.lang=th"))
    assert result.returncode == 2
    assert "set tokenizer.type=sentencepiece" in result.stderr
