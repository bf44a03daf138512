"""Predictions of an exported classifier for texts.

Documents of similar length form a batch of a given number of tokens: few long documents or many short ones. So the longest
document increases neither padding nor memory. A document's prediction does not depend on the others: rows are padded to
whole chunks of `seq_len`, so that `max_len` cuts each document at its own position. Trade-off: up to `seq_len` - 1 tokens of
padding.

b: documents of a batch, T: tokens of the longest document, padded to whole chunks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ulmfit_dist.config.schema import ClassifierConfig, DataConfig
from ulmfit_dist.data.classifier_loader import pad_chunks
from ulmfit_dist.data.targets import num_outputs
from ulmfit_dist.data.text_arguments import check_text, iter_texts
from ulmfit_dist.data.tokenizers.registry import open_tokenizer
from ulmfit_dist.data.vocab import UNK_ID, token_ids
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.outputs import AnyPrediction, answers_of, prediction_of
from ulmfit_dist.inference.per_call import for_one_call
from ulmfit_dist.models.bundle import bundle_digest, model_folder, read_bundle
from ulmfit_dist.models.quantization import load_quantized
from ulmfit_dist.utils.memory import explain_out_of_memory

BATCH_TOKENS = 64 * 512
"""Maximum number of tokens per batch, padding included; a document with more tokens is one batch."""
IDS_PER_TOKEN = 16
"""Maximum number of token ids per batch, for each token whose output is kept."""
CHARACTERS_AT_ONCE = 1 << 24
"""Characters of the texts that are tokenized and sorted together: about ten thousand articles, a hundred MB of memory."""
TEXTS_AT_ONCE = 1 << 16
"""Maximum number of texts that are tokenized and sorted together."""


class Classifier(ABC):
    """Base class of classifiers: returns class probabilities and labels of texts, or the values of a regression.

    Threads may share a classifier: a call does not modify it. `texts` are a list, tuple, array, pandas Series, column of a
    `datasets.Dataset`, or an iterator, of strings.

    Attributes:
        labels: names of the classes.
        settings: config of the classifier.
        data: config of the data that it was trained on.
    """

    labels: list[str]
    settings: ClassifierConfig
    data: DataConfig

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hexadecimal digest that changes with the weights, the labels and the config."""

    def predict_proba(self, texts: Iterable[str], batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """Return class probabilities, or the values of a regression, float64 [texts, classes], in the order of the texts.

        An iterator is read in parts, so that its texts are not in memory all at once.

        Args:
            batch_tokens: maximum number of tokens per batch, unless one document has more; more are faster and take memory.

        Raises:
            UserError: out of memory; or an item is not a text, in which case it is a TypeError or ValueError as well.
        """
        none = np.empty((0, num_outputs(self.settings.target, self.labels)))
        return np.concatenate([none, *self.iter_predict_proba(texts, batch_tokens)])

    def iter_predict_proba(
        self, texts: Iterable[str], batch_tokens: int = BATCH_TOKENS, part_texts: int = TEXTS_AT_ONCE
    ) -> Iterator[np.ndarray]:
        """Yield the rows of `predict_proba` in parts, in order; only the texts of one part are read from an iterator.

        Args:
            batch_tokens: as in `predict_proba`.
            part_texts: maximum number of texts per part; long texts, such as articles, make smaller parts. The other texts
                of a part affect a row only by rounding.

        Raises:
            UserError: as `predict_proba`; immediately if `texts` has a wrong type, else when the part is computed.
        """
        if part_texts < 1:
            raise UserError(f"part_texts={part_texts}: give a whole number of at least 1")
        return map(partial(self._predict_part, batch_tokens=batch_tokens), _parts(iter_texts(texts), part_texts))

    @abstractmethod
    def _predict_part(self, texts: Sequence[str], batch_tokens: int) -> np.ndarray:
        """Return the rows of a part of the texts, which fits in memory."""

    def predict(self, texts: Iterable[str], batch_tokens: int = BATCH_TOKENS) -> list[AnyPrediction]:
        """Return one prediction per text, in order. Arguments and errors are those of `predict_proba`."""
        rows = self.predict_proba(texts, batch_tokens).tolist()
        return [prediction_of(row, self.labels, self.settings) for row in rows]

    def predict_one(self, text: str) -> AnyPrediction:
        """Return the prediction of a single text: `label, index, probabilities = classifier.predict_one("I liked it!")`."""
        return self.predict([check_text(text, "text")])[0]


class TextClassifier(Classifier):
    """An exported classifier with its tokenizer and vocabulary.

    Args:
        folder: a run directory, its `classifier/`, or `hf:USER/NAME`, a model of the hub.
        device: device of the model.
        trust_remote_code: call user-defined functions of the model's config (tokenizer.rules, model.arch).
        quantize: "int8" for LSTMs and linear layers in int8 (`models/quantization.py`), on CPUs only; None for fp32.

    Raises:
        UserError: the classifier is missing or damaged, or cannot be quantized on this device.
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
        quantize: str | None = None,
    ):
        exported = read_bundle(model_folder(Path(folder), "classifier"))
        assert exported.labels is not None  # model_folder checks for them
        self.config, self.labels, self.device = exported.config, exported.labels, torch.device(device)
        self.settings, self.data, self._folder = exported.config.classifier, exported.config.data, exported.folder
        self.tokenizer = open_tokenizer(exported.config.tokenizer, exported.folder, trust_remote_code)
        self.ids = token_ids(exported.vocab)
        self.quantize = quantize
        self.model = load_quantized(exported, self.device, trust_remote_code, quantize)

    @property
    def digest(self) -> str:
        digest = bundle_digest(self._folder)
        return digest if self.quantize is None else f"{digest}:{self.quantize}"

    def _predict_part(self, texts: Sequence[str], batch_tokens: int) -> np.ndarray:
        return self.predict_proba_of_tokens(self.as_read(self.encode(texts)), batch_tokens)

    def predict_proba_of_tokens(self, documents: Sequence[np.ndarray], batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """Return the rows of `predict_proba` for the token ids of documents, as the model reads them."""
        seq_len = self.config.classifier.seq_len
        outputs_NC = np.empty((len(documents), num_outputs(self.settings.target, self.labels)))
        advice = f"give a batch_tokens below {batch_tokens}, or device='cpu'"
        for batch in token_batches([*map(len, documents)], seq_len, batch_tokens, self.settings.max_len):
            width = _whole_chunks(len(documents[batch[0]]), seq_len)
            x_bT = pad_chunks([documents[i] for i in batch], width, seq_len)
            with explain_out_of_memory(f"predict of {len(batch)} text(s) of up to {width} tokens", advice):
                outputs_NC[batch] = self._outputs(x_bT)
        return outputs_NC

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids of each text, whole and in reading order (`as_read`: as the model reads them)."""
        (ids, lengths), tokens = self.tokenizer.encode_with_tokens(texts)
        distinct, indices = np.unique(ids, return_inverse=True)
        known = np.array([self.ids.get(tokens[i], UNK_ID) for i in distinct.tolist()], dtype=np.int64)
        return np.split(known[indices], np.cumsum(lengths)[:-1])

    def as_read(self, documents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return token ids of documents as the model reads them: truncated, and reversed for a backward model."""
        direction = -1 if self.config.model.backwards else 1
        return [document[: self.config.classifier.max_doc_tokens][::direction] for document in documents]

    @torch.no_grad()
    def _outputs(self, x_bT: torch.Tensor) -> np.ndarray:
        """Return class probabilities, or values, float64 [b, outputs], of documents, longest first."""
        return answers_of(for_one_call(self.model)(x_bT.to(self.device))[0], self.settings.target).cpu().numpy()


def token_batches(
    lengths: Sequence[int], seq_len: int, batch_tokens: int, max_len: int | None = None
) -> Iterator[list[int]]:
    """Yield indices of documents, longest first, in batches of at most `batch_tokens`, or of one document.

    Tokens count with padding, but not those before the last `max_len`, whose outputs are not kept: the other documents of a
    batch are not computed there, and ids take little memory.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        width = _whole_chunks(lengths[order[start]], seq_len)
        kept = width if max_len is None else min(width, _whole_chunks(max_len, seq_len))
        rows = max(1, min(batch_tokens // kept, IDS_PER_TOKEN * batch_tokens // width))
        yield order[start : start + rows]
        start += rows


def _whole_chunks(num_tokens: int, seq_len: int) -> int:
    return max(1, -(-num_tokens // seq_len)) * seq_len


def _parts(texts: Iterator[str], part_texts: int) -> Iterator[list[str]]:
    """Yield lists of at most `part_texts` texts, which end when they exceed `CHARACTERS_AT_ONCE`."""
    part: list[str] = []
    characters = 0
    for text in texts:
        part.append(text)
        characters += len(text)
        if characters >= CHARACTERS_AT_ONCE or len(part) >= part_texts:
            yield part
            part, characters = [], 0
    if part:
        yield part
