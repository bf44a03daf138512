"""Checkpoints on disk: folders that are complete or absent, without anything that could run code.

    checkpoints/latest                       link to the newest one, for people; a resume does not use it
    checkpoints/<stage>/step-00001234/
        model.safetensors                    parameters and buffers, named as in the model; tied ones once
        optimizer.safetensors                moments by parameter
        hidden_states.safetensors            the LSTMs' (h, c) by global row; empty at an epoch's edge
        state.json                           train state, hyper-parameters, loss scaler, sums so far, config, versions
        metrics.jsonl                        the stage's lines so far
        manifest.json                        size and xxh3 of each file above, and the validation score

A folder is written under another name, each file and the folder itself synced to disk (fsync), the manifest last, and then
renamed. So a name like `step-00001234` is that of a complete checkpoint, whenever the process or the machine stops. The
manifest reveals later damage. No file depends on the world size. Trade-off: a checkpoint is written whole, by one rank.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import xxhash
from torch import Tensor

from ulmfit_dist.utils.files import read_bounded

Value = TypeVar("Value")

FORMAT = 2
"""Version of the layout of a checkpoint."""
TENSOR_FILES = ("model", "optimizer", "hidden_states")
"""Names of the safetensors files, without suffix."""
FILES = (*(f"{name}.safetensors" for name in TENSOR_FILES), "state.json", "metrics.jsonl")
"""Files that the manifest lists."""
MAX_JSON_BYTES = 1 << 24
"""Largest manifest.json or state.json that is read, in bytes."""
MAX_LINES_BYTES = 1 << 28
"""Largest metrics.jsonl that is read, in bytes."""


class CorruptCheckpointError(Exception):
    """Checkpoint that does not match its manifest, or has none."""


@dataclass
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        tensors: tensors by file (`TENSOR_FILES`) and name, on the CPU.
        state: content of state.json.
        lines: the stage's part of metrics.jsonl.
        score: score of the validation at this step, higher is better; None without a validation.
    """

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    lines: str = ""
    score: float | None = None

    @property
    def step(self) -> int:
        """Optimizer steps of the stage, which name the checkpoint."""
        return int(self.state["train_state"]["stage_step"])


class CheckpointManager:
    """Reads, writes and deletes the checkpoints of one stage.

    Args:
        checkpoints: folder of all stages' checkpoints.
        stage: "lm" or "classifier".
    """

    def __init__(self, checkpoints: Path, stage: str):
        self.checkpoints, self.path = checkpoints, checkpoints / stage

    def at(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.path / f"step-{step:08d}"

    def newest_first(self) -> list[Path]:
        """Return the folders of this stage's checkpoints, including damaged ones."""
        paths = [path for path in _entries(self.path) if re.fullmatch(r"step-\d{8,}", path.name)]
        return sorted((path for path in paths if path.is_dir() and not path.is_symlink()), key=_step, reverse=True)

    def newest_intact(
        self, read: Callable[[Path], Value], skip: Callable[[Path, CorruptCheckpointError], None]
    ) -> Value | None:
        """Return what `read` returns for the newest intact checkpoint; None if there is none.

        Args:
            read: may raise CorruptCheckpointError as well.
            skip: called with each damaged checkpoint.
        """
        for path in self.newest_first():
            try:
                verify(path)
                return read(path)
            except CorruptCheckpointError as error:
                skip(path, error)
        return None

    def write(self, checkpoint: Checkpoint, keep_latest: int) -> Path:
        """Add a checkpoint, then delete all but the `keep_latest` newest and the best. Returns its folder.

        Raises:
            OSError, SafetensorError: it could not be written; earlier checkpoints are unchanged.
        """
        path = self.at(checkpoint.step)
        temporary, previous = (path.with_name(f".{path.name}.{ending}") for ending in ("tmp", "old"))
        self.tidy()
        try:
            temporary.mkdir(parents=True)
            _write_files(temporary, checkpoint)
            if path.exists():
                path.replace(previous)
            temporary.replace(path)
            _sync(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._link(path)
        self._prune(path, keep_latest)
        self.tidy()
        return path

    def tidy(self) -> None:
        """Remove folders that a killed run left partly written or partly removed."""
        for path in _entries(self.path):
            name = re.fullmatch(r"\.(step-\d{8,})\.(tmp|old|gone)", path.name)
            if name is None:
                continue
            if name[2] == "old" and not path.with_name(name[1]).exists():
                path.replace(path.with_name(name[1]))  # killed before its successor was renamed
            else:
                shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Delete all checkpoints of the stage."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _prune(self, newest: Path, keep_latest: int) -> None:
        """Delete old checkpoints; one of a later step than the newest is damaged: the run has not resumed from it."""
        paths = [path for path in self.newest_first() if _step(path) <= _step(newest)]
        scores = {path: score for path in paths if (score := _score(path)) is not None}
        best = max(scores, key=lambda path: scores[path], default=None)  # the newest of the best
        for path in paths[keep_latest:]:
            if path != best:
                path.replace(path.with_name(f".{path.name}.gone"))

    def _link(self, path: Path) -> None:
        """Point the link `latest` to a checkpoint, if the file system supports links."""
        link = self.checkpoints / f".latest.{os.getpid()}"
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(path.relative_to(self.checkpoints))
            link.replace(self.checkpoints / "latest")
        except OSError:
            link.unlink(missing_ok=True)


def remove_stage(run_dir: Path, checkpoints: Path, stage: str) -> None:
    """Remove the exported model and all checkpoints of a stage whose input has changed.

    Args:
        run_dir: run directory, with the exported model in `run_dir / stage`.
        checkpoints: folder of all stages' checkpoints.
    """
    shutil.rmtree(run_dir / stage, ignore_errors=True)
    CheckpointManager(checkpoints, stage).clear()


def verify(path: Path) -> None:
    """Raise CorruptCheckpointError if a checkpoint does not match its manifest."""
    manifest = read_json(path / "manifest.json")
    files = manifest.get("files")
    if manifest.get("format") != FORMAT:
        raise CorruptCheckpointError(f"manifest.json: format {manifest.get('format')!r}, but this version reads {FORMAT}")
    if not isinstance(files, dict) or sorted(files) != sorted(FILES):
        raise CorruptCheckpointError(f"manifest.json: does not list {', '.join(FILES)}")
    for name, entry in files.items():
        file, expected = path / name, entry if isinstance(entry, dict) else {}
        if file.is_symlink() or not file.is_file():
            raise CorruptCheckpointError(f"{name}: missing, or not a regular file")
        if file.stat().st_size != expected.get("bytes"):
            raise CorruptCheckpointError(
                f"{name}: has {file.stat().st_size} bytes, but the manifest lists {expected.get('bytes')}"
            )
        if _checksum(file) != expected.get("xxh3"):
            raise CorruptCheckpointError(f"{name}: checksum differs from the manifest")
    for name in TENSOR_FILES:
        _check_tensors(path / f"{name}.safetensors")


def _check_tensors(file: Path) -> None:
    """Raise CorruptCheckpointError if the header of a file is not that of safetensors."""
    try:
        with safetensors.safe_open(file, "pt"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{file.name}: not safetensors ({error})") from None


def read_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a checkpoint by file and name, on the CPU. Raises CorruptCheckpointError."""
    try:
        return {name: safetensors.torch.load_file(path / f"{name}.safetensors") for name in TENSOR_FILES}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CorruptCheckpointError(f"not safetensors ({error})") from None


def read_state(path: Path) -> dict[str, Any]:
    """Return the content of state.json. Raises CorruptCheckpointError."""
    return read_json(path / "state.json")


def read_lines(path: Path) -> str:
    """Return the stage's part of metrics.jsonl. Raises CorruptCheckpointError."""
    try:
        return read_bounded(path / "metrics.jsonl", MAX_LINES_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"metrics.jsonl: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a regular file of bounded size. Raises CorruptCheckpointError."""
    try:
        if path.is_symlink():
            raise OSError("a link, not a regular file")
        content = json.loads(read_bounded(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path.name}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{path.name}: not a JSON object")
    return content


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    for name, tensors in checkpoint.tensors.items():
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
    (folder / "metrics.jsonl").write_text(checkpoint.lines, encoding="utf-8")
    files = {}
    for name in FILES:
        _sync(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "xxh3": _checksum(folder / name)}
    manifest = {"format": FORMAT, "score": checkpoint.score, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(folder / "manifest.json")
    _sync(folder)


def _sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _score(path: Path) -> float | None:
    try:
        score = read_json(path / "manifest.json").get("score")
    except CorruptCheckpointError:
        return None
    return score if isinstance(score, float) and math.isfinite(score) else None


def _entries(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir())) if folder.is_dir() else iter(())
