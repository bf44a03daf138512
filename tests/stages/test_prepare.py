"""Preparing a token store: interrupted, by several runs at once, and found again."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import forked
import pytest
from conftest import ROOT, command, launch, make_folder, mounted, store_in, succeed

from ulmfit_dist.config.schema import DataConfig, TokenizerConfig
from ulmfit_dist.data import store_builder as builder_module
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.store_builder import TokenStoreBuilder, _sorted_labels
from ulmfit_dist.data.token_store import TokenStore, shard_stem
from ulmfit_dist.data.worker_pool import run_in_workers
from ulmfit_dist.errors import UserError

KILLS = int(os.environ.get("KILLS", "1"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 documents: a few seconds' work."""
    return make_folder(tmp_path_factory.mktemp("large") / "texts", per_class=1000)


def words(recipe: Path, large: Path, cache: Path) -> list[str]:
    return ["prepare", str(recipe), f"data.path={large}", f"data.cache_dir={cache}", "data.documents_per_shard=100"]


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(large: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("undisturbed")
    text = succeed(words(recipe, large, cache))
    assert "texts: 3,000 documents" in text
    assert "3,000 labelled with 3 classes: food 1,000, sport 1,000, tech 1,000 (" in text
    return store_in(cache)


def start(arguments: list[str], processes: int = 1) -> subprocess.Popen[str]:
    """Start a command, its processes in a group of their own."""
    config = str(ROOT / "configs/accelerate/multi_gpu.yaml")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *(launcher if processes > 1 else []), "-m", "ulmfit_dist", *arguments]
    return forked.popen(words, ROOT, environment, stderr=subprocess.DEVNULL, new_session=True)


def seconds_until(cache: Path, pattern: str) -> float:
    started = time.monotonic()
    while not list(cache.glob(pattern)) and time.monotonic() < started + 60:
        time.sleep(0.005)
    return time.monotonic() - started


def test_a_killed_prepare_goes_on_with_the_missing_shards(undisturbed: Path, large: Path, recipe: Path, tmp_path: Path):
    process = start(words(recipe, large, tmp_path))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/local-00007.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (kept,) = tmp_path.glob("*/local-00000.json")
    assert not (kept.parent / "meta.json").exists()
    made = kept.stat().st_mtime_ns
    process = start(words(recipe, large, tmp_path))
    seen = {made}
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # it goes when the store is finished
            seen.add(kept.stat().st_mtime_ns)
        time.sleep(0.02)
    assert process.returncode == 0
    assert seen == {made}
    assert contents(store_in(tmp_path)) == contents(undisturbed)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_prepare_killed_at_any_moment_gives_the_same_bytes_in_the_end(
    undisturbed: Path, large: Path, recipe: Path, tmp_path: Path, processes: int
):
    process = start(words(recipe, large, tmp_path / "whole"), processes)
    seconds_until(tmp_path, "whole/*/")
    window = seconds_until(tmp_path, "whole/*/meta.json")
    assert process.wait() == 0
    killed = 0
    while killed < KILLS:
        cache = tmp_path / str(killed)
        process = start(words(recipe, large, cache), processes)
        seconds_until(cache, "*/")
        time.sleep(random.uniform(0, window))
        with contextlib.suppress(ProcessLookupError):  # it has ended, and the fork server has reaped it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not list(cache.glob("*/meta.json")):
            killed += 1
            succeed(words(recipe, large, cache), processes)
            assert contents(store_in(cache)) == contents(undisturbed)
        shutil.rmtree(cache)


def test_runs_that_prepare_the_same_texts_at_once_share_one_store(
    undisturbed: Path, large: Path, recipe: Path, tmp_path: Path
):
    processes = [start(words(recipe, large, tmp_path)) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert contents(store_in(tmp_path)) == contents(undisturbed)


def test_prepare_shows_documents_as_the_model_reads_them(undisturbed: Path, large: Path, recipe: Path):
    text = succeed([*words(recipe, large, undisturbed.parent), "--show", "3"])
    store = TokenStore(undisturbed)
    assert text.count("\ndocument ") == 3
    assert f"document 1000 (train, label sport, {len(store.document(1000))} tokens)\n  xxbos " in text


@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_shard_is_made_again(undisturbed: Path, large: Path, recipe: Path, tmp_path: Path, processes: int):
    store = tmp_path / undisturbed.name
    shutil.copytree(undisturbed, store)
    damaged = store / f"{shard_stem(7, 30)}.tokens"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"\xff\xff")  # as long as before
    (store / f"{shard_stem(8, 30)}.labels").unlink()
    assert "2 damaged shard(s)" in succeed(words(recipe, large, tmp_path), processes)
    assert contents(store) == contents(undisturbed)
    assert "made again" not in succeed(words(recipe, large, tmp_path))


def test_documents_without_a_word_or_unreadable_are_left_out_and_told(recipe: Path, tmp_path: Path):
    texts = [b"one", b" \n ", b"bad \xff", b"two two", b"<br />", b"three"]
    for i, text in enumerate(texts):
        file = tmp_path / "texts" / "ab"[i % 2] / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
    words = ["prepare", recipe, f"data.path={tmp_path / 'texts'}", f"data.cache_dir={tmp_path}", "data.on_error=skip"]
    text = succeed([*words, "data.documents_per_shard=2", "tokenizer.min_freq=1"], processes=2)
    assert "texts: 3 documents (2 empty left out) (1 unreadable left out), 7 tokens" in text
    store = TokenStore(store_in(tmp_path))
    assert [" ".join(store.vocab[i] for i in store.document(n)) for n in range(3)] == [
        "xxbos one",
        "xxbos two two",
        "xxbos three",
    ]
    assert store.labels.tolist() == [0, 1, 1]
    assert store.meta["splits"] == {"train": [0, 3]}


def fail(arguments: list[str]) -> str:
    """Run a command that must fail with a user error; returns its standard error."""
    result = command(arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    return result.stderr


def test_a_full_disk_stops_with_one_line_and_goes_on_when_there_is_room(
    undisturbed: Path, large: Path, recipe: Path, tmp_path: Path
):
    with mounted(tmp_path / "cache", "600k"):
        output = fail(words(recipe, large, tmp_path / "cache"))
        *progress, line = output.splitlines()  # on a slow machine the disk is full only after a line of progress
        assert all(other.startswith("tokenizing: ") for other in progress)
        assert re.fullmatch(r"ulmfit-dist: error: \S+/local-\d+\.\S+: cannot be written \(No space left on device\)", line)
        assert not list((tmp_path / "cache").glob("*/meta.json"))
        assert not list((tmp_path / "cache").glob("*/*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=50m", tmp_path / "cache"], check=True)
        succeed(words(recipe, large, tmp_path / "cache"))
        assert contents(store_in(tmp_path / "cache")) == contents(undisturbed)


def test_a_cache_that_cannot_be_written_is_named_and_one_with_a_store_is_enough(
    undisturbed: Path, large: Path, recipe: Path, tmp_path: Path
):
    with mounted(tmp_path / "cache", "50m"):
        shutil.copytree(undisturbed, tmp_path / "cache" / undisturbed.name)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "cache"], check=True)
        assert "texts: 3,000 documents" in succeed(words(recipe, large, tmp_path / "cache"), processes=2)
        output = fail([*words(recipe, large, tmp_path / "cache"), "tokenizer.min_freq=7"])
        assert re.fullmatch(r"ulmfit-dist: error: \S+ cannot be made \(Read-only file system\): set data\.cache.*\n", output)


@pytest.mark.distributed
def test_worker_processes_make_the_same_shards(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(builder_module, "DOCUMENTS_PER_WORKER", 1000)
    made = {}
    for num_workers in (1, 2):
        folder = tmp_path / str(num_workers)
        folder.mkdir()
        builder = TokenStoreBuilder(folder, open_source(DataConfig(path=str(large))), TokenizerConfig(), 500)
        builder.tokenize(range(6), num_workers, shown=False)
        builder.merge()
        builder.map(range(6), num_workers)
        made[num_workers] = contents(folder)
    assert len(made[1]) == 6 * 10 + 2
    assert made[1] == made[2]


@pytest.mark.distributed
def test_a_workers_error_is_the_users(large: Path, tmp_path: Path):
    source = open_source(DataConfig(path=str(large)))
    source.splits["train"].paths[123] = tmp_path / "gone.txt"
    builder = TokenStoreBuilder(tmp_path, source, TokenizerConfig(), 500)
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read"):
        list(run_in_workers(builder.open_tokenizer, builder.tokenize_shard, range(6), 2))


def die_in_a_worker(i: int, main: int) -> int:
    if os.getpid() != main:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


@pytest.mark.distributed
def test_a_killed_worker_is_told():
    with pytest.raises(UserError, match="a worker process exited before it finished"):
        list(run_in_workers(partial(int, os.getpid()), die_in_a_worker, range(6), 2))


def test_a_script_that_prepares_without_a_main_guard_is_told_so(large: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "from ulmfit_dist import load_config, prepare\n"
        "from ulmfit_dist.data import store_builder\n"
        "store_builder.DOCUMENTS_PER_WORKER = 100\n"
        f"prepare(load_config(None, ['data.path={large}', 'data.cache_dir={tmp_path}']))\n"
    )
    result = launch([script])
    assert result.returncode == 1
    assert "guard its entry point with: if __name__ == '__main__':" in result.stderr
    assert "UserError: a worker process exited" in result.stderr


def test_labels_are_sorted_as_numbers_where_all_are_numbers():
    assert _sorted_labels({"10", "9", "01", "1"}) == ["01", "1", "9", "10"]
    assert _sorted_labels({"10", "9", "\u00b2"}) == ["10", "9", "\u00b2"]


def test_a_store_says_what_it_holds(undisturbed: Path):
    store = TokenStore(undisturbed)
    assert store.meta["splits"] == {"train": [0, 3000]}
    assert store.label_names == ["food", "sport", "tech"]
    assert store.labels.tolist() == [0] * 1000 + [1] * 1000 + [2] * 1000
    assert store.meta["num_tokens"] == store.lengths.sum()
    assert store.meta["tokens"] == {"train": store.lengths.sum()}
    assert store.meta["unknown"] == {"train": sum((store.document(i) == 0).sum() for i in range(len(store)))}
    assert store.meta["longest"] == store.lengths.max()
    assert store.meta["num_empty"] == 0
    assert store.vocab[store.document(0)[0]] == "xxbos"
