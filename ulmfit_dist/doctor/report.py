"""Report of `doctor`: one row per check over all ranks, as a table or as JSON, and config overrides to paste."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.doctor.checks import Result, Status
from ulmfit_dist.utils.text_table import TextTable

MAX_RANKS = 4
"""Largest number of ranks whose findings are listed in a row."""


@dataclass(frozen=True)
class Row:
    """Result of a check over all ranks.

    Attributes:
        status: worst status of all ranks.
        details: details of the findings, by rank for warnings and failures that differ.
        fix: fix of the first rank with this status.
        seconds: duration on the slowest rank.
        ranks: status by rank.
    """

    check: str
    status: Status
    details: str
    fix: str
    seconds: float
    ranks: dict[int, str]


def rows(names: Sequence[str], results: Mapping[int, Sequence[Result]], world_size: int) -> list[Row]:
    """Return the rows of all checks in order. Checks that no rank has reached are skipped.

    Args:
        results: results by rank; incomplete for ranks that hang.
    """
    return [_row(name, results, world_size) for name in names]


def _row(name: str, results: Mapping[int, Sequence[Result]], world_size: int) -> Row:
    by_rank = {rank: result for rank, of_rank in sorted(results.items()) for result in of_rank if result.check == name}
    if not by_rank:
        return Row(name, Status.SKIPPED, "not reached", "", 0.0, {})
    status = max((result.finding.status for result in by_rank.values()), key=lambda status: status.severity)
    worst = {rank: result.finding for rank, result in by_rank.items() if result.finding.status is status}
    first = next(iter(worst.values()))
    texts = {finding.details for finding in worst.values()}
    if world_size == 1 or (len(texts) == 1 and len(worst) == world_size) or status.severity <= Status.OK.severity:
        text = first.details
    elif len(texts) == 1:
        text = (
            f"ranks {', '.join(map(str, worst))}: {first.details}"
            if len(worst) > 1
            else f"rank {min(worst)}: {first.details}"
        )
    else:
        listed = [f"rank {rank}: {finding.details}" for rank, finding in list(worst.items())[:MAX_RANKS]]
        text = "; ".join([*listed, *([f"and {len(worst) - MAX_RANKS} more"] if len(worst) > MAX_RANKS else [])])
    seconds = max(result.seconds for result in by_rank.values())
    return Row(
        name, status, text, first.fix, seconds, {rank: result.finding.status.value for rank, result in by_rank.items()}
    )


def has_failed(rows: Sequence[Row]) -> bool:
    return any(row.status is Status.FAILURE for row in rows)


def as_table(title: str, rows: Sequence[Row]) -> str:
    """Return the rows as a table for a terminal."""
    columns: tuple[str, ...] = ("check", "result", "details")
    cells: list[tuple[str, ...]] = [(row.check, row.status.value, row.details) for row in rows]
    if any(row.fix for row in rows):
        columns, cells = (*columns, "fix"), [(*cell, row.fix) for cell, row in zip(cells, rows, strict=True)]
    return str(TextTable(title, columns, tuple(cells), show_lines=False))


def as_json(rows: Sequence[Row], world_size: int, measured: Mapping[str, Any], suggestion: str) -> str:
    """Return the rows and the measured values as JSON."""
    checks = [
        {
            "check": row.check,
            "status": row.status.value,
            "details": row.details,
            "fix": row.fix,
            "seconds": round(row.seconds, 2),
            "ranks": row.ranks,
        }
        for row in rows
    ]
    content = {"ok": not has_failed(rows), "world_size": world_size, "checks": checks}
    return json.dumps({**content, "measured": dict(measured), "overrides": suggestion}, indent=1, ensure_ascii=False)


def overrides(config: Config, resolved: str | None, measured: Mapping[str, Any]) -> str:
    """Return overrides to paste: the largest batch that fits, and the precision. Empty if neither is known."""
    batch = [] if "largest_batch" not in measured else [f"lm.global_batch_size={measured['largest_batch']}"]
    return " ".join([*batch, *([] if resolved is None else [f"runtime.precision={resolved}"])])


def last_lines(measured: Mapping[str, Any], suggestion: str) -> list[str]:
    """Return one line with speed, memory and batch, and one with the overrides."""
    parts = []
    if "tokens_per_second" in measured:
        parts.append(f"language model: {measured['tokens_per_second']:,} tokens/s")
        parts.append(f"peak memory {measured['peak_memory_gb']} GB per rank")
        largest = measured.get("largest_batch", "not measured on a CPU")
        parts.append(f"largest batch that fits: {largest}")
    return [line for line in (", ".join(parts), suggestion) if line]
