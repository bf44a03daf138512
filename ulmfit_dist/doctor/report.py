"""The report of a doctor: a row per check over all ranks, as a table or as JSON, and overrides to paste."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.doctor.checks import Result, Status
from ulmfit_dist.utils.text_table import TextTable

RANKS_NAMED = 4
"""Ranks whose own findings a row names, at most."""


@dataclass(frozen=True)
class Row:
    """A check over all ranks.

    Attributes:
        status: the worst of all ranks.
        found: what the ranks found; by rank where they differ and something is wrong.
        fix: the first rank's with this status.
        seconds: of the slowest rank.
        ranks: status by rank.
    """

    check: str
    status: Status
    found: str
    fix: str
    seconds: float
    ranks: dict[int, str]


def rows(names: Sequence[str], results: Mapping[int, Sequence[Result]], world_size: int) -> list[Row]:
    """The rows of all ranks' results, in the order of the checks; checks that no rank has reached are skipped.

    Args:
        results: by rank; a rank that hangs has published fewer.
    """
    return [_row(name, results, world_size) for name in names]


def _row(name: str, results: Mapping[int, Sequence[Result]], world_size: int) -> Row:
    found = {rank: result for rank, of_rank in sorted(results.items()) for result in of_rank if result.check == name}
    if not found:
        return Row(name, Status.SKIPPED, "not reached", "", 0.0, {})
    status = max((result.finding.status for result in found.values()), key=lambda status: status.severity)
    worst = {rank: result.finding for rank, result in found.items() if result.finding.status is status}
    first = next(iter(worst.values()))
    texts = {finding.found for finding in worst.values()}
    if world_size == 1 or (len(texts) == 1 and len(worst) == world_size) or status.severity <= Status.OK.severity:
        text = first.found
    elif len(texts) == 1:
        text = (
            f"ranks {', '.join(map(str, worst))}: {first.found}" if len(worst) > 1 else f"rank {min(worst)}: {first.found}"
        )
    else:
        named = [f"rank {rank}: {finding.found}" for rank, finding in list(worst.items())[:RANKS_NAMED]]
        text = "; ".join([*named, *([f"and {len(worst) - RANKS_NAMED} more"] if len(worst) > RANKS_NAMED else [])])
    seconds = max(result.seconds for result in found.values())
    return Row(name, status, text, first.fix, seconds, {rank: result.finding.status.value for rank, result in found.items()})


def has_failed(rows: Sequence[Row]) -> bool:
    return any(row.status is Status.FAILURE for row in rows)


def as_table(title: str, rows: Sequence[Row]) -> str:
    """The rows as a terminal shows them."""
    columns: tuple[str, ...] = ("check", "result", "found")
    cells: list[tuple[str, ...]] = [(row.check, row.status.value, row.found) for row in rows]
    if any(row.fix for row in rows):
        columns, cells = (*columns, "fix"), [(*cell, row.fix) for cell, row in zip(cells, rows, strict=True)]
    return str(TextTable(title, columns, tuple(cells), show_lines=False))


def as_json(rows: Sequence[Row], world_size: int, measured: Mapping[str, Any], suggestion: str) -> str:
    """The rows and the measured values, for programs."""
    checks = [
        {
            "check": row.check,
            "status": row.status.value,
            "found": row.found,
            "fix": row.fix,
            "seconds": round(row.seconds, 2),
            "ranks": row.ranks,
        }
        for row in rows
    ]
    content = {"ok": not has_failed(rows), "world_size": world_size, "checks": checks}
    return json.dumps({**content, "measured": dict(measured), "overrides": suggestion}, indent=1, ensure_ascii=False)


def overrides(config: Config, resolved: str | None, measured: Mapping[str, Any]) -> str:
    """Overrides ready to paste: the largest batch that fits, and the precision. Empty where neither is known."""
    found = [] if "largest_batch" not in measured else [f"lm.global_batch_size={measured['largest_batch']}"]
    return " ".join([*found, *([] if resolved is None else [f"runtime.precision={resolved}"])])


def last_lines(measured: Mapping[str, Any], suggestion: str) -> list[str]:
    """Speed, memory and batch in one line, and the overrides in another."""
    parts = []
    if "tokens_per_second" in measured:
        parts.append(f"language model: {measured['tokens_per_second']:,} tokens/s")
        parts.append(f"peak memory {measured['peak_memory_gb']} GB a rank")
        largest = measured.get("largest_batch", "not measured on a CPU")
        parts.append(f"largest batch that fits: {largest}")
    return [line for line in (", ".join(parts), suggestion) if line]
