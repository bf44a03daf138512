"""A table that names the files of a folder of texts."""

from pathlib import Path

import pytest

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.errors import UserError

TEXTS = {
    "a.txt": "Ein Tor fiel spät.",
    "b.txt": "Es regnet.",
    "deep/c.txt": "Zwiebeln hacken.",
    "d.txt": "Noch ohne Etikett.",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of texts, and a CSV of labels beside it that names its files."""
    for name, text in TEXTS.items():
        (tmp_path / "texte" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texte" / name).write_text(text, encoding="utf-8")
    rows = ["texte/deep/c.txt,Küche", "texte/a.txt,Sport", "texte/b.txt,Wetter", "texte/d.txt,"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n", encoding="utf-8")
    return tmp_path


def opened(path: Path, *overrides: str):
    return open_source(load_config(None, ["data.source=csv", f"data.path={path}", "data.file_col=file", *overrides]).data)


def test_files_are_read_in_the_order_of_the_table_with_its_labels(place: Path):
    documents = opened(place / "labels.csv").splits["train"]
    texts = [TEXTS[name] for name in ("deep/c.txt", "a.txt", "b.txt", "d.txt")]
    assert documents.read(0, 4) == (texts, ["Küche", "Sport", "Wetter", None])
    assert documents.read(1, 2) == (texts[1:2], ["Sport"])


def test_a_folder_may_have_a_table_for_each_split_of_any_kind(place: Path):
    (place / "train.jsonl").write_text('{"file": "texte/a.txt", "label": 1}\n{"file": "texte/b.txt", "label": 0}\n')
    (place / "unlabelled.jsonl").write_text('{"file": "texte/d.txt"}\n')
    source = opened(place, "data.source=json")
    assert source.splits["train"].read(0, 2) == ([TEXTS["a.txt"], TEXTS["b.txt"]], ["1", "0"])
    assert source.splits["unlabelled"].read(0, 1) == ([TEXTS["d.txt"]], [None])


def test_a_changed_text_changes_the_identity(place: Path):
    before = opened(place / "labels.csv").identity
    assert opened(place / "labels.csv").identity == before
    (place / "texte" / "a.txt").write_text("Kein Tor fiel.")
    assert opened(place / "labels.csv").identity != before


def test_a_row_that_is_skipped_has_no_text(place: Path):
    with (place / "labels.csv").open("a") as file:
        file.write("texte/a.txt\n")
    with pytest.raises(UserError, match="line 6 has 1 fields, but the header has 2"):
        opened(place / "labels.csv")
    documents = opened(place / "labels.csv", "data.on_error=skip").splits["train"]
    assert documents.read(3, 5) == ([TEXTS["d.txt"], None], [None, None])


@pytest.mark.parametrize("name", ["texte/e.txt", "texte", "", "a text, and no name of one " * 50])
def test_a_file_that_is_not_there_is_named_before_any_is_read(place: Path, name: str):
    with (place / "labels.csv").open("a") as file:
        file.write(f'"{name}",Sport\n')
    with pytest.raises(UserError, match=f"labels.csv: column 'file' names '{name[:40]}.*: no such file in {place}") as error:
        opened(place / "labels.csv")
    assert "\n" not in str(error.value)
    assert "in row 5 of train: " in str(error.value)
    assert "; 1 of 5 are missing: set data.on_error=skip to leave such rows out" in str(error.value)
    documents = opened(place / "labels.csv", "data.on_error=skip").splits["train"]
    assert documents.read(3, 5) == ([TEXTS["d.txt"], None], [None, "Sport"])


@pytest.mark.parametrize(
    ("overrides", "output"),
    [
        (["data.file_col=datei"], "no column 'datei' for data.file_col; its columns are: file, label"),
        (["data.source=folder"], "data.file_col: data.source=folder has no column: it is for csv, json and parquet"),
        (["data.source=hub"], "data.file_col: data.source=hub has no column"),
    ],
)
def test_what_cannot_name_files_is_refused(place: Path, overrides: list[str], output: str):
    with pytest.raises(UserError, match=output):
        opened(place / "labels.csv", *overrides)
