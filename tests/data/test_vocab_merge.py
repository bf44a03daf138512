"""The merge of token counts: the vocabulary of all counts at once, in bounded memory."""

import gc
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulmfit_dist.data import vocab_merge
from ulmfit_dist.data.tokenizers.rules import SPECIAL_TOKENS
from ulmfit_dist.data.vocab import build_vocab, token_counts
from ulmfit_dist.data.vocab_merge import PARTS, frequent_tokens
from ulmfit_dist.errors import UserError

TOKENS = st.one_of(st.text(max_size=3), st.text(min_size=15, max_size=20), st.sampled_from(SPECIAL_TOKENS))
SHARDS = st.lists(st.dictionaries(TOKENS, st.integers(1, 5), max_size=12), max_size=8)


def table_of(counts: dict[str, int]) -> pa.Table:
    return token_counts(list(counts), list(counts.values()))


@settings(max_examples=50, deadline=None)
@given(SHARDS, st.integers(1, 6), st.integers(1, 40), st.integers(0, 20), st.integers(0, 20))
def test_a_merge_through_the_disk_is_that_of_a_counter(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[dict[str, int]],
    min_freq: int,
    max_vocab: int,
    at_once: int,
    most: int,
):
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard)
    expected = [(token, count) for token, count in total.most_common(max_vocab) if count >= min_freq]
    spill = tmp_path_factory.mktemp("merge") / "spilled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocab_merge, "COUNTS_AT_ONCE", at_once)
        patch.setattr(vocab_merge, "DISTINCT_IN_MEMORY", most)
        merged = frequent_tokens(map(table_of, shards), min_freq, max_vocab, spill)
    assert list(merged.items()) == expected
    assert build_vocab(merged, min_freq, max_vocab) == build_vocab(total, min_freq, max_vocab)
    assert not spill.exists()


def test_few_tokens_are_never_written(tmp_path: Path):
    nowhere = tmp_path / "no folder" / "spilled"
    shards = [table_of({"a": 2, "b": 1}), table_of({"b": 1, "c": 5})]
    assert list(frequent_tokens(shards, 2, 10, nowhere).items()) == [("c", 5), ("a", 2), ("b", 2)]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocab_merge, "DISTINCT_IN_MEMORY", 1)
    with pytest.raises(UserError, match=r"no folder/spilled: cannot be written \(No such file or directory\)"):
        frequent_tokens([table_of({"a": 2, "b": 1})], 1, 10, tmp_path / "no folder" / "spilled")


def test_words_of_any_script_are_spread_over_all_parts():
    for words in (
        [f"word{i}" for i in range(64_000)],
        [f"{chr(0x4E00 + i % 900)}{chr(0x4E00 + i // 900)}" for i in range(64_000)],
    ):
        sizes = Counter(vocab_merge._parts(pa.array(words, pa.large_string())).tolist())
        assert len(sizes) == PARTS
        assert max(sizes.values()) < 2 * 1000


def test_the_part_of_a_token_does_not_depend_on_its_neighbours():
    tokens = pa.array(["the", "", "a", "hippopotamus", "", "the", "a", ""], pa.large_string())
    parts = dict(zip(tokens.to_pylist(), vocab_merge._parts(tokens).tolist(), strict=True))
    for start in range(len(tokens)):
        part = tokens[start:]
        assert vocab_merge._parts(part).tolist() == [parts[token] for token in part.to_pylist()]
    assert vocab_merge._parts(tokens[:0]).tolist() == []


def test_memory_is_bounded_by_the_limits_not_by_the_number_of_distinct_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vocab_merge, "COUNTS_AT_ONCE", 2000)
    peaks = {}
    for most in (2000, 10**9):
        monkeypatch.setattr(vocab_merge, "DISTINCT_IN_MEMORY", most)
        peaks[most] = {number: peak_of_merge(number, tmp_path) for number in (20, 80)}
    assert peaks[10**9][80] > 2.5 * peaks[10**9][20]
    assert peaks[2000][80] < 1.5 * peaks[2000][20]
    assert peaks[2000][80] < 0.3 * peaks[10**9][80]


def peak_of_merge(num_shards: int, folder: Path) -> int:
    """Return the peak bytes of numpy, Python and Arrow, while shards of 1,000 tokens of their own are merged."""

    def shards() -> Iterator[pa.Table]:
        for shard in range(num_shards):
            yield table_of({"the": 9} | {f"{shard}-{i}": 1 for i in range(1000)})

    gc.collect()
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        counts = frequent_tokens(shards(), 2, 100, folder / "spilled")
        assert counts == {"the": 9 * num_shards}
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
