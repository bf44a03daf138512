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
from ulmfit_dist.data.sources.row_reader import STRIDE, FileRows, index_file
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
