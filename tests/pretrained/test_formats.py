"""Public models in the layout of each publisher: read, loaded, and computing what their tensors mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from fastai.text.all import AWD_LSTM, TextDataLoaders, language_model_learner
from fastai.text.models import awdlstm
from fastai_runs import SIZES, VOCAB, lm_logits, make_table
from published import PIECES, WORDS, WORDS_07, E, H
from torch import Tensor

from ulmfit_dist.config.schema import LMConfig, ModelConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.fastai_tokens import translate_tokens
from ulmfit_dist.models.networks import build_language_model, encoder_of
from ulmfit_dist.models.pretrained import load_pretrained, load_pretrained_encoder
from ulmfit_dist.pretrained.archives import unpack
from ulmfit_dist.pretrained.model_files import find_model_files
from ulmfit_dist.pretrained.reader import describe_model, read_state, read_tokens

State = dict[str, Tensor]


def fastai_zoo(folder: Path, backwards: bool) -> tuple[State, list[str]]:
    """wt103-fwd.tgz: a .pth of fastai 1 in torch's old container, and itos_wt103.pkl."""
    state = published.lstm_tensors(len(WORDS), 3, seed=backwards)
    published.write_torch(folder / "lstm_fwd.pth", {"model": published.as_fastai_1(state), "opt": {}}, is_legacy=True)
    published.write_pickle(folder / "itos_wt103.pkl", WORDS)
    return state, WORDS


def floleuerer(folder: Path, backwards: bool) -> tuple[State, list[str]]:
    """fastai_ulmfit: both directions and a SentencePiece model in one archive."""
    states = {}
    for direction in (False, True):
        states[direction] = published.lstm_tensors(len(PIECES), 3, seed=direction)
        part = folder / ("bwd" if direction else "fwd")
        published.write_torch(part / f"lm_dewiki{'_bwd' if direction else ''}_model.pth", dict(states[direction]))
        published.write_pickle(part / f"lm_dewiki{'_bwd' if direction else ''}_vocab.pkl", PIECES)
        (part / "model.json").write_text('{"lang": "de", "backwards": false, "tokenizer": {"params": {"vocab_sz": 13}}}')
    published.make_sp_model(folder / "spm/spm.model")
    return states[backwards], PIECES


def multifit(folder: Path, backwards: bool) -> tuple[State, list[str]]:
    """n-waves/multifit: a QRNN of fastai 1.0.47."""
    state = published.qrnn_tensors(len(PIECES), 4)
    published.write_torch(folder / "lm_best.pth", published.as_multifit(state), is_legacy=True)
    published.write_pickle(folder / "itos.pkl", PIECES)
    published.make_sp_model(folder / "spm.model")
    (folder / "info.json").write_text("{}")
    return state, PIECES


def qrnn_of_fastai_1(folder: Path, backwards: bool) -> tuple[State, list[str]]:
    """A QRNN of fastai 1.0.61, three layers, such as multifit_en_nl3_wiki103."""
    state = published.qrnn_tensors(len(PIECES), 3)
    published.write_torch(folder / "model.pth", published.as_fastai_1(state))
    published.write_pickle(folder / "itos.pkl", PIECES)
    return state, PIECES


def pythainlp(folder: Path, backwards: bool) -> tuple[State, list[str]]:
    """PyThaiNLP: four layers, and two vocabularies of the same tokens."""
    state = published.lstm_tensors(len(WORDS), 4)
    published.write_torch(folder / "thwiki_model_lstm.pth", published.as_fastai_1(state), is_legacy=True)
    published.write_pickle(folder / "thwiki_itos.pkl", WORDS)
    return state, WORDS


def czech(folder: Path, backwards: bool) -> tuple[State, list[str]]:
    """simecek/Czech-ULMFiT: .pth, _vocab.pkl and spm.model side by side; of several GPUs here."""
    state = published.lstm_tensors(len(PIECES), 3)
    prefixed = {f"module.{key}": value.half() for key, value in published.as_fastai_1(state).items()}
    published.write_torch(folder / "cs_wt.pth", {"model": prefixed})
    published.write_pickle(folder / "cs_wt_vocab.pkl", PIECES)
    published.make_sp_model(folder / "spm.model")
    return {key: value.half().float() for key, value in state.items()}, PIECES


def fastai_07(folder: Path, backwards: bool) -> tuple[State, list[str]]:
    """fastai 0.7: .h5 files that are pickles, with a separate encoder, and tokens of other names."""
    states = {direction: published.lstm_tensors(len(WORDS_07), 3, seed=direction) for direction in (False, True)}
    for direction, state in states.items():
        saved = published.as_fastai_07(state)
        name = "bwd_wt103" if direction else "fwd_wt103"
        published.write_torch(folder / f"{name}.h5", saved, is_legacy=True)
        encoder = {key.removeprefix("0."): value for key, value in saved.items() if key.startswith("0.")}
        published.write_torch(folder / f"{name}_enc.h5", encoder, is_legacy=True)
    published.write_pickle(folder / "itos_wt103.pkl", WORDS_07)
    del states[backwards]["1.decoder.bias"]
    return states[backwards], WORDS_07


def inltk(folder: Path, backwards: bool) -> tuple[State, list[str]]:
    """goru001/inltk: `Learner.export` of fastai 1, a dict with a pickled network and the text processors."""
    state = published.lstm_tensors(len(PIECES), 3)
    names = [f"fastai.text.models.awd_lstm.{name}" for name in ("AWD_LSTM", "WeightDropout", "LinearDecoder")]
    names += ["fastai.text.learner.SequentialRNN", "fastai.text.transform.Vocab", "fastai.text.data.NumericalizeProcessor"]
    names += ["inltk.tokenizer.HindiTokenizer", "fastai.layers.FlattenedLoss"]
    with published.foreign_classes(*names) as classes:
        exported = {
            "opt_func": torch.optim.Adam,
            "loss_func": instance(classes["FlattenedLoss"], func=torch.nn.CrossEntropyLoss(), axis=-1),
            "model": network(classes, state),
            "data": {"x_proc": [
                instance(classes["HindiTokenizer"], lang="hi"),
                instance(classes["NumericalizeProcessor"], vocab=instance(classes["Vocab"], itos=PIECES)),
            ], "tfmargs": [{"itos": ["not", "these"]}]},
            "cls": classes["Vocab"],
        }  # fmt: skip
        published.write_torch(folder / "export.pkl", exported, is_legacy=True)
    published.make_sp_model(folder / "hindi_lm.model")
    return state, PIECES


def hub_learner(folder: Path, backwards: bool) -> tuple[State, list[str]]:
    """A whole Learner of fastai 2, as on the Hugging Face hub."""
    dls = TextDataLoaders.from_df(make_table(), path=folder, text_col="text", is_lm=True, text_vocab=VOCAB, seq_len=10, bs=4)
    config = {**awdlstm.awd_lstm_lm_config, **SIZES}
    learner = language_model_learner(dls, AWD_LSTM, config=config, pretrained=False)
    learner.export("model.pkl")
    return learner.model.state_dict(), list(dls.vocab)


def instance(cls: type, **state: object) -> object:
    made = cls.__new__(cls)
    made.__dict__.update(state)
    return made


def network(classes: dict[str, type], state: State) -> torch.nn.Module:
    """Return a network of another library's classes with these tensors as parameters."""

    def fill(name: str, prefix: str, children: dict[str, torch.nn.Module]) -> torch.nn.Module:
        module = classes.get(name, torch.nn.Module)()
        for key, value in state.items():
            if key.startswith(prefix) and "." not in key.removeprefix(prefix):
                module.register_parameter(key.removeprefix(prefix), torch.nn.Parameter(value))
        for child, content in children.items():
            module.add_module(child, content)
        return module

    layers = {
        str(i): fill("WeightDropout", f"0.rnns.{i}.", {"module": fill("", f"0.rnns.{i}.module.", {})}) for i in range(3)
    }
    encoder = fill("AWD_LSTM", "0.", {"encoder": fill("", "0.encoder.", {}), "rnns": fill("", "none", layers)})
    decoder = fill("LinearDecoder", "none", {"decoder": fill("", "1.decoder.", {})})
    return fill("SequentialRNN", "none", {"0": encoder, "1": decoder})


PUBLISHERS: list[Any] = [fastai_zoo, floleuerer, multifit, qrnn_of_fastai_1, pythainlp, czech, fastai_07, inltk]
PUBLISHERS.append(pytest.param(hub_learner, marks=pytest.mark.distributed))  # fastai tokenizes in a process


@pytest.mark.parametrize("publisher", PUBLISHERS)
def test_a_published_model_computes_what_its_tensors_mean(
    publisher: Callable[[Path, bool], tuple[State, list[str]]], tmp_path: Path
):
    folder = tmp_path / "made"
    folder.mkdir()
    backwards = publisher is floleuerer
    state, tokens = publisher(folder, backwards)
    unpack(published.make_tgz(folder, tmp_path / "model.tgz"), tmp_path / "unpacked")

    described = describe_model(tmp_path / "unpacked", backwards)
    shape = described.shape
    n_layers = len({key.split(".")[2] for key in state if key.startswith("0.rnns.")})
    arch = "qrnn" if publisher in (multifit, qrnn_of_fastai_1) else None
    assert (shape.vocab_size, shape.emb_sz, shape.n_hid, shape.n_layers, shape.arch) == (len(tokens), E, H, n_layers, arch)
    assert read_tokens(described.files, len(tokens)) == tokens

    config = ModelConfig(emb_sz=E, n_hid=H, n_layers=n_layers, arch=arch, backwards=backwards)
    vocab = translate_tokens(tokens)
    model = build_language_model(len(vocab), config, LMConfig()).eval()
    match = load_pretrained(model, str(tmp_path / "unpacked"), vocab, config)
    assert match.num_known == len(vocab)
    x_bT = torch.arange(2 * 9).view(2, 9) % len(tokens)
    outputs, logits = published.reference_logits(state, x_bT, n_layers)
    with torch.no_grad():
        torch.testing.assert_close(lm_logits(model, x_bT).double(), logits, rtol=1e-5, atol=1e-5)
        encoder = encoder_of(build_language_model(len(vocab), config, LMConfig())).eval()
        load_pretrained_encoder(encoder, str(described.files.weights), vocab, config)
        encoder.reset()
        torch.testing.assert_close(encoder(x_bT).double(), outputs, rtol=1e-6, atol=1e-6)


def test_a_folder_with_one_direction_has_no_other(tmp_path: Path):
    published.write_torch(tmp_path / "fwd/model.pth", published.lstm_tensors(len(WORDS), 2))
    published.write_pickle(tmp_path / "fwd/vocab.pkl", WORDS)
    with pytest.raises(
        UserError, match=r"only a model that reads forwards .* model\.backwards=true needs one that reads back"
    ):
        describe_model(tmp_path, backwards=True)
    assert describe_model(tmp_path).files.backwards is False


def test_files_of_fastai_07_name_their_version_and_special_tokens(tmp_path: Path):
    fastai_07(tmp_path, backwards=True)
    described = describe_model(tmp_path, backwards=True)
    assert (described.format, described.files.weights.name) == ("state_dict of fastai 0.7", "bwd_wt103.h5")
    assert translate_tokens(WORDS_07) == ["xxunk", "xxpad", "the", "xxbos", "xxup", "cat", "xxrep", "sat"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("itos.json", '["xxunk", "the"]'),
        ("vocab.txt", "xxunk\nthe\n"),
        ("itos.json", '{"xxunk": 0, "the": 1}'),
    ],
)
def test_tokens_are_read_from_json_and_text(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    (tmp_path / "model.pth").touch()
    assert read_tokens(find_model_files(tmp_path), 2) == ["xxunk", "the"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "it is an HDF5 file, such as Keras writes"),
        (b"\x40\0\0\0\0\0\0\0{" + b" " * 64, "it looks like safetensors"),
        (b"<html>", "it is damaged"),
        (b"", "it is damaged"),
    ],
)
def test_a_file_that_is_no_torch_file_says_what_it_looks_like(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "model.pth").write_bytes(content)
    published.write_pickle(tmp_path / "itos.pkl", WORDS)
    with pytest.raises(UserError, match=message):
        describe_model(tmp_path)


def test_another_network_says_what_is_missing(tmp_path: Path):
    published.write_pickle(tmp_path / "itos.pkl", WORDS)
    state = published.lstm_tensors(len(WORDS), 2)
    without_bias = {key: value for key, value in state.items() if "bias_hh" not in key}
    for broken, message in (
        ({"transformer.wte.weight": torch.ones(2, 2)}, r"no encoder\.weight in it, but transformer\.wte\.weight"),
        (without_bias, r"rnns\.0\.module\.bias_hh_l0 is missing"),
        ({**state, "0.rnns.0.module.weight_ih_l0_reverse": torch.ones(3)}, "weight_ih_l0_reverse is not in fastai's"),
        (
            {**state, "0.rnns.1.module.weight_ih_l0": torch.ones(5, 2)},
            r"is of shape \(5, 2\), but fits the others",
        ),
    ):
        published.write_torch(tmp_path / "model.pth", broken)
        with pytest.raises(UserError, match=message):
            describe_model(tmp_path)


def test_an_archive_in_place_of_a_folder_is_named(tmp_path: Path):
    (tmp_path / "made").mkdir()
    pythainlp(tmp_path / "made", backwards=False)
    published.make_zip(tmp_path / "made", tmp_path / "model.zip")
    published.write_pickle(tmp_path / "itos.pkl", WORDS)
    with pytest.raises(UserError, match=r"model\.zip: an archive: unpack it"):
        describe_model(tmp_path / "model.zip")
    unpack(tmp_path / "model.zip", tmp_path / "unpacked")
    assert describe_model(tmp_path / "unpacked").shape.n_layers == 4


def test_half_precision_weights_become_single(tmp_path: Path):
    state = published.lstm_tensors(len(WORDS), 2)
    published.write_torch(tmp_path / "model.pth", {key: value.bfloat16() for key, value in state.items()})
    assert {value.dtype for value in read_state(tmp_path / "model.pth").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("fastai 0.7.0, lm_rnn.py", published.as_fastai_07(published.lstm_tensors(10, 3))),
        ("fastai 1.0.61, awd_lstm.py", published.as_fastai_1(published.lstm_tensors(10, 3))),
        ("fastai 1.0.61, awd_lstm.py and qrnn.py", published.as_fastai_1(published.qrnn_tensors(10, 4))),
        ("fastai 1.0.47, awd_lstm.py and qrnn.py", published.as_multifit(published.qrnn_tensors(10, 4))),
    ],
)
def test_the_files_of_these_tests_have_the_keys_of_the_original_classes(name: str, made: State):
    """The list is of networks that the original modules have made (E = 6, H = 8, ten tokens), under torch 2.13."""
    original = json.loads(Path(__file__).with_name("original_keys.json").read_text())[name]
    assert {key: list(value.shape) for key, value in made.items()} == original
