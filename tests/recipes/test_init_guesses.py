"""Decisions of `init` from columns, labels and amounts of text, without reading a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import yaml

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import ClassifierConfig, Config, Phase
from ulmfit_dist.data.profile.columns import Choice, choose_columns, looks_headless, profile_column, shortened
from ulmfit_dist.data.profile.cut import choose_seed
from ulmfit_dist.data.profile.labels import LabelMeaning, count_classes, read_labels
from ulmfit_dist.data.profile.language import cut_pieces
from ulmfit_dist.data.profile.survey import SplitSurvey, Survey
from ulmfit_dist.errors import UserError
from ulmfit_dist.recipes.planner import (
    SHORTENED,
    SIZES,
    Corpus,
    Plan,
    Speed,
    choose_plan,
    durations,
    first_plan,
    num_weights,
)
from ulmfit_dist.recipes.training_config import for_number_of_labels
from ulmfit_dist.recipes.yaml_writer import recipe_yaml

PROSE = [
    f"the {a} {b} is on the {c} side"
    for a in "big small old new".split()
    for b in "cat dog".split()
    for c in "left right far".split()
]
N = len(PROSE)


def choose(table: dict[str, list], **output) -> Choice:
    columns = [profile_column(name, values) for name, values in table.items()]
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    return choose_columns(columns, rows, "texts.csv", **output)


def question(table: dict[str, list], **output) -> str:
    with pytest.raises(UserError) as error:
        choose(table, **output)
    assert "\n" not in str(error.value)
    return str(error.value)


CLASSES = ["cat", "dog"] * (N // 2)
STAMPS = [f"Mon Apr 06 22:19:{i:02d} PDT 2009" for i in range(N)]
IDS = [str(i) for i in range(N)]


@pytest.mark.parametrize(
    ("table", "text", "label"),
    [
        ({"x": PROSE, "y": CLASSES}, ["x"], "y"),
        ({"id": IDS, "x": PROSE, "when": STAMPS, "kind": CLASSES}, ["x"], "kind"),
        ({"title": PROSE, "text": PROSE[::-1], "kind": CLASSES}, ["text"], "kind"),
        ({"title": PROSE, "review": PROSE[::-1], "kind": CLASSES}, ["review"], "kind"),
        ({"text": PROSE, "label": ["0", "1"] * (N // 2), "label_text": CLASSES}, ["text"], "label_text"),
        ({"text": PROSE, "label": CLASSES, "country": ["de", "de", "fr", "fr"] * (N // 4)}, ["text"], "label"),
        ({"text": PROSE, "stars": ["1", "2", "3", "4", "5", "4"] * (N // 6), "id": IDS}, ["text"], "stars"),
        ({"text": PROSE, "price": [f"{i}.5" for i in range(N)]}, ["text"], "price"),
        ({"text": PROSE, "tags": [["a"], ["a", "b"]] * (N // 2), "id": IDS}, ["text"], "tags"),
        ({"text": PROSE, "label": ["only"] * N}, ["text"], "label"),
        ({"text": PROSE}, ["text"], None),
        ({"คำ": [f"วันนี้อากาศดีมากและเราไป{i}" for i in range(N)], "y": CLASSES}, ["คำ"], "y"),
    ],
)
def test_text_and_label_are_found(table: dict[str, list], text: list[str], label: str | None):
    actual = choose(table)
    assert (actual.text, actual.label) == (text, label)
    assert actual.text_reason
    assert actual.label_reason


@pytest.mark.parametrize(
    ("table", "output", "asked"),
    [
        (
            {"a": PROSE, "b": PROSE[::-1], "y": CLASSES},
            {},
            "columns a and b look like texts: give --text a, --text b or both",
        ),
        ({"a": PROSE, "k": CLASSES, "z": CLASSES[::-1]}, {}, "which column is the label? (candidates: k, z)"),
        ({"text": PROSE, "author": [f"A. Name{i}" for i in range(N)]}, {}, "or --label none to train only a language model"),
        ({"y": CLASSES, "n": IDS}, {}, "no column looks like text (columns: y, n): give --text COL"),
        ({"a": PROSE, "y": CLASSES}, {"label": "z"}, "--label z: texts.csv has no such column; its columns are: a, y"),
        ({"a": PROSE, "y": CLASSES}, {"text": ["z"]}, "--text z: texts.csv has no such column"),
    ],
)
def test_what_cannot_be_told_is_a_question_of_one_line(table: dict[str, list], output: dict, asked: str):
    assert asked in question(table, **output)


def test_what_the_user_says_is_taken():
    table = {"a": PROSE, "b": PROSE[::-1], "y": CLASSES, "z": CLASSES[::-1]}
    actual = choose(table, text=["a", "b"], label="z")
    assert (actual.text, actual.label) == (["a", "b"], "z")
    assert choose(table, text=["b"], label="none").label is None


def test_columns_of_splits_and_of_files_are_no_labels():
    table = {"text": PROSE, "y": CLASSES, "is_valid": ["False", "True"] * (N // 2)}
    assert (choose(table).label, choose(table).valid_col) == ("y", "is_valid")
    table = {"text": PROSE, "y": CLASSES, "split": ["train", "test"] * (N // 2)}
    assert choose(table).label == "y"
    assert "split names the split of each row" in choose(table).notices[0]
    files = choose({"file": [f"texts/{i}.txt" for i in range(N)], "y": CLASSES}, file_columns=["file"])
    assert (files.file_col, files.label) == ("file", "y")


@pytest.mark.parametrize(
    ("header", "rows", "reason"),
    [
        (["text", "label"], [{"text": "a b", "label": "x"}], None),
        (["0", "a text"], [{"0": "1", "a text": "x"}], "is a number"),
        (["ham", "Go until jurong point"], [{"ham": "ham"}, {"ham": "spam"}, {"ham": "ham"}], "a value of the rows"),
        (["x", "the cat sat on the mat and then left"], [], "is a text"),
    ],
)
def test_a_header_that_is_a_row_is_seen(header: list[str], rows: list[dict], reason: str | None):
    actual = looks_headless(header, rows)
    assert (actual is None) == (reason is None)
    assert reason is None or reason in (actual or "")


@pytest.mark.parametrize(
    ("labels", "column", "target", "delimiter", "missing"),
    [
        ({"good": 5, "bad": 5}, "y", "category", ";", "-1"),
        ({"0": 5, "1": 5}, "y", "category", ";", "-1"),
        ({"1": 5, "2": 5, "3": 5, "4": 5, "5": 5}, "stars", "category", ";", "-1"),
        ({str(i): 50 for i in range(20)}, "y", "category", ";", "-1"),
        ({"0.5": 3, "1.5": 3, "2.25": 3}, "y", "regression", ";", None),
        ({"a;b": 5, "a": 5, "b;c": 5, "c": 2, "a;c": 2}, "y", "multicategory", ";", "-1"),
        ({"a, b": 5, "a": 5, "b, c": 5, "c": 2, "a, c": 2}, "y", "multicategory", ",", "-1"),
        ({"a|b": 5, "a": 5, "b": 5, "c|a": 5, "c": 2}, "y", "multicategory", "|", "-1"),
        ({"Food, Drink": 50, "Home": 40, "Car": 30}, "y", "category", ";", "-1"),
        ({"Food, Drink": 50, "Drink": 2, "Home": 40}, "y", "category", ";", "-1"),
        ({"-1": 40, "1": 60}, "y", "category", ";", None),
        ({"-1": 30, "0": 30, "1": 40}, "y", "category", ";", None),
        ({"-1": 900, "0": 50, "1": 50}, "y", "category", ";", "-1"),
        ({"-1": 30, "0": 30, "1": 40, "2": 10}, "y", "category", ";", "-1"),
        ({"-2": 5, "-1": 5, "0": 5, "1": 5, "2": 5}, "y", "category", ";", None),
    ],
)
def test_labels_are_understood(labels: dict[str, int], column: str, target: str, delimiter: str, missing: str | None):
    actual = read_labels(labels, column, "texts.csv")
    assert (actual.target, actual.delimiter, actual.missing) == (target, delimiter, missing)
    assert actual.reason


@pytest.mark.parametrize(
    ("labels", "column", "asked"),
    [
        (
            {str(i): 9 for i in range(1, 11)},
            "rating",
            "classes or a quantity? Give --target category or --target regression",
        ),
        ({str(i): 1 for i in range(900, 1000)}, "year", "classes or a quantity?"),
        ({f"name {i}": 1 for i in range(100)}, "y", "too many for classes"),
        ({"['a', 'b']": 3, "['a']": 3}, "y", "holds lists as text"),
    ],
)
def test_labels_that_may_be_two_things_are_a_question(labels: dict[str, int], column: str, asked: str):
    with pytest.raises(UserError, match=r"^texts") as error:
        read_labels(labels, column, "texts.csv")
    assert asked in str(error.value)


def test_a_target_that_is_given_is_taken():
    scores = {str(i): 9 for i in range(1, 11)}
    assert read_labels(scores, "rating", "t", "regression").missing is None
    assert read_labels(scores, "rating", "t", "category").target == "category"
    assert read_labels({"a b": 1}, "y", "t", "multicategory").delimiter == ";"
    with pytest.raises(UserError, match="label 'x' in column y is not a number"):
        read_labels({"1": 3, "x": 1}, "y", "t", "regression")


def test_classes_are_counted_largest_first_without_what_means_none():
    meaning = LabelMeaning("multicategory", "", "|", "-1")
    counts = count_classes({"a|b": 2, "b": 3, "-1": 9}, meaning)
    assert list(counts.items()) == [("b", 5), ("a", 2)]


def survey_of(labels: list[str | None], hashes: list[int] | None = None, **others: list[str | None]) -> Survey:
    def split(labels: list[str | None], hashes: list[int] | None) -> SplitSurvey:
        numbers = np.array(hashes or range(len(labels)), dtype=np.uint64)
        return SplitSurvey(len(labels), Counter(filter(None, labels)), label_of=labels, hashes=numbers)

    return Survey({"train": split(labels, hashes), **{name: split(part, None) for name, part in others.items()}}, True)


def test_a_seed_is_found_that_trains_on_each_class_that_is_validated_on():
    category = LabelMeaning("category", "")
    labels = ["a", "b"] * 45 + [f"rare{i}" for i in range(10)]
    chosen = [choose_seed(survey_of(labels), category, 0.2, False, seed, "t") for seed in (42, 1000)]
    for seed in chosen:
        from ulmfit_dist.rng.counter_based import permutation

        valid = set(permutation(len(labels), seed, "valid")[:20].tolist())
        assert valid.isdisjoint(range(90, 100))
    assert chosen[0] > 42
    assert choose_seed(survey_of(["a", "b"] * 50), category, 0.2, False, 42, "t") == 42
    assert choose_seed(survey_of(labels), LabelMeaning("regression", ""), 0.2, False, 42, "t") == 42


def test_a_class_that_can_only_be_tested_is_refused():
    with pytest.raises(UserError, match="class 'c' is in the test split but not in train"):
        choose_seed(survey_of(["a", "b"], test=["a", "c"]), LabelMeaning("category", ""), 0.2, False, 42, "t")
    with pytest.raises(UserError, match="too few documents to be in train and in valid"):
        choose_seed(survey_of([f"c{i}" for i in range(100)]), LabelMeaning("category", ""), 0.2, False, 42, "t")


def test_equal_texts_are_counted_within_splits_and_across_them():
    survey = survey_of(["a"] * 4, [1, 1, 2, 3], test=["a"] * 3)  # the test split's are 0, 1, 2
    assert survey.num_equal() == {"within train": 1, "train and test": 3}


def test_short_texts_are_joined_to_tell_the_language_from():
    pieces = list(cut_pieces(["a few words"] * 100))
    assert all(len(piece) >= 300 for piece in pieces)
    assert len(pieces) == 3
    assert list(cut_pieces(["short"])) == ["short"]


CORPUS = Corpus({"train": 2225}, 2225, 514, 962, 5596, 0.2, 2.0, {400: 0.7, 200: 0.38})
SPEED = Speed(lm=1e-4, frozen=2e-5, full=6e-5)


def test_longer_minutes_give_a_larger_model_or_more_epochs():
    measured: list[tuple[int, int, int]] = []

    def measure(plan: Plan) -> Speed:
        measured.append(plan.size)
        return SPEED.scaled(SIZES[1], plan.size, 8000)

    costs = []
    for minutes in (0.5, 2, 5, 15, 60, 600):
        plan, speed, fits = choose_plan(CORPUS, measure, 60 * minutes, 8000, False)
        expected = durations(plan, CORPUS, speed)
        assert fits == (expected.total <= 60 * minutes)
        tokens = CORPUS.limited(plan.limit or 10**9).lm_tokens * plan.lm_epochs
        costs.append(num_weights(plan.size, 8000) * tokens)
    assert costs == sorted(costs)
    assert costs[-1] > 5 * costs[0]
    assert fits
    assert len(measured) <= 3 * 6


def test_time_that_is_left_is_the_language_models():
    plan, speed, _ = choose_plan(CORPUS, lambda plan: SPEED, 1200, 8000, False)
    longer = replace(plan, lm_epochs=plan.lm_epochs + 1)
    assert plan.lm_epochs > first_plan(CORPUS, plan.size, False).lm_epochs
    assert durations(longer, CORPUS, speed).total > 1200


def test_what_does_not_fit_is_shortened_then_cut_and_said():
    slow = Speed(lm=1e-2, frozen=1e-2, full=1e-2)
    plan, speed, fits = choose_plan(CORPUS, lambda plan: slow, 1800, 8000, False)
    assert fits
    assert plan.max_doc_tokens == SHORTENED
    assert plan.limit is not None
    assert plan.limit < 2225
    assert durations(plan, CORPUS, speed).total <= 1800
    plan, _, fits = choose_plan(CORPUS, lambda plan: slow, 30, 8000, False)
    assert not fits


def test_many_texts_with_few_labels_give_the_time_to_the_language_model():
    corpus = replace(CORPUS, documents={"train": 500, "unlabelled": 20_000}, labelled=500)
    plan, speed, _ = choose_plan(corpus, lambda plan: SPEED.scaled(SIZES[1], plan.size, 8000), 7200, 8000, False)
    expected = durations(plan, corpus, speed)
    assert expected.lm > 5 * expected.classifier


@pytest.mark.parametrize(
    ("documents", "labelled", "expected"),
    [
        ({"train": 500, "unlabelled": 1000}, 500, ("lsa", True, "best")),
        ({"train": 500, "unlabelled": 999}, 500, ("naive_bayes", True, "best")),
        ({"train": 2000}, 499, ("lsa", True, "last")),  # 99.8 documents for valid
        ({"train": 20_000, "valid": 99}, 4999, ("lsa", True, "last")),
        ({"train": 20_000, "valid": 100}, 5000, ("naive_bayes", False, "last")),
        ({"train": 20_000}, 0, ("tfidf", False, "last")),
    ],
)
def test_the_number_of_labels_chooses_the_baseline_the_temperature_and_the_epoch(
    documents: dict[str, int], labelled: int, expected: tuple[str, bool, str]
):
    chosen = for_number_of_labels(ClassifierConfig(), replace(CORPUS, documents=documents, labelled=labelled, cut=0.2))
    assert (chosen.baseline_features, chosen.temperature_scaling, chosen.export_epoch) == expected


def test_numbers_and_a_threshold_have_no_temperature_and_numbers_no_naive_bayes():
    corpus = replace(CORPUS, documents={"train": 500}, labelled=500)
    for labelled in (500, 5000):
        numbers = for_number_of_labels(ClassifierConfig(target="regression"), replace(corpus, labelled=labelled))
        assert (numbers.temperature_scaling, numbers.baseline_features) == (False, "tfidf")
    assert for_number_of_labels(ClassifierConfig(target="multicategory"), corpus).temperature_scaling
    assert not for_number_of_labels(ClassifierConfig(target="multicategory", threshold=0.3), corpus).temperature_scaling


def test_an_epoch_has_enough_steps_of_each_stage():
    plan = first_plan(CORPUS, SIZES[1], False)
    assert (plan.lm_batch, plan.classifier_batch) == (16, 16)  # as configs/quickstart.yaml has them
    large = first_plan(replace(CORPUS, documents={"train": 100_000}, labelled=100_000), SIZES[1], True)
    assert (large.lm_batch, large.classifier_batch) == (64, 64)


def test_a_recipe_reads_back_as_its_config(tmp_path):
    config = load_config(
        None, ["data.path=a: b#c", "data.source=csv", "data.text_col=['- x', 'null']", "data.label_col='007'"]
    )
    config = replace(config, lm=replace(config.lm, phases=[Phase(2, [1e-3, 1e-2], -1)]), name="n")
    config = replace(config, data=replace(config.data, missing_label=None, label_delim="|"))
    config = replace(config, classifier=replace(config.classifier, phases=[Phase(3, [1.5e-3, 1e-2])]))
    text = recipe_yaml(config, {"data.label_col": "because\nof it", "lm": "about a minute"}, ["above"])
    (tmp_path / "r.yaml").write_text(text)
    assert load_config(tmp_path / "r.yaml") == config
    assert "# because of it" in text
    assert yaml.safe_load(text)["data"]["label_col"] == "007"
    assert "seq_len" not in text  # what has its default is not written
    assert recipe_yaml(Config(), {}, [], ["classifier"]).count("classifier") == 0


def test_examples_stay_on_their_line():
    assert shortened("a\n\x1b[31mb\t" + "c" * 99, 20) == "a [31mb " + "c" * 9 + "..."


def test_sections_of_a_section_are_written_below_it():
    config = Config()
    config.classifier.unlabelled.batch_size = 8
    assert yaml.safe_load(recipe_yaml(config, {}, []))["classifier"]["unlabelled"] == {"batch_size": 8}


def test_a_comment_stands_apart_from_a_value_of_any_length():
    for name in ("n" * length for length in (8, 9, 10, 11)):  # around the column of comments
        config = Config(classifier=ClassifierConfig(baseline_features=name))
        written = yaml.safe_load(recipe_yaml(config, {"classifier.baseline_features": "because"}, []))
        assert written["classifier"]["baseline_features"] == name
