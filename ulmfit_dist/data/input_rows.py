"""Rows that are not of a table: texts in memory, the text files of a folder, and the lines of a file.

Lines are numbered by a first pass, which also hashes them. Trade-off: reading backwards starts at the first line again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from ulmfit_dist.data.sources.base import Row
from ulmfit_dist.data.sources.cells import BadCell, clean_text
from ulmfit_dist.data.sources.line_stream import DECODE_ERRORS, LineStream, read_text
from ulmfit_dist.errors import UserError

TEXT = "text"
"""Column of the texts of a folder, of lines, or of Python."""


@dataclass
class MemoryRows:
    """Texts in memory, one per row."""

    texts: Sequence[str]
    columns: tuple[str, ...] = (TEXT,)

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row]:
        return ({TEXT: text} for text in self.texts[start:stop])


@dataclass
class FolderRows:
    """Text files, one per row, with their paths below the folder."""

    folder: Path
    files: Sequence[Path]
    encoding: str | None
    on_error: str
    columns: tuple[str, ...] = ("file", TEXT)

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row]:
        for file in self.files[start:stop]:
            yield {"file": str(file.relative_to(self.folder)), TEXT: read_text(file, self.encoding, self.on_error)}


class LineRows:
    """Lines of a file, one per row, without their ends; empty lines, too."""

    columns = (TEXT,)

    def __init__(self, file: Path, encoding: str | None, on_error: str):
        self.file, self._arguments = file, (file, encoding, on_error)
        self._stream, self._next_row, self.num_bytes = LineStream(*self._arguments), 0, 0
        state = xxhash.xxh3_128()
        self._length = 0
        for line in self._stream:
            state.update(line)
            self._length += 1
        self.num_bytes, self.digest = self._stream.position, state.hexdigest()
        self._restart()

    def __len__(self) -> int:
        return self._length

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row]:
        if start < self._next_row:
            self._restart()
        for number in range(self._next_row, stop):
            line = next(self._stream, None)
            if line is None:
                raise UserError(f"{self.file}: changed while it was being read: start again")
            self._next_row = number + 1
            if number >= start:
                yield {TEXT: self._decoded(line, number + 1)}

    def _restart(self) -> None:
        self._stream.close()
        self._stream, self._next_row = LineStream(*self._arguments), 0

    def _decoded(self, line: bytes, number: int) -> str:
        file, _, on_error = self._arguments
        try:
            text = line.decode("utf-8", DECODE_ERRORS[on_error])
            return clean_text(text.removesuffix("\n").removesuffix("\r"), on_error, f"{file}, line {number}")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}, line {number}: byte {error.start + 1} of the line is not UTF-8: convert the file, or set "
                f"data.encoding (such as cp1252) or data.on_error=replace"
            ) from None
        except BadCell as error:
            raise UserError(f"{error}: fix it, or set data.on_error=replace") from None
