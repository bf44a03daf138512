"""Line stream: a file as lines of UTF-8, decompressed and transcoded, from any position reached before.

Compression and byte-order marks are recognized by content, not by name. A plain UTF-8 file is read in place with random
access; a compressed or transcoded one is read sequentially. Nothing is copied to disk. Trade-off: to start in the middle of
a compressed file, a process decompresses everything before.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import pyarrow as pa

from ulmfit_dist.errors import UserError

Result = TypeVar("Result")

UNREADABLE = "\ufdd0"
"""Unicode noncharacter that replaces bytes which cannot be decoded, if `data.on_error` is skip."""
DECODE_ERRORS = {"strict": "strict", "replace": "replace", "skip": "ulmfit_dist.unreadable"}
"""Codec error handlers by `data.on_error`."""
HEAD = 65_536
"""Bytes from which encoding and line ends are recognized."""
SHORTEST = 8
"""Minimum number of bytes for recognizing UTF-16 and UTF-32."""
BLOCK = 1 << 18
"""Block size of decompression and transcoding, in bytes."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark is its prefix
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zip", ".zst")

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)
"""Errors of reading and decompression; those of the file system have an `errno`."""

codecs.register_error("ulmfit_dist.unreadable", lambda error: (UNREADABLE, cast(UnicodeDecodeError, error).end))


class LineStream:
    """Iterator over the lines of a file, as UTF-8 bytes with their line ends.

    Args:
        file: text file, plain or compressed with gzip, bzip2, xz, Zstandard or zip.
        encoding: encoding of a file without a byte-order mark; None: UTF-8.
        on_error: `data.on_error`, for bytes that cannot be decoded from another encoding. Invalid bytes in a UTF-8 file are
            returned unchanged.

    Attributes:
        position: offset of the next line in the stream, the same in all streams of the file.

    Raises:
        UserError: the file cannot be read, decompressed or decoded, or is not text.
    """

    def __init__(self, file: Path, encoding: str | None = None, on_error: str = "strict"):
        self.file, self._arguments, self._is_plain = file, (encoding, on_error), False
        self._open()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._checked(lambda: self._stream.readline())
        if not line:
            raise StopIteration
        self.position += len(line)
        return line

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end."""
        block = self._checked(lambda: self._stream.read(size))
        self.position += len(block)
        return block

    def seek(self, position: int) -> None:
        """Move to an offset, which must be a `position` of a stream of this file."""
        if self._is_plain:
            self._checked(lambda: self._stream.seek(position + self._mark))
            self.position = position
            return
        if position < self.position:
            self.close()
            self._open()
        while self.position < position and self.read(min(BLOCK, position - self.position)):
            pass

    def close(self) -> None:
        self._stream.close()

    def _open(self) -> None:
        encoding, on_error = self._arguments
        raw = self._checked(lambda: _decompressed(self.file))
        head = self._checked(lambda: raw.peek(HEAD)[:HEAD])
        mark = next((mark for mark in BYTE_ORDER_MARKS if head.startswith(mark)), b"")
        encoding = codecs.lookup(BYTE_ORDER_MARKS.get(mark) or encoding or "utf-8").name
        if encoding == "utf-8":
            _check_text(self.file, head)
        self._checked(lambda: raw.read(len(mark)))
        has_old_line_ends = b"\r" in head and b"\n" not in head
        self._mark, self.position = len(mark), 0
        self._stream: io.BufferedReader = raw
        if encoding != "utf-8" or has_old_line_ends:
            self._stream = io.BufferedReader(_Transcoded(raw, self.file, encoding, on_error, has_old_line_ends), BLOCK)
        self._is_plain = isinstance(self._stream.raw, io.FileIO)

    def _checked(self, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except DAMAGED as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise UserError(f"{self.file}: cannot be read ({error.strerror})") from None
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.file}: cannot be decompressed, damaged or incomplete ({reason}): copy it again"
            ) from None


class _Transcoded(io.RawIOBase):
    """Raw stream that converts another encoding to UTF-8, and lone carriage returns to line feeds."""

    def __init__(self, raw: BinaryIO, file: Path, encoding: str, on_error: str, has_old_line_ends: bool):
        self._raw, self._file, self._encoding, self._old = raw, file, encoding, has_old_line_ends
        handler = DECODE_ERRORS[on_error]
        self._decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)(handler)
        self._left, self._num_read = b"", 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        while not self._left:
            block = self._raw.read(BLOCK)
            converted = self._convert(block)
            if not converted and not block:
                return 0
            self._left = converted
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def _convert(self, block: bytes) -> bytes:
        if self._decoder is None:
            return block.replace(b"\r", b"\n")
        try:
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._file}: byte {self._num_read + error.start + 1} is not {self._encoding}: "
                f"convert the file, set data.encoding, or set data.on_error to replace or skip"
            ) from None
        self._num_read += len(block)
        text = text.replace("\r", "\n") if self._old else text
        return text.encode("utf-8", errors="replace")


def read_text(file: Path, encoding: str | None, on_error: str) -> str | None:
    """Return the text of a whole file; None if it cannot be decoded and `on_error` is skip.

    Raises:
        UserError: as `LineStream`; a byte is not UTF-8 and `on_error` is strict.
    """
    stream = LineStream(file, encoding, on_error)
    try:
        content = stream.read(-1)
    finally:
        stream.close()
    try:
        text = content.decode("utf-8", errors=DECODE_ERRORS[on_error])
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: byte {error.start + 1} is not UTF-8: convert the file, set data.encoding (such as cp1252), or set "
            f"data.on_error to replace or skip"
        ) from None
    return None if on_error == "skip" and UNREADABLE in text else text


def _decompressed(file: Path) -> io.BufferedReader:
    """Open a file for reading, decompressed."""
    raw: io.BufferedReader = io.BufferedReader(io.FileIO(file), BLOCK)
    magic = raw.peek(8)[:8]
    if magic.startswith(b"\x1f\x8b"):
        stream: BinaryIO = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    elif magic.startswith(b"BZh"):
        stream = cast(BinaryIO, bz2.BZ2File(raw))
    elif magic.startswith(b"\xfd7zXZ\x00"):
        stream = cast(BinaryIO, lzma.LZMAFile(raw))  # noqa: SIM115  closed by the caller
    elif magic.startswith(b"\x28\xb5\x2f\xfd"):
        stream = cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
    elif magic.startswith(b"PK\x03\x04"):
        stream = _only_member(file)
    else:
        return raw
    buffered: io.BufferedReader = io.BufferedReader(_Blocks(stream), BLOCK)
    if buffered.peek(512)[257:262] == b"ustar":
        raise UserError(f"{file}: an archive of several files: unpack it and set data.path to the folder")
    return buffered


class _Blocks(io.RawIOBase):
    """Raw stream for a `BufferedReader`, from an object that has only `read`."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _only_member(file: Path) -> BinaryIO:
    archive = zipfile.ZipFile(file)
    if "[Content_Types].xml" in archive.namelist() or "mimetype" in archive.namelist():
        raise UserError(f"{file}: an office document: save the table as CSV (UTF-8)")
    members = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(members) != 1:
        raise UserError(f"{file}: an archive of {len(members)} files: unpack it and set data.path to the folder")
    try:
        return cast(BinaryIO, archive.open(members[0]))
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(f"{file}: cannot be decompressed ({' '.join(str(error).split())})") from None


def _check_text(file: Path, head: bytes) -> None:
    """Check the first bytes. Raises UserError for UTF-16 or UTF-32 without a byte-order mark, and for binary files."""
    num_nuls = head.count(0)
    if num_nuls * 5 < len(head) or len(head) < SHORTEST:
        return
    width = 4 if num_nuls > 0.6 * len(head) else 2
    order = "be" if head[:width].startswith(b"\0") else "le"
    raise UserError(
        f"{file}: not UTF-8 text, {num_nuls / len(head):.0%} of its bytes are NUL: if it is UTF-{8 * width} without a "
        f"byte-order mark, set data.encoding=utf-{8 * width}-{order}"
    )
