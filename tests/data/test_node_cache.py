"""A token store copied to a node's own disk."""

from pathlib import Path

import numpy as np
import pytest
from conftest import mounted
from stores import make_store

from ulmfit_dist.data.node_cache import copy_store
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.errors import UserError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    documents = [np.arange(length) % 50 for length in (700, 30, 400)]
    return make_store(tmp_path / "shared", documents, np.array([0, 1, 0]), [f"word{i}" for i in range(50)]).path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_copy_holds_the_same_bytes_and_is_made_once(store: Path, tmp_path: Path):
    copy = copy_store(store, tmp_path / "local" / "disk")
    assert copy == tmp_path / "local" / "disk" / TokenStore(store).fingerprint
    assert contents(copy) == contents(store)
    before = copy.stat().st_ino
    assert copy_store(store, tmp_path / "local" / "disk").stat().st_ino == before


@pytest.mark.parametrize("damage", ["flipped", "missing"])
@pytest.mark.parametrize("name", ["vocab.json", "shard-00000-of-00001.tokens"])
def test_a_damaged_copy_is_made_again(store: Path, tmp_path: Path, name: str, damage: str):
    copy = copy_store(store, tmp_path / "local")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).unlink()
    if damage == "flipped":
        (copy / name).write_bytes(content)
    assert contents(copy_store(store, tmp_path / "local")) == contents(store)


def test_what_a_killed_copy_left_is_removed(store: Path, tmp_path: Path):
    left = tmp_path / "local" / f".{TokenStore(store).fingerprint}.tmp"
    left.mkdir(parents=True)
    (left / "half").touch()
    assert contents(copy_store(store, tmp_path / "local")) == contents(store)
    assert not left.exists()


def test_a_full_disk_is_named_with_what_it_would_have_to_hold(store: Path, tmp_path: Path):
    with mounted(tmp_path / "small", "4k"):
        with pytest.raises(UserError, match=r"=\S+small: cannot hold a copy of \S+, 0 MB \(No space left on device\)"):
            copy_store(store, tmp_path / "small")
        assert not list((tmp_path / "small").glob(".*.tmp"))
