"""Texts given in Python: what is kept of them, and that ranks, resumption and `evaluate` go by it."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest
from conftest import LEARNING, TINY, TOPICS, launch, make_text, succeed_here
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.in_memory import InMemorySource, with_cached_texts
from ulmfit_dist.errors import UserError

TEXTS, LABELS = ["one, two", 'says "three"', "vier ü", None], ["b", "a", None, "b"]
FRAME = pandas.DataFrame({"text": TEXTS, "label": LABELS, "other": range(4)})


def opened(texts, cache: Path, *overrides: str):
    """The source that texts become."""
    config = load_config(None, ["data.source=frame", f"data.cache_dir={cache}", *overrides])
    frame = InMemorySource(texts, config.data)
    kept = with_cached_texts(config, frame.digest())
    frame.write(Path(kept.data.path))
    return open_source(kept.data)


def contents(source):
    return {split: documents.read(0, len(documents)) for split, documents in source.splits.items()}


def test_a_frame_and_a_data_set_of_the_same_rows_are_the_same_source(tmp_path: Path):
    source = opened(FRAME, tmp_path / "a")
    assert contents(source) == {"train": (["one, two", 'says "three"', "vier ü", ""], ["b", "a", None, "b"])}
    shuffled = FRAME.iloc[::-1][["label", "text"]].iloc[::-1]  # other columns in another order, and rows in pieces
    for same in (shuffled, Dataset.from_dict({"label": LABELS, "text": TEXTS})):
        assert opened(same, tmp_path / "b").identity == source.identity
    (path,) = (tmp_path / "a" / "frames").iterdir()
    assert pyarrow.parquet.read_schema(path / "train.parquet").names == ["text", "label"]


@pytest.mark.parametrize(
    ("column", "value"), [("text", "One, two"), ("label", "c"), ("label", None)], ids=["text", "label", "no label"]
)
def test_other_content_is_another_source(column: str, value: str | None, tmp_path: Path):
    changed = FRAME.copy()
    changed.loc[0, column] = value
    assert opened(changed, tmp_path).identity != opened(FRAME, tmp_path).identity


def test_labels_are_named_as_in_any_table(tmp_path: Path):
    numbers = pandas.DataFrame({"text": list("abcd"), "label": [1.0, float("nan"), -1, 0]})
    assert contents(opened(numbers, tmp_path))["train"][1] == ["1", None, None, "0"]
    nullable = numbers.assign(label=pandas.array([1, None, -1, 0], dtype="Int64"))
    assert contents(opened(nullable, tmp_path))["train"][1] == ["1", None, None, "0"]
    categories = numbers.assign(label=pandas.Categorical(["x", None, "y", "x"]))
    assert contents(opened(categories, tmp_path))["train"][1] == ["x", None, "y", "x"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    named = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, 0]}, features=features)
    assert contents(opened(named, tmp_path))["train"][1] == ["pos", None, "neg"]


def test_the_splits_of_a_data_set_are_found_by_name_or_by_data_splits(tmp_path: Path):
    parts = {name: Dataset.from_dict({"text": [name], "label": ["x"]}) for name in ("train", "test", "unsupervised")}
    source = opened(DatasetDict(parts), tmp_path)
    assert contents(source) == {
        "train": (["train"], ["x"]),
        "unlabelled": (["unsupervised"], [None]),
        "test": (["test"], ["x"]),
    }
    source = opened(DatasetDict(parts), tmp_path, "data.splits={train: unsupervised, valid: train}")
    assert contents(source) == {"train": (["unsupervised"], ["x"]), "valid": (["train"], ["x"])}


def test_a_column_says_what_validates_as_fastais_valid_col(tmp_path: Path):
    from fastai.data.transforms import ColSplitter

    frame = FRAME.assign(text=list("abcd"), is_valid=[False, True, False, True])
    train, valid = ColSplitter("is_valid")(frame)
    expected = {"train": list(frame["text"].iloc[train]), "valid": list(frame["text"].iloc[valid])}
    for flags in (frame["is_valid"], [0, 1, 0, 1], [0.0, 1.0, 0.0, 1.0]):
        source = opened(frame.assign(is_valid=flags), tmp_path, "data.valid_col=is_valid")
        assert {split: texts for split, (texts, _) in contents(source).items()} == expected
        assert contents(source)["valid"][1] == ["a", "b"]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_files_may_have_such_a_column_too(kind: str, tmp_path: Path):
    frame = pandas.DataFrame({"is_valid": [True, False, True], "text": list("abc"), "label": list("xyx")})
    file = tmp_path / f"all.{ {'json': 'jsonl'}.get(kind, kind) }"
    write = {
        "csv": lambda: frame.to_csv(file, index=False),
        "json": lambda: frame.to_json(file, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(file),
    }
    write[kind]()
    overrides = [f"data.source={kind}", f"data.path={file}", "data.valid_col=is_valid"]
    source = open_source(load_config(None, overrides).data)
    assert contents(source) == {"train": (["b"], ["y"]), "valid": (["a", "c"], ["x", "x"])}
    assert source.identity != open_source(load_config(None, overrides[:2]).data).identity


def test_what_is_wrong_is_one_line(tmp_path: Path):
    several = DatasetDict({"dev": Dataset.from_dict({"text": ["a"]})})
    flagged = FRAME.assign(is_valid=["yes", "no", "no", "no"])
    for texts, overrides, output in [
        (["a", "b"], [], "expected a pandas DataFrame, or a Hugging Face Dataset or DatasetDict, not a list"),
        (FRAME["text"], [], "not a Series"),
        (FRAME, ["data.text_col=[body]"], "no column 'body' in the train split; its columns are: text, label, other"),
        (FRAME, ["data.label_col=class"], "no column 'class'"),
        (FRAME, ["data.valid_col=is_valid"], "no column 'is_valid'"),
        (flagged, ["data.valid_col=is_valid"], "row 1: 'yes' in data.valid_col=is_valid: expected true or false"),
        (FRAME.iloc[:0], [], "the train split has no documents"),
        (
            FRAME.assign(text=pandas.Series(["half \ud83d"] * 4, dtype=object)),
            [],
            "texts: row 0: column 'text' has half of a surrogate pair",
        ),
        (several, [], "no split is named train; it has dev: set data.splits"),
    ]:
        with pytest.raises(UserError) as error:
            opened(texts, tmp_path, *overrides)
        assert output in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="its texts come from Python"):
        open_source(load_config(None, ["data.source=frame"]).data)
    with pytest.raises(UserError, match="has no columns"):
        load_config(None, ["data.path=x", "data.valid_col=is_valid"])


SCRIPT = """
import sys
import pandas
from ulmfit_dist import load_config, prepare, train_classifier, train_lm
from ulmfit_dist.distributed.env import is_main_process

if __name__ == "__main__":
    frame = pandas.read_json(sys.argv[1], lines=True)
    config = load_config(None, ["data.source=frame", "data.valid_col=is_valid", *sys.argv[2:]])
    if "other" in config.name and not is_main_process():
        frame = frame.iloc[::-1]
    prepare(config, texts=frame)
    train_lm(config, texts=frame)
    classifier = train_classifier(config, texts=frame)
    if is_main_process():
        print(*(prediction.label for prediction in classifier.predict(["goal match team", "soup bread salt"])))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a script and a frame's rows."""
    folder, rng = tmp_path_factory.mktemp("frames"), random.Random(0)
    rows = [
        {"text": make_text(topic, rng.randint(5, 45), rng), "label": topic, "is_valid": i % 4 == 0}
        for topic in TOPICS
        for i in range(70)
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "script.py").write_text(SCRIPT)
    return folder


def words(place: Path, *overrides: str) -> list[object]:
    return [place / "script.py", place / "rows.jsonl", *TINY, *LEARNING, "tracking.wandb_mode=disabled", *overrides]


def test_a_script_trains_from_a_frame_on_two_ranks_as_on_one_and_its_run_stands_alone(place: Path):
    runs = {name: launch(words(place, f"name={name}"), ranks, cwd=place) for name, ranks in (("one", 1), ("two", 2))}
    for result in runs.values():
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.splitlines()[-1] == "sport food"
        assert "Traceback" not in result.stderr
    weights = [(place / "runs" / name / "classifier" / "model.safetensors").read_bytes() for name in runs]
    assert weights[0] == weights[1]
    summary = json.loads((place / "runs" / "two" / "summary.json").read_text())
    text = succeed_here(["evaluate", "--json", "runs/two", "--precision", "fp32"], cwd=place)
    assert json.loads(text[text.index("{") :])["classifier"]["accuracy"] == summary["classifier"]["accuracy"]


def test_ranks_that_give_other_texts_are_told_so(place: Path):
    result = launch(words(place, "name=other"), 2, cwd=place)
    assert result.returncode != 0
    assert "texts: rank 1 has other texts than rank 0" in result.stderr


def test_the_config_is_not_changed():
    config = load_config(None, ["data.source=bbc_news", "data.splits={train: x}"])
    before = replace(config)
    kept = with_cached_texts(config, "abc")
    assert (kept.data.source, kept.data.path, kept.data.splits) == ("frame", "cache/frames/abc", {})
    assert config == before
