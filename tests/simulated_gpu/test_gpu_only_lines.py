"""Tests of the analysis that finds the lines of the package that only a GPU reaches."""

from pathlib import Path
from textwrap import dedent

import pytest

from simulated_gpu import line_coverage
from simulated_gpu.gpu_only_lines import gpu_only_lines


def lines_of(source: str, folder: Path) -> list[str]:
    (folder / "module.py").write_text(dedent(source))
    return [statement.source for statements in gpu_only_lines(folder).values() for statement in statements]


@pytest.mark.parametrize(
    "condition",
    [
        "x.is_cuda",
        "not x.device.type != 'cuda'",
        "x.device.type == 'cuda' and y",
        "torch.cuda.is_available()",
        "has_gpu",
        "self._on_gpu",
        "scaler is not None",
    ],
)
def test_conditions_that_no_cpu_fulfils(condition: str, tmp_path: Path):
    assert lines_of(f"if {condition}:\n    gpu()\nelse:\n    cpu()\n", tmp_path) == ["gpu()"]


@pytest.mark.parametrize("condition", ["y", "has_gpu or y", "wanted == 'fp16' and not has_gpu", "x.device == y.device"])
def test_conditions_that_a_cpu_may_fulfil(condition: str, tmp_path: Path):
    assert lines_of(f"if {condition}:\n    a()\nelse:\n    b()\n", tmp_path) == []


def test_what_follows_the_return_of_a_cpu(tmp_path: Path):
    source = """
        def compute(x):
            if x.device.type == "cpu":
                return cpu(x)
            for part in x:
                gpu(part)
    """
    assert lines_of(source, tmp_path) == ["for part in x:", "gpu(part)"]


def test_names_that_are_assigned_conditions_and_functions_that_only_gpus_use(tmp_path: Path):
    source = """
        def run(device):
            fast = device.type == "cuda"
            if fast:
                launch()
            both()

        def launch():
            both()

        def both():
            pass
    """
    assert lines_of(source, tmp_path) == ["launch()", "both()"]


def test_a_conditional_expression_counts_as_its_statement(tmp_path: Path):
    assert lines_of("a = 1\nb = gpu() if x.is_cuda else cpu()\n", tmp_path) == ["b = gpu() if x.is_cuda else cpu()"]


def test_statements_that_are_not_executed_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "module.py").write_text("if x.is_cuda:\n    gpu(\n        1)\n    other()\n")
    monkeypatch.setattr(line_coverage, "PACKAGE", tmp_path)
    monkeypatch.setattr(line_coverage, "ALLOWED", {})
    executed = {tmp_path / "module.py": {1, 3}}
    (problem,) = line_coverage.problems(executed)
    assert problem.endswith("module.py:4: other()")
    monkeypatch.setattr(line_coverage, "ALLOWED", {"module.py: other()": "a reason"})
    assert line_coverage.problems(executed) == []
    (problem,) = line_coverage.problems({tmp_path / "module.py": {1, 3, 4}})
    assert "ALLOWED names a line that is executed" in problem
