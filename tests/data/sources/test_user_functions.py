"""Labels and splits that functions of the user's decide."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas
import pytest
from conftest import LEARNING, TINY, command_here, make_folder, store_in, succeed

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.errors import UserError

MODULE = """
def label_of(path):
    return None if path.stem == "3" else path.parent.name[0]

def split_of(path):
    return {"0": "valid", "1": "unlabelled", "2": None}.get(path.stem, "train")

ASKED = []

def is_valid(path):
    ASKED.append(path)
    return int(path.stem) % 4 == 0

def fails(path):
    return path.no_such_thing

def nonsense(path):
    return {"a": 1}

def grade(row):
    return "good" if float(row["stars"]) > 3 else "bad"

def by_year(row):
    return row["year"] == "2024"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of functions and a folder of texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MODULE)
    for name in "012345":
        for topic in ("ham", "spam"):
            (tmp_path / "texts" / topic).mkdir(parents=True, exist_ok=True)
            (tmp_path / "texts" / topic / f"{name}.txt").write_text(f"{topic} {name}")
    return tmp_path


def opened(*overrides: str):
    return open_source(load_config(None, ["data.path=texts", *overrides]).data)


def contents(source):
    return {split: documents.read(0, len(documents)) for split, documents in source.splits.items()}


def test_a_folders_labels_and_splits_are_what_functions_of_the_path_say(place: Path):
    actual = contents(opened("data.get_y=mine.label_of", "data.splitter=mine.split_of"))
    assert actual == {
        "train": ([f"{topic} {i}" for topic in ("ham", "spam") for i in (3, 4, 5)], [None, "h", "h", None, "s", "s"]),
        "valid": (["ham 0", "spam 0"], ["h", "s"]),
        "unlabelled": (["ham 1", "spam 1"], [None, None]),
    }
    flags = contents(opened("data.splitter=mine.is_valid"))
    assert flags["valid"] == (["ham 0", "ham 4", "spam 0", "spam 4"], ["ham", "ham", "spam", "spam"])


def test_they_are_fastais_get_y_and_func_splitter(place: Path):
    from fastai.data.transforms import FuncSplitter, get_text_files, parent_label

    files = sorted(get_text_files("texts"))
    _, valid = FuncSplitter(lambda path: int(path.stem) % 4 == 0)(files)
    source = opened("data.splitter=mine.is_valid", "data.get_y=fastai.data.transforms.parent_label")
    assert contents(source)["valid"] == ([files[i].read_text() for i in valid], [parent_label(files[i]) for i in valid])


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "frame"])
def test_a_function_of_a_table_gets_the_row(kind: str, place: Path):
    from ulmfit_dist import with_texts

    rows = {"text": list("abc"), "stars": ["5", "1", "4"], "year": ["2023", "2024", "2024"]}
    frame, file = pandas.DataFrame(rows), place / f"all.{ {'json': 'jsonl'}.get(kind, kind) }"
    if kind != "frame":
        getattr(frame, {"csv": "to_csv", "json": "to_json", "parquet": "to_parquet"}[kind])(
            file, **{"csv": {"index": False}, "json": {"orient": "records", "lines": True}}.get(kind, {})
        )
    words = [f"data.source={kind}", f"data.path={file}", "data.get_y=mine.grade", "data.splitter=mine.by_year"]
    config = load_config(None, words)
    source = open_source((with_texts(config, frame) if kind == "frame" else config).data)
    assert contents(source) == {"train": (["a"], ["good"]), "valid": (["b", "c"], ["bad", "good"])}


def test_a_splitter_is_asked_once_and_a_changed_function_is_another_source(place: Path):
    overrides = ["data.splitter=mine.is_valid", "data.get_y=mine.label_of"]
    first = opened(*overrides)
    asked = len(sys.modules["mine"].ASKED)
    assert asked == 12
    assert contents(opened(*overrides)) == contents(first)
    assert opened(*overrides).identity == first.identity
    assert len(sys.modules["mine"].ASKED) == asked
    changed = "def is_valid(path):\n    return path.stem == '5'\n"
    (place / "other.py").write_text(changed)
    assert opened("data.splitter=other.is_valid", overrides[1]).identity != first.identity


def test_what_a_function_does_wrong_is_one_line_with_its_document(place: Path):
    for overrides, output in [
        (["data.get_y=mine.fails"], "data.get_y=mine.fails fails on texts/ham/0.txt: AttributeError"),
        (["data.get_y=mine.nonsense"], "data.get_y=mine.nonsense returned a dict for texts/ham/0.txt"),
        (["data.splitter=mine.fails"], "data.splitter=mine.fails fails on texts/ham/0.txt: AttributeError"),
        (
            ["data.splitter=mine.label_of"],
            "returned 'h' for texts/ham/0.txt: return one of train, valid, unlabelled, test, True",
        ),
        (["data.splitter=mine.none"], "data.splitter: 'mine.none' cannot be imported"),
        (["data.get_y=nowhere.f"], "data.get_y: 'nowhere.f' cannot be imported"),
        (["data.splitter=mine.ASKED"], "data.splitter: 'mine.ASKED' is not callable"),
        (["data.splitter=mine.is_valid", "data.splits={train: ., valid: spam}"], "also has splits (valid)"),
    ]:
        with pytest.raises(UserError) as error:
            contents(opened(*overrides))
        assert output in str(error.value)
        assert "\n" not in str(error.value)


def test_two_ranks_go_by_the_functions_and_a_model_from_elsewhere_does_not_call_them_unasked(place: Path, recipe: Path):
    make_folder(place / "corpus", per_class=20)
    words = [recipe, *TINY, *LEARNING, f"data.path={place}/corpus", f"runs_dir={place}/runs", "tracking.wandb_mode=disabled"]
    words += ["data.get_y=mine.label_of", "data.splitter=mine.is_valid", f"data.cache_dir={place}/cache"]
    succeed(["lm", *words], 2, cwd=place)
    store = TokenStore(store_in(place / "cache"))
    assert store.meta["splits"] == {"train": [0, 45], "valid": [45, 60]}
    assert store.label_names == ["f", "s", "t"]
    assert (store.labels == NO_LABEL).sum() == 3  # the documents named 3
    refused = command_here(["evaluate", "runs/run"], cwd=place)
    assert refused.returncode == 2
    assert "its data.splitter would call mine.is_valid" in refused.stderr
    actual = succeed(["evaluate", "runs/run", "--json", "--trust-remote-code", "--precision", "fp32"], cwd=place)
    assert "perplexity" in json.loads(actual[actual.index("{") :])["lm"]


def test_the_example_does_what_it_says():
    from examples.custom_labels import every_fifth, is_sports, label_of_row

    assert [every_fifth(Path(f"a/{i}.txt")) for i in (5, 6, 10)] == [True, False, True]
    assert [is_sports(Path(f"{name}/1.txt")) for name in ("sports", "tech")] == ["sports", "other"]
    rows: list[Mapping[str, str]] = [{"stars": str(stars)} for stars in (1, 3, 5)]
    assert [label_of_row(row) for row in rows] == ["bad", None, "good"]
