"""Hostile files are refused, run nothing, and take little memory and time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MAX_MIB = 2048
MAX_SECONDS = 10
"""Processor time for a file, which other processes do not lengthen."""


def hostile(command: str, folder: Path) -> list[dict]:
    environment = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    argv = [sys.executable, "-m", "hostile", command, folder]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.distributed
def test_hostile_files_are_refused_and_run_nothing(tmp_path: Path):
    hostile("write", tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    rows = hostile("read", tmp_path)
    assert len({row["name"].partition(".")[0] for row in rows}) > 60
    assert [row for row in rows if row["reason"] is None or "NOT A REFUSAL" in row["reason"] or "\n" in row["reason"]] == []
    assert [row for row in rows if row["events"]] == []
    assert {path.name for path in tmp_path.iterdir()} - before == {"unpacked"}
    written = [path for path in (tmp_path / "unpacked").rglob("*") if not path.is_dir()]
    assert all(path.resolve().is_relative_to(tmp_path / "unpacked") and not path.is_symlink() for path in written)
    assert max(row["mib"] for row in rows) < MAX_MIB
    assert max(row["seconds"] for row in rows) < MAX_SECONDS
