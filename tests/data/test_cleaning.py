"""Documents that are dropped before they are tokenized: too short, too few letters, or as another one."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import store_in, succeed
from hypothesis import given, settings
from hypothesis import strategies as st

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data import cleaning as cleaning_module
from ulmfit_dist.data.cleaning import (
    FEW_LETTERS,
    KEPT,
    SHORT,
    Cleaning,
    find_duplicates,
    hash_documents,
    letter_share,
)
from ulmfit_dist.data.sources.base import Source
from ulmfit_dist.data.store_builder import TokenStoreBuilder
from ulmfit_dist.data.token_store import FORMAT, TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.prepare import prepare, summarize

ALL = Cleaning(min_chars=10, min_letter_share=0.5, drop_duplicates=True)
TRAIN = [
    "the first of all the texts",  # 0
    "  short\n",  # SHORT
    "1234 5678 9012 3456 a",  # FEW_LETTERS
    "another text of words",  # 3
    "",  # empty
    "the first  of all the\n\ntexts ",  # DUPLICATE, in another shard
    "another text\tof   words",  # DUPLICATE
    "the last one is different",  # 7
    " \n",  # empty
]
VALID = ["a valid text of its own", "another text of words"]  # the second is in train
TEST = ["the last one is different", "no", "no", "12345678901234567890"]


class Texts:
    """A split of texts in memory."""

    def __init__(self, texts: Sequence[str | None]):
        self.texts = list(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        return self.texts[start:stop], [None] * len(self.texts[start:stop])


def builder_of(folder: Path, cleaning: Cleaning, per_shard: int = 2) -> TokenStoreBuilder:
    folder.mkdir(exist_ok=True)
    source = Source({"train": Texts(TRAIN), "valid": Texts(VALID), "test": Texts(TEST)}, {})
    return TokenStoreBuilder(folder, source, TokenizerConfig(min_freq=1), per_shard, cleaning)


def build(folder: Path, cleaning: Cleaning, num_ranks: int = 1, per_shard: int = 2) -> TokenStore:
    """Build a store as some ranks do, the last rank first."""
    builders = [builder_of(folder, cleaning, per_shard) for _ in range(num_ranks)]
    parts = [range(rank, len(builders[0].shards), num_ranks) for rank in range(num_ranks)]
    ranks = list(zip(builders, parts, strict=True))[::-1]
    for builder, part in ranks:
        builder.hash_documents(part, 0, shown=False)
    builders[0].shards.find_duplicates()
    for builder, part in ranks:
        builder.tokenize(part, 0, shown=False)
    builders[0].merge()
    for builder, part in ranks:
        builder.map(part, 1)
    builders[0].finish({"format": FORMAT, "tokenizer": {}})
    return TokenStore(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def words_of(store: TokenStore, split: str) -> list[str]:
    return [" ".join(store.vocab[i] for i in store.document(n)) for n in store.split(split)]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("ab 12\n", 0.5),
        ("สวัสดีชาวโลก", 1.0),
        ("नमस्ते दुनिया", 1.0),
        ("世界,你好!", 4 / 6),
        ("\u00e9e\u0301 1", 3 / 4),
        ("\U0001f600\ud800", 0.0),
        ("\u3000 \t", 0.0),
    ],
)
def test_letters_are_those_of_any_script_with_their_marks(text: str, share: float):
    assert letter_share(text) == pytest.approx(share)


@settings(deadline=None)
@given(st.text())
def test_the_table_of_characters_counts_as_str_does(text: str):
    characters = [c for c in text if not c.isspace()]
    letters = [c for c in characters if c.isalpha() or unicodedata.category(c).startswith("M")]
    assert letter_share(text) == pytest.approx(len(letters) / max(len(characters), 1))


def test_the_first_rule_that_a_text_breaks_is_its_verdict():
    assert ALL.judge([*TRAIN[:5], None]).tolist() == [KEPT, SHORT, FEW_LETTERS, KEPT, KEPT, KEPT]
    assert Cleaning(min_chars=5).judge(["a  \n b", "a b c"]).tolist() == [SHORT, KEPT]  # white space counts once
    assert Cleaning(min_letter_share=0.5).judge(["ab12", "ab123"]).tolist() == [KEPT, FEW_LETTERS]
    assert Cleaning(drop_duplicates=True).judge(["", "1"]).tolist() == [KEPT, KEPT]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "b ", " b", "c", "d  d", "d d", "", None])), st.integers(1, 4), st.integers(1, 5))
def test_duplicates_are_those_that_a_set_finds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], per_file: int, at_once: int
):
    folder, seen, expected = tmp_path_factory.mktemp("hashes"), set(), []
    files = []
    for start in range(0, len(texts), per_file):
        part = texts[start : start + per_file]
        files.append(folder / str(start))
        files[-1].write_bytes(hash_documents(part, np.zeros(len(part)), start).tobytes())
    for i, text in enumerate(texts):
        if text and (key := " ".join(text.split())) in seen:
            expected.append(i)
        elif text:
            seen.add(key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning_module, "SORTED_AT_ONCE", at_once)
        assert find_duplicates(files, len(texts)).tolist() == expected


def test_a_cleaned_store_has_the_first_of_equal_texts_and_counts_the_others(tmp_path: Path):
    store = build(tmp_path / "store", ALL)
    assert words_of(store, "train") == [
        "xxbos the first of all the texts",
        "xxbos another text of words",
        "xxbos the last one is different",
    ]
    assert words_of(store, "valid") == ["xxbos a valid text of its own"]
    assert len(store.split("test")) == len(TEST)  # measured as it is
    assert store.meta["dropped"] == {"min_chars": 1, "min_letter_share": 1, "drop_duplicates": 3}
    assert store.meta["num_empty"] == 2
    dropped = "1 by data.min_chars, 1 by data.min_letter_share, 3 by data.drop_duplicates"
    assert f"texts: 8 documents (2 empty left out) (dropped {dropped}), " in summarize(store)


@pytest.mark.parametrize("per_shard", [1, 2, 5, 100])
def test_what_is_dropped_depends_neither_on_ranks_nor_on_shards(tmp_path: Path, per_shard: int):
    stores = [build(tmp_path / str(ranks), ALL, ranks, per_shard) for ranks in (1, 2, 3)]
    of_one, *others = [contents(store.path) for store in stores]
    assert all({**other, "meta.json": b""} == {**of_one, "meta.json": b""} for other in others)
    assert all({**store.meta, "fingerprint": ""} == {**stores[0].meta, "fingerprint": ""} for store in stores)
    assert words_of(stores[0], "train")[-1] == "xxbos the last one is different"
    assert stores[0].meta["num_documents"] == 8


def test_a_store_without_rules_has_no_word_about_them(tmp_path: Path):
    store = build(tmp_path / "store", Cleaning())
    assert "dropped" not in store.meta
    assert len(store.split("train")) == 7
    assert not list(store.path.glob("local-*"))


def test_an_interrupted_build_reads_hashed_shards_only_once_and_ends_the_same(tmp_path: Path):
    whole = build(tmp_path / "whole", ALL)
    begun = builder_of(tmp_path / "begun", ALL)
    begun.hash_documents([0, 2], 0, shown=False)
    begun.shards.source.splits["train"].texts[0] = "not read again"
    assert begun.shards.unhashed() == [1, 3, 4, 5]
    begun.hash_documents(range(6), 0, shown=False)
    begun.shards.find_duplicates()
    begun.tokenize([1, 2], 0, shown=False)
    assert begun.shards.unhashed() == []
    assert {**contents(build(tmp_path / "begun", ALL).path), "meta.json": b""} == {
        **contents(whole.path),
        "meta.json": b"",
    }


def test_a_damaged_shard_is_built_without_its_duplicates(tmp_path: Path):
    store = build(tmp_path / "store", ALL)
    before = contents(store.path)
    (damaged,) = store.path.glob("shard-00003-*.tokens")
    damaged.unlink()
    builder_of(tmp_path / "store", ALL).remake([3], store.meta)
    assert contents(store.path) == before


def test_sentencepiece_learns_from_what_is_kept(tmp_path: Path):
    builder = builder_of(tmp_path / "store", ALL, per_shard=3)
    builder.hash_documents(range(9), 0, shown=False)
    builder.shards.find_duplicates()
    assert [text.strip() for text in builder.shards.sample(1000)] == [TRAIN[0], TRAIN[3], TRAIN[4], TRAIN[7], "", VALID[0]]


def config_of(folder: Path, texts: Sequence[str], *words: str) -> object:
    path = folder / "texts.jsonl"
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    shared = ["data.source=json", f"data.path={path}", f"data.cache_dir={folder / 'cache'}", "data.label_col=null"]
    return load_config(None, [*shared, "tokenizer.min_freq=1", "data.valid_pct=0.5", *words])


@pytest.mark.usefixtures("no_process_group")
def test_each_rule_gives_a_store_of_its_own_and_none_the_old_one(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rules = ["data.min_chars=10", "data.min_letter_share=0.5", "data.drop_duplicates=true"]
    stores = []
    for words in ([], *([rule] for rule in rules), rules):
        config = config_of(tmp_path, TRAIN, *words)
        stores.append(prepare(config, Runtime(config.runtime)))
    assert len({store.path for store in stores}) == 5
    assert [len(store) for store in stores] == [7, 6, 6, 5, 3]
    assert "cleaning" not in stores[0].meta
    assert stores[1].meta["cleaning"] == {"min_chars": 10}
    assert "dropped documents: 2 by data.drop_duplicates" in caplog.text
    given_store = config_of(tmp_path, TRAIN, f"data.token_store={stores[0].path}", "data.drop_duplicates=true")
    with pytest.raises(
        UserError, match=r"^data\.drop_duplicates=True: \S+ was made with false: set it to false, or prepare"
    ):
        prepare(given_store, Runtime(given_store.runtime))


@pytest.mark.usefixtures("no_process_group")
def test_rules_that_leave_no_document_are_named(tmp_path: Path):
    config = config_of(tmp_path, TRAIN, "data.min_chars=1000", "data.drop_duplicates=true")
    with pytest.raises(UserError, match=r"^the train split has no document left: dropped 7 by data\.min_chars, 0 by data"):
        prepare(config, Runtime(config.runtime))


def test_two_ranks_drop_what_one_does(recipe: Path, tmp_path: Path):
    config_of(tmp_path, [f"text number {i % 30} of words" for i in range(40)])
    stores = []
    for processes in (1, 2):
        words = ["prepare", recipe, "data.source=json", f"data.path={tmp_path / 'texts.jsonl'}", "data.label_col=null"]
        words += [f"data.cache_dir={tmp_path / str(processes)}", "data.documents_per_shard=8", "data.drop_duplicates=true"]
        assert "dropped documents: 10 by data.drop_duplicates" in succeed(words, processes)
        stores.append(store_in(tmp_path / str(processes)))
    assert contents(stores[0]) == contents(stores[1])
