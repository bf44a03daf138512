"""metrics.jsonl: the log of a run, one JSON object per line, stage by stage.

A stage that starts or resumes first truncates its own lines to the position where it starts, and keeps the lines of other
stages. Trade-off: the lines of the running stage are kept in memory, so that the file can be rewritten after a failed write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import write_bytes
from ulmfit_dist.utils.log import get_logger

if TYPE_CHECKING:
    from ulmfit_dist.tracking.metric_logger import MetricRow

logger = get_logger(__name__)

STAGES = ("lm", "classifier")
"""Training stages, in their order."""
POSITION = ("phase", "epoch", "step", "tokens")
"""Keys of every line."""


class MetricLog:
    """Metrics log of one run.

    Args:
        path: path of metrics.jsonl.

    Attributes:
        lines: lines of the running stage.
    """

    def __init__(self, path: Path):
        self.path, self.lines, self._others, self._is_torn = path, "", "", False

    def begin(self, stage: str, lines: str) -> None:
        """Replace the lines of a stage by these ones."""
        self.lines = lines
        self._others = "".join(f"{line}\n" for line in self._read() if _stage_of(line) not in (stage, None))
        self._write()

    def drop(self, stage: str) -> None:
        """Remove the lines of a stage that is not running."""
        self._others = "".join(line for line in self._others.splitlines(True) if _stage_of(line) != stage)
        self._write()

    def log(self, row: MetricRow) -> None:
        """Append the line of a row."""
        if row.line is not None:
            self.append(row.line)

    def summarize(self, figures: Mapping[str, float], row: int) -> None:
        """Do nothing: final figures are in summary.json."""

    def finish(self, exit_code: int) -> list[str]:
        """Return no lines: each line is written when it is logged."""
        return []

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a line; after a failed write, warn and retry with the next line."""
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
        """Return the lines of a stage in the file."""
        return [json.loads(line) for line in self._read() if _stage_of(line) == stage]

    def _read(self) -> list[str]:
        return self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []

    def _write(self) -> None:
        write_bytes(self.path, (self._others + self.lines).encode())
        self._is_torn = False


def is_epoch(line: Mapping[str, Any]) -> bool:
    """Return True for the line at the end of an epoch, which has validation metrics."""
    return f"{line['stage']}/valid_loss" in line


def metrics_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a line by their W&B names, with the step axes of the stage."""
    stage = line["stage"]
    axes = {f"{stage}/{name}": line[name] for name in POSITION}
    return {**{name: value for name, value in line.items() if "/" in name}, **axes}


def row_number(line: Mapping[str, Any], first: int) -> int:
    """Return the row of a line in W&B's history: `first + 2 * step`, plus one for the end of an epoch.

    The number depends on the step, not on the number of lines logged before: a resumed run may log at other steps.
    """
    return first + 2 * int(line["step"]) + is_epoch(line)


def row_after(lines: Iterable[Mapping[str, Any]], first: int) -> int:
    """Return the row after the last row of a stage, for its final tables."""
    return max((row_number(line, first) for line in lines), default=first) + 1


def _stage_of(line: str) -> str | None:
    """Return the stage of a line; None for a truncated line of a killed run, or a line of another format."""
    try:
        content = json.loads(line)
        is_valid = all(type(content[name]) is int for name in POSITION)
        return str(content["stage"]) if is_valid else None
    except (ValueError, KeyError, TypeError):
        return None
