"""Our exported models in fastai's own learners, read by the lines that the export prints."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text.all import LMLearner, TextLearner
from fastai_runs import CONFIG, LABELS, SIZES, VOCAB, lm_logits, make_models, make_table

from ulmfit_dist import export_to_fastai, load_classifier
from ulmfit_dist.cli.main import main
from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.tokenizers.sentencepiece import SentencePieceTokenizer, make_model
from ulmfit_dist.errors import UserError

pytestmark = pytest.mark.distributed  # fastai reads texts by processes
X = torch.arange(2, 50).view(2, 24) % len(VOCAB)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    make_models(folder)
    return folder


def read_in_fastai(lines: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, table: pd.DataFrame | None = None) -> dict:
    """Variables that the script defines, run as it is in a folder of its own."""
    monkeypatch.chdir(folder)
    names = {"df": make_table() if table is None else table}
    exec(lines.read_text(), names)
    return names


def test_fastai_reads_an_export_and_computes_the_same(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    actual = read_in_fastai(export_to_fastai(run, tmp_path / "out"), tmp_path, monkeypatch)
    assert isinstance(actual["lm"], LMLearner)
    assert isinstance(actual["learn"], TextLearner)
    ours = make_models(tmp_path / "again")  # the same weights
    reference = actual["lm"].model.eval()
    reference.reset()
    with torch.no_grad():
        torch.testing.assert_close(reference(X)[0], lm_logits(ours["lm"], X), rtol=1e-5, atol=1e-5)
    assert_same_predictions(run, actual)


def test_fastai_reads_a_qrnn_by_the_layers_in_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, arch="qrnn"))
    ours = make_models(tmp_path / "run", config)
    actual = read_in_fastai(export_to_fastai(tmp_path / "run"), tmp_path, monkeypatch)
    reference = actual["lm"].model.eval()
    assert type(reference[0]) is actual["AWD_QRNN"]
    reference.reset()
    with torch.no_grad():
        torch.testing.assert_close(reference(X)[0], lm_logits(ours["lm"], X), rtol=1e-5, atol=1e-5)
    assert_same_predictions(tmp_path / "run", actual)
    with actual["learn"].no_bar(), actual["learn"].no_logging():
        actual["learn"].fit_one_cycle(1, 1e-3)  # it trains there: dropout of weights, groups and freezing


def assert_same_predictions(run: Path, actual: dict) -> None:
    """Probabilities of our classifier and fastai's, for texts one by one."""
    ours = load_classifier(run)
    for text in actual["df"].text[:5]:
        with actual["learn"].no_bar():
            _, index, probabilities = actual["learn"].predict(text)
        prediction = ours.predict([text])[0]
        assert (prediction.label, prediction.index) == (LABELS[int(index)], int(index))
        assert probabilities.tolist() == pytest.approx(list(prediction.probabilities.values()), abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"target": "multicategory"}, {"target": "regression"}, {"target": "regression", "y_range": [-1.0, 6.0]}],
    ids=["several", "number", "bounded"],
)
def test_fastai_says_the_same_of_several_classes_and_numbers(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataclasses.replace(CONFIG.data, missing_label=None)
    make_models(
        tmp_path / "run",
        dataclasses.replace(CONFIG, data=data, classifier=dataclasses.replace(CONFIG.classifier, **settings)),
    )
    table = make_table()
    if settings["target"] == "multicategory":
        table["label"] = [f"{a};{b}" if a != b else a for a, b in zip(table.label, table.label[::-1], strict=True)]
    else:
        table["label"] = [float(i % 5) for i in range(len(table))]
    actual = read_in_fastai(export_to_fastai(tmp_path / "run"), tmp_path, monkeypatch, table)
    output = load_classifier(tmp_path / "run").predict_proba([*table.text[:5]])
    assert np.ptp(output, axis=0).min() > 1e-4
    for text, expected in zip(table.text[:5], output, strict=True):
        with actual["learn"].no_bar():
            assert actual["learn"].predict(text)[2].tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)
    assert type(actual["learn"].loss_func).__name__ == (
        "BCEWithLogitsLossFlat" if settings["target"] == "multicategory" else "BaseLoss"
    )


def test_fastai_reads_pieces_of_words_as_we_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sentencepiece")
    texts = [*make_table().text]
    settings = TokenizerConfig(type="sentencepiece", sp_vocab_size=60)
    model = make_model(settings, texts)
    pieces = SentencePieceTokenizer(model).tokenize(texts)
    vocab = list(dict.fromkeys([*VOCAB[:9], *(piece for document in pieces for piece in document)]))
    make_models(tmp_path / "run", dataclasses.replace(CONFIG, tokenizer=settings), vocab, model)
    assert_same_predictions(tmp_path / "run", read_in_fastai(export_to_fastai(tmp_path / "run"), tmp_path, monkeypatch))


def test_an_encoder_of_an_export_is_that_of_fastais_classifier(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    actual = read_in_fastai(export_to_fastai(run / "lm", tmp_path / "out"), tmp_path, monkeypatch)
    expected = make_models(tmp_path / "again")["lm"][0].state_dict()
    torch.testing.assert_close(dict(actual["learn"].model[0].module.state_dict()), dict(expected), rtol=0, atol=0)


def test_words_that_a_model_lacks_get_the_mean_in_fastai(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    actual = read_in_fastai(export_to_fastai(run / "lm", tmp_path / "out"), tmp_path, monkeypatch)
    dls = actual["TextDataLoaders"].from_df(make_table(), text_col="text", is_lm=True, text_vocab=[*VOCAB[:20], "new"])
    learner = actual["language_model_learner"](
        dls, actual["AWD_LSTM"], config={**actual["awd_lstm_lm_config"], **SIZES}, pretrained=False
    )
    learner.load_pretrained(tmp_path / "out/lm.pth", tmp_path / "out/lm.pkl")
    embeddings = make_models(tmp_path / "again")["lm"][0].encoder.weight
    torch.testing.assert_close(learner.model[0].encoder.weight[:20], embeddings[:20])
    torch.testing.assert_close(learner.model[0].encoder.weight[20], embeddings.mean(0))


def test_the_lists_are_plain_and_beside_the_weights(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(run), "--to", "fastai"]) == 0
    printed = capsys.readouterr().out
    assert printed == (run / "fastai/load.py").read_text()
    assert f"folder = Path({str(run / 'fastai')!r})" in printed
    files = {"lm.pth", "lm.pkl", "lm_encoder.pth", "classifier.pth", "classifier.pkl", "classifier_labels.pkl", "load.py"}
    assert {path.name for path in (run / "fastai").iterdir()} == files
    assert pickle.loads((run / "fastai/lm.pkl").read_bytes()) == VOCAB
    assert pickle.loads((run / "fastai/classifier_labels.pkl").read_bytes()) == LABELS


def test_what_differs_from_fastais_defaults_is_in_the_lines(tmp_path: Path):
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, backwards=True),
        tokenizer=dataclasses.replace(CONFIG.tokenizer, lang="de"),
        classifier=dataclasses.replace(CONFIG.classifier, max_doc_tokens=100),
    )
    make_models(tmp_path / "run", config)
    lines = export_to_fastai(tmp_path / "run").read_text()
    compile(lines, "load.py", "exec")
    for output in (
        "backwards=True",
        "WordTokenizer('de')",
        "the first 100 tokens",
        "max_len=20",
        "lin_ftrs=[7, 5]",
        "ps=[0.1, 0.1]",
    ):
        assert output in lines


def test_a_folder_without_models_is_refused(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(tmp_path), "--to", "fastai"]) == 2
    assert "no exported model here" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set --output to a writable folder"):
        export_to_fastai(run, tmp_path / "file")
