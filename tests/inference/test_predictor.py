"""Labels and figures from an exported classifier, in one process: batches by length, and the precision of `evaluate`."""

import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from accelerate.state import AcceleratorState
from fastai.data.block import CategoryBlock
from fastai.text.data import TextDataLoaders
from fastai.text.learner import text_classifier_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config
from made_classifiers import CLASSES, CONFIG, SEQ_LEN, VOCAB, lettered_store, make_classifier

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference import predictor as predict_module
from ulmfit_dist.inference.predictor import IDS_PER_TOKEN, TextClassifier, token_batches
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.stages import evaluate as evaluate_module
from ulmfit_dist.stages.classifier import classifier_learner
from ulmfit_dist.stages.evaluate import evaluate
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.schedule import run_phases


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> TextClassifier:
    folder = tmp_path_factory.mktemp("predict")
    return TextClassifier(make_classifier(folder, lettered_store(folder / "store")))


def texts_of(lengths: list[int]) -> list[str]:
    letters = random.Random(0)
    return [" ".join(letters.choices(VOCAB[5:], k=length)) for length in lengths]


def probabilities(classifier: TextClassifier, texts: list[str], **settings: int) -> np.ndarray:
    return np.array([[*actual.probabilities.values()] for actual in classifier.predict(texts, **settings)])


def test_answers_come_in_the_order_of_the_texts_and_do_not_depend_on_the_others(classifier: TextClassifier):
    texts = texts_of([3, 47, 1, 12, 8, 31, 4, 4, 22, 9, 11, 0, 14, 100])
    alone = np.concatenate([probabilities(classifier, [text]) for text in texts])
    assert np.ptp(alone, axis=0).max() > 0.01  # else any order would do
    for settings in ({}, {"batch_tokens": 40}, {"batch_tokens": 1}):
        np.testing.assert_allclose(probabilities(classifier, texts, **settings), alone, atol=1e-6)
    assert [actual.label for actual in classifier.predict(texts)] == ["abc"[i] for i in alone.argmax(1)]


def test_a_long_list_is_read_in_parts(classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch):
    texts = texts_of([5, 1, 30, 2, 17, 3, 9])
    expected = probabilities(classifier, texts)
    parts = []
    monkeypatch.setattr(predict_module, "CHARACTERS_AT_ONCE", 20)
    encode = classifier.encode
    monkeypatch.setattr(classifier, "encode", lambda part: parts.append(len(part)) or encode(part))
    np.testing.assert_allclose(probabilities(classifier, texts), expected, atol=1e-6)
    assert len(parts) > 2
    assert sum(parts) == len(texts)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_text_is_read_as_far_as_in_training(classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch, backwards: bool):
    whole, beginning = texts_of([30])[0], texts_of([30])[0][: 2 * 6 - 1]  # xxbos and six letters
    settings = replace(CONFIG.classifier, max_doc_tokens=7)
    config = replace(CONFIG, classifier=settings, model=replace(CONFIG.model, backwards=backwards))
    expected = classifier.as_read(classifier.encode([beginning]))[0]
    assert len(expected) == 7
    monkeypatch.setattr(classifier, "config", config)
    assert classifier.as_read(classifier.encode([whole]))[0].tolist() == expected[:: -1 if backwards else 1].tolist()


@pytest.mark.distributed
def test_one_text_is_labelled_as_fastai_labels_it(classifier: TextClassifier):
    made_up = pd.DataFrame({"text": ["a text"] * CLASSES, "label": classifier.labels})
    vocab = {"text_vocab": VOCAB, "y_block": CategoryBlock(vocab=classifier.labels)}
    dls = TextDataLoaders.from_df(made_up, text_col="text", label_col="label", valid_pct=0.4, num_workers=0, **vocab)
    settings, sizes = classifier.config.classifier, asdict(classifier.config.model)
    sizes = {**awd_lstm_clas_config, **{name: sizes[name] for name in ("emb_sz", "n_hid", "n_layers")}}
    lengths = {"seq_len": settings.seq_len, "max_len": settings.max_len, "lin_ftrs": settings.lin_ftrs}
    learn = text_classifier_learner(dls, AWD_LSTM, config=sizes, pretrained=False, **lengths)
    learn.model.load_state_dict(classifier.model.state_dict())
    for text in texts_of([1, 4, 5, 9, 23, 70]):
        label, index, probabilities = classifier.predict_one(text)
        with learn.no_bar():
            fastais_label, fastais_index, fastais_probabilities = learn.predict(text)
        assert (label, index) == (fastais_label, fastais_index.item())
        assert [*probabilities.values()] == pytest.approx(fastais_probabilities.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("I liked it!", r"texts is one string, .*: give a list, texts=\[text\]"),
        (pd.DataFrame({"text": ["a"]}), "texts is a DataFrame: give the column"),
        (["a", None], r"texts\[1\] is None"),
        (["a \ud83d"], r"texts\[0\] has U\+D83D at character 2"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_before_anything_is_computed(
    classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch, texts: Any, message: str
):
    monkeypatch.delattr(TextClassifier, "encode")
    for call in (classifier.predict, classifier.predict_proba, classifier.iter_predict_proba):
        with pytest.raises(UserError, match=message):
            call(texts)


def test_a_single_text_that_is_none_is_named(classifier: TextClassifier):
    with pytest.raises(TypeError, match=r"^text is list: give a string"):
        classifier.predict_one(["a"])


class Counted(str):
    """A text that counts how many of its kind are in memory."""

    alive: ClassVar[set[int]] = set()

    def __init__(self, text: str):
        self.alive.add(id(self))

    def __del__(self) -> None:
        self.alive.discard(id(self))


def test_texts_of_an_iterator_are_not_kept(classifier: TextClassifier):
    texts, most = texts_of([3, 9, 1, 7] * 25), []

    def stream() -> Iterator[str]:
        for text in texts:
            most.append(len(Counted.alive))
            yield Counted(text)

    parts = []
    for part in classifier.iter_predict_proba(stream(), part_texts=8):
        assert len(most) <= 8 * (len(parts) + 1)  # no text is read ahead of its part
        parts.append(part)
    assert max(map(len, parts)) == 8
    assert max(most) <= 8 + 1
    np.testing.assert_allclose(np.concatenate(parts), classifier.predict_proba(texts), atol=1e-6)


def test_empty_texts_come_in_parts_too(classifier: TextClassifier):
    assert [len(part) for part in classifier.iter_predict_proba(iter([""] * 10), part_texts=4)] == [4, 4, 2]
    with pytest.raises(UserError, match="part_texts=0"):
        classifier.iter_predict_proba([""], part_texts=0)


def test_no_text_has_no_label(classifier: TextClassifier):
    assert classifier.predict([]) == []


def test_one_very_long_document_does_not_widen_many_others(classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch):
    shapes = []
    compute = classifier._outputs
    monkeypatch.setattr(classifier, "_outputs", lambda x_bT: shapes.append(tuple(x_bT.shape)) or compute(x_bT))
    texts = texts_of([4] * 20 + [5000] + [4] * 20)
    assert len(classifier.predict(texts, batch_tokens=1000)) == 41
    (long_rows, long_width), *others = shapes
    assert long_width >= 5000
    assert long_rows * long_width <= IDS_PER_TOKEN * 1000
    assert others == [(41 - long_rows, SEQ_LEN)]


@pytest.mark.parametrize("batch_tokens", [1, 72, 500, 10**6])
def test_batches_hold_every_document_once_and_no_more_than_the_budget(batch_tokens: int):
    lengths = np.random.default_rng(0).integers(0, 400, 300).tolist()
    batches = [*token_batches(lengths, 72, batch_tokens)]
    assert sorted(i for batch in batches for i in batch) == [*range(300)]
    for batch in batches:
        width = max(lengths[i] for i in batch)
        assert width == lengths[batch[0]]
        assert len(batch) == 1 or len(batch) * width <= batch_tokens


def test_a_batch_is_limited_by_the_tokens_whose_outputs_are_kept():
    lengths = [1000, *[100] * 50]
    assert [len(batch) for batch in token_batches(lengths, 72, 1440)] == [1, *[10] * 5]
    assert [len(batch) for batch in token_batches(lengths, 72, 1440, 100)] == [10, 10, 10, 10, 10, 1]
    assert [len(batch) for batch in token_batches([100_000, *lengths], 72, 1440, 100)][:2] == [1, 10]


@pytest.fixture
def runtime(bf16_lstms: None) -> Iterator[Runtime]:
    """One process that computes in bf16."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Runtime(RuntimeConfig(precision="bf16"))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_evaluate_computes_what_validation_does_in_bf16(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = lettered_store(tmp_path / "store")
    config = replace(CONFIG, runs_dir=str(tmp_path))
    expected = {}
    for stage, build, labels in (("lm", lm_learner, None), ("classifier", classifier_learner, store.label_names)):
        learner = build(config, runtime, store)
        run_phases(learner, (config.lm if stage == "lm" else config.classifier).phases)
        save_bundle(config.run_dir / stage, learner.model, config, store, labels, {"data_fingerprint": "x"})
        expected[stage] = learner.valid_metrics
    monkeypatch.setattr(evaluate_module, "prepare", lambda config, runtime: store)
    actual = evaluate(config.run_dir, runtime)
    for stage, metrics in expected.items():
        assert {name: actual[stage][name] for name in metrics} == pytest.approx(metrics, rel=1e-9), stage
