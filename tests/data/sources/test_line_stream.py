"""Lines of files, whatever they are compressed or encoded by, and files that are not text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest

from ulmfit_dist.data.sources.line_stream import BLOCK, UNREADABLE, LineStream, read_text
from ulmfit_dist.errors import UserError

LINES = [b"one\n", "zwei \u00fc\n".encode(), b"\n", b"last"]
ENCODINGS = ["utf-8-sig", "utf-16", "utf-32"]


def archive(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return packed.getvalue()


PACKED = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
    "zip": lambda content: archive({"a": content}),
    "zip of a Mac": lambda content: archive({"folder/": b"", "folder/a": content, "__MACOSX/folder/._a": b"x"}),
}


def opened(tmp_path: Path, content: bytes, encoding: str | None = None, on_error: str = "strict") -> LineStream:
    (tmp_path / "a.txt").write_bytes(content)
    return LineStream(tmp_path / "a.txt", encoding, on_error)


@pytest.mark.parametrize("packed", PACKED)
def test_lines_have_their_positions_and_are_read_again_from_each(packed: str, tmp_path: Path):
    stream = opened(tmp_path, PACKED[packed](b"".join(LINES)))
    starts = []
    for line in LINES:
        starts.append(stream.position)
        assert next(stream) == line
    assert stream.position == sum(map(len, LINES))
    assert list(stream) == []
    for number in (1, 3, 0, 2, 2):
        stream.seek(starts[number])
        assert stream.position == starts[number]
        assert stream.read(2) == LINES[number][:2] or LINES[number] == b"\n"
    stream.seek(starts[3])
    assert (stream.read(99), stream.position) == (b"last", starts[3] + 4)
    stream.seek(10_000)
    assert stream.read(1) == b""


@pytest.mark.parametrize("packed", PACKED)
def test_a_file_of_several_blocks_is_read_whole(packed: str, tmp_path: Path):
    content = b"".join(b"line %d\n" % i for i in range(BLOCK // 5))
    assert len(content) > 2 * BLOCK
    assert b"".join(opened(tmp_path, PACKED[packed](content))) == content


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-16-le", "utf-16-be", "utf-32-be", "cp1252"])
def test_another_encoding_is_converted_and_has_positions_in_utf_8(encoding: str, tmp_path: Path):
    marks = {"utf-16-be": b"\xfe\xff", "utf-32-be": b"\x00\x00\xfe\xff", "utf-16-le": b"\xff\xfe"}
    content = marks.get(encoding, b"") + b"".join(LINES).decode().encode(encoding)
    stream = opened(tmp_path, content, "cp1252")  # which a byte-order mark overrides
    assert list(stream) == LINES
    stream.seek(4)
    assert next(stream) == LINES[1]
    packed = opened(tmp_path, gzip.compress(content), "cp1252")
    assert list(packed) == LINES


def test_data_encoding_may_have_any_of_its_names_and_is_utf_8_by_default(tmp_path: Path):
    assert list(opened(tmp_path, b"".join(LINES), "UTF8")) == LINES
    assert opened(tmp_path, b"\xe9").read(9) == b"\xe9"  # as it is: the caller decodes UTF-8
    assert opened(tmp_path, b"\xe9", "latin-1").read(9) == "é".encode()


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_carriage_returns_end_lines_only_where_nothing_else_does(encoding: str, tmp_path: Path):
    old = opened(tmp_path, "one\rtwo\r\rthree".encode(encoding), encoding)
    if encoding == "utf-16":  # whose bytes contain no line ends that could be recognized before decoding
        assert b"".join(old) == b"one\ntwo\n\nthree"
    else:
        assert list(old) == [b"one\n", b"two\n", b"\n", b"three"]
        old.seek(8)
        assert next(old) == b"\n"
    new = opened(tmp_path, "one\rtwo\r\nthree".encode(encoding), encoding)
    assert list(new) == [b"one\rtwo\r\n", b"three"]


def test_bytes_of_utf_8_stay_as_they_are_where_line_ends_are_converted(tmp_path: Path):
    assert opened(tmp_path, b"one\r\xff\r\xc3\xbc").read(-1) == b"one\n\xff\n\xc3\xbc"


def test_a_converted_file_of_several_blocks_is_read_whole(tmp_path: Path):
    text = "".join(f"{i} ü\n" for i in range(BLOCK // 6))
    content = text.encode("utf-16")
    assert len(content) > 2 * BLOCK
    assert b"".join(opened(tmp_path, content)) == text.encode()
    odd = "ü" + text  # a character at the edge of each block
    assert b"".join(opened(tmp_path, odd.encode())) == odd.encode()
    broken = "é".encode("cp1252") * (BLOCK + 3) + b"\x81"
    with pytest.raises(UserError, match=rf"a\.txt: byte {BLOCK + 4} is not cp1252: convert the file"):
        list(opened(tmp_path, broken, "cp1252"))


@pytest.mark.parametrize(("on_error", "expected"), [("replace", "a\ufffdb"), ("skip", f"a{UNREADABLE}b")])
def test_bytes_that_cannot_be_decoded_are_refused_replaced_or_marked(on_error: str, expected: str, tmp_path: Path):
    assert opened(tmp_path, b"a\x81b", "cp1252", on_error).read(-1) == expected.encode()
    with pytest.raises(UserError, match="byte 2 is not cp1252"):
        opened(tmp_path, b"a\x81b", "cp1252").read(-1)
    with pytest.raises(UserError, match="is not utf-16-le"):  # half a character at the end
        list(opened(tmp_path, "ab".encode("utf-16-le")[:-1], "utf-16-le"))
    escaped = opened(tmp_path, rb"a\ud800b", "unicode_escape", on_error)  # decodes to what UTF-8 does not have
    assert escaped.read(-1) == b"a?b"
    half = "a\udc00b".encode("utf-16-le", "surrogatepass")
    assert opened(tmp_path, half, "utf-16-le", on_error).read(-1) == expected.encode()


@pytest.mark.parametrize("packed", ["gzip", "bzip2", "xz", "zstd", "zip"])
def test_a_damaged_or_incomplete_file_is_one_line(packed: str, tmp_path: Path):
    content = PACKED[packed](random.Random(0).randbytes(10_000))
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    for spoiled in (content[:-9], *([flipped] if packed != "zstd" else [])):  # which has no checksum by default
        with pytest.raises(
            UserError, match=r"^.*a\.txt: cannot be decompressed, damaged or incomplete \(.*\): copy it again$"
        ):
            opened(tmp_path, spoiled, "latin-1").read(-1)


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path: Path):
    with pytest.raises(UserError, match=r"missing\.txt: cannot be read \(No such file or directory\)$"):
        LineStream(tmp_path / "missing.txt")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)$"):
        LineStream(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive({"a": b"1", "b": b"2"}), "an archive of 2 files: unpack it and set data.path to the folder"),
        (archive({"folder/": b""}), "an archive of 0 files"),
        (archive({"mimetype": b"x", "a": b"1"}), "an office document: save the table as CSV"),
        (archive({"[Content_Types].xml": b"x"}), "an office document"),
    ],
)
def test_an_archive_of_other_than_one_file_is_refused(content: bytes, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=rf"a\.txt: {message}"):
        opened(tmp_path, content)


def test_a_member_that_cannot_be_unpacked_is_named(tmp_path: Path):
    content = bytearray(archive({"a": b"secret"}))
    content[6] |= 1  # encrypted
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(UserError, match=r"a\.txt: cannot be decompressed \(.*encrypted.*\)$"):
        opened(tmp_path, bytes(content))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_archive_is_refused(pack, tmp_path: Path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(UserError, match=r"a\.txt: an archive of several files: unpack it"):
        opened(tmp_path, pack(packed.getvalue()))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf_16_or_32_without_a_mark_is_named_with_its_setting(encoding: str, tmp_path: Path):
    number = encoding[4:6]
    with pytest.raises(
        UserError, match=rf"a\.txt: not UTF-8 text, \d+% of its bytes are NUL: if it is UTF-{number} .*={encoding}$"
    ):
        opened(tmp_path, "text, label\n".encode(encoding))
    assert opened(tmp_path, "text, label\n".encode(encoding), encoding).read(-1) == b"text, label\n"


def test_a_file_with_few_nuls_or_few_bytes_is_text(tmp_path: Path):
    for content in (b"\0a\0b\0c\0", b"a\0bcdefgh", b"abcd\0fgh\n", b""):
        assert opened(tmp_path, content).read(-1) == content
    for content in (b"\0a\0b\0c\0d", b"abcd\0fgh\0\n", b"abcd\0" * 2):
        with pytest.raises(UserError, match="bytes are NUL"):
            opened(tmp_path, content)


def test_a_whole_file_is_text_or_none_or_an_error_with_its_byte(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_bytes(gzip.compress(b"\xef\xbb\xbfone\r\ntwo"))
    assert read_text(file, None, "strict") == "one\r\ntwo"
    file.write_bytes(b"ab\xffc")
    with pytest.raises(UserError, match=r"a\.txt: byte 3 is not UTF-8: convert the file, set data\.encoding"):
        read_text(file, None, "strict")
    assert read_text(file, None, "replace") == "ab\ufffdc"
    assert read_text(file, None, "skip") is None
    assert read_text(file, "cp1252", "skip") == "abÿc"
    file.write_text(f"a{UNREADABLE}", encoding="utf-8")
    assert read_text(file, None, "strict") == f"a{UNREADABLE}"
