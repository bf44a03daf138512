"""Tests of one model in many threads: results are bitwise equal to those of a single thread."""

from __future__ import annotations

import operator
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from made_classifiers import CONFIG, VOCAB, lettered_store, make_classifier
from stores import make_store

from ulmfit_dist import load_classifier, load_ensemble, load_language_model
from ulmfit_dist.config.schema import Config, TokenizerConfig
from ulmfit_dist.data.token_store import MODEL_FILE, TokenStore
from ulmfit_dist.data.tokenizers import sentencepiece
from ulmfit_dist.data.tokenizers.fast.chunk_cache import ChunkTokenizer
from ulmfit_dist.data.tokenizers.sentencepiece import SentencePieceTokenizer, make_model
from ulmfit_dist.data.tokenizers.word import Tokenizer
from ulmfit_dist.inference.per_call import for_one_call
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.networks import build_language_model, encoder_of
from ulmfit_dist.rng.counter_based import seed_torch

THREADS, ROUNDS = 32, 2

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


def texts_of(seed: int) -> list[str]:
    """Return texts of letters in the vocabulary, and of words, punctuation and repetitions unique to the seed."""
    letters = random.Random(seed)
    words = [*VOCAB[5:], f"New{seed}", f"w{seed}!?", f"{seed},", "!!!!", "\n\n"]
    return [" ".join(letters.choices(words, k=letters.randint(0, 40))) for _ in range(4)]


BATCHES = [texts_of(seed) for seed in range(THREADS)]


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Make Python switch threads a thousand times as often as by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module", params=["word", "sentencepiece"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run directory with an untrained classifier and an untrained language model."""
    folder = tmp_path_factory.mktemp(request.param)
    config = replace(CONFIG, tokenizer=TokenizerConfig(type=request.param))
    store = lettered_store(folder / "store") if request.param == "word" else pieced_store(folder / "store", config)
    make_classifier(folder / "run", store, config=config)
    seed_torch(2)
    model = build_language_model(len(store.vocab), config.model, config.lm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    save_bundle(folder / "run" / "lm", model, config, store, None, {"data_fingerprint": "x"})
    return folder / "run"


def pieced_store(folder: Path, config: Config) -> TokenStore:
    pytest.importorskip("sentencepiece")
    sample = [text for texts in BATCHES for text in texts]
    model = make_model(replace(config.tokenizer, sp_vocab_size=64), sample)
    pieces = {piece for tokens in SentencePieceTokenizer(model).tokenize(sample) for piece in tokens}
    vocab = [*VOCAB[:5], *sorted(pieces - set(VOCAB[:5]))]
    store = make_store(folder, [np.arange(9) + i for i in range(12)], np.arange(12) % 3, vocab)
    (folder / MODEL_FILE).write_bytes(model)
    return store


def in_threads(call: Callable[[Argument], Answer], arguments: list[Argument]) -> list[list[Answer]]:
    """Call a function in one thread per argument at the same time, several times each. Returns the results."""
    start = threading.Barrier(len(arguments), timeout=60)

    def answers(argument: Argument) -> list[Answer]:
        start.wait()
        return [call(argument) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(answers, arguments))


def test_threads_get_the_probabilities_of_one(run: Path):
    alone = load_classifier(run)
    expected = [alone.predict_proba(texts).tobytes() for texts in BATCHES]
    assert len(set(expected)) == THREADS
    shared = load_classifier(run)
    actual = in_threads(lambda texts: shared.predict_proba(texts).tobytes(), BATCHES)
    assert actual == [[answer] * ROUNDS for answer in expected]


def test_threads_get_the_labels_of_one_from_an_ensemble(run: Path):
    alone, shared = (load_ensemble([run, run]) for _ in range(2))
    expected = [alone.predict(texts) for texts in BATCHES]
    assert in_threads(shared.predict, BATCHES) == [[answer] * ROUNDS for answer in expected]


def test_threads_get_the_generated_texts_of_one(run: Path):
    prompts = [" ".join(texts) for texts in BATCHES]
    alone, shared = load_language_model(run), load_language_model(run)
    expected = [alone.generate(prompt, words=8, samples=2) for prompt in prompts]
    assert len({str(texts) for texts in expected}) > THREADS // 2
    actual = in_threads(lambda prompt: shared.generate(prompt, words=8, samples=2), prompts)
    assert actual == [[answer] * ROUNDS for answer in expected]


def test_an_answer_does_not_depend_on_what_was_asked_before(run: Path):
    forth, back = load_classifier(run), load_classifier(run)
    expected = [forth.predict_proba(texts).tobytes() for texts in BATCHES]
    assert [back.predict_proba(texts).tobytes() for texts in reversed(BATCHES)] == expected[::-1]
    assert [forth.predict_proba(texts).tobytes() for texts in BATCHES] == expected


def test_a_call_leaves_nothing_in_the_network_and_copies_no_weight(run: Path):
    classifier = load_classifier(run)
    encoder = encoder_of(classifier.model)
    classifier.predict(BATCHES[0])
    assert encoder.hidden_states == {}
    assert encoder.position.chunk == 0
    twin = for_one_call(classifier.model)
    own, shared = encoder_of(twin), {tensor.data_ptr() for tensor in classifier.model.state_dict().values()}
    assert {tensor.data_ptr() for tensor in twin.state_dict().values()} == shared
    for rnn, original in zip(own.rnns, encoder.rnns, strict=True):
        assert all(map(operator.is_, rnn.module._flat_weights, original.module._flat_weights))
        assert rnn.module._flat_weights is not original.module._flat_weights
    assert own.position is not encoder.position
    assert all(part.position is own.position for part in twin.modules() if hasattr(part, "position"))


def test_threads_get_the_tokens_of_one_while_words_are_learned(monkeypatch: pytest.MonkeyPatch):
    learn = ChunkTokenizer._learn_words

    def learn_slowly(self: ChunkTokenizer, chunks: list[str]) -> None:
        time.sleep(0.05 if chunks else 0)  # the others meet words that have a number and no tokens yet
        learn(self, chunks)

    expected = [Tokenizer().tokenize(BATCHES[0])] * THREADS
    monkeypatch.setattr(ChunkTokenizer, "_learn_words", learn_slowly)
    assert in_threads(Tokenizer().tokenize, [BATCHES[0]] * THREADS) == [[tokens] * ROUNDS for tokens in expected]


def test_threads_get_the_pieces_of_one_while_the_tokenizer_starts_anew(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sentencepiece")
    sample = [text for texts in BATCHES for text in texts]
    tokenizer = SentencePieceTokenizer(make_model(TokenizerConfig(type="sentencepiece", sp_vocab_size=64), sample))
    expected = [tokenizer.tokenize(texts) for texts in BATCHES]
    monkeypatch.setattr(sentencepiece, "TOKENS_KEPT", 0)
    assert in_threads(tokenizer.tokenize, BATCHES) == [[pieces] * ROUNDS for pieces in expected]
