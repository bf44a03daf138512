"""New columns for the rows of a table: labels of texts, or texts that continue prompts.

The blocks of a table are divided among the ranks. Each becomes a part beside the output, and rank 0 merges the parts in
order. A process that is killed resumes with the missing blocks, on any number of ranks; the blocks, and so the rows that are
computed together, do not depend on it. Trade-off: the ranks wait for each other after each block, so that an error of one
ends all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from filelock import FileLock, Timeout

from ulmfit_dist.data.input_table import InputTable
from ulmfit_dist.distributed.collectives import Collectives
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.output_table import Columns, check_suffix, merge_parts, part_suffix, write_part
from ulmfit_dist.utils.files import make_folder, write_json
from ulmfit_dist.utils.log import get_logger
from ulmfit_dist.utils.progress import Progress

logger = get_logger(__name__)

VERSION = 1
"""Version of parts; increased when the same job gives other parts."""


class Annotator(Protocol):
    """Function of texts that gives new columns.

    Attributes:
        columns: names and Arrow types of the new columns.
        identity: changes with the model and its options.
        work: name of the work, for the progress bar.
    """

    columns: dict[str, pa.DataType]
    identity: dict[str, Any]
    work: str

    def annotate(self, texts: Sequence[str], start: int) -> Columns:
        """Return the new columns of texts; the first is row `start` of its table, from 0."""


@dataclass(frozen=True)
class Job:
    """Identity of a job: parts of another one are not used.

    Attributes:
        table: identity of the input.
        block_rows: rows per block.
        num_rows: number of rows.
        model: identity of the annotator.
        columns: new columns.
    """

    table: str
    block_rows: int
    num_rows: int
    model: dict[str, Any]
    columns: list[str]
    version: int = VERSION


def annotate_table(table: InputTable, annotator: Annotator, output: Path, ranks: Collectives) -> int:
    """Write the rows of a table with their new columns, in order. Collective. If interrupted, the same call resumes.

    Args:
        output: file with an ending of `output_table.SUFFIXES`; it is replaced.

    Returns:
        The number of blocks that an earlier call had computed.

    Raises:
        UserError: a column exists already, the output cannot be written, or another process writes it.
    """
    is_main = ranks.rank == 0
    folder = output.with_name(f"{output.name}.parts")
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    starts = range(0, table.num_rows, table.block_rows)
    schema = _output_schema(table, annotator)
    parts = [folder / f"part-{i:06d}{part_suffix(schema is not None)}" for i in range(len(starts))]
    with ranks.fail_together():
        check_suffix(output)
        _check_collisions(table, annotator)
        if is_main:
            _open_folder(folder, lock, _job(table, annotator))
    try:
        pending = ranks.broadcast_object([i for i, part in enumerate(parts) if not part.is_file()])
        _compute(table, annotator, pending, parts, ranks)
        with ranks.fail_together():
            if is_main:
                merge_parts(parts, output, [*table.columns, *annotator.columns], schema)
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()
    return len(parts) - len(pending)


def _compute(
    table: InputTable, annotator: Annotator, pending: Sequence[int], parts: Sequence[Path], ranks: Collectives
) -> None:
    """Write the parts of the pending blocks, one per rank at a time. Collective."""
    sizes = [min(table.block_rows, table.num_rows - i * table.block_rows) for i in range(len(parts))]
    done = table.num_rows - sum(sizes[i] for i in pending)
    with Progress(annotator.work, table.num_rows, ranks.rank == 0, "rows", done) as progress:
        for first in range(0, len(pending), ranks.world_size):
            together = pending[first : first + ranks.world_size]
            with ranks.fail_together():
                if ranks.rank < len(together):
                    number = together[ranks.rank]
                    start = number * table.block_rows
                    block = table.read(start, start + sizes[number])
                    write_part(parts[number], block.rows, annotator.annotate(block.texts, start), annotator.columns)
            num_rows = sum(sizes[number] for number in together)
            progress.advance(num_rows, num_rows)


def _job(table: InputTable, annotator: Annotator) -> Job:
    return Job(table.identity, table.block_rows, table.num_rows, annotator.identity, list(annotator.columns))


def _output_schema(table: InputTable, annotator: Annotator) -> pa.Schema | None:
    """Return the types of the output's columns, if the rows are Parquet."""
    schema: pa.Schema | None = getattr(table, "schema", None)
    if schema is not None:
        for name, type_ in annotator.columns.items():
            schema = schema.append(pa.field(name, type_))
    return schema


def _check_collisions(table: InputTable, annotator: Annotator) -> None:
    doubled = next((column for column in annotator.columns if column in table.columns), None)
    if doubled is not None:
        raise UserError(f"{table.name} has a column {doubled!r} already: rename it, or name the new columns with --prefix")


def _open_folder(folder: Path, lock: FileLock, job: Job) -> None:
    """Lock the folder of the parts, and empty it if they are of another job. Raises UserError."""
    make_folder(folder, "--output")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder} is locked by another process that writes this output: wait until it ends") from None
    except OSError as error:  # a file system without locks
        logger.warning(f"{lock.lock_file} cannot be locked ({error.strerror}): start no other process with this output")
    described = json.loads(json.dumps(asdict(job)))
    path = folder / "job.json"
    earlier = _read(path)
    num_parts = len(list(folder.glob("part-*")))
    if earlier == described:
        logger.info(f"resuming: {num_parts:,} of {-(-job.num_rows // job.block_rows):,} blocks are in {folder}")
        return
    if num_parts:
        logger.warning(f"{folder}: the parts are of another input, model or option: starting over")
        for part in folder.glob("part-*"):
            part.unlink()
    write_json(path, described)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
