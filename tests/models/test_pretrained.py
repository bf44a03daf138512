"""Initial weights: files written by fastai, Wikipedia-shaped ones, and models exported here."""

import dataclasses
import os
import pickle
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastai.text.all import AWD_LSTM, TextDataLoaders, language_model_learner, text_classifier_learner
from fastai.text.learner import load_ignore_keys, match_embeds
from fastai.text.models import awdlstm, core
from fastai_runs import CONFIG, SIZES, VOCAB, lm_logits, make_models, make_table

from ulmfit_dist.config.schema import ClassifierConfig, LMConfig, ModelConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.networks import build_classifier, build_language_model, encoder_of
from ulmfit_dist.models.pretrained import DOWNLOAD_TIMEOUT, fetch, load_pretrained, load_pretrained_encoder

MODEL = ModelConfig(**SIZES)
OLD_VOCAB = ["xxunk", "xxpad", "xxbos", "the", "cat", "sat"]
NEW_VOCAB = ["xxunk", "xxpad", "the", "dog", "sat", "xxfake"]
X = torch.arange(2, 50).view(2, 24) % len(VOCAB)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a fastai language model's state and its tokens."""
    model = core.get_language_model(awdlstm.AWD_LSTM, len(OLD_VOCAB), {**awdlstm.awd_lstm_lm_config, **SIZES})
    torch.save(model.state_dict(), tmp_path / "lstm_wt103.pth")
    (tmp_path / "itos_wt103.pkl").write_bytes(pickle.dumps(OLD_VOCAB))
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """fastai's two learners after a step or two, and the folder of what they have saved."""
    folder = tmp_path_factory.mktemp("fastai")
    shared = {"path": folder, "text_col": "text", "text_vocab": VOCAB, "seq_len": 10, "bs": 4}
    dls_lm = TextDataLoaders.from_df(make_table(), is_lm=True, **shared)
    lm = language_model_learner(dls_lm, AWD_LSTM, config={**awdlstm.awd_lstm_lm_config, **SIZES}, pretrained=False)
    dls = TextDataLoaders.from_df(make_table(), label_col="label", **shared)
    config = {**awdlstm.awd_lstm_clas_config, **SIZES}
    classifier = text_classifier_learner(dls, AWD_LSTM, config=config, pretrained=False, seq_len=10, max_len=20)
    for learner in (lm, classifier):
        with learner.no_bar(), learner.no_logging():
            learner.fit_one_cycle(1, slice(1e-3, 1e-1))
    lm.save("lm")  # with its optimizer
    lm.save("bare", with_opt=False)
    lm.save_encoder("bare_encoder")
    classifier.save("classifier")
    for name in ("lm", "bare", "classifier"):
        (folder / f"models/{name}.pkl").write_bytes(pickle.dumps(dls_lm.vocab))
    return lm.model.eval(), classifier.model.eval(), folder / "models"


def fresh(vocab: list[str] = NEW_VOCAB):
    return build_language_model(len(vocab), MODEL, LMConfig())


def fresh_encoder(vocab: list[str] = NEW_VOCAB):
    return encoder_of(build_classifier(len(vocab), 3, MODEL, ClassifierConfig()))


def test_weights_are_matched_to_the_vocabulary_as_fastai_does(files: Path):
    for place in (files, files / "lstm_wt103.pth"):
        ours, reference = fresh(), fresh()
        assert load_pretrained(ours, str(place), NEW_VOCAB, MODEL).num_known == 4
        load_ignore_keys(reference, match_embeds(torch.load(files / "lstm_wt103.pth"), OLD_VOCAB, NEW_VOCAB))
        torch.testing.assert_close(ours.state_dict(), reference.state_dict(), rtol=0, atol=0)


def test_a_classifiers_encoder_is_matched_as_by_fastais_pretrained_learner(files: Path):
    ours = fresh_encoder()
    assert load_pretrained_encoder(ours, str(files), NEW_VOCAB, MODEL).num_known == 4
    reference = core.get_text_classifier(AWD_LSTM, len(NEW_VOCAB), 3, config={**awdlstm.awd_lstm_clas_config, **SIZES})
    load_ignore_keys(reference[0], match_embeds(torch.load(files / "lstm_wt103.pth"), OLD_VOCAB, NEW_VOCAB))
    torch.testing.assert_close(dict(ours.state_dict()), dict(reference[0].module.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["lm.pth", "bare.pth"])
def test_what_fastai_has_saved_computes_the_same_here(trained, name: str):
    reference, _, folder = trained
    ours = fresh(VOCAB).eval()
    assert load_pretrained(ours, str(folder / name), VOCAB, MODEL).num_known == len(VOCAB)
    reference.reset()
    with torch.no_grad():
        torch.testing.assert_close(lm_logits(ours, X), reference(X)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lm.pth", "bare_encoder.pth", "classifier.pth"])
def test_an_encoder_is_taken_from_whatever_fastai_has_saved(trained, name: str):
    lm, classifier, folder = trained
    ours = fresh_encoder(VOCAB)
    load_pretrained_encoder(ours, str(folder / name), VOCAB, MODEL)
    expected = classifier[0].module if name == "classifier.pth" else lm[0]
    torch.testing.assert_close(dict(ours.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)


def test_a_classifier_of_fastais_has_our_keys_and_probabilities(trained):
    _, reference, _ = trained
    ours = build_classifier(len(VOCAB), 3, MODEL, dataclasses.replace(CONFIG.classifier, lin_ftrs=[50])).eval()
    ours.load_state_dict(reference.state_dict())
    for document in X:
        x = document[None, :20]  # whole chunks: fastai reads the same tokens
        with torch.no_grad():
            torch.testing.assert_close(ours(x)[0].softmax(1), reference(x)[0].softmax(1), rtol=1e-5, atol=1e-5)


def test_a_model_exported_here_is_pretrained_for_others(tmp_path: Path):
    models = make_models(tmp_path / "run")
    for place in ("run", "run/lm"):
        ours = fresh(VOCAB[::-1])
        assert load_pretrained(ours, str(tmp_path / place), VOCAB[::-1], MODEL).num_known == len(VOCAB)
        torch.testing.assert_close(ours[0].encoder.weight, models["lm"][0].encoder.weight.flip(0))
        torch.testing.assert_close(ours[1].decoder.bias, models["lm"][1].decoder.bias.flip(0))
        ours = fresh_encoder(VOCAB)
        load_pretrained_encoder(ours, str(tmp_path / place), VOCAB, MODEL)
        torch.testing.assert_close(dict(ours.state_dict()), dict(models["lm"][0].state_dict()), rtol=0, atol=0)


def test_a_qrnn_of_fastais_is_recognized_by_its_keys(tmp_path: Path):
    sizes = dataclasses.replace(MODEL, arch="qrnn")
    source = build_language_model(len(OLD_VOCAB), sizes, LMConfig())
    state = dict(source.state_dict())
    copies = {key.replace("weight_raw", "module.weight"): 0 * tensor for key, tensor in state.items() if "raw" in key}
    torch.save(state | copies, tmp_path / "fwd_lm.pth")  # fastai 1 also saves the weights after dropout
    (tmp_path / "fwd_lm.pkl").write_bytes(pickle.dumps(OLD_VOCAB))
    model = build_language_model(len(OLD_VOCAB), sizes, LMConfig())
    assert load_pretrained(model, str(tmp_path), OLD_VOCAB, sizes).num_known == len(OLD_VOCAB)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with pytest.raises(UserError, match=r"has model\.arch=qrnn, but the config has AWD-LSTM"):
        load_pretrained(fresh(OLD_VOCAB), str(tmp_path), OLD_VOCAB, MODEL)
    for wrong in ({"n_hid": 9}, {"n_layers": 3}):
        with pytest.raises(UserError, match=r"emb_sz=6, n_hid=8, n_layers=2"):
            load_pretrained(model, str(tmp_path), OLD_VOCAB, dataclasses.replace(sizes, **wrong))


def test_a_model_of_one_layer_fits_itself(tmp_path: Path):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, n_layers=1))
    models = make_models(tmp_path / "run", config)
    ours = build_language_model(len(VOCAB), config.model, LMConfig())
    load_pretrained(ours, str(tmp_path / "run"), VOCAB, config.model)
    assert torch.equal(ours[0].rnns[0].weight_hh_l0_raw, models["lm"][0].rnns[0].weight_hh_l0_raw)


def test_a_file_of_the_shape_of_wikitexts_is_read(tmp_path: Path):
    """torch's old format, plain copies of the weights that are dropped out beside them, 400/1152/3."""
    sizes = ModelConfig()
    state = core.get_language_model(awdlstm.AWD_LSTM, len(OLD_VOCAB), awdlstm.awd_lstm_lm_config).state_dict()
    for layer in range(3):
        state[f"0.rnns.{layer}.module.weight_hh_l0"] = state[f"0.rnns.{layer}.weight_hh_l0_raw"]
    torch.save({"model": state, "opt": {}}, tmp_path / "lstm_fwd.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "itos_wt103.pkl").write_bytes(pickle.dumps(OLD_VOCAB))
    ours = build_language_model(len(OLD_VOCAB), sizes, LMConfig())
    load_pretrained(ours, str(tmp_path), OLD_VOCAB, sizes)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_special_tokens_of_fastais_sentencepiece_keep_what_they_have_learned(files: Path):
    """It puts pieces of them into its vocabulary, and learns those."""
    reference = ["xxunk", "xxpad", "xxbos", "\u2581xxbos", "\u2581the", "cat"]
    (files / "itos_wt103.pkl").write_bytes(pickle.dumps(reference))
    ours = fresh(["xxunk", "xxbos", "\u2581the"])
    assert load_pretrained(ours, str(files), ["xxunk", "xxbos", "\u2581the"], MODEL).num_known == 3
    learned = torch.load(files / "lstm_wt103.pth")["0.encoder.weight"]
    assert torch.equal(ours[0].encoder.weight, learned[[0, 3, 4]])


def test_weights_that_do_not_fit_are_refused(files: Path):
    with pytest.raises(UserError, match="n_hid=8, n_layers=2, but the model section has 6, 9, 2"):
        load_pretrained(fresh(), str(files), NEW_VOCAB, ModelConfig(emb_sz=6, n_hid=9, n_layers=2))
    pieces = ["\u2581the", "\u2581cat", "s"]
    with pytest.raises(UserError, match=r"was trained on words, but the texts are tokenized to pieces: set tokenizer\.type"):
        load_pretrained(fresh(pieces), str(files), pieces, MODEL)
    (files / "itos_wt103.pkl").write_bytes(pickle.dumps(OLD_VOCAB[:-1]))
    with pytest.raises(UserError, match=r"weights for 6 tokens, but the \.pkl has 5"):
        load_pretrained(fresh(), str(files), NEW_VOCAB, MODEL)


def test_a_model_that_reads_the_other_way_is_refused(tmp_path: Path):
    backwards = dataclasses.replace(MODEL, backwards=True)
    make_models(tmp_path / "run", dataclasses.replace(CONFIG, model=backwards))
    with pytest.raises(UserError, match=r"model\.backwards=true, but the config has model\.backwards=false: set it to true"):
        load_pretrained(fresh(VOCAB), str(tmp_path / "run"), VOCAB, MODEL)
    load_pretrained(fresh(VOCAB), str(tmp_path / "run"), VOCAB, backwards)


def test_places_without_weights_are_named_with_their_mend(trained, files: Path, tmp_path: Path):
    _, _, folder = trained
    (tmp_path / "empty").mkdir()
    (files / "other.pth").write_bytes(b"")
    make_models(tmp_path / "run")
    refused = {
        "/nowhere": r"model\.pretrained=/nowhere: neither a public model .* nor a run, an exported model or a file",
        str(tmp_path / "empty"): r"expected a \.pth file with the weights and a \.pkl file",
        str(files): r"one \.pth file with the weights, but there are lstm_wt103\.pth, other\.pth: give the path of one file",
        str(folder / "bare_encoder.pth"): r"bare_encoder\.pth contains only an encoder: set classifier\.encoder to it",
        str(tmp_path / "run/classifier"): "is a classifier: give a language model",
    }
    for name, output in refused.items():
        with pytest.raises(UserError, match=output):
            load_pretrained(fresh(), name, NEW_VOCAB, MODEL)


class Hostile:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(hostile: Hostile, path: Path) -> None:
    path.write_bytes(pickle.dumps([hostile], protocol=2))


def saved_by_torch(hostile: Hostile, path: Path) -> None:
    torch.save({"model": hostile}, path)


@pytest.mark.parametrize("write", [pickled, saved_by_torch])
@pytest.mark.parametrize("name", ["lstm_wt103.pth", "itos_wt103.pkl"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(files: Path, name: str, write: Callable[..., None]):
    write(Hostile(files / "made"), files / name)
    with pytest.raises(UserError, match=f"{name}: refused"):
        load_pretrained(fresh(), str(files), NEW_VOCAB, MODEL)
    assert not (files / "made").exists()


@pytest.mark.parametrize("state", [[1], {"model": torch.ones(2)}, {"a": 1}, {"0.encoder.weight": torch.ones(2)}, {}])
def test_a_file_of_something_else_is_refused(files: Path, state: object):
    torch.save(state, files / "lstm_wt103.pth")
    with pytest.raises(
        UserError, match=r"lstm_wt103\.pth: (refused: it is not a state_dict|not a state_dict of fastai's AWD-LSTM)"
    ):
        load_pretrained(fresh(), str(files), NEW_VOCAB, MODEL)


def test_without_a_network_the_file_to_bring_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from fastai.data import external

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(external, "untar_data", no_network)
    with pytest.raises(UserError, match=r"wt103-fwd\.tgz cannot be downloaded .* unpack it to .*wt103-fwd"):
        load_pretrained(fresh(), "wt103_fwd", NEW_VOCAB, MODEL)


def test_the_first_rank_of_a_node_fetches_weights_and_no_other(monkeypatch: pytest.MonkeyPatch):
    from fastai.data import external

    fetched = []
    monkeypatch.setattr(
        external, "untar_data", lambda url, **kwargs: fetched.append((url, socket.getdefaulttimeout())) or "x"
    )
    for is_first in (True, False):
        for name in ("wt103_fwd", "runs/wiki-de", None):
            fetch(name, SimpleNamespace(fail_together=nullcontext, is_local_main=is_first))
    assert fetched == [(external.URLs.WT103_FWD, DOWNLOAD_TIMEOUT)]
    assert socket.getdefaulttimeout() is None


def test_where_fastai_has_no_place_for_weights_a_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from fastai.data import external

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path / "file/home"))
    external.fastai_cfg.cache_clear()
    with pytest.raises(UserError, match="set FASTAI_HOME to a folder"):
        load_pretrained(fresh(), "wt103_fwd", NEW_VOCAB, MODEL)
    external.fastai_cfg.cache_clear()


def test_weights_that_were_brought_are_found_without_a_network(files: Path, monkeypatch: pytest.MonkeyPatch):
    from fastai.data import external

    monkeypatch.setattr(external, "untar_data", lambda *args, **kwargs: pytest.fail("there is no need to fetch"))
    place = external.fastai_cfg().path("model") / "wt103-bwd"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(files)
    try:
        backwards = dataclasses.replace(MODEL, backwards=True)
        assert load_pretrained(fresh(), "wt103_bwd", NEW_VOCAB, backwards).num_known == 4
        with pytest.raises(UserError, match=r"model\.backwards=true"):
            load_pretrained_encoder(fresh_encoder(), "wt103_bwd", NEW_VOCAB, MODEL)
    finally:
        place.unlink()
