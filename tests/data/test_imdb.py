"""The pipeline on a slice of IMDb, from Parquet and from a folder by class. Skips where the data is absent."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT, TINY, store_in, succeed

from ulmfit_dist.data.token_store import TokenStore

IMDB = ROOT.parent / "shared" / "data" / "imdb"
SIZES = {"train": 500, "test": 500, "unsupervised": 2000}
SPLITS = "data.splits={train: train, valid: test, unlabelled: unsupervised}"


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 labelled and 2,000 unlabelled reviews, spread over the files, once as Parquet and once as text files."""
    if not IMDB.is_dir():
        pytest.skip(f"no IMDb at {IMDB}")
    folder = tmp_path_factory.mktemp("imdb")
    for split, size in SIZES.items():
        table = pyarrow.parquet.read_table(IMDB / f"{split}.parquet")
        table = table.take(list(range(0, len(table), len(table) // size)))
        (folder / "parquet").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, folder / "parquet" / f"{split}.parquet")
        for i, row in enumerate(table.to_pylist()):
            place = folder / "text" / split / ("" if split == "unsupervised" else ("neg", "pos")[row["label"]])
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.txt").write_text(row["text"], encoding="utf-8", newline="")
    return folder


def test_a_slice_of_imdb_trains_from_parquet_and_a_folder_gives_the_same_store(slices: Path, recipe: Path):
    stores = {}
    for source, path in (("parquet", "parquet"), ("folder", "text")):
        words = [
            recipe,
            f"data.source={source}",
            f"data.path={slices / path}",
            SPLITS,
            f"data.cache_dir={slices / path}-cache",
        ]
        succeed(["prepare", *words], processes=2)
        stores[source] = TokenStore(store_in(slices / f"{path}-cache"))
    assert stores["parquet"].vocab == stores["folder"].vocab
    assert len(stores["parquet"].vocab) > 10_000
    assert (stores["parquet"].lengths == stores["folder"].lengths).all()
    assert (stores["parquet"].labels == stores["folder"].labels).all()
    assert stores["folder"].label_names == ["neg", "pos"]
    assert all((stores["parquet"].document(i) == stores["folder"].document(i)).all() for i in range(0, 3000, 3))

    training = [
        *TINY,
        "data.max_documents=400",
        "tokenizer.max_vocab=4000",
        "lm.global_batch_size=64",
        "lm.seq_len=72",
        "classifier.global_batch_size=64",
    ]
    training += [
        "classifier.seq_len=72",
        "classifier.max_len=144",
        "lm.phases=[{epochs: 1, lr: 3e-2}]",
        "classifier.phases=[{epochs: 1}]",
    ]
    words = [
        recipe,
        *training,
        "data.source=parquet",
        f"data.path={slices / 'parquet'}",
        SPLITS,
        f"runs_dir={slices / 'runs'}",
    ]
    succeed(["run", *words, f"data.cache_dir={slices / 'cache'}", "tracking.wandb_mode=disabled"], processes=2)
    summary = json.loads((slices / "runs" / "run" / "summary.json").read_text())
    assert summary["world_size"] == 2
    assert summary["lm"]["perplexity"] < 2000
    assert summary["classifier"]["valid_loss"] < 1
    assert json.loads((slices / "runs" / "run" / "classifier" / "labels.json").read_text()) == ["0", "1"]
