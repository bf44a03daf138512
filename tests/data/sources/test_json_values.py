"""Rows of JSON files: items of lists with their offsets, and lists that are not JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ulmfit_dist.data.sources.base import BadRow, ReadOptions
from ulmfit_dist.data.sources.json_values import json_row, read_items, scan_list
from ulmfit_dist.data.sources.line_stream import UNREADABLE, LineStream
from ulmfit_dist.errors import UserError

OPTIONS = ReadOptions("json", text=("text",), label="label")
SKIP = ReadOptions("json", on_error="skip", text=("text",), label="label")


def scanned(tmp_path: Path, content: bytes, options: ReadOptions = OPTIONS) -> tuple[list, LineStream]:
    (tmp_path / "a.json").write_bytes(content)
    stream = LineStream(tmp_path / "a.json", None, options.on_error)
    return list(scan_list(stream, options)), stream


@pytest.mark.parametrize("separator", [b",", b" , ", b",\n\t", b"\r\n,\r\n"])
def test_items_have_their_numbers_and_the_offsets_of_their_bytes(separator: bytes, tmp_path: Path):
    items = ['{"text": "ü1", "n": [1, {"a": "]"}]}', '{"text": "zwei, drei"}', '{"text": "😀"}']
    content = b"\n [ " + separator.join(item.encode() for item in items) + b" ] \n"
    parsed, stream = scanned(tmp_path, content)
    assert [row.row for row in parsed] == [json.loads(item) for item in items]
    assert [row.line for row in parsed] == [1, 2, 3]
    assert [content[row.offset :].startswith(item.encode()) for row, item in zip(parsed, items, strict=True)] == [True] * 3
    offsets = [row.offset for row in parsed] + [stream.position]
    assert stream.position == len(content)
    assert list(read_items(stream, OPTIONS, offsets, 1, 3)) == [row.row for row in parsed[1:]]
    assert list(read_items(stream, OPTIONS, offsets, 0, 1)) == [parsed[0].row]


@pytest.mark.parametrize("content", [b"[]", b" [ \n ] ", b"[\t]\r\n"])
def test_a_list_may_be_empty(content: bytes, tmp_path: Path):
    assert scanned(tmp_path, content)[0] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "a"}, {"text"]', "item 2 is not JSON"),
        (b'[{"text": "a"},]', "item 2 is not JSON"),
        (b"[,]", "item 1 is not JSON"),
        (b"[", "item 1 is not JSON"),
        (b'[{"text": "a"} {"text": "b"}]', "is not JSON after item 1"),
        (b'[{"text": "a"}', "is not JSON after item 1"),
        (b'[{"text": "a"}] x', "is not JSON after item 1"),
        (b'[{"text": "a"}, {"text": "b"}]]', "is not JSON after item 2"),
        (b"[]]", "is not JSON after item 0"),
    ],
)
def test_a_list_that_is_not_json_is_named_with_the_item(content: bytes, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=rf"a\.json: begins as a JSON list, but .*{message}"):
        scanned(tmp_path, content)


def test_items_that_are_no_rows_are_named_by_their_number(tmp_path: Path):
    content = b'[{"text": "a"}, 7, {"label": "x"}, {"text": ["a"]}, {"text": "b", "label": {}}]'
    parsed, stream = scanned(tmp_path, content)
    reasons = [
        "item 2 is not a JSON object",
        "item 3 has no 'text'",
        "item 4: column 'text' holds a list, which is not text",
        "item 5: column 'label' holds an object, which is not a label",
    ]
    assert [row.row for row in parsed[1:]] == [BadRow(reason) for reason in reasons]
    offsets = [row.offset for row in parsed] + [stream.position]
    assert list(read_items(stream, OPTIONS, offsets, 0, 5)) == [row.row for row in parsed]


def test_bytes_that_cannot_be_decoded_are_refused_replaced_or_their_item_is_skipped(tmp_path: Path):
    content = b'[{"text": "a"}, {"text": "\xff\xfe"}, {"text": "c"}]'
    with pytest.raises(UserError, match=r"a\.json: byte 27 is not UTF-8"):
        scanned(tmp_path, content)
    rows = {}
    for on_error in ("replace", "skip"):
        options = ReadOptions("json", on_error=on_error, text=("text",))
        parsed, stream = scanned(tmp_path, content, options)
        assert [content[row.offset :][:9] for row in parsed] == [b'{"text": '] * 3
        rows[on_error] = [row.row for row in parsed]
        offsets = [row.offset for row in parsed] + [stream.position]
        assert list(read_items(stream, options, offsets, 0, 3)) == rows[on_error]
    assert rows["replace"] == [{"text": "a"}, {"text": "\ufffd\ufffd"}, {"text": "c"}]
    assert rows["skip"] == [{"text": "a"}, BadRow("item 2 has bytes that cannot be decoded"), {"text": "c"}]


def test_a_file_that_changes_between_two_passes_is_named(tmp_path: Path):
    parsed, stream = scanned(tmp_path, b'[{"text": "a"}, {"text": "b"}]')
    offsets = [row.offset for row in parsed] + [stream.position]
    (tmp_path / "a.json").write_bytes(b'[{"text": "longer"}, {"text": "b"}]')
    with pytest.raises(UserError, match=r"a\.json: changed while it was being read"):
        list(read_items(LineStream(tmp_path / "a.json"), OPTIONS, offsets, 1, 2))


def test_a_list_of_more_than_a_block_is_one_list(tmp_path: Path):
    long = "x" * (1 << 20)
    parsed, _ = scanned(tmp_path, json.dumps([{"text": long}, {"text": "b"}]).encode())
    assert [row.row for row in parsed] == [{"text": long}, {"text": "b"}]


def test_a_line_is_a_row_or_the_reason_why_not():
    assert json_row('{"text": "a", "label": 1}', OPTIONS, "line 3") == {"text": "a", "label": 1}
    assert json_row("[1]", OPTIONS, "line 3") == BadRow("line 3 is not a JSON object")
    assert json_row("{}", OPTIONS, "line 3") == BadRow("line 3 has no 'text'")
    for text in ("{", "[" * 100_000):
        assert json_row(text, OPTIONS, "line 3").reason.startswith("line 3 is not JSON (")
    unreadable = json.dumps({"text": UNREADABLE}, ensure_ascii=False)
    assert json_row(unreadable, SKIP, "line 3") == BadRow("line 3 has bytes that cannot be decoded")
    assert json_row(unreadable, OPTIONS, "line 3") == {"text": UNREADABLE}
    assert json_row('{"text": "a"}', SKIP, "line 3") == {"text": "a"}
