"""`ulmfit-dist init`: texts of many formats give a valid recipe, or an error that names the missing option."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TOPICS, command_here, make_text, succeed_here

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.prepare import prepare

GERMAN = (
    "Die Mannschaft gewann das Spiel am Abend.|Der Torwart hält den Ball für seine Freunde.|Ein Gast lobte den Apfelkuchen.|"
    "Die Köchin würzt die Suppe mit Salz und Pfeffer.|Gegen Abend erreichte ein Gewitter die Küste."
).split("|")
THAI = (
    "วันนี้อากาศดีมากและเราไปสวนสาธารณะ|ฉันชอบกินข้าวผัดที่ร้านอาหารใกล้บ้าน|ทีมฟุตบอลชนะการแข่งขันเมื่อวานนี้|โทรศัพท์เครื่องใหม่ทำงานเร็วมาก".split(
        "|"
    )
)


def documents(number: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    topics = [rng.choice(list(TOPICS)) for _ in range(number)]
    return [(make_text(topic, rng.randint(8, 30), rng), topic) for topic in topics]


def write_csv(
    path: Path, header: list[str] | None, rows: list[tuple], delimiter: str = ",", encoding: str = "utf-8"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([*([tuple(header)] if header else []), *rows])


def init(folder: Path, *words: object) -> dict[str, Any]:
    """Return the data card of a command that succeeds."""
    return json.loads(succeed_here(["init", *words, "--json"], cwd=folder))


def asked(folder: Path, *words: object) -> str:
    """Return the error of a command that needs another option; it has written nothing."""
    result = command_here(["init", *words], cwd=folder)
    assert result.returncode == 2, result.stdout + result.stderr
    assert not list(folder.glob("*.yaml"))
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    return line


def prepared(folder: Path, card: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> TokenStore:
    """Return the store that `run` trains on with the written recipe."""
    monkeypatch.chdir(folder)
    config = load_config(card["recipe"])
    with Runtime(config.runtime) as runtime:
        store = prepare(config, runtime)
    assert {split: stop - start for split, (start, stop) in store.meta["splits"].items()} == card["splits"]
    return store


def classes_of(store: TokenStore) -> dict[str, int]:
    counts = np.bincount(store.labels[store.labels >= 0], minlength=len(store.label_names))
    return {name: int(number) for name, number in zip(store.label_names, counts, strict=True)}


def test_semicolons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = documents(120)
    write_csv(tmp_path / "news.csv", ["id", "Body", "Topic"], [(i, *row) for i, row in enumerate(rows)], ";")
    card = init(tmp_path, "news.csv")
    assert (card["text"], card["label"], card["target"]) == (["Body"], "Topic", "category")
    assert (
        classes_of(prepared(tmp_path, card, monkeypatch))
        == card["classes"]
        == dict(Counter(y for _, y in rows).most_common())
    )


def test_no_header_is_asked_for(tmp_path: Path):
    write_csv(tmp_path / "a.csv", None, [(label, text) for text, label in documents(60)])
    assert "a.csv: the first line looks like a row, not like column names" in asked(tmp_path, "a.csv")


@pytest.mark.distributed
def test_labels_in_words_train_a_classifier(tmp_path: Path):
    write_csv(tmp_path / "news.csv", ["title", "text", "label"], [("a title of it", *row) for row in documents(150)])
    output = succeed_here(["init", "news.csv", "--minutes", "1"], cwd=tmp_path)
    assert output.splitlines()[-1].strip() == "ulmfit-dist run news.yaml"
    assert "text        text: the only column of prose" in output  # the titles are all equal
    assert "classes     3:" in output
    succeed_here(["run", "news.yaml"], cwd=tmp_path)
    summary = json.loads((tmp_path / "runs/news/summary.json").read_text())
    assert summary["classifier"]["accuracy"] > 0.6
    assert "already exists" in command_here(["init", "news.csv"], cwd=tmp_path).stderr
    assert (
        "a run with this name already exists"
        in command_here(["init", "news.csv", "--output", "b.yaml"], cwd=tmp_path).stderr
    )


@pytest.mark.parametrize(("values", "target", "missing"), [("01", "category", "-1"), (["-1", "1"], "category", None)])
def test_labels_in_numbers(values, target: str, missing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [(text, values[i % 2]) for i, (text, _) in enumerate(documents(80))]
    write_csv(tmp_path / "n.csv", ["text", "label"], rows)
    card = init(tmp_path, "n.csv")
    assert card["target"] == target
    assert load_config(tmp_path / "n.yaml").data.missing_label == missing
    assert classes_of(prepared(tmp_path, card, monkeypatch)) == {values[0]: 40, values[1]: 40}


def test_numbers_with_a_fraction_are_a_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [(text, i / 8) for i, (text, _) in enumerate(documents(80))]
    write_csv(tmp_path / "prices.csv", ["text", "price"], rows)
    card = init(tmp_path, "prices.csv")
    config = load_config(tmp_path / "prices.yaml")
    assert (card["target"], config.classifier.target, config.data.missing_label) == ("regression", "regression", None)
    low, high = config.classifier.y_range or (0, 0)
    assert low < 0 < 79 / 8 < high
    prepared(tmp_path, card, monkeypatch)


@pytest.mark.parametrize("delimiter", [";", ", "])
def test_several_labels(delimiter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = sorted(TOPICS)
    rows = [(text, delimiter.join(sorted({label, names[i % 3]}))) for i, (text, label) in enumerate(documents(90))]
    write_csv(tmp_path / "tags.csv", ["text", "tags"], rows)
    card = init(tmp_path, "tags.csv")
    config = load_config(tmp_path / "tags.yaml")
    assert (config.classifier.target, config.data.label_delim) == ("multicategory", delimiter.strip())
    assert set(card["classes"]) == set(names)
    store = prepared(tmp_path, card, monkeypatch)
    assert sum(card["classes"].values()) == sum(len(label.split(delimiter)) for _, label in rows)
    assert (store.labels >= 0).all()


def test_a_folder_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i, (text, label) in enumerate(documents(60)):
        (tmp_path / "news" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "news" / label / f"{i}.txt").write_text(text)
    card = init(tmp_path, "news")
    assert card["source"] == "folder"
    assert classes_of(prepared(tmp_path, card, monkeypatch)) == card["classes"]


def test_nested_folders_with_texts_in_two_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = documents(120)
    for i, (text, label) in enumerate(rows):
        folder = tmp_path / "reviews" / ("test" if i % 3 == 0 else "train") / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_text(rows[1][0] if i == 3 else text)
    card = init(tmp_path, "reviews")
    assert card["splits"] == {"train": 80, "test": 40}
    assert card["equal_texts"] == {"train and test": 1}
    assert load_config(tmp_path / "reviews.yaml").data.on_duplicates == "drop"
    prepared(tmp_path, card, monkeypatch)


def test_parquet_with_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = documents(90)
    columns = {"body": [text for text, _ in rows], "kind": pa.array([y for _, y in rows]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    card = init(tmp_path, "a.parquet")
    assert (card["text"], card["label"]) == (["body"], "kind")
    assert classes_of(prepared(tmp_path, card, monkeypatch)) == card["classes"]


def test_parquet_with_class_labels_of_the_hub_in_a_folder_of_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=sorted(TOPICS))})
    for split, number in (("train", 90), ("test", 30)):
        rows = documents(number, seed=number)
        table = {"text": [text for text, _ in rows], "label": [sorted(TOPICS).index(y) for _, y in rows]}
        (tmp_path / "set").mkdir(exist_ok=True)
        Dataset.from_dict(table, features).to_parquet(tmp_path / "set" / f"{split}.parquet")
    card = init(tmp_path, "set/train.parquet")
    assert card["splits"] == {"train": 90, "test": 30}
    assert set(card["classes"]) == set(TOPICS)
    assert classes_of(prepared(tmp_path, card, monkeypatch)) == card["classes"]
    local = init(tmp_path, "hub:set", "--name", "hub")
    assert (local["source"], local["splits"], local["classes"]) == ("hub", card["splits"], card["classes"])
    assert classes_of(prepared(tmp_path, local, monkeypatch)) == card["classes"]


def test_json_lines_with_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [json.dumps({"text": text, "labels": [y, "all"], "meta": {"n": 1}}) for text, y in documents(80)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    card = init(tmp_path, "a.jsonl")
    assert (card["label"], card["target"], card["classes"]["all"]) == ("labels", "multicategory", 80)
    prepared(tmp_path, card, monkeypatch)


def test_german_in_the_encoding_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(0)
    rows = [(f"{' '.join(rng.sample(GERMAN, 3))} Nummer {i}", rng.choice(["Küche", "Sport"])) for i in range(100)]
    write_csv(tmp_path / "d.csv", ["Nachricht", "Thema"], rows, ";", "cp1252")
    card = init(tmp_path, "d.csv")
    assert card["language"]["code"] == "de"
    assert set(card["classes"]) == {"Küche", "Sport"}
    assert load_config(tmp_path / "d.yaml").tokenizer.lang == "de"
    store = prepared(tmp_path, card, monkeypatch)
    assert {"köchin", "küste", "für"} <= set(store.vocab)


def test_thai_is_learned_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(0)
    rows = [(f"{''.join(rng.sample(THAI, 3))} {i}", rng.choice("กข")) for i in range(120)]
    write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    card = init(tmp_path, "t.csv")
    config = load_config(tmp_path / "t.yaml")
    assert (card["language"]["code"], config.tokenizer.type, config.tokenizer.lang) == ("th", "sentencepiece", "th")
    prepared(tmp_path, card, monkeypatch)


def test_classes_are_counted_also_beyond_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ulmfit_dist.data.profile.survey import SAMPLE_DOCUMENTS
    from ulmfit_dist.recipes.dataset_profile import TextOptions, profile_texts

    assert SAMPLE_DOCUMENTS < 25_000
    texts = [text for text, _ in documents(500)]
    rows = [(f"{texts[i % 499]} {i}", "abc"[i // 12_000]) for i in range(30_000)]  # sorted by class
    write_csv(tmp_path / "big.csv", ["text", "label"], rows)
    monkeypatch.chdir(tmp_path)
    card = profile_texts("big.csv", TextOptions()).card
    assert (card.documents, card.counted) == (30_000, 30_000)
    assert card.classes == {"a": 12_000, "b": 12_000, "c": 6_000}


def test_the_language_is_never_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_csv(tmp_path / "a.csv", ["text", "label"], documents(60))
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    assert "give --lang XX (such as --lang en), or pip install 'ulmfit-dist[language]'" in asked(tmp_path, "a.csv")
    card = init(tmp_path, "a.csv", "--lang", "nl")
    assert load_config(tmp_path / card["recipe"]).tokenizer.lang == "nl"
    assert "not a language of spaCy" in command_here(["init", "a.csv", "--lang", "qq", "--name", "b"], cwd=tmp_path).stderr


def test_texts_without_labels_give_a_language_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_csv(tmp_path / "a.csv", ["text"], [(text,) for text, _ in documents(80)])
    card = init(tmp_path, "a.csv")
    assert card["label"] is None
    assert card["command"] == "ulmfit-dist pretrain a.yaml"
    assert load_config(tmp_path / "a.yaml").data.label_col is None
    assert prepared(tmp_path, card, monkeypatch).label_names == []


def test_rows_that_cannot_be_read_are_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [f'"{text}",{label}' for text, label in documents(100)]
    lines[50], lines[60] = "a,row,of,five,fields", '" ",food'
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines]))
    card = init(tmp_path, "a.csv")
    assert (card["documents"], card["unreadable"], card["empty"]) == (100, 1, 1)
    assert load_config(tmp_path / "a.yaml").data.on_error == "skip"
    card["splits"]["train"] -= 2
    prepared(tmp_path, card, monkeypatch)


def test_a_table_of_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = documents(60)
    (tmp_path / "set" / "texts").mkdir(parents=True)
    for i, (text, _) in enumerate(rows):
        (tmp_path / "set" / "texts" / f"{i}.txt").write_text(text)
    write_csv(tmp_path / "set" / "labels.csv", ["file", "label"], [(f"texts/{i}.txt", y) for i, (_, y) in enumerate(rows)])
    card = init(tmp_path, "set/labels.csv")
    assert load_config(tmp_path / "labels.yaml").data.file_col == "file"
    assert classes_of(prepared(tmp_path, card, monkeypatch)) == card["classes"]


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["nothing.csv"], "nothing.csv: no such file or folder"),
        (["a.csv"], "columns a and b look like texts: give --text a, --text b or both"),
        (["a.csv", "--text", "a", "--label", "none", "--minutes", "0"], "--minutes 0: give a number above 0"),
        (["a.csv", "--text", "a", "--name", "x/y"], "--name 'x/y': give a plain name"),
        (["a.csv", "--text", "a", "data.sauce=1"], "did you mean"),
        (["a.csv", "--text", "a", "--target", "regression"], "in column y is not a number"),
        (["few.csv"], "few.csv: 6 non-empty documents are too few"),
        (["pipe.csv"], "a single column, 'text|label': if '|' separates the columns"),
        (["a.docx"], "expected a folder of .txt files, or a .csv"),
    ],
)
def test_questions_are_one_line(words: list[str], output: str, tmp_path: Path):
    rows = [(text, text[::-1].replace(".", "x "), y) for text, y in documents(60) if y != "sport"]
    write_csv(tmp_path / "a.csv", ["a", "b", "y"], rows)
    write_csv(tmp_path / "few.csv", ["text", "label"], documents(6))
    write_csv(tmp_path / "pipe.csv", ["text", "label"], documents(30), "|")
    (tmp_path / "a.docx").write_text("x")
    assert output in asked(tmp_path, *words)


def test_overrides_are_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_csv(tmp_path / "a.csv", ["text", "label"], documents(60))
    write_csv(tmp_path / "two.csv", ["a", "b", "y"], [(text, text + " again", y) for text, y in documents(60)])
    two = init(tmp_path, "two.csv", "data.text_col=[b]", "data.label_col=y", "classifier.target=multicategory")
    assert (two["text"], two["label"], two["target"]) == (["b"], "y", "multicategory")
    keys = ["seed=7", "model.emb_sz=24", "lm.phases=[{epochs: 1, lr: 1e-2}]", "data.valid_pct=0.3"]
    card = init(tmp_path, "a.csv", *keys)
    config = load_config(tmp_path / "a.yaml")
    assert (config.seed, config.model.emb_sz, len(config.lm.phases), config.data.valid_pct) == (7, 24, 1, 0.3)
    prepared(tmp_path, card, monkeypatch)


def test_few_labels_learn_from_the_other_texts_and_suggest_self_training(tmp_path: Path):
    rows = [(text, label if i < 90 else "") for i, (text, label) in enumerate(documents(400))]
    write_csv(tmp_path / "few.csv", ["text", "label"], rows)
    init(tmp_path, "few.csv")
    assert load_config(tmp_path / "few.yaml").classifier.baseline_features == "lsa"
    command = "ulmfit-dist self-train few.yaml name=few-self classifier.encoder=runs/few/lm"
    assert f"\n# Few labels: after it, {command} also trains on" in (tmp_path / "few.yaml").read_text()


def test_weights_that_bring_their_own_sizes_are_left_to_the_recipe(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    result = command_here(["init", "a.csv", "model.pretrained=de"], cwd=tmp_path)
    assert result.returncode == 2
    assert "model.pretrained=de: init chooses sizes and tokenizer itself" in result.stderr


def test_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_process_group: None):
    import ulmfit_dist

    write_csv(tmp_path / "a.csv", ["text", "label"], documents(60))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    result = ulmfit_dist.init("a.csv", "seed=3", minutes=2)
    assert result.card.documents == 60
    assert ulmfit_dist.load_config(result.recipe).seed == 3


@pytest.mark.parametrize(("share", "tested"), [(None, 80), (0.4, 160), ("null", 0)])
def test_a_test_split_is_cut_from_texts_that_have_none(
    share: float | str | None, tested: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_csv(tmp_path / "news.csv", ["text", "label"], list(documents(400)))
    card = init(tmp_path, "news.csv", *([f"data.test_pct={share}"] if share is not None else []))
    assert card["splits"].get("test", 0) == tested
    assert len(prepared(tmp_path, card, monkeypatch).split("test")) == tested
    assert ("held out for test" in card["splits_reason"]) is (tested > 0)


def test_texts_with_a_test_split_keep_it(tmp_path: Path):
    for name, number in (("train", 300), ("test", 60)):
        write_csv(tmp_path / "news" / f"{name}.csv", ["text", "label"], list(documents(number, seed=number)))
    assert init(tmp_path, "news")["splits"] == {"train": 300, "test": 60}
    assert "test_pct" not in (tmp_path / "news.yaml").read_text()


def test_no_test_split_is_cut_from_few_labels_or_of_rare_classes(tmp_path: Path):
    write_csv(tmp_path / "few.csv", ["text", "label"], list(documents(120)))
    assert any("120 labelled documents are too few" in notice for notice in init(tmp_path, "few.csv")["notices"])
    rare = [(f"a text of its own number {i} with words", f"rare{i}") for i in range(12)]
    write_csv(tmp_path / "rare.csv", ["text", "label"], [*documents(300), *rare])
    card = init(tmp_path, "rare.csv")
    assert card["splits"] == {"train": 312}
    assert any("has too few documents to be in test and in train" in notice for notice in card["notices"])
