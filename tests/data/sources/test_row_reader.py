"""Rows of files from any row on, whatever the file is compressed or encoded by; and when a file is not read again."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import random
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ulmfit_dist.data.sources.base import BadRow, ReadOptions
from ulmfit_dist.data.sources.content_cache import ContentCache
from ulmfit_dist.data.sources.line_stream import LineStream
from ulmfit_dist.data.sources.parquet import ParquetRows
from ulmfit_dist.data.sources.row_reader import STRIDE, FileRows, first_rows, index_file
from ulmfit_dist.errors import UserError

NUM_ROWS = 3 * STRIDE + 7


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("all.csv", content)
    return packed.getvalue()


PACKED = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
    "zip": zipped,
    "utf-16": lambda content: content.decode().encode("utf-16"),
    "utf-32": lambda content: content.decode().encode("utf-32"),
    "utf-8 with a mark": lambda content: b"\xef\xbb\xbf" + content,
    "carriage returns": lambda content: content.replace(b"\r\n", b"\r"),
}


def rows(lines_in_cells: bool) -> list[tuple[str, str]]:
    rng, end = random.Random(1), "\n" if lines_in_cells else " "
    return [(f'text {i} {"ü" * rng.randint(0, 9)}, "so"{end * (i % 5)}', "ab"[i % 2]) for i in range(NUM_ROWS)]


def csv_of(lines: list[tuple[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("text", "label"), *lines])
    return text.getvalue().encode()


def opened(file: Path, kind: str = "csv", **options) -> FileRows:
    reading = ReadOptions(kind, text=("text",), label="label", **options)
    return FileRows(file, reading, index_file(file, reading))


def slices(number: int) -> list[tuple[int, int]]:
    rng = random.Random(2)
    drawn = [sorted(rng.sample(range(number + 1), 2)) for _ in range(12)]
    return [(0, number), (number - 1, number), *((start, min(stop, start + 40)) for start, stop in drawn)]


@pytest.mark.parametrize("packed", PACKED)
def test_a_csv_is_read_from_any_row_on_however_it_is_packed(packed: str, tmp_path: Path):
    lines = rows(lines_in_cells=packed != "carriage returns")
    file = tmp_path / "all.csv"
    file.write_bytes(PACKED[packed](csv_of(lines)))
    read = opened(file)
    assert len(read) == len(lines)
    for start, stop in slices(len(lines)):
        assert [(row["text"], row["label"]) for row in read.rows(start, stop)] == lines[start:stop]
    again = pickle.loads(pickle.dumps(read))
    assert [row["text"] for row in again.rows(STRIDE, STRIDE + 3)] == [text for text, _ in lines[STRIDE : STRIDE + 3]]


@pytest.mark.parametrize("form", ["lines", "blank lines", "list", "indented list"])
def test_json_is_read_from_any_row_on(form: str, tmp_path: Path):
    objects = [{"text": text, "label": label, "n": [1, {"a": "]"}]} for text, label in rows(lines_in_cells=True)]
    texts = {
        "lines": "\n".join(map(json.dumps, objects)),
        "blank lines": "\n\n  \n".join(json.dumps(one, ensure_ascii=False) for one in objects) + "\n",
        "list": json.dumps(objects, ensure_ascii=False),
        "indented list": "\n " + json.dumps(objects, indent=2),
    }
    file = tmp_path / "all.json"
    file.write_text(texts[form], encoding="utf-8")
    read = opened(file, "json")
    for start, stop in slices(len(objects)):
        assert list(read.rows(start, stop)) == objects[start:stop]


@pytest.mark.parametrize("group", [1, 100, 997, 10**6])
def test_parquet_is_read_from_any_row_on(group: int, tmp_path: Path):
    texts = [f"text {i}" for i in range(2500)]
    table = pyarrow.table({"text": texts, "n": range(2500)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=group)
    read = ParquetRows(tmp_path / "a.parquet", "strict")
    for start, stop in slices(len(texts)):
        assert [row["text"] for row in read.rows(start, stop, ["text"])] == texts[start:stop]
        assert [*pickle.loads(pickle.dumps(read)).rows(start, stop, ["n"])][:1] == [{"n": start}][: stop - start]


def test_a_skipped_row_counts_and_those_after_it_keep_their_numbers(tmp_path: Path):
    lines = csv_of(rows(lines_in_cells=True)).split(b"\r\n")
    lines[5:5] = [b'bad,"quo"te', b"\xff,a", b"one,two,three"]
    (tmp_path / "all.csv").write_bytes(b"\r\n".join(lines))
    read = opened(tmp_path / "all.csv", on_error="skip")
    actual = list(read.rows(0, len(read)))
    assert [i for i, row in enumerate(actual) if isinstance(row, BadRow)] == [4, 5, 6]
    assert len(actual) == NUM_ROWS + 3
    for start, stop in slices(len(actual)):
        assert list(read.rows(start, stop)) == actual[start:stop]


def test_the_digest_is_of_what_is_read(tmp_path: Path):
    content = csv_of(rows(lines_in_cells=True))
    digests = {}
    for packed in PACKED.keys() - {"carriage returns"}:
        file = tmp_path / f"{packed}.csv"
        file.write_bytes(PACKED[packed](content))
        digests[packed] = opened(file).index.digest
    assert len(set(digests.values())) == 1
    (tmp_path / "plain.csv").write_bytes(content.replace(b"text 7", b"text 8"))
    assert opened(tmp_path / "plain.csv").index.digest != digests["gzip"]


@pytest.mark.parametrize("packed", ["gzip", "bzip2", "xz", "zstd", "zip"])
def test_an_incomplete_file_is_one_line(packed: str, tmp_path: Path):
    content = PACKED[packed](csv_of(rows(lines_in_cells=True)))
    (tmp_path / "all.csv").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"all\.csv: cannot be decompressed, damaged or incomplete") as error:
        opened(tmp_path / "all.csv")
    assert "\n" not in str(error.value)


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path):
    (tmp_path / "all.csv").write_bytes(csv_of(rows(lines_in_cells=False)))
    read = opened(tmp_path / "all.csv")
    (tmp_path / "all.csv").write_bytes(csv_of(rows(lines_in_cells=False)[:9]))
    with pytest.raises(UserError, match="changed while it was being read"):
        list(read.rows(5, 20))


def test_a_stream_goes_back_in_a_compressed_file(tmp_path: Path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one\ntwo\nthree\n"))
    stream = LineStream(tmp_path / "a.gz")
    assert list(stream) == [b"one\n", b"two\n", b"three\n"]
    stream.seek(4)
    assert (next(stream), stream.position) == (b"two\n", 8)


def test_a_file_is_hashed_again_only_where_it_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, cache = tmp_path / "a.txt", ContentCache(tmp_path / "cache")
    file.write_text("one")
    first = cache.hash_file(file)
    monkeypatch.setattr("ulmfit_dist.data.sources.content_cache.hash_file", lambda file: "read")
    assert cache.hash_file(file) == first
    assert ContentCache(tmp_path / "cache", verify=True).hash_file(file) == "read"
    monkeypatch.undo()
    status = file.stat()
    (tmp_path / "b.txt").write_text("two")  # of the same size, and moved there with the same time
    os.utime(tmp_path / "b.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "b.txt").replace(file)
    assert cache.hash_file(file) not in (first, "read")
    file.write_text("six")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ContentCache(tmp_path / "cache").hash_file(file) != first


def read_of(file: Path, content: bytes, kind: str = "csv", **options) -> FileRows:
    file.write_bytes(content)
    return opened(file, kind, **options)


@pytest.mark.parametrize("form", ["csv", "json", "list"])
def test_the_first_rows_need_no_index(form: str, tmp_path: Path):
    objects = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(5)]
    table = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in objects)
    lines = "\n".join(map(json.dumps, objects))
    (tmp_path / "a").write_text({"csv": table, "json": lines, "list": json.dumps(objects)}[form])
    reading = ReadOptions("csv" if form == "csv" else "json", text=("text",), label="label")
    assert list(first_rows(tmp_path / "a", reading, 3)) == objects[:3]
    assert list(first_rows(tmp_path / "a", reading, 99)) == objects
    assert list(first_rows(tmp_path / "a", reading, 0)) == []


def test_the_first_rows_have_the_line_numbers_of_the_file(tmp_path: Path):
    (tmp_path / "a.csv").write_text("\ntext,label\na\nb,c\n")
    reading = ReadOptions("csv", text=("text",), label="label")
    bad, good = first_rows(tmp_path / "a.csv", reading, 2)
    assert bad == BadRow("line 3 has 1 fields, but the header has 2")
    assert good == {"text": "b", "label": "c"}


def test_an_index_has_the_offset_and_line_of_every_256th_row(tmp_path: Path):
    content = "text,label\n" + "".join(f'"row\n{i}",x\n\n' if i % 2 else f"row {i},x\n" for i in range(600))
    index = read_of(tmp_path / "a.csv", content.encode()).index
    assert (index.num_rows, index.columns, index.is_list, index.notices) == (600, ["text", "label"], False, [])
    lines = content.splitlines()
    assert len(index.offsets) == len(index.lines) == 3
    for number, offset, line in zip((0, 256, 512), index.offsets, index.lines, strict=True):
        assert content[offset:].lstrip("\n").startswith(f"row {number},x\n")
        assert f"row {number},x" in lines[line - 1 : line + 1]
    assert STRIDE == 256


def test_a_list_has_an_offset_of_each_item_and_of_its_end(tmp_path: Path):
    index = read_of(tmp_path / "a.json", b'[{"text": "a"}, {"text": "b"}]', "json").index
    assert (index.num_rows, index.is_list, index.offsets, index.lines) == (2, True, [1, 16, 30], [1, 2])
    lines = read_of(tmp_path / "a.json", b'\n{"text": "a"}\n{"text": "b"}\n', "json").index
    assert (lines.num_rows, lines.is_list, lines.offsets, lines.lines) == (2, False, [1], [2])


def test_columns_of_json_are_those_of_its_first_rows(tmp_path: Path):
    rows = [{"text": "a", **({"n": 1} if i == 999 else {"late": 1} if i == 1000 else {})} for i in range(1002)]
    content = "\n".join(map(json.dumps, rows)).encode()
    assert read_of(tmp_path / "a.json", content, "json").columns == ["text", "n"]
    bad_first = read_of(tmp_path / "a.json", b'7\n{"label": "x", "text": "a"}\n', "json", on_error="skip")
    assert bad_first.columns == ["label", "text"]


@pytest.mark.parametrize(
    "content", [b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf\n{"text": "b"}', b'{"text": "a"}\r\n \t\r\n{"text": "b"}\r\n']
)
def test_lines_of_marks_and_spaces_are_no_rows(content: bytes, tmp_path: Path):
    read = read_of(tmp_path / "a.json", content, "json")
    assert list(read.rows(0, len(read))) == [{"text": "a"}, {"text": "b"}]
    assert list(read.rows(1, 2)) == [{"text": "b"}]


def test_a_json_line_may_begin_with_a_byte_order_mark(tmp_path: Path):
    read = read_of(tmp_path / "a.json", b'{"text": "b"}\n\xef\xbb\xbf{"text": "a"}\n', "json")
    assert list(read.rows(0, 2)) == [{"text": "b"}, {"text": "a"}]
    with pytest.raises(UserError, match="line 1 is not JSON"):
        read_of(tmp_path / "a.json", b'X{"text": "a"}\n', "json")


def test_rows_are_read_again_from_any_position(tmp_path: Path):
    """Forward within a block without a new start, back to its beginning, and from a block that was not reached."""
    lines = rows(lines_in_cells=False)
    read = read_of(tmp_path / "a.csv", csv_of(lines))
    for start in (0, 5, 5, 250, 256, 255, 3 * STRIDE, 2 * STRIDE, STRIDE + 1, 0):
        assert [(row["text"], row["label"]) for row in read.rows(start, start + 3)] == lines[start : start + 3]
    assert list(read.rows(4, 4)) == []
    assert [row["text"] for row in read.rows(0, 2)] == [text for text, _ in lines[:2]]
    stream = read._stream
    assert [row["text"] for row in read.rows(2, 3)] == [lines[2][0]]
    assert read._stream is stream  # the next row needs no new start


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (b"text,label\na,b,c\n", {}, "line 2 has 3 fields, but the header has 2"),
        (b"text,label\na\n", {"quoting": False}, r"line 2 has 1 fields, .* \(set data\.quoting=true if fields are quoted\)"),
        (b'text,label\n"a"b,c\n', {}, r"line 2: .* \(set data\.quoting=false if quote characters belong to the texts\)"),
        (b"text,label\na\rb,c\n", {"quoting": False}, "line 2 has a carriage return within it"),
        (b"text,label\n\n\na\0,c\n", {}, "line 4: column 'text' has NUL characters"),
        (b"text,label\n" + b"a,b\n" * 300 + b"a\n", {}, "line 302 has 1 fields"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_or_skipped(content: bytes, options: dict, reason: str, tmp_path: Path):
    with pytest.raises(UserError, match=rf"a\.csv, {reason}.*: fix it, or set data\.on_error=skip to leave such rows out$"):
        read_of(tmp_path / "a.csv", content, **options)
    read = read_of(tmp_path / "a.csv", content, **options, on_error="skip")
    bad = [row for row in read.rows(0, len(read)) if isinstance(row, BadRow)]
    assert len(bad) == 1


def test_a_quote_that_is_never_closed_is_named_where_it_opens_whatever_data_on_error_is(tmp_path: Path):
    for on_error in ("strict", "skip"):
        with pytest.raises(UserError, match=r"a\.csv, line 3: the quote that opens here is never closed"):
            read_of(tmp_path / "a.csv", b'text,label\na,b\n"c,d\ne,f\n', on_error=on_error)


@pytest.mark.parametrize(("kind", "head"), [("csv", b"text,label\n"), ("json", b'{"text": "a"}\n')])
def test_bytes_that_are_not_utf_8_are_named_with_line_and_byte(kind: str, head: bytes, tmp_path: Path):
    bad = b"ab\xff,c\n" if kind == "csv" else b'{"text": "\xff"}\n'
    with pytest.raises(
        UserError, match=rf"a, line 2: byte {bad.index(0xFF) + 1} of the line is not UTF-8: convert the file"
    ):
        read_of(tmp_path / "a", head + bad, kind)
    replaced = read_of(tmp_path / "a", head + bad, kind, on_error="replace")
    assert "\ufffd" in list(replaced.rows(0, len(replaced)))[-1]["text"]
    skipped = read_of(tmp_path / "a", head + bad + head.replace(b"text,label", b"x,y"), kind, on_error="skip")
    number = 0 if kind == "csv" else 1
    assert list(skipped.rows(0, len(skipped)))[number] == BadRow("line 2 has bytes that cannot be decoded")
    assert not isinstance(list(skipped.rows(0, len(skipped)))[-1], BadRow)


def test_a_cell_of_several_lines_that_cannot_be_decoded_is_skipped_as_a_whole(tmp_path: Path):
    read = read_of(tmp_path / "a.csv", b'text,label\n"a\n\xff\nb",c\nd,e\n', on_error="skip")
    assert list(read.rows(0, 2)) == [BadRow("line 2 has bytes that cannot be decoded"), {"text": "d", "label": "e"}]


def test_a_column_that_is_not_read_may_hold_anything(tmp_path: Path):
    read = read_of(tmp_path / "a.csv", b"text,label,other\na,b,\0\n")
    assert list(read.rows(0, 1)) == [{"text": "a", "label": "b", "other": "\0"}]


def test_suspicious_content_is_noted(tmp_path: Path):
    quoted = read_of(tmp_path / "a.csv", b'text,label\n"a ""b""",c\n', quoting=False)
    assert quoted.index.notices[0].startswith(f"{tmp_path / 'a.csv'}: 1 row(s), the first in line 2, have cells that look")
    swallowed = read_of(tmp_path / "a.csv", b'text,label\na,pos\n"b,pos\nc",neg\n')
    assert swallowed.index.notices[0].startswith(f"{tmp_path / 'a.csv'}, lines 3 to 4: one cell spans these lines")
    assert read_of(tmp_path / "a.csv", b"text,label\na,b\n").index.notices == []


def test_a_shorter_file_is_named_as_changed_and_a_cell_may_be_long(tmp_path: Path):
    long = b"x" * 200_000  # more than the csv module's default
    read = read_of(tmp_path / "a.csv", b"text,label\n" + long + b",a\n")
    assert next(iter(read.rows(0, 1)))["text"] == long.decode()
    with pytest.raises(UserError, match=r"a\.csv: changed while it was being read: start again"):
        list(read.rows(0, 2))


def test_encoding_quoting_and_errors_apply_to_header_and_rows(tmp_path: Path):
    content = "text,label,größe\nä,b,\x81\n".encode("latin-1")
    read = read_of(tmp_path / "a.csv", content.replace(b"\xdf", b"\x81"), encoding="cp1252", on_error="replace")
    assert read.columns == ["text", "label", "grö\ufffde"]
    assert list(read.rows(0, 1)) == [{"text": "ä", "label": "b", "grö\ufffde": "\ufffd"}]
    unquoted = read_of(tmp_path / "a.csv", b'text,label\n"a,b\n', quoting=False)
    assert list(unquoted.rows(0, 1)) == [{"text": '"a', "label": "b"}]
    assert list(first_rows(tmp_path / "a.csv", unquoted.options, 1)) == [{"text": '"a', "label": "b"}]


def test_a_list_is_read_in_its_encoding_too(tmp_path: Path):
    content = '[{"text": "ä"}, {"text": "b'.encode("cp1252") + b'\x81"}]'
    read = read_of(tmp_path / "a.json", content, "json", encoding="cp1252", on_error="replace")
    assert list(read.rows(0, 2)) == [{"text": "ä"}, {"text": "b\ufffd"}]
    assert list(read.rows(1, 2)) == [{"text": "b\ufffd"}]
