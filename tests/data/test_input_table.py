"""Input tables: kinds of input, text columns, blocks, and what cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.input_table import BLOCK_BYTES, BLOCK_ROWS, InputTable, open_input, rows_per_block, table_of_texts
from ulmfit_dist.errors import UserError

CSV = 'id,text,note\n007,"a, b","two\nlines"\n008,,\n'


def opened(path: Path, content: str | bytes, text_col: list[str] | None = None, **data: object) -> InputTable:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_input(path, DataConfig(**{"text_col": ["text"], **data}), text_col)  # type: ignore[arg-type]


def texts(table: InputTable) -> list[str]:
    return table.read(0, table.num_rows).texts


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "A.CSV"])
def test_a_csv_keeps_the_text_of_its_cells(tmp_path: Path, name: str):
    content = gzip.compress(CSV.encode()) if name.endswith(".gz") else CSV
    table = opened(tmp_path / name, content)
    block = table.read(0, 2)
    assert table.columns == ["id", "text", "note"]
    assert block.rows == [{"id": "007", "text": "a, b", "note": "two\nlines"}, {"id": "008", "text": "", "note": ""}]
    assert block.texts == ["a, b", ""]


@pytest.mark.parametrize(
    ("name", "content"), [("a.tsv", "text\tn\nb\t1\n"), ("a.csv", "text;n\nb;1\n"), ("a.tab", "n\ttext\n1\tb")]
)
def test_delimiters_are_those_of_the_reader_for_training(tmp_path: Path, name: str, content: str):
    assert opened(tmp_path / name, content).read(0, 1).rows == [{"text": "b", "n": "1"}]


def test_json_values_are_kept(tmp_path: Path):
    rows = [{"text": "a", "n": {"deep": [1, None]}}, {"text": None, "n": 1.5, "ü": True}]
    for content in ("".join(json.dumps(row) + "\n" for row in rows), json.dumps(rows)):
        table = opened(tmp_path / "a.json", content)
        assert table.read(0, 2).rows == rows
        assert texts(table) == ["a", ""]


def test_parquet_keeps_its_types(tmp_path: Path):
    written = pa.table({"text": ["a", None, "c"], "n": pa.array([1, 2, 3], pa.int8()), "d": pa.array([[1], [], None])})
    pa.parquet.write_table(written, tmp_path / "a.parquet", row_group_size=2)
    table = open_input(tmp_path / "a.parquet", DataConfig(text_col=["text"]))
    block = table.read(1, 3)
    assert isinstance(block.rows, pa.Table)
    assert block.rows.equals(written.slice(1))
    assert block.texts == ["", "c"]


def test_a_folder_is_a_row_per_text_file_in_natural_order(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name in ("10.txt", "9.txt", "sub/1.txt", "other.md"):
        (tmp_path / name).write_text(f"{name}\nsecond line\n")
    table = open_input(tmp_path, DataConfig())
    assert [row["file"] for row in table.read(0, table.num_rows).rows] == ["9.txt", "10.txt", "sub/1.txt"]
    assert texts(table)[0] == "9.txt\nsecond line\n"


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_any_other_file_is_a_text_per_line_and_an_empty_line_is_a_text(tmp_path: Path, ends: str):
    table = opened(tmp_path / "a.txt", "\ufeff" + ends.join(["a,b", "", "c"]))
    assert texts(table) == ["a,b", "", "c"]
    assert table.read(1, 3).texts == ["", "c"]
    assert table.read(0, 1).rows == [{"text": "a,b"}]


def test_text_columns_are_joined_as_in_training(tmp_path: Path):
    table = opened(tmp_path / "a.csv", "title,body\nA,b\n", text_col=["title", "body"])
    assert texts(table) == ["xxfld 1 A xxfld 2 b"]
    config = DataConfig(text_col=["body"])
    assert texts(open_input(tmp_path / "a.csv", config)) == ["b"]
    assert texts(open_input(tmp_path / "a.csv", config, ["title"])) == ["A"]


def test_blocks_are_smaller_if_rows_are_large():
    assert rows_per_block(100, 10) == BLOCK_ROWS
    assert rows_per_block(10 * BLOCK_BYTES, 10) == 1
    assert rows_per_block(BLOCK_BYTES, 100) == 100
    assert rows_per_block(0, 0) == BLOCK_ROWS


def test_any_block_is_read_without_those_before_it(tmp_path: Path):
    lines = [f"row {i}" for i in range(1000)]
    for name, content in (("a.txt", "\n".join(lines)), ("a.csv", "text,n\n" + "".join(f"{line},1\n" for line in lines))):
        table = opened(tmp_path / name, content)
        assert table.read(700, 703).texts == lines[700:703]
        assert table.read(10, 12).texts == lines[10:12]


def test_the_identity_changes_with_content_and_columns(tmp_path: Path):
    table = opened(tmp_path / "a.csv", CSV)
    assert table.identity == opened(tmp_path / "b.csv", CSV).identity
    assert table.identity != opened(tmp_path / "a.csv", CSV.replace("a, b", "a; b")).identity
    assert table.identity != opened(tmp_path / "a.csv", CSV, text_col=["note"]).identity
    assert table_of_texts(["a"]).identity != table_of_texts(["b"]).identity


def test_a_table_may_have_no_rows(tmp_path: Path):
    assert opened(tmp_path / "a.csv", "text,n\n").num_rows == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,body\n1,b\n", r"no column 'text'; its columns are: id, body: name the text with --text-col"),
        ("a.csv", "text,n,n\na,1,2\n", r"the header has column 'n' more than once"),
        ("a.csv", "text,n\na,1\nb\n", r"a\.csv, line 3 has 1 fields, but the header has 2"),
        ("a.csv", b"text,n\na,1\n\xff,2\n", r"a\.csv, line 3: byte 1 of the line is not UTF-8"),
        ("a.jsonl", '{"text": ["a"]}\n', r"a\.jsonl, line 1: column 'text' holds a list, which is not text"),
        ("a.jsonl", '{"text": "a"}\n{"n": 1}\n', r"a\.jsonl, line 2 has no 'text'"),
        ("a.txt", b"a\n\xff\n", r"a\.txt, line 2: byte 1 of the line is not UTF-8"),
        ("a.txt", "", "no text in it"),
        ("a.parquet", "text", "cannot be read as Parquet"),
    ],
)
def test_a_damaged_input_is_one_line_before_anything_is_computed(tmp_path: Path, name: str, content: str, message: str):
    with pytest.raises(UserError, match=message):
        texts(opened(tmp_path / name, content))


def test_columns_are_only_for_tables(tmp_path: Path):
    with pytest.raises(UserError, match="not a table, so it has no columns: leave out --text-col"):
        opened(tmp_path / "a.txt", "a\n", text_col=["text"])
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/a.csv").write_text(CSV)
    with pytest.raises(UserError, match=r"no \.txt file in it: give a folder of text files"):
        open_input(tmp_path / "tables", DataConfig())
    table = pa.table({"text": [b"a"]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'text' is of type binary, which is not text"):
        open_input(tmp_path / "a.parquet", DataConfig(text_col=["text"]))


def test_invalid_bytes_can_be_replaced(tmp_path: Path):
    assert texts(opened(tmp_path / "a.txt", b"a\xff\n", on_error="replace")) == ["a\ufffd"]
    assert texts(opened(tmp_path / "a.csv", b"text,n\na\xff,1\n", on_error="replace")) == ["a\ufffd"]
