"""Checkpoints on disk: folders that are whole or not there, and that hold nothing that could run code.

    checkpoints/latest                       link to the newest one, for people; a resume looks for itself
    checkpoints/<stage>/step-00001234/
        model.safetensors                    parameters and buffers, named as in the model; tied ones once
        optimizer.safetensors                moments by parameter
        hidden_states.safetensors            the LSTMs' (h, c) by global row; empty at an epoch's edge
        state.json                           position, hyper-parameters, loss scaler, sums so far, config, versions
        metrics.jsonl                        the stage's lines so far
        manifest.json                        size and xxh3 of each file above, and the validation's score

A folder is written under another name, each file and the folder itself brought to the disk (fsync), the manifest last, and
then renamed. So a name like `step-00001234` stands for a whole checkpoint, whenever the process or the machine stops. What
the disk does to it later, the manifest shows. No file depends on the number of ranks.
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

FORMAT = 1
TENSOR_FILES = ("model", "optimizer", "hidden_states")
FILES = (*(f"{name}.safetensors" for name in TENSOR_FILES), "state.json", "metrics.jsonl")
LONGEST_JSON = 1 << 24
"""Bytes of manifest.json or state.json that are read at most."""
LONGEST_LINES = 1 << 28
"""Bytes of metrics.jsonl that are read at most."""


class CorruptCheckpointError(Exception):
    """A checkpoint that is not what its manifest says, or has none."""


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        tensors: by file (`TENSOR_FILES`), then by name; on the CPU.
        state: what JSON can say.
        lines: the stage's part of metrics.jsonl.
        score: what the validation at this very step came to, higher is better; None where there was none.
    """

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    lines: str = ""
    score: float | None = None


class CheckpointManager:
    """The checkpoints of one stage.

    Args:
        checkpoints: folder of all stages' checkpoints.
        stage: "lm" or "classifier".
    """

    def __init__(self, checkpoints: Path, stage: str):
        self.checkpoints, self.path = checkpoints, checkpoints / stage

    def at(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def newest_first(self) -> list[Path]:
        """Folders of this stage's checkpoints, damaged ones among them."""
        found = [path for path in _entries(self.path) if re.fullmatch(r"step-\d{8,}", path.name)]
        return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=_step, reverse=True)

    def newest_intact(
        self, read: Callable[[Path], Value], skip: Callable[[Path, CorruptCheckpointError], None]
    ) -> Value | None:
        """What `read` makes of the newest checkpoint that is as its manifest says; None where there is none.

        Args:
            read: may raise DamagedError, too.
            skip: told of each damaged one that is passed over.
        """
        for path in self.newest_first():
            try:
                verify(path)
                return read(path)
            except CorruptCheckpointError as error:
                skip(path, error)
        return None

    def write(self, content: Checkpoint, keep: int) -> Path:
        """Add a checkpoint, then drop all but the newest `keep` and the best.

        Raises:
            OSError, SafetensorError: it could not be written; what was there before still is.
        """
        path = self.at(content.state["position"]["stage_step"])
        temporary, previous = (path.with_name(f".{path.name}.{ending}") for ending in ("tmp", "old"))
        self.tidy()
        try:
            temporary.mkdir(parents=True)
            _write_files(temporary, content)
            if path.exists():
                path.replace(previous)
            temporary.replace(path)
            _sync(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._link(path)
        self._prune(path, keep)
        self.tidy()
        return path

    def tidy(self) -> None:
        """Remove what a killed run left half-written or half-removed."""
        for path in _entries(self.path):
            name = re.fullmatch(r"\.(step-\d{8,})\.(tmp|old|gone)", path.name)
            if name is None:
                continue
            if name[2] == "old" and not path.with_name(name[1]).exists():
                path.replace(path.with_name(name[1]))  # killed before its successor had taken its place
            else:
                shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Remove all checkpoints of the stage."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _prune(self, newest: Path, keep: int) -> None:
        """Of those up to the one just written: what has a later step was damaged, or it would have been gone on from."""
        paths = [path for path in self.newest_first() if _step(path) <= _step(newest)]
        scores = {path: score for path in paths if (score := _score(path)) is not None}
        best = max(scores, key=lambda path: scores[path], default=None)  # the newest of the best
        for path in paths[keep:]:
            if path != best:
                path.replace(path.with_name(f".{path.name}.gone"))

    def _link(self, path: Path) -> None:
        """Let `latest` name a checkpoint, on a file system that has links."""
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
    """Raise DamagedError if a checkpoint is not as its manifest says."""
    manifest = read_json(path / "manifest.json")
    files = manifest.get("files")
    if manifest.get("format") != FORMAT:
        raise CorruptCheckpointError(f"manifest.json: format {manifest.get('format')!r}, this version reads {FORMAT}")
    if not isinstance(files, dict) or sorted(files) != sorted(FILES):
        raise CorruptCheckpointError(f"manifest.json: does not list {', '.join(FILES)}")
    for name, said in files.items():
        file, facts = path / name, said if isinstance(said, dict) else {}
        if file.is_symlink() or not file.is_file():
            raise CorruptCheckpointError(f"{name}: missing, or not a plain file")
        if file.stat().st_size != facts.get("bytes"):
            raise CorruptCheckpointError(
                f"{name}: {file.stat().st_size} bytes, not the {facts.get('bytes')} of its manifest"
            )
        if _checksum(file) != facts.get("xxh3"):
            raise CorruptCheckpointError(f"{name}: its checksum is not that of its manifest")
    for name in TENSOR_FILES:
        _check_tensors(path / f"{name}.safetensors")


def _check_tensors(file: Path) -> None:
    """Raise DamagedError if it is not what it is called, as far as its head goes."""
    try:
        with safetensors.safe_open(file, "pt"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{file.name}: not safetensors ({error})") from None


def read_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by file and name, on the CPU. Raises DamagedError."""
    try:
        return {name: safetensors.torch.load_file(path / f"{name}.safetensors") for name in TENSOR_FILES}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CorruptCheckpointError(f"not safetensors ({error})") from None


def read_state(path: Path) -> dict[str, Any]:
    """What state.json says. Raises DamagedError."""
    return read_json(path / "state.json")


def read_lines(path: Path) -> str:
    """The stage's part of metrics.jsonl. Raises DamagedError."""
    try:
        return read_bounded(path / "metrics.jsonl", LONGEST_LINES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"metrics.jsonl: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a plain file of sensible size. Raises DamagedError."""
    try:
        if path.is_symlink():
            raise OSError("a link, not a plain file")
        content = json.loads(read_bounded(path, LONGEST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path.name}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{path.name}: not a JSON object")
    return content


def _write_files(folder: Path, content: Checkpoint) -> None:
    for name, tensors in content.tensors.items():
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(content.state, indent=1), encoding="utf-8")
    (folder / "metrics.jsonl").write_text(content.lines, encoding="utf-8")
    files = {}
    for name in FILES:
        _sync(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "xxh3": _checksum(folder / name)}
    manifest = {"format": FORMAT, "score": content.score, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(folder / "manifest.json")
    _sync(folder)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
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
