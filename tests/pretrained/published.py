"""Small models in the layouts, keys and containers of those who publish ULMFiT models, and what they compute.

Key lists are those of state_dicts that the original classes have: fastai 0.7.0 `lm_rnn.py`, 1.0.47 and 1.0.61
`text/models/awd_lstm.py` and `qrnn.py`, instantiated under torch 2.13. fastai 2 is installed, so its own files are used.

V: size of the vocabulary, E: width of the embedding, H: width of a hidden layer.
"""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

E, H = 6, 8
WORDS = ["xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxmaj", "xxup", "xxrep", "xxwrep", "the", "cat", "sat"]
WORDS_07 = ["_unk_", "_pad_", "the", "xbos", "t_up", "cat", "tk_rep", "sat"]
PIECES = [
    "xxunk",
    "xxpad",
    "xxbos",
    "xxfld",
    "xxmaj",
    "xxup",
    "xxrep",
    "xxwrep",
    "<unk>",
    "\u2581",
    "\u2581de",
    "\u2581kat",
    "s",
]


def lstm_tensors(vocab_size: int, n_layers: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random tensors of an AWD-LSTM by fastai 2's keys; the decoder is tied."""
    generator = torch.Generator().manual_seed(int(seed))
    widths = [E, *[H] * (n_layers - 1), E]
    state = {"0.encoder.weight": torch.randn(vocab_size, E, generator=generator)}
    for layer, (n_in, n_out) in enumerate(pairwise(widths)):
        state[f"0.rnns.{layer}.weight_hh_l0_raw"] = torch.randn(4 * n_out, n_out, generator=generator) / 3
        state[f"0.rnns.{layer}.module.weight_ih_l0"] = torch.randn(4 * n_out, n_in, generator=generator) / 3
        state[f"0.rnns.{layer}.module.bias_ih_l0"] = torch.randn(4 * n_out, generator=generator)
        state[f"0.rnns.{layer}.module.bias_hh_l0"] = torch.randn(4 * n_out, generator=generator)
    state["1.decoder.weight"] = state["0.encoder.weight"]
    state["1.decoder.bias"] = torch.randn(vocab_size, generator=generator)
    return state


def qrnn_tensors(vocab_size: int, n_layers: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random tensors of an AWD-QRNN by the keys of fastai 1.0.61."""
    generator = torch.Generator().manual_seed(int(seed))
    widths = [E, *[H] * (n_layers - 1), E]
    state = {"0.encoder.weight": torch.randn(vocab_size, E, generator=generator)}
    for layer, (n_in, n_out) in enumerate(pairwise(widths)):
        window = 2 if layer == 0 else 1
        state[f"0.rnns.{layer}.layers.0.linear.weight_raw"] = torch.randn(3 * n_out, window * n_in, generator=generator) / 2
        state[f"0.rnns.{layer}.layers.0.linear.module.bias"] = torch.randn(3 * n_out, generator=generator)
    state["1.decoder.weight"] = state["0.encoder.weight"]
    state["1.decoder.bias"] = torch.randn(vocab_size, generator=generator)
    return state


def as_fastai_1(state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return the state_dict as fastai 1 saves it: with the weights after dropout and the dropped-out embedding."""
    saved = OrderedDict(state)
    saved["0.encoder_dp.emb.weight"] = state["0.encoder.weight"]
    for key, value in state.items():
        if key.endswith("weight_hh_l0_raw"):
            saved[key.replace(".weight_hh_l0_raw", ".module.weight_hh_l0")] = value * 0.7
        if key.endswith("linear.weight_raw"):
            saved[key.replace("linear.weight_raw", "linear.module.weight")] = value * 0.7
    return saved


def as_multifit(state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return the state_dict as fastai 1.0.47 saves it: a QRNN layer has no list of layers."""
    return OrderedDict((key.replace("layers.0.linear", "linear"), value) for key, value in as_fastai_1(state).items())


def as_fastai_07(state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return the state_dict as fastai 0.7 saves it: its raw weights are in the inner module; the decoder has no bias."""
    saved: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        saved[key.replace(".weight_hh_l0_raw", ".module.weight_hh_l0_raw")] = value
    saved["0.encoder_with_dropout.embed.weight"] = state["0.encoder.weight"]
    del saved["1.decoder.bias"]
    return saved


def reference_logits(state: dict[str, Tensor], x_bT: Tensor, n_layers: int) -> tuple[Tensor, Tensor]:
    """Return encoder output [b, T, E] and logits [b, T, V], computed cell by cell in float64."""
    state = {key: value.double() for key, value in state.items()}
    output = state["0.encoder.weight"][x_bT]
    for layer in range(n_layers):
        is_qrnn = f"0.rnns.{layer}.layers.0.linear.weight_raw" in state
        output = (_qrnn if is_qrnn else _lstm)(state, layer, output)
    bias = state.get("1.decoder.bias", torch.zeros(len(state["0.encoder.weight"]), dtype=torch.float64))
    return output, output @ state["0.encoder.weight"].T + bias


def _lstm(state: dict[str, Tensor], layer: int, x_bTE: Tensor) -> Tensor:
    prefix = f"0.rnns.{layer}"
    w_hh, w_ih = state[f"{prefix}.weight_hh_l0_raw"], state[f"{prefix}.module.weight_ih_l0"]
    bias = state[f"{prefix}.module.bias_ih_l0"] + state[f"{prefix}.module.bias_hh_l0"]
    h = c = x_bTE.new_zeros(len(x_bTE), w_hh.shape[1])
    outputs = []
    for x in x_bTE.unbind(1):
        i, f, g, o = (x @ w_ih.T + h @ w_hh.T + bias).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, 1)


def _qrnn(state: dict[str, Tensor], layer: int, x_bTE: Tensor) -> Tensor:
    weight = state[f"0.rnns.{layer}.layers.0.linear.weight_raw"]
    bias = state[f"0.rnns.{layer}.layers.0.linear.module.bias"]
    if layer == 0:
        before = torch.cat([x_bTE.new_zeros(len(x_bTE), 1, x_bTE.shape[2]), x_bTE[:, :-1]], 1)
        x_bTE = torch.cat([x_bTE, before], 2)
    z, f, o = (x_bTE @ weight.T + bias).chunk(3, 2)
    c, outputs = torch.zeros_like(z[:, 0]), []
    for z_t, f_t, o_t in zip(z.tanh().unbind(1), f.sigmoid().unbind(1), o.sigmoid().unbind(1), strict=True):
        c = f_t * z_t + (1 - f_t) * c
        outputs.append(o_t * c)
    return torch.stack(outputs, 1)


def write_pickle(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_torch(path: Path, content: Any, is_legacy: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)


def make_tgz(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    return path


def make_zip(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def make_sp_model(path: Path, sentences: Sequence[str] = ("de kat zat op de mat",) * 20, num_pieces: int = 60) -> None:
    import sentencepiece

    path.parent.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=num_pieces, hard_vocab_limit=False, minloglevel=2
    )
    path.write_bytes(model.getvalue())


def pieces_of(path: Path) -> list[str]:
    """Return the pieces of a SentencePiece model as a vocabulary of fastai's."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [*WORDS[:9], *(processor.IdToPiece(i) for i in range(3, processor.GetPieceSize()))]


@contextmanager
def foreign_classes(*names: str) -> Iterator[dict[str, type]]:
    """Make classes with the names of another library's, which exist while files are written and no longer."""
    before = dict(sys.modules)
    classes = {}
    try:
        for full_name in names:
            module, _, name = full_name.rpartition(".")
            for part in range(1, module.count(".") + 2):
                parent = ".".join(module.split(".")[:part])
                if parent not in before:
                    sys.modules.setdefault(parent, ModuleType(parent))
            base = nn.Module if name in ("SequentialRNN", "AWD_LSTM", "WeightDropout", "LinearDecoder") else object
            classes[name] = type(name, (base,), {"__module__": module})
            setattr(sys.modules[module], name, classes[name])
        yield classes
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]
