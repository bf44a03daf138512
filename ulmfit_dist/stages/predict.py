"""Labels for texts, from an exported classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ulmfit_dist.data.classifier_batches import pad_chunks
from ulmfit_dist.data.tokenizer import open_tokenizer
from ulmfit_dist.data.vocab import UNK_ID, token_ids
from ulmfit_dist.model.export import load_model, read_exported
from ulmfit_dist.stages.run import model_folder


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of one text.

    Attributes:
        label: the most probable class.
        index: its place in the list of classes.
        probabilities: by class, in that order; they sum to 1.
    """

    label: str
    index: int
    probabilities: dict[str, float]


class TextClassifier:
    """An exported classifier with its tokenizer and vocabulary.

    Args:
        folder: a run directory, or its `classifier/`.
        device: where to compute.
        trust_rules: whether to call the functions of yours that the model's config names (tokenizer.rules).

    Raises:
        UserError: no classifier there, or a damaged one.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", trust_rules: bool = False):
        exported = read_exported(model_folder(Path(folder), "classifier"))
        assert exported.labels is not None  # model_folder has looked for them
        self.config, self.labels, self.device = exported.config, exported.labels, torch.device(device)
        self.tokenizer = open_tokenizer(exported.config.tokenizer, exported.folder, trust_rules)
        self.ids = token_ids(exported.vocab)
        self.model = load_model(exported, self.device)

    def predict(self, texts: Sequence[str], batch_size: int = 64) -> list[Prediction]:
        """One prediction per text, in order; texts of like length are computed together."""
        direction = -1 if self.config.model.backwards else 1
        documents = [self._encode(tokens)[::direction] for tokens in self.tokenizer.tokenize(texts)]
        order = sorted(range(len(documents)), key=lambda i: -len(documents[i]))
        predictions: list[Prediction | None] = [None] * len(documents)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for i, row in zip(batch, self._probabilities([documents[i] for i in batch]), strict=True):
                predictions[i] = self._prediction(row)
        return [prediction for prediction in predictions if prediction is not None]

    def _encode(self, tokens: list[str]) -> np.ndarray:
        return np.array([self.ids.get(token, UNK_ID) for token in tokens], dtype=np.int64)

    @torch.no_grad()
    def _probabilities(self, documents: list[np.ndarray]) -> list[list[float]]:
        """Probabilities of each document's classes. Longest document first."""
        x_bT = pad_chunks(documents, len(documents[0]), self.config.classifier.seq_len)
        return torch.softmax(self.model(x_bT.to(self.device))[0].double(), dim=1).tolist()

    def _prediction(self, row: list[float]) -> Prediction:
        index = int(np.argmax(row))
        return Prediction(self.labels[index], index, dict(zip(self.labels, row, strict=True)))
