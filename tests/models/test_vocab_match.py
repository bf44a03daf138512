"""Share of the texts that pretrained weights know, and the likely reason if it is small."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from stores import make_store

from ulmfit_dist.models.vocab_match import likely_reason, match_vocab, report_match

SPECIAL = ["xxunk", "xxpad", "xxbos"]


def test_the_share_counts_occurrences_not_tokens():
    match = match_vocab([*SPECIAL, "the"], [*SPECIAL, "the", "zebra", "gnu"])
    assert match.num_known == 4
    assert match.share(np.array([0, 0, 0, 90, 5, 5])) == pytest.approx(0.9)
    assert match.share(np.zeros(6, dtype=np.int64)) == 0


@pytest.mark.parametrize(
    ("tokens", "vocab", "reason"),
    [
        (["The", "Cat", "Sat"], ["the", "cat", "sat"], "cased texts"),
        (["the", "cat", "sat"], ["The", "Cat", "Sat"], "cased texts"),
        (["the", "cat"], ["кот", "пёс"], "another script"),
        (["\u2581the", "\u2581cat"], ["the", "cat"], "another tokenizer: set tokenizer.type"),
        (["the", "cat", "dog"], ["het", "tac", "god"], "another language, or of another tokenizer"),
    ],
)
def test_the_missing_tokens_show_the_reason(tokens: list[str], vocab: list[str], reason: str):
    assert reason in likely_reason(match_vocab(tokens, vocab), vocab, np.array([10] * len(vocab)))


def test_a_small_share_is_warned_of_on_rank_0(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    vocab = [*SPECIAL, "the", "кот"]
    store = make_store(tmp_path / "store", [np.array([2, 3]), np.array([2, 4, 4, 4])], np.array([0, 1]), vocab)
    assert store.token_counts().tolist() == [0, 0, 2, 1, 3]
    assert store.token_counts(most=2).sum() == 2
    match = match_vocab([*SPECIAL, "the"], vocab)
    with caplog.at_level("INFO"):
        report_match("en", match, store, SimpleNamespace(is_main=False))
        assert caplog.text == ""
        report_match("en", match, store, SimpleNamespace(is_main=True))
    assert "4 of 5 tokens of the vocabulary have a pretrained embedding (50.0% of the texts)" in caplog.text
    assert (
        "only 50.0% of the texts' tokens have a pretrained embedding, expected at least 80%: the weights are of"
        in caplog.text
    )
    caplog.clear()
    report_match("en", match_vocab(vocab, vocab), store, SimpleNamespace(is_main=True))
    assert "only" not in caplog.text
