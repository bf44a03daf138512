"""Export of a classifier to ONNX, for programs without torch and this package.

    model.onnx              ids, int64 [documents, tokens], to probabilities, float32 [documents, classes], or values
    reading.json            text to ids: tokenizer, direction, length, ids of padding and of unknown tokens
    vocab.json              tokens by id
    labels.json             class names by index; empty for a regression
    sentencepiece.model     the tokenizer's model, if it is SentencePiece

The graph is compared with the model before it is written. The trade-off: an export needs onnxruntime.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ulmfit_dist.data.classifier_loader import pad_chunks
from ulmfit_dist.data.token_store import MODEL_FILE
from ulmfit_dist.data.vocab import PAD_ID, UNK_ID
from ulmfit_dist.errors import UserError
from ulmfit_dist.export.onnx_graph import classifier_graph, output_name
from ulmfit_dist.inference.outputs import answers_of
from ulmfit_dist.models.bundle import ModelBundle, load_model, model_folder, read_bundle
from ulmfit_dist.models.registry import user_class
from ulmfit_dist.utils.files import write_bytes, write_json

MAX_ABSOLUTE_ERROR, MAX_RELATIVE_ERROR = 1e-4, 1e-3
"""Tolerances between a probability of the graph and of the model, absolute and relative: small probabilities of a confident
model pass the absolute one whatever their error."""


def export_to_onnx(run: Path, output: Path) -> Path:
    """Write a classifier as an ONNX graph with its companion files, after a comparison of graph and model.

    Args:
        run: a run directory, its `classifier/`, or `hf:USER/NAME`, a model of the hub.
        output: path of the graph; its folder is created.

    Returns:
        The path of the graph.

    Raises:
        UserError: no classifier; onnx is not installed; the folder cannot be written; the graph's probabilities differ from
            the model's.
    """
    exported = read_bundle(model_folder(run, "classifier"))
    if (arch := user_class(exported.config.model)) is not None:
        raise UserError(f"{run}: model.arch={arch}: only AWD-LSTMs and QRNNs can be exported to ONNX: use torch.onnx")
    _check_installed()
    model = load_model(exported)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(classifier_graph(model, exported.config.classifier).SerializeToString())
        _compare(temporary, model, exported)
        _write_companions(exported, output.parent)
        temporary.replace(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}): give another --output") from None
    finally:
        if output.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return output


def pad_right(documents: Sequence[np.ndarray]) -> np.ndarray:
    """Return documents padded on the right, as the graph reads them: int64 [documents, tokens]."""
    ids_bT = np.full((len(documents), max(map(len, documents))), PAD_ID, dtype=np.int64)
    for ids_T, document in zip(ids_bT, documents, strict=True):
        ids_T[: len(document)] = document
    return ids_bT


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'ulmfit-dist[onnx]'") from None


@torch.no_grad()
def _compare(graph: Path, model: nn.Module, exported: ModelBundle) -> None:
    """Raise UserError if the outputs of graph and model differ on random documents, from one token to many chunks."""
    import onnxruntime

    seq_len = exported.config.classifier.seq_len
    longest = exported.config.classifier.max_len + 2 * seq_len + 1
    rng = np.random.default_rng(0)
    lengths = (longest, 2 * seq_len, seq_len + 1, max(1, seq_len - 1), 1)
    documents = [rng.integers(PAD_ID + 1, len(exported.vocab), length) for length in lengths]
    target = exported.config.classifier.target
    expected = answers_of(model(pad_chunks(documents, -(-longest // seq_len) * seq_len, seq_len))[0], target).numpy()
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    actual = session.run([output_name(target)], {"ids": pad_right(documents)})[0]
    error = np.abs(actual - expected)
    if target == "regression":
        error /= np.maximum(1, np.abs(expected))
    absolute, relative = float(error.max()), float((error / np.abs(expected).clip(1e-9)).max())
    if not (absolute <= MAX_ABSOLUTE_ERROR and (relative <= MAX_RELATIVE_ERROR or target == "regression")):
        raise UserError(
            f"the ONNX graph of {exported.folder} is not written: its {output_name(target)} differ by up to {absolute:.2g}, "
            f"and {relative:.2%}, from the model's (torch {torch.__version__}, onnxruntime {onnxruntime.__version__})"
        )


def _write_companions(exported: ModelBundle, folder: Path) -> None:
    config, settings = exported.config, exported.config.classifier
    reading = {
        "tokenizer": asdict(config.tokenizer),
        "backwards": config.model.backwards,
        "max_doc_tokens": settings.max_doc_tokens,
    }
    reading |= {"padding_id": PAD_ID, "unknown_id": UNK_ID, "target": settings.target, "threshold": settings.threshold}
    write_json(folder / "reading.json", reading)
    write_json(folder / "vocab.json", exported.vocab)
    write_json(folder / "labels.json", exported.labels)
    if (exported.folder / MODEL_FILE).exists():
        write_bytes(folder / MODEL_FILE, (exported.folder / MODEL_FILE).read_bytes())
