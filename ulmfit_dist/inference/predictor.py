"""Labels for texts, from an exported classifier.

Documents of like length are computed together, as many as make up a number of tokens: few long ones or many short ones. So
neither padding nor memory grows with the longest. A document's answer does not depend on the others: rows are filled up to
whole chunks of `seq_len`, so that `max_len` cuts each at a place of its own. The price: up to a chunk less one of padding.

b: documents of a batch, T: tokens of the longest document, filled up to whole chunks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.data.classifier_loader import pad_chunks
from ulmfit_dist.data.targets import num_outputs
from ulmfit_dist.data.text_arguments import check_text, iter_texts
from ulmfit_dist.data.tokenizers.word import open_tokenizer
from ulmfit_dist.data.vocab import UNK_ID, token_ids
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.outputs import AnyPrediction, answers_of, prediction_of
from ulmfit_dist.inference.per_call import for_one_call
from ulmfit_dist.models.bundle import load_model, model_folder, read_bundle
from ulmfit_dist.utils.memory import explain_out_of_memory

BATCH_TOKENS = 64 * 512
"""Tokens of a batch, padding included, at most; a document with more is a batch of its own."""
CHARACTERS_AT_ONCE = 1 << 24
"""Of texts that are tokenized and sorted together: some ten thousand articles, a hundred MB at work."""
TEXTS_AT_ONCE = 1 << 16
"""Texts that are tokenized and sorted together at most."""


class Classifier(ABC):
    """What gives texts probabilities, and so labels; or numbers, where it was trained for a regression.

    Threads may share one: nothing of a call is kept in it. `texts` are a list, tuple, array, pandas Series, column of a
    `datasets.Dataset`, or an iterator, of strings.

    Attributes:
        labels: names of the classes.
        settings: what it was trained for.
    """

    labels: list[str]
    settings: ClassifierConfig

    def predict_proba(self, texts: Iterable[str], batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """Probabilities of the classes, float64 [texts, classes], in the order of the texts; of a regression its numbers.

        An iterator is read in parts, so only the probabilities of all its texts are in memory at once, not the texts.

        Args:
            batch_tokens: tokens that are computed together at most, unless a single document has more: memory and speed.

        Raises:
            UserError: out of memory; or, which is a TypeError or ValueError too, something else than texts.
        """
        none = np.empty((0, num_outputs(self.settings.target, self.labels)))
        return np.concatenate([none, *self.iter_predict_proba(texts, batch_tokens)])

    def iter_predict_proba(
        self, texts: Iterable[str], batch_tokens: int = BATCH_TOKENS, part_texts: int = TEXTS_AT_ONCE
    ) -> Iterator[np.ndarray]:
        """Yield the rows of `predict_proba` in parts, in order: of an iterator only the texts of one part are in memory.

        Args:
            batch_tokens: as that of `predict_proba`.
            part_texts: texts that are read at most before their rows are yielded; fewer where they are long, some ten
                thousand articles. A text's row depends on the others of its part by rounding alone.

        Raises:
            UserError: as `predict_proba`, when the texts are not of a right type, or when a part is asked for.
        """
        if part_texts < 1:
            raise UserError(f"part_texts={part_texts}: give a whole number of at least 1")
        return map(partial(self._predict_part, batch_tokens=batch_tokens), _parts(iter_texts(texts), part_texts))

    @abstractmethod
    def _predict_part(self, texts: Sequence[str], batch_tokens: int) -> np.ndarray:
        """The rows of texts that fit in memory."""

    def predict(self, texts: Iterable[str], batch_tokens: int = BATCH_TOKENS) -> list[AnyPrediction]:
        """One prediction per text, in order. Arguments and errors are those of `predict_proba`."""
        rows = self.predict_proba(texts, batch_tokens).tolist()
        return [prediction_of(row, self.labels, self.settings) for row in rows]

    def predict_one(self, text: str) -> AnyPrediction:
        """The prediction of a single text: `label, index, probabilities = classifier.predict_one("I liked it!")`."""
        return self.predict([check_text(text, "text")])[0]


class TextClassifier(Classifier):
    """An exported classifier with its tokenizer and vocabulary.

    Args:
        folder: a run directory, or its `classifier/`.
        device: where to compute.
        trust_remote_code: whether to call what the model's config names of yours (tokenizer.rules, model.arch).

    Raises:
        UserError: no classifier there, or a damaged one.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", trust_remote_code: bool = False):
        exported = read_bundle(model_folder(Path(folder), "classifier"))
        assert exported.labels is not None  # model_folder has looked for them
        self.config, self.labels, self.device = exported.config, exported.labels, torch.device(device)
        self.settings = exported.config.classifier
        self.tokenizer = open_tokenizer(exported.config.tokenizer, exported.folder, trust_remote_code)
        self.ids = token_ids(exported.vocab)
        self.model = load_model(exported, self.device, trust_remote_code)

    def _predict_part(self, texts: Sequence[str], batch_tokens: int) -> np.ndarray:
        documents = self._encode(texts)
        seq_len = self.config.classifier.seq_len
        outputs_NC = np.empty((len(documents), num_outputs(self.settings.target, self.labels)))
        advice = f"give a batch_tokens below {batch_tokens}, or device='cpu'"
        for batch in token_batches([*map(len, documents)], seq_len, batch_tokens):
            width = _whole_chunks(len(documents[batch[0]]), seq_len)
            x_bT = pad_chunks([documents[i] for i in batch], width, seq_len)
            with explain_out_of_memory(f"predict of {len(batch)} text(s) of up to {width} tokens", advice):
                outputs_NC[batch] = self._outputs(x_bT)
        return outputs_NC

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text that the model reads, in its order."""
        (ids, lengths), tokens = self.tokenizer.encode_with_tokens(texts)
        distinct, places = np.unique(ids, return_inverse=True)
        known = np.array([self.ids.get(tokens[i], UNK_ID) for i in distinct.tolist()], dtype=np.int64)
        direction = -1 if self.config.model.backwards else 1
        documents = np.split(known[places], np.cumsum(lengths)[:-1])
        return [document[: self.config.classifier.max_doc_tokens][::direction] for document in documents]

    @torch.no_grad()
    def _outputs(self, x_bT: torch.Tensor) -> np.ndarray:
        """Probabilities of each document's classes, or its number, float64 [b, outputs]. Longest document first."""
        return answers_of(for_one_call(self.model)(x_bT.to(self.device))[0], self.settings.target).cpu().numpy()


def token_batches(lengths: Sequence[int], seq_len: int, batch_tokens: int) -> Iterator[list[int]]:
    """Documents by index, longest first, in batches of at most `batch_tokens` with padding, and at least one document."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // _whole_chunks(lengths[order[start]], seq_len))
        yield order[start : start + rows]
        start += rows


def _whole_chunks(num_tokens: int, seq_len: int) -> int:
    return max(1, -(-num_tokens // seq_len)) * seq_len


def _parts(texts: Iterator[str], part_texts: int) -> Iterator[list[str]]:
    """The texts in runs of at most `part_texts`, and of `CHARACTERS_AT_ONCE` or little more."""
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
