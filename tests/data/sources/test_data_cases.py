"""Inputs that people have, each kind in every source that can hold it: read right, or refused in one line."""

import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from corpora import WRITERS, csv_text, folder, rows, write
from datasets import Dataset, DatasetDict

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.base import Source
from ulmfit_dist.data.sources.in_memory import InMemorySource, with_cached_texts
from ulmfit_dist.errors import UserError

BASE = load_config(None, ["data.path=."])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(source: str, path: str, **keys) -> Source:
    return open_source(replace(BASE.data, source=source, path=path, **keys))


def refused(source: str, path: str, **keys) -> str:
    def read() -> None:
        for documents in opened(source, path, **keys).splits.values():
            documents.read(0, len(documents))

    with pytest.raises(UserError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


def labels(source: Source) -> dict[str, Counter]:
    return {split: Counter(documents.read(0, len(documents))[1]) for split, documents in source.splits.items()}


def texts(source: Source, split: str = "train") -> list[str | None]:
    documents = source.splits[split]
    return documents.read(0, len(documents))[0]


def splits_of(kind: str, names: dict[str, int], **keys) -> Source:
    """A source of splits by these names, with so many documents each, no two of which are equal."""
    begin = 0
    if kind in ("frame", "hub"):
        parts = {}
        for name, number in names.items():
            content = rows(number, begin)
            parts[name] = Dataset.from_dict({"text": [t for t, _ in content], "label": [y for _, y in content]})
            begin += number
        frame = InMemorySource(DatasetDict(parts), replace(BASE.data, cache_dir="cache", **keys))
        kept = with_cached_texts(replace(BASE, data=replace(BASE.data, cache_dir="cache", **keys)), frame.digest())
        frame.write(Path(kept.data.path or ""))
        return replace(open_source(kept.data), notices=frame.notices)
    source, writer = WRITERS[kind]
    for name, number in names.items():
        writer(f"in/{name}", rows(number, begin))
        begin += number
    return opened(source, "in", **keys)


KINDS = [*WRITERS, "frame"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev", "eval", "Validation"])
def test_a_valid_split_is_known_by_each_of_its_names(kind: str, name: str):
    actual = splits_of(kind, {"train": 12, name: 4})
    assert {split: len(documents) for split, documents in actual.splits.items()} == {"train": 12, "valid": 4}
    assert actual.notices == []


@pytest.mark.parametrize("kind", KINDS)
def test_valid_and_test_are_two_splits_and_none_shares_a_text(kind: str):
    actual = splits_of(kind, {"train": 12, "valid": 4, "test": 6, "unsupervised": 2})
    assert {split: len(documents) for split, documents in actual.splits.items()} == {
        "train": 12,
        "valid": 4,
        "unlabelled": 2,
        "test": 6,
    }
    sides = [set(texts(actual, split)) for split in actual.splits]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 24
    assert set(labels(actual)["unlabelled"]) == {None}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_used_is_named_with_its_number(kind: str):
    actual = splits_of(kind, {"train": 12, "val": 4, "dev": 2, "extra": 3})
    assert {split: len(documents) for split, documents in actual.splits.items()} == {"train": 12, "valid": 4}
    (notice,) = actual.notices
    assert "not used: " in notice
    assert "extra" in notice
    assert "dev" in notice


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "parquet"])
def test_numbered_parts_are_one_split_in_natural_order(kind: str):
    source, writer = WRITERS[kind]
    for part in (10, 2, 1):
        writer(f"in/train-{part}", [(f"part {part}", "a")])
    assert texts(opened(source, "in")) == ["part 1", "part 2", "part 10"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_train_it_is_asked_for(kind: str):
    with pytest.raises(UserError, match=r"set data\.splits"):
        splits_of(kind, {"valid": 4, "test": 4})


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "parquet"])
@pytest.mark.parametrize("pattern", ["part-*", "part-?", "part-[12]"])
def test_a_pattern_without_its_ending_counts_a_file_once(kind: str, pattern: str):
    source, writer = WRITERS[kind]
    for part in (1, 2):
        writer(f"in/part-{part}", rows(10, 10 * part))
    assert len(opened(source, "in", splits={"train": pattern}).splits["train"]) == 20


@pytest.mark.parametrize("name", ["a[1]", "x::y", "$p", "a b", "a*"])
@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_name_that_looks_like_a_pattern_is_a_name_first(kind: str, name: str):
    source, writer = WRITERS[kind]
    writer(f"in/{name}", rows(4))
    writer("in/a1", rows(2, 9))
    assert len(opened(source, "in", splits={"train": name}).splits["train"]) == 4


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_file_or_a_link_to_it_on_two_sides_is_refused(kind: str):
    source, writer = WRITERS[kind]
    writer("in/one", rows(4))
    (file,) = Path("in").iterdir()
    os.symlink(file.name, file.with_name(f"two{file.suffix}"))
    assert "is in the splits train and valid" in refused(source, "in", splits={"train": "one", "valid": "two"})
    assert len(opened(source, "in", splits={"train": "*"}).splits["train"]) == 4


@pytest.mark.parametrize("kind", [*WRITERS])
def test_content_and_not_name_or_time_identifies_a_source(kind: str):
    source, writer = WRITERS[kind]
    swapped = [(text, {"a": "b", "b": "a"}[label or ""]) for text, label in rows(10)]
    for place, content in (("one", rows(10)), ("two", swapped), ("three", rows(10))):
        writer(f"{place}/train", content)
    for file in Path().rglob("*"):
        os.utime(file, (1_700_000_000, 1_700_000_000))
    one, two, three = (opened(source, place).identity for place in ("one", "two", "three"))
    assert one == three
    assert one != two


@pytest.mark.parametrize("kind", [*WRITERS])
def test_a_file_that_is_replaced_by_one_of_its_size_and_time_is_another_source(kind: str):
    source, writer = WRITERS[kind]
    writer("in/train", rows(10))
    before = opened(source, "in").identity
    times = {file: file.stat() for file in Path("in").rglob("*") if file.is_file()}
    writer("in/train", [(text.replace("number", "nUmber"), label) for text, label in rows(10)])
    for file, status in times.items():
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert opened(source, "in").identity != before


@pytest.mark.parametrize("kind", [*WRITERS])
def test_hidden_files_and_folders_are_skipped(kind: str):
    source, writer = WRITERS[kind]
    writer("in/train", rows(6))
    writer("in/.ipynb_checkpoints/train", rows(3, 50))
    writer("in/__MACOSX/train", rows(3, 60))
    write("in/.DS_Store", b"\0")
    actual = opened(source, "in")
    assert len(actual.splits["train"]) == 6
    assert actual.notices == []


def test_texts_of_other_case_compressed_ones_and_linked_folders_are_read():
    write("in/a/1.TXT", "one")
    write("in/a/2.Txt", "two")
    write("in/b/3.txt.gz", gzip.compress(b"three"))
    write("far/4.txt", "four")
    os.symlink(Path("far").resolve(), "in/c")
    os.symlink(Path("in").resolve(), "in/a/loop")
    os.symlink("nowhere", "in/a/dead.txt")
    actual = opened("folder", "in")
    assert sorted(texts(actual)) == ["four", "one", "three", "two"]
    assert labels(actual)["train"] == {"a": 2, "b": 1, "c": 1}
    assert actual.notices == ["data.path=in: not used: 1 broken link(s): a/dead.txt"]


def test_the_same_folder_on_two_sides_is_refused():
    folder("in/train", rows(4))
    os.symlink("train", "in/valid")
    assert "is in the splits train and valid" in refused("folder", "in")


def test_imdb_as_its_authors_pack_it():
    folder("in/train", rows(6))
    folder("in/test", rows(4, 10))
    write("in/train/unsup/0.txt", "no label")
    write("in/train/urls_pos.txt", "http://")
    write("in/train/labeledBow.feat", "9 0:9")
    write("in/imdb.vocab", "the")
    actual = opened("folder", "in")
    assert labels(actual) == {"train": {"a": 3, "b": 3}, "unlabelled": {None: 1}, "test": {"a": 2, "b": 2}}
    (notice,) = actual.notices
    for name in ("train/urls_pos.txt", "labeledBow.feat", "imdb.vocab"):
        assert name in notice


def test_a_folder_of_loose_files_alone_is_of_unlabelled_texts():
    write("in/a.txt", "one")
    write("in/b.txt", "two")
    assert labels(opened("folder", "in")) == {"train": {None: 2}}


PACKED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("kind", ["csv", "tsv", "json"])
def test_compressed_tables_are_read_alone_and_in_folders_of_splits(kind: str, suffix: str):
    source, writer = WRITERS[kind]
    writer("plain/train", rows(8))
    (plain,) = Path("plain").iterdir()
    write(f"in/{plain.name}{suffix}", PACKED[suffix](plain.read_bytes()))
    write(f"in/test{plain.suffix}{suffix}", PACKED[suffix](plain.read_bytes().replace(b"number", b"other")))
    actual = opened(source, "in")
    assert labels(actual) == {"train": {"a": 4, "b": 4}, "test": {"a": 4, "b": 4}}
    assert opened(source, f"in/{plain.name}{suffix}").identity == opened(source, str(plain)).identity


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "folder"])
def test_a_byte_order_mark_is_read_and_is_no_text(kind: str, encoding: str):
    source, writer = WRITERS[kind]
    writer("in/train", [("für öl", "a"), ("zwei", "b")])
    for file in (file for file in Path("in").rglob("*") if file.is_file()):
        file.write_bytes(file.read_text("utf-8").replace("\n", "\r\n").encode(encoding))
    actual = opened(source, "in")
    assert [text.strip() for text in texts(actual)] == ["für öl", "zwei"]
    assert labels(actual) == {"train": {"a": 1, "b": 1}}


@pytest.mark.parametrize("kind", ["csv", "tsv", "folder"])
def test_other_encodings_are_named_or_read_by_data_encoding(kind: str):
    source, writer = WRITERS[kind]
    writer("in/train", [("für öl", "a"), ("zwei", "b")])
    for file in (file for file in Path("in").rglob("*") if file.is_file()):
        file.write_bytes(file.read_text("utf-8").encode("cp1252"))
    assert "data.encoding (such as cp1252)" in refused(source, "in")
    assert texts(opened(source, "in", encoding="cp1252")) == ["für öl", "zwei"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "folder"])
def test_utf_16_without_a_mark_is_named_and_never_a_text_of_nuls(kind: str):
    source, writer = WRITERS[kind]
    writer("in/train", rows(4))
    for file in (file for file in Path("in").rglob("*") if file.is_file()):
        file.write_bytes(file.read_text().encode("utf-16-le"))
    assert "set data.encoding=utf-16-le" in refused(source, "in")
    assert len(texts(opened(source, "in", encoding="utf-16-le"))) == 4


@pytest.mark.parametrize("kind", [*WRITERS])
def test_a_nul_character_is_refused_replaced_or_skipped(kind: str):
    source, writer = WRITERS[kind]
    writer("in/train", [("a\0b", "a"), *rows(3)])
    assert "NUL characters" in refused(source, "in")
    assert "a\ufffdb" in texts(opened(source, "in", on_error="replace"))
    assert texts(opened(source, "in", on_error="skip")).count(None) == 1


@pytest.mark.parametrize(
    "head", ["sep=;\ntext;label\n", "\n\ntext;label\n", " text ; label \n", "\ufefftext;label\n", '"text";"label"\n']
)
def test_headers_of_spreadsheets(head: str):
    write("x.csv", f"{head}one, two;a\nthree;b\n")
    actual = opened("csv", "x.csv")
    assert (texts(actual), labels(actual)) == (["one, two", "three"], {"train": {"a": 1, "b": 1}})


def test_a_column_that_is_there_twice_is_refused_and_another_one_is_not():
    write("x.csv", "text,label,text\none,a,other\n")
    assert "the header has column 'text' more than once" in refused("csv", "x.csv")
    write("y.csv", "text,label,n,n\none,a,1,2\ntwo,b,1,2\n")
    assert texts(opened("csv", "y.csv")) == ["one", "two"]


def test_a_header_that_no_terminal_can_show_is_escaped():
    write("in/train.csv", "te\x1b[31mxt,label\na,b\n")
    assert r"its columns are: 'te\x1b[31mxt', label" in refused("csv", "in/train.csv")


def test_a_tsv_has_no_quoting_unless_it_is_said():
    write("x.tsv", 'text\tlabel\n"It\ta\nsix of 12"\tb\nthree\ta\n')
    assert texts(opened("csv", "x.tsv")) == ['"It', 'six of 12"', "three"]
    write("y.tsv", 'text\tlabel\n"say ""so"""\ta\ntwo\tb\n')
    assert "data.quoting=true" in opened("csv", "y.tsv").notices[0]
    assert texts(opened("csv", "y.tsv", quoting=True)) == ['say "so"', "two"]
    write("z.tsv", '"text"\t"label"\n"one"\t"a"\n')
    assert "set data.quoting=true" in refused("csv", "z.tsv")


def test_a_cell_that_swallows_rows_is_reported():
    write("x.csv", 'text,label\n"It said,a\nfoo,b\nbar",a\nfour,b\nfive,a\n')
    (notice,) = opened("csv", "x.csv").notices
    assert notice.startswith("x.csv, lines 2 to 4: one cell spans these lines")
    assert len(texts(opened("csv", "x.csv", quoting=False))) == 5
    write("y.csv", 'text,label\n"two\nlines, of text",a\nfour,b\n')
    assert opened("csv", "y.csv").notices == []


def test_nan_is_no_label():
    write("x.jsonl", '{"text": "one", "label": NaN}\n{"text": "two", "label": "a"}\n')
    assert labels(opened("json", "x.jsonl")) == {"train": {None: 1, "a": 1}}
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [float("nan"), 1.0]}), "x.parquet")
    assert labels(opened("parquet", "x.parquet")) == {"train": {None: 1, "1": 1}}


@pytest.mark.parametrize("cell", [["a"], {"a": 1}])
@pytest.mark.parametrize("column", ["text", "label"])
def test_cells_that_hold_no_text_or_no_label_are_refused(column: str, cell: object):
    row = {"text": "one", "label": "a", column: cell}
    write("x.jsonl", json.dumps({"text": "zero", "label": "b"}) + "\n" + json.dumps(row) + "\n")
    frame = pandas.DataFrame([{"text": "zero", "label": "b"}, row])
    if column == "label" and isinstance(cell, list):  # labels of a document that has several
        assert labels(opened("json", "x.jsonl")) == {"train": {"b": 1, "a": 1}}
        return
    assert refused("json", "x.jsonl").startswith(f"x.jsonl, line 2: column '{column}' holds")
    pyarrow.parquet.write_table(pyarrow.table({key: [value] for key, value in row.items()}), "x.parquet")
    assert f"column '{column}'" in refused("parquet", "x.parquet")
    with pytest.raises(UserError, match=f"row 1: column '{column}' holds"):
        InMemorySource(frame, BASE.data).digest()


def test_bytes_are_no_text():
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"one"], "label": ["a"]}), "x.parquet")
    assert "is of type binary, which is not text" in refused("parquet", "x.parquet")


@pytest.mark.parametrize("name", ["[Content_Types].xml", "mimetype"])
def test_a_spreadsheet_and_an_archive_are_refused(name: str):
    with zipfile.ZipFile("x.csv", "w") as archive:
        archive.writestr(name, "x")
    assert "save the table as CSV" in refused("csv", "x.csv")
    with zipfile.ZipFile("y.csv", "w") as archive:
        archive.writestr("a.csv", "text,label\n")
        archive.writestr("b.csv", "text,label\n")
    assert "an archive of 2 files" in refused("csv", "y.csv")


def test_a_test_file_without_labels_is_read_and_said_to_have_none():
    write("in/train.csv", csv_text(rows(4)))
    write("in/test.csv", "id,text\n1,one\n2,two\n")
    actual = opened("csv", "in")
    assert labels(actual)["test"] == {None: 2}
    assert "the test split has no labels" in actual.notices[0]


@pytest.mark.parametrize("path", ["02", "1e3", "a #1", "a: b", "[x]", "no", "*x"])
def test_a_path_in_the_command_line_is_text(path: str):
    assert load_config(None, [f"data.path={path}"]).data.path == path
    assert load_config(None, ["data.path=x", f"name={'01'}"]).name == "01"


def test_null_and_quotes_in_the_command_line_are_yaml():
    assert load_config(None, ["data.path=x", "data.missing_label=null"]).data.missing_label is None
    assert load_config(None, ["data.path='-1'"]).data.path == "-1"
    assert isinstance(BASE.data, DataConfig)
