"""Format of CSV files: delimiter, header and quoting of a few lines."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ulmfit_dist.data.sources.base import BadRow
from ulmfit_dist.data.sources.csv_format import MOST_LABELS, CsvFormat, QuotedCells, SwallowedRows, read_csv_format
from ulmfit_dist.data.sources.line_stream import LineStream
from ulmfit_dist.errors import UserError

REQUIRED = ("text", "label")


def read(
    tmp_path: Path, content: str, required: tuple[str, ...] = REQUIRED, name: str = "a.csv", quoting: bool | None = None
) -> tuple[CsvFormat, int, bytes]:
    """Return the format, the number of the first line of rows, and the rest of the stream."""
    packed = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
    (tmp_path / name).write_bytes(packed)
    stream = LineStream(tmp_path / name)
    form, line = read_csv_format(stream, quoting, required)
    return form, line, stream.read(-1)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_that_by_which_the_header_has_its_columns(delimiter: str, tmp_path: Path):
    content = f"id{delimiter} text {delimiter}label\n1,2;3\t4,5;6\n"
    assert read(tmp_path, content) == (CsvFormat(delimiter, True, ["id", "text", "label"]), 2, b"1,2;3\t4,5;6\n")


def test_without_required_columns_the_first_delimiter_with_several_columns_is_taken(tmp_path: Path):
    for header, delimiter, columns in (
        ("a,b;c;d", ",", ["a", "b;c;d"]),
        ("a;b\tc", ";", ["a", "b\tc"]),
        ("a\tb", "\t", ["a", "b"]),
        ("a", ",", ["a"]),
    ):
        assert read(tmp_path, f"{header}\nrow\n", ())[0] == CsvFormat(delimiter, True, columns)
    assert read(tmp_path, "a;b\nrow\n", ("text",))[0] == CsvFormat(";", True, ["a", "b"])  # the caller names what it lacks
    assert read(tmp_path, "a,b;text\nrow\n", ("text",))[0] == CsvFormat(";", True, ["a,b", "text"])


@pytest.mark.parametrize("line", ["sep=|", '"sep=|"', "SEP=|  ", "\ufeffsep=|"])
def test_excels_first_line_sets_the_delimiter(line: str, tmp_path: Path):
    form, number, rest = read(tmp_path, f"{line}\r\ntext|label\r\na|b\r\n")
    assert (form, number, rest) == (CsvFormat("|", True, ["text", "label"]), 3, b"a|b\r\n")
    second = read(tmp_path, f"\n{line}\ntext|label\n", ())[0]
    assert second.columns == [line.strip('"\ufeff ')]  # a header like any other


def test_blank_lines_before_the_header_are_skipped_and_counted(tmp_path: Path):
    form, number, rest = read(tmp_path, "\n ,;,\t\r\n\ufefftext,label\na,b\n")
    assert (form.columns, number, rest) == (["text", "label"], 4, b"a,b\n")
    assert read(tmp_path, "\n,,\n", ()) == (CsvFormat(",", True, []), 3, b"")
    assert read(tmp_path, "", ()) == (CsvFormat(",", True, []), 1, b"")


@pytest.mark.parametrize("name", ["a.tsv", "a.tab", "A.TSV.gz", "a.tsv.GZ"])
def test_a_tsv_file_has_tabs_and_no_quoting(name: str, tmp_path: Path):
    form, _, _ = read(tmp_path, 'text\tlabel,"x\n', ("text",), name)
    assert form == CsvFormat("\t", False, ["text", 'label,"x'])
    assert read(tmp_path, 'text\t"label"\n', name=name, quoting=True)[0] == CsvFormat("\t", True, ["text", "label"])
    with pytest.raises(UserError, match=r"the column names are quoted: set data\.quoting=true"):
        read(tmp_path, '"text"\t"label"\n', name=name)


def test_data_quoting_comes_before_the_name_of_the_file(tmp_path: Path):
    assert read(tmp_path, 'text,"label\n', ("text",), quoting=False)[0] == CsvFormat(",", False, ["text", '"label'])
    assert read(tmp_path, 'text,"label"\n', ("text",), quoting=None)[0] == CsvFormat(",", True, ["text", "label"])


def test_a_header_may_span_lines_and_its_lines_are_counted(tmp_path: Path):
    content = 'text,"a\nlong, name","label"\na,b,c\nd,e,f\n'
    assert read(tmp_path, content) == (CsvFormat(",", True, ["text", "a\nlong, name", "label"]), 3, b"a,b,c\nd,e,f\n")
    content = 'text;"a\n\nlong; name";"label"\na;b;c\n'  # read with a comma first, to the same line
    assert read(tmp_path, content) == (CsvFormat(";", True, ["text", "a\n\nlong; name", "label"]), 4, b"a;b;c\n")


def test_bytes_of_a_header_that_cannot_be_decoded_are_replaced(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'text,"a\n\xff",label\n')
    assert read_csv_format(LineStream(tmp_path / "a.csv"), None, REQUIRED)[0].columns == ["text", "a\n\ufffd", "label"]
    (tmp_path / "a.csv").write_bytes(b"text,\xff,label\n")
    assert read_csv_format(LineStream(tmp_path / "a.csv"), None, REQUIRED)[0].columns == ["text", "\ufffd", "label"]


def test_a_quote_in_the_header_that_is_never_closed_is_part_of_a_name(tmp_path: Path):
    form, _, rest = read(tmp_path, 'text,5" size,label\na,b,c\n')
    assert form.columns == ["text", '5" size', "label"]
    assert rest == b"a,b,c\n"
    form, _, _ = read(tmp_path, 'text,"size,label\na,b,c\n', ())
    assert form.columns == ["text", '"size', "label"]
    form, _, _ = read(tmp_path, 'te"x"t;"label"\n', ("label",))
    assert form.columns == ['te"x"t', "label"]


def test_a_required_column_that_is_there_twice_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.csv: the header has column 'label' more than once"):
        read(tmp_path, "text,label,label\n")
    assert read(tmp_path, "text,label,x,x\n")[0].columns == ["text", "label", "x", "x"]


def test_a_reader_without_quoting_splits_lines_as_they_are():
    lines = ['"a,b",c\r\n', "\n", "d\n", "e,f"]
    form = CsvFormat(",", False, [])
    assert list(form.reader(lines)) == [['"a', 'b"', "c"], [], ["d"], ["e", "f"]]
    assert list(form.reader([" a,b\t \n", "  "])) == [[" a", "b\t "], ["  "]]
    assert form.advice == " (set data.quoting=true if fields are quoted)"
    quoted = CsvFormat(",", True, [])
    assert list(quoted.reader(lines)) == [["a,b", "c"], [], ["d"], ["e", "f"]]
    assert quoted.advice == ""
    assert list(CsvFormat(";", True, []).reader(['"a;b";c\n'])) == [["a;b", "c"]]


def test_cells_that_look_quoted_are_counted_from_their_first_line(tmp_path: Path):
    cells = QuotedCells(tmp_path / "a.csv")
    for line, cell in enumerate(['a ""b"" c', '"a "b" c"', '"', '""', '"""', '"a""b'], 2):
        cells.add({"text": cell, "label": "x"}, line)
    assert cells.notices() == []
    for line, cell in ((9, '"a ""b"" c"'), (10, "a"), (11, '"""a"""')):
        cells.add({"label": "x", "text": cell}, line)
    for line, cell in ((12, '"""a"'), (13, '"a"""')):  # the doubled quotes are next to the outer ones
        cells.add({"text": cell}, line)
        assert cells.count == line - 9
    (notice,) = cells.notices()
    assert notice.startswith(f"{tmp_path / 'a.csv'}: 4 row(s), the first in line 9, have cells that look quoted")


def swallowed(columns: list[str], label: str | None = "label") -> SwallowedRows:
    return SwallowedRows(Path("a.csv"), columns, label)


def test_a_cell_whose_lines_have_labels_is_reported():
    rows = swallowed(["text", "label"])
    rows.add({"text": "a", "label": "pos"}, 2, ())
    rows.add({"text": "b\nno, label\nc", "label": "neg"}, 3, ['"b\n', "no, label\n", 'c",neg\n'])
    assert rows.notices() == []
    rows.add({"text": "b\nc", "label": "neg"}, 6, ['"b, pos \n', 'c",neg\n'])
    assert rows.notices() == [
        "a.csv, lines 6 to 7: one cell spans these lines and looks like several rows: if quote characters belong to the "
        "texts, set data.quoting=false"
    ]
    rows.add({"text": "b\nc\nd", "label": "neg"}, 8, ['"b\n', 'c;"pos"\n', 'd",neg\n'])
    assert (
        "lines 6 to 7: one cell spans these lines and looks like several rows, and 1 more such rows: " in rows.notices()[0]
    )


def test_the_label_is_counted_from_the_end_of_a_line():
    rows = swallowed(["label", "text", "other"])
    rows.add({"label": "pos", "text": "a", "other": ""}, 2, ())
    for line in ("text, with, pos\n", "pos\n", "pos,b\n"):
        rows.add({"label": "x", "text": "b", "other": ""}, 3, [line, '"\n'])
    assert rows.notices() == []
    rows.add({"label": "x", "text": "b", "other": ""}, 5, ["text, pos, b, c\n", '"\n'])
    assert len(rows.notices()) == 1
    last = swallowed(["text", "label"])
    last.add({"text": "a", "label": "pos"}, 2, ())
    last.add({"text": "a", "label": "x"}, 3, ["b,c\n", "d,pos\n"])  # the last line is that of the row's label
    last.add({"text": "a", "label": "x"}, 3, ["pos\n", "d,x\n"])  # a line of one field
    assert last.notices() == []


def test_without_a_label_column_or_for_bad_rows_nothing_is_compared():
    for rows in (swallowed(["text"], None), swallowed(["text"])):
        rows.add({"text": "a"}, 2, ())
        rows.add({"text": "a"}, 3, ["a,b\n", "c\n"])
        assert rows.notices() == []
    rows = swallowed(["text", "label"])
    rows.add({"text": "a", "label": "pos"}, 2, ())
    rows.add(BadRow("line 3"), 3, ["a,pos\n", "c\n"])
    assert rows.notices() == []


def test_a_limited_number_of_labels_and_of_suspects_is_kept():
    rows = swallowed(["text", "label"])
    for number in range(MOST_LABELS + 1):
        rows.add({"text": "a", "label": str(number)}, 2, ())
        rows.add({"text": "a", "label": "x"}, 3, [f"a,{number}\n", "c\n"])
    assert len(rows.labels) == len(rows.suspects) == MOST_LABELS
