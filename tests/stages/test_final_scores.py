"""Figures on the test split and on new texts: for each target, for folds, and after a failure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from conftest import TINY, command_here, succeed_here
from corpora import WRITERS, Rows

from ulmfit_dist import load_classifier
from ulmfit_dist.data.prediction_table import read_predictions
from ulmfit_dist.metrics.resampling import sample_of
from ulmfit_dist.stages import evaluate_texts, final_scores

pytestmark = pytest.mark.distributed  # a run asks git for its revision
SHORT = [*TINY, "data.source=csv", "lm.phases=[{epochs: 1, lr: 1e-2}]", "classifier.phases=[{epochs: 1, lr: 1e-2}]"]
KINDS: dict[str, tuple[list[str], Callable[[int], str], str]] = {
    "category": ([], lambda i: "ab"[i % 2], "accuracy"),
    "multicategory": (["classifier.target=multicategory"], lambda i: ("a", "a;b", "b")[i % 3], "f1_micro"),
    "regression": (["classifier.target=regression", "data.missing_label=null"], lambda i: str(i % 3), "mae"),
}


def texts(number: int, word: str, label: Callable[[int], str]) -> Rows:
    return [(f"{'good bad fair'.split()[i % 3]} {word} number {i} of the {word}s was seen", label(i)) for i in range(number)]


def words_of(folder: Path, recipe: Path, kind: str = "category", labelled: bool = True, valid: bool = True) -> list[object]:
    """Return the arguments of a run on a table of splits."""
    words, label, _ = KINDS[kind]
    splits = {"train": texts(42, "lamp", label), "test": texts(21, "soup", label if labelled else lambda i: "")}
    if valid:
        splits["valid"] = texts(12, "lake", label)
    for name, rows in splits.items():
        WRITERS["csv"][1](str(folder / "texts" / name), rows)
    place = [f"data.path={folder / 'texts'}", f"data.cache_dir={folder / 'cache'}", f"runs_dir={folder}", "name=run"]
    return [recipe, *SHORT, *place, *words, "data.label_delim=;"]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("kind", [*KINDS])
def test_each_kind_of_target_is_scored_with_intervals_and_its_predictions_give_the_figures(
    kind: str, recipe: Path, tmp_path: Path
):
    succeed_here(["run", *words_of(tmp_path, recipe, kind)])
    figures = summary(tmp_path / "run")["classifier"]["test"]
    metric = KINDS[kind][2]
    low, high = figures[f"{metric}_interval"]
    assert low <= figures[metric] <= high
    assert figures["num_documents"] == 21
    rows = pyarrow.parquet.read_table(tmp_path / "run" / "predictions.parquet").to_pylist()
    rows = [row for row in rows if row["split"] == "test"]
    assert len(rows) == 21
    if kind == "category":
        ours = np.mean([row["label"] == row["predicted"] for row in rows])
    elif kind == "regression":
        ours = np.mean([abs(float(row["label"]) - row["number"]) for row in rows])
    else:
        ours = f1_micro([(set(row["label"].split(";")), set(filter(None, row["predicted"].split(";")))) for row in rows])
    assert ours == pytest.approx(figures[metric], rel=1e-5)
    read = read_predictions(tmp_path / "run")
    test = read.splits["test"]
    (as_compared,) = sample_of([test.answers], test.y, read.target, [read.threshold]).exact()
    assert {name: as_compared[name] for name in as_compared if name in figures} == pytest.approx(
        {name: figures[name] for name in as_compared if name in figures}, rel=1e-9
    )
    assert read.splits.keys() == {"valid", "test"}
    again = json.loads(succeed_here(["evaluate", tmp_path / "run", "--data", tmp_path / "texts" / "test.csv", "--json"]))
    assert again["classifier"][metric] == pytest.approx(figures[metric], rel=1e-4)
    assert again["classifier"][f"{metric}_interval"] == pytest.approx([low, high], rel=1e-4)


def f1_micro(pairs: list[tuple[set[str], set[str]]]) -> float:
    return 2 * sum(len(true & output) for true, output in pairs) / sum(len(true) + len(output) for true, output in pairs)


def test_a_run_that_ended_before_its_predictions_were_written_scores_once_more_to_the_same_figures(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words, scored = ["run", *words_of(tmp_path, recipe)], []
    compute, write = final_scores.compute_answers, final_scores.write_predictions

    def counted(exported: Any, store: Any, documents: Any, *others: Any, **keys: Any) -> Any:
        scored.append(len(documents))
        return compute(exported, store, documents, *others, **keys)

    def no_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(final_scores, "compute_answers", counted)
    monkeypatch.setattr(final_scores, "write_predictions", no_disk)
    with pytest.raises(OSError, match="No space left"):
        command_here(words)
    before = summary(tmp_path / "run")["classifier"]["test"]
    assert not (tmp_path / "run" / "predictions.parquet").exists()
    monkeypatch.setattr(final_scores, "write_predictions", write)
    succeed_here(words)
    assert summary(tmp_path / "run")["classifier"]["test"] == before
    assert (tmp_path / "run" / "predictions.parquet").is_file()
    assert scored == [12, 21] * 2
    succeed_here(words)  # all is done: nothing is scored
    assert scored == [12, 21] * 2


def test_a_fold_does_not_score_the_test_split_and_a_run_without_labels_there_says_so(recipe: Path, tmp_path: Path):
    folder = tmp_path / "folds"
    output = succeed_here(["run", *words_of(folder, recipe, valid=False), "data.folds=3", "data.fold=1"])
    assert "the test split is not scored in a cross-validation" in output
    assert "test" not in summary(folder / "run")["classifier"]
    folder = tmp_path / "unlabelled"
    output = succeed_here(["run", *words_of(folder, recipe, labelled=False)])
    assert "the test split has no labels: it is not scored" in output
    assert "test" not in summary(folder / "run")["classifier"]
    rows = pyarrow.parquet.read_table(folder / "run" / "predictions.parquet").to_pylist()
    assert {row["split"] for row in rows} == {"valid"}
    result = command_here(["evaluate", folder / "run", "--split", "test"])
    assert result.returncode == 2
    assert "the texts have no labelled test split: evaluate new texts with --data FILE" in result.stderr


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    succeed_here(["run", *words_of(folder, recipe)])
    return folder


@pytest.mark.parametrize("kind", [*WRITERS])
def test_new_texts_of_each_kind_of_file_give_the_figures_of_their_predictions(kind: str, trained: Path, tmp_path: Path):
    rows = texts(20, "violin", lambda i: "ab"[i % 4 == 0])  # not half of each: a constant answer shows swapped labels
    WRITERS[kind][1](str(tmp_path / "new"), rows)
    (path,) = tmp_path.iterdir()
    figures = json.loads(succeed_here(["evaluate", trained / "run", "--data", path, "--json"]))["classifier"]
    predicted = load_classifier(trained / "run").predict([text for text, _ in rows])
    right = [label == actual.label for (_, label), actual in zip(rows, predicted, strict=True)]
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    assert figures["num_documents"] == 20
    assert not math.isnan(figures["loss"])


def test_new_texts_may_have_other_columns(trained: Path, tmp_path: Path):
    path = tmp_path / "new.csv"
    path.write_text("text,label\nsome good lamp,a\nsome bad lamp,b\n")
    expected = succeed_here(["evaluate", trained / "run", "--data", path, "--json"])
    path.write_text("body,class\nsome good lamp,a\nsome bad lamp,b\n")
    columns = ["--text-col", "body", "--label-col", "class"]
    assert succeed_here(["evaluate", trained / "run", "--data", path, *columns, "--json"]) == expected
    result = command_here(["evaluate", trained / "run", *columns])
    assert result.returncode == 2
    assert "--text-col and --label-col are for new texts: name them with --data" in result.stderr


def test_new_texts_are_read_in_parts(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new.csv"
    path.write_text("text,label\n" + "".join(f"some good lamp {i},{'ab'[i % 4 == 0]}\n" for i in range(10)))
    whole = succeed_here(["evaluate", trained / "run", "--data", path, "--json"])
    monkeypatch.setattr(evaluate_texts, "ROWS_AT_ONCE", 3)
    in_parts = succeed_here(["evaluate", trained / "run", "--data", path, "--json"])
    fraction = r"(\d+\.\d+(?:e-?\d+)?)"  # in fp32 a text's last bits follow the size of its batch
    actual, expected = re.split(fraction, in_parts), re.split(fraction, whole)
    assert actual[::2] == expected[::2]
    assert list(map(float, actual[1::2])) == pytest.approx(list(map(float, expected[1::2])), rel=1e-6)


def test_new_texts_without_a_label_are_left_out_and_counted(trained: Path, tmp_path: Path):
    (tmp_path / "new.csv").write_text("text,label\nsome good lamp,a\nanother,\nsome bad lamp,b\n")
    result = command_here(["evaluate", trained / "run", "--data", tmp_path / "new.csv", "--json"])
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["classifier"]["num_documents"] == 2
    assert "new.csv: skipping 1 documents that have no label or cannot be read" in result.stderr
    for content, message in (
        ("text,label\none,\n", "no text has a label"),
        ("text\none\n", "label"),
        ("label\na\n", "text"),
    ):
        (tmp_path / "new.csv").write_text(content)
        result = command_here(["evaluate", trained / "run", "--data", tmp_path / "new.csv"])
        assert result.returncode == 2, content
        assert message in result.stderr
    result = command_here(["evaluate", trained / "run", "--data", tmp_path / "gone.csv"])
    assert result.returncode == 2
    assert "gone.csv: no such file or folder" in result.stderr
