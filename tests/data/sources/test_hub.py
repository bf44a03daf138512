"""Data sets of the hub, from local files through the same library: as a whole, and their first rows as a stream."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.errors import UserError


def write_articles(folder: Path) -> None:
    """Files as those of wikimedia/wikipedia: several per split, with more columns than the text."""
    folder.mkdir(parents=True)
    for part in range(3):
        numbers = range(part * 10, part * 10 + 10)
        columns = {"id": list(map(str, numbers)), "title": ["t"] * 10, "text": [f"article {i}" for i in numbers]}
        pa.parquet.write_table(pa.table(columns), folder / f"train-{part:05d}-of-00003.parquet")


def config_of(folder: Path, *words: str) -> DataConfig:
    words = ("data.source=hub", f"data.path={folder / 'wiki'}", f"data.cache_dir={folder / 'cache'}", *words)
    return load_config(None, ["data.label_col=null", *words]).data


@pytest.mark.parametrize("words", [(), ("data.splits={train: train}",)])
def test_the_first_rows_of_a_stream_are_those_of_the_whole_data_set(tmp_path: Path, words: tuple[str, ...]):
    write_articles(tmp_path / "wiki")
    whole = open_source(config_of(tmp_path, *words)).splits["train"]
    source = open_source(config_of(tmp_path, *words, "data.stream_documents=13"))
    assert len(whole) == 30
    assert len(source.splits["train"]) == 13
    assert source.splits["train"].read(0, 13) == whole.read(0, 13)
    more_than_all = open_source(config_of(tmp_path, *words, "data.stream_documents=1000"))
    assert more_than_all.identity == open_source(config_of(tmp_path, *words)).identity


def test_a_stream_is_read_once(tmp_path: Path):
    write_articles(tmp_path / "wiki")
    config = config_of(tmp_path, "data.splits={train: train}", "data.stream_documents=13")
    first = open_source(config).splits["train"].read(0, 13)
    for file in (tmp_path / "wiki").iterdir():
        file.unlink()
    assert open_source(config).splits["train"].read(0, 13) == first
    with pytest.raises(UserError, match=r"^data\.path="):
        open_source(config, verify=True)


def test_a_stream_that_breaks_leaves_no_rows(tmp_path: Path):
    write_articles(tmp_path / "wiki")
    broken = tmp_path / "wiki/train-00001-of-00003.parquet"
    content = broken.read_bytes()
    broken.write_bytes(content[:200] + bytes(400) + content[600:])
    with pytest.raises(UserError, match=r"^data\.path=\S+: cannot be read as a hub data set: [^\n]+$"):
        open_source(config_of(tmp_path, "data.stream_documents=13"))
    assert not list((tmp_path / "cache").rglob("*.arrow*"))
    broken.write_bytes(content)
    assert len(open_source(config_of(tmp_path, "data.stream_documents=13")).splits["train"]) == 13


def test_names_of_classes_are_kept(tmp_path: Path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    (tmp_path / "wiki").mkdir()
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features).to_parquet(tmp_path / "wiki/train.parquet")
    config = config_of(tmp_path, "data.label_col=label", "data.stream_documents=2")
    assert open_source(config).splits["train"].read(0, 2) == (["a", "b"], ["good", "bad"])
