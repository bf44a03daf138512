import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.errors import UserError

TEXTS = {"train": ["one, two", 'says "three"', "vier \u00fc", "five"], "valid": ["six", "seven"]}
LABELS = {"train": ["b", "a", "b", "a"], "valid": ["a", "b"]}


def opened(*overrides: str):
    return open_source(load_config(None, overrides).data)


def contents(source):
    return {split: documents.read(0, len(documents)) for split, documents in source.splits.items()}


def write_csv(folder: Path, delimiter: str, ending: str) -> None:
    for split, texts in TEXTS.items():
        with (folder / f"{split}{ending}").open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([("text", "label"), *zip(texts, LABELS[split], strict=True)])


def write_json(folder: Path) -> None:
    for split, texts in TEXTS.items():
        rows = [json.dumps({"text": t, "label": y}) for t, y in zip(texts, LABELS[split], strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


def write_parquet(folder: Path) -> None:
    for split, texts in TEXTS.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": LABELS[split]}), folder / f"{split}.parquet")


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "json", "parquet"])
def test_tables_of_all_kinds_give_the_same_documents(kind: str, tmp_path: Path):
    writers = {
        "csv": lambda: write_csv(tmp_path, ",", ".csv"),
        "semicolons": lambda: write_csv(tmp_path, ";", ".csv"),
        "tsv": lambda: write_csv(tmp_path, "\t", ".tsv"),  # written with quotes, which a TSV has where data.quoting says so
        "json": lambda: write_json(tmp_path),
        "parquet": lambda: write_parquet(tmp_path),
    }
    writers[kind]()
    quoting = ["data.quoting=true"] if kind == "tsv" else []
    source = opened(f"data.source={'csv' if kind in ('semicolons', 'tsv') else kind}", f"data.path={tmp_path}", *quoting)
    assert contents(source) == {split: (TEXTS[split], LABELS[split]) for split in TEXTS}


def test_a_folder_by_class_reads_in_natural_order(tmp_path: Path):
    for name in ("train/pos/10.txt", "train/pos/2.txt", "train/neg/1.txt", "test/neg/7.txt", "unsup/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert contents(opened(f"data.path={tmp_path}")) == {
        "train": (["train/neg/1.txt", "train/pos/2.txt", "train/pos/10.txt"], ["neg", "pos", "pos"]),
        "unlabelled": (["unsup/3.txt"], [None]),
        "test": (["test/neg/7.txt"], ["neg"]),
    }


def test_rows_without_a_label_have_none(tmp_path: Path):
    table = pyarrow.table({"text": ["a", "b", "c"], "label": pyarrow.array([0, -1, None], pyarrow.int64())})
    pyarrow.parquet.write_table(table, tmp_path / "all.parquet")
    source = opened("data.source=parquet", f"data.path={tmp_path / 'all.parquet'}")
    assert contents(source)["train"][1] == ["0", None, None]


def test_spaces_round_a_label_make_no_other_class(tmp_path: Path):
    (tmp_path / "all.csv").write_text("text,label\na,Wetter\nb, Wetter \nc,  \nd,-1 \n")
    source = opened("data.source=csv", f"data.path={tmp_path / 'all.csv'}")
    assert contents(source)["train"][1] == ["Wetter", "Wetter", None, None]


def test_several_text_columns_are_marked_as_fastai_does(tmp_path: Path):
    from fastai.text.core import _join_texts
    from pandas import DataFrame

    frame = DataFrame({"title": ["A", "B"], "body": ["first", "second"]})
    pyarrow.parquet.write_table(pyarrow.Table.from_pandas(frame), tmp_path / "all.parquet")
    frame.to_csv(tmp_path / "all.csv", index=False)
    for kind in ("parquet", "csv"):
        path = f"data.path={tmp_path / 'all'}.{kind}"
        source = opened(f"data.source={kind}", path, "data.text_col=[title, body]", "data.label_col=null")
        assert contents(source)["train"][0] == list(_join_texts(frame, mark_fields=True))


def test_other_splits_of_the_same_files_are_another_source(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / "1.txt").write_text("one")
    first, second = (
        opened(f"data.path={tmp_path}", f"data.splits={{train: a, {split}: b}}") for split in ("valid", "unlabelled")
    )
    assert first.identity != second.identity
    with pytest.raises(UserError, match="names no train split"):
        opened(f"data.path={tmp_path}", "data.splits={valid: b}")


def test_an_unlabelled_csv_may_have_empty_labels_where_the_others_have_numbers(tmp_path: Path):
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,2\n")
    (tmp_path / "unlabelled.csv").write_text("text,label\nc,\nd,\n")
    source = opened("data.source=csv", f"data.path={tmp_path}")
    assert contents(source) == {"train": (["a", "b"], ["1", "2"]), "unlabelled": (["c", "d"], [None, None])}


def test_a_label_may_be_na_and_an_empty_cell_is_none(tmp_path: Path):
    (tmp_path / "all.csv").write_text("text,label\nnull,NA\nb,\nc,nan\n")
    source = opened("data.source=csv", f"data.path={tmp_path / 'all.csv'}")
    assert contents(source)["train"] == (["null", "b", "c"], ["NA", None, "nan"])


def test_a_changed_file_changes_the_identity(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("one")
    before = opened(f"data.path={tmp_path}").identity
    (tmp_path / "a" / "1.txt").write_text("one more")
    assert opened(f"data.path={tmp_path}").identity != before


def test_bad_bytes_are_refused_with_file_and_place_or_replaced(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_bytes(b"good \xff bad")
    source = opened(f"data.path={tmp_path}")
    with pytest.raises(UserError, match=r"1\.txt: byte 6 is not UTF-8"):
        source.splits["train"].read(0, 1)
    replaced = opened(f"data.path={tmp_path}", "data.on_error=replace")
    assert contents(replaced)["train"][0] == ["good \ufffd bad"]
    assert contents(opened(f"data.path={tmp_path}", "data.on_error=skip"))["train"][0] == [None]


GOOD = {
    "csv": [b"text,label", b"one,a", b"two,b"],
    "json": [b'{"text": "one", "label": "a"}', b'{"text": "two", "label": "b"}'],
}


@pytest.mark.parametrize(
    ("kind", "line", "output", "replaced"),
    [
        ("csv", b"bad \xff\xfe,a", "line 3: byte 5 of the line is not UTF-8", "bad \ufffd\ufffd"),
        ("csv", b"one,two,three", "line 3 has 3 fields, but the header has 2", None),
        ("csv", b'"a"b,c', "line 3: ',' expected after '\"'", None),
        ("json", b'{"text": "\xff", "label": "a"}', "line 2: byte 11 of the line is not UTF-8", "\ufffd"),
        ("json", b'{"text": "half', "line 2 is not JSON", None),
        ("json", b'{"body": "x"}', "line 2 has no 'text'", None),
        ("json", b'["x"]', "line 2 is not a JSON object", None),
        ("json", b'{"text": "\\ud83d"}', "line 2: column 'text' has half of a surrogate pair", "\ufffd"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_number_or_replaced_or_skipped(
    kind: str, line: bytes, output: str, replaced: str | None, tmp_path: Path
):
    file = tmp_path / f"all.{ {'csv': 'csv', 'json': 'jsonl'}[kind] }"
    *first, last = GOOD[kind]
    file.write_bytes(b"\n".join([*first, line, last]) + b"\n")
    overrides = [f"data.source={kind}", f"data.path={file}"]
    for on_error in ("strict",) if replaced is not None else ("strict", "replace"):
        with pytest.raises(UserError) as error:
            opened(*overrides, f"data.on_error={on_error}")
        assert str(error.value).startswith(f"{file}, {output}")
    if replaced is not None:
        assert contents(opened(*overrides, "data.on_error=replace"))["train"][0] == ["one", replaced, "two"]
    assert contents(opened(*overrides, "data.on_error=skip"))["train"][0] == ["one", None, "two"]


def test_bad_bytes_in_parquet_are_refused_with_their_row_or_replaced_or_skipped(tmp_path: Path):
    texts = pyarrow.array([b"one", b"bad \xff", b"two"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": ["a", "b", "a"]}), tmp_path / "all.parquet")
    overrides = ["data.source=parquet", f"data.path={tmp_path / 'all.parquet'}"]
    with pytest.raises(UserError, match=r"all\.parquet, row 2: the text is not UTF-8"):
        contents(opened(*overrides))
    assert contents(opened(*overrides, "data.on_error=replace"))["train"][0] == ["one", "bad \ufffd", "two"]
    assert contents(opened(*overrides, "data.on_error=skip"))["train"][0] == ["one", None, "two"]


def test_a_csv_has_long_cells_line_breaks_in_quotes_and_a_byte_order_mark(tmp_path: Path):
    long = "word " * 200_000
    (tmp_path / "all.csv").write_text(f'\ufefftext,label\r\n"a\r\nb",x\r\n\r\n{long},y\r\n', newline="")
    source = opened("data.source=csv", f"data.path={tmp_path / 'all.csv'}")
    assert contents(source)["train"] == (["a\r\nb", long], ["x", "y"])


def test_a_csv_may_have_any_name_and_one_that_cannot_be_opened_is_named(tmp_path: Path):
    (tmp_path / "all.txt").write_text("text,label\na,x\n")
    (tmp_path / "folder.csv").mkdir()
    assert contents(opened("data.source=csv", f"data.path={tmp_path / 'all.txt'}"))["train"] == (["a"], ["x"])
    with pytest.raises(UserError, match=r"folder\.csv: cannot be read \(Is a directory\)"):
        opened("data.source=csv", f"data.path={tmp_path}", "data.splits={train: folder.csv}")


def test_a_json_file_may_be_a_list_and_rows_may_lack_a_label(tmp_path: Path):
    (tmp_path / "all.json").write_text(json.dumps([{"text": "one", "n": 1}, {"text": None, "label": 2.0}]))
    source = opened("data.source=json", f"data.path={tmp_path / 'all.json'}")
    assert contents(source)["train"] == (["one", ""], [None, "2"])


def test_what_is_missing_is_named(tmp_path: Path):
    write_csv(tmp_path, ",", ".csv")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.csv").write_text("text,label\n")
    (tmp_path / "broken.csv").write_text('text,label\n"open,a\n')
    for overrides, output in [
        (["data.path=/nowhere/at/all"], "no such file or folder"),
        ([f"data.path={tmp_path / 'empty'}"], "no .txt files"),
        ([f"data.path={tmp_path}", "data.splits={train: tr}"], "named by data.splits.train"),
        (["data.source=csv", f"data.path={tmp_path / 'empty'}"], "no .csv or .tsv or .tab file"),
        (["data.source=csv", f"data.path={tmp_path / 'nothing.csv'}"], "no documents"),
        (["data.source=csv", f"data.path={tmp_path / 'broken.csv'}"], "line 2: the quote that opens here is never closed"),
        (["data.source=csv", f"data.path={tmp_path}", "data.text_col=[body]"], "its columns are: text, label"),
        (["data.source=csv", f"data.path={tmp_path}", "data.label_col=class"], "its columns are: text, label"),
        (["data.source=hub", "data.path=nobody/nothing"], "no network to reach it"),
    ]:
        with pytest.raises(UserError) as error:
            opened(*overrides)
        assert output in str(error.value)
        assert "\n" not in str(error.value)
