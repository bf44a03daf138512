"""Digests of exported models (`benchmarks/weights_hash.py`), by which a change proves that it changes no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.weights_hash import DIFFERENT, USAGE, digest, main


def tensors() -> dict[str, Tensor]:
    return {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2), "steps": torch.tensor(7)}


def make_run(folder: Path, **changed: Tensor) -> Path:
    for stage in ("lm", "classifier"):
        (folder / stage).mkdir(parents=True)
        save_file(tensors() | (changed if stage == "lm" else {}), folder / stage / "model.safetensors")
    return folder


def test_the_order_of_the_tensors_and_their_memory_does_not_matter():
    weights = tensors()
    transposed = weights["b.weight"].t().contiguous().t()
    assert digest(dict(reversed(weights.items())) | {"b.weight": transposed}) == digest(weights)


@pytest.mark.parametrize(
    "changed",
    [
        {"b.weight": torch.arange(6.0).reshape(2, 3).nextafter(torch.tensor(9.0))},
        {"b.weight": torch.arange(6.0).reshape(3, 2)},
        {"a.bias": torch.zeros(2, dtype=torch.int32)},
        {"a.bias": torch.tensor([0.0, -0.0])},
        {"c.bias": torch.zeros(2)},
    ],
    ids=["bit", "shape", "dtype", "sign of zero", "name"],
)
def test_any_difference_in_the_weights_is_another_digest(changed: dict[str, Tensor]):
    assert digest(tensors() | changed) != digest(tensors())


def test_equal_runs_exit_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(make_run(tmp_path / "before")), str(make_run(tmp_path / "after"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[2] for line in lines] == [
        f"{tmp_path}/{run}/{model}" for run in ("before", "after") for model in ("classifier", "lm")
    ]
    assert {line.partition("  ")[0] for line in lines} == {digest(tensors())}


def test_runs_that_differ_exit_with_one_and_name_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before, after = make_run(tmp_path / "before"), make_run(tmp_path / "after", steps=torch.tensor(8))
    assert main([str(before), str(after)]) == DIFFERENT
    assert capsys.readouterr().out.splitlines()[4:] == [f"{after}/lm differs from {before}/lm"]


def test_a_model_that_only_one_run_has_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before, after = make_run(tmp_path / "before"), make_run(tmp_path / "after")
    (after / "classifier" / "model.safetensors").unlink()
    assert main([str(before), str(after)]) == DIFFERENT
    assert f"{after}/classifier differs from {before}/classifier" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_a_run_without_a_readable_model_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content):
    (tmp_path / "lm").mkdir()
    if content:
        (tmp_path / "lm" / "model.safetensors").write_bytes(content)
    assert main([str(tmp_path)]) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"weights_hash: error: {tmp_path}: ")
