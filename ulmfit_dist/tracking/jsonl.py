"""metrics.jsonl: a line for each thing that was logged, stage by stage.

A stage that starts anew, or goes on from a checkpoint, first puts its part of the file back to where it begins; what other
stages have written stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import write_bytes
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

STAGES = ("lm", "classifier")
"""In the order in which they are trained."""
POSITION = ("phase", "epoch", "step", "tokens")
"""What every line has."""


class MetricLog:
    """The file of one run.

    Args:
        path: of metrics.jsonl.

    Attributes:
        lines: the running stage's part of it.
    """

    def __init__(self, path: Path):
        self.path, self.lines, self._others, self._is_torn = path, "", "", False

    def begin(self, stage: str, lines: str) -> None:
        """Put the stage's part of the file back to these lines."""
        self.lines = lines
        self._others = "".join(f"{line}\n" for line in self._read() if _stage_of(line) not in (stage, None))
        self._write()

    def drop(self, stage: str) -> None:
        """Remove the part of a stage that is not running."""
        self._others = "".join(line for line in self._others.splitlines(True) if _stage_of(line) != stage)
        self._write()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; if there is no room, go on, and try again with the next one."""
        text = json.dumps(line) + "\n"
        self.lines += text
        try:
            if self._is_torn:
                self._write()
                return
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except (OSError, UserError) as error:
            if not self._is_torn:
                logger.warning(f"{self.path} cannot be written, training continues: {error}")
            self._is_torn = True

    def read(self, stage: str) -> list[dict[str, Any]]:
        """The lines of a stage as they are in the file."""
        return [json.loads(line) for line in self._read() if _stage_of(line) == stage]

    def _read(self) -> list[str]:
        return self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []

    def _write(self) -> None:
        write_bytes(self.path, (self._others + self.lines).encode())
        self._is_torn = False


def is_epoch(line: Mapping[str, Any]) -> bool:
    """Whether a line is of the end of an epoch, with what its validation has found."""
    return f"{line['stage']}/valid_loss" in line


def metrics_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a line by W&B's names, and the stage's own axes."""
    stage = line["stage"]
    axes = {f"{stage}/{name}": line[name] for name in POSITION}
    return {**{name: value for name, value in line.items() if "/" in name}, **axes}


def row_number(line: Mapping[str, Any], first: int) -> int:
    """Where a line belongs in W&B's history: an even number of rows from the stage's first; an epoch's, one on.

    It follows from what the line is about, and not from how many were logged before: a run that goes on may log at other
    steps than before.
    """
    return first + 2 * int(line["step"]) + is_epoch(line)


def row_after(lines: Iterable[Mapping[str, Any]], first: int) -> int:
    """The number of the row that comes after all of a stage's, for what is known at its end."""
    return max((row_number(line, first) for line in lines), default=first) + 1


def _stage_of(line: str) -> str | None:
    """The stage that a line is of; None for a line cut short by a killed run, and for what is none of ours."""
    try:
        content = json.loads(line)
        is_whole = all(type(content[name]) is int for name in POSITION)
        return str(content["stage"]) if is_whole else None
    except (ValueError, KeyError, TypeError):
        return None
