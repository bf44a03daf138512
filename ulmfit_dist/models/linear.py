"""Linear classifier of TF-IDF features as a folder on disk, which labels token ids without scikit-learn.

    linear.safetensors    n-grams by column (unless they are hashed), inverse document frequencies, coefficients, intercepts
    linear.json           target, number of outputs and tokens, C, digest of the vocabulary

It holds data only, never a pickle; `stages/baseline.py` fits it. Trade-off: coefficients are kept in float64, so its answers
are those of the fitted model, for eight bytes per column and class.

N: documents, C: classes, or 1 for a regression, F: columns, K: rows of coefficients, P: pairs of a document and an n-gram.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import xxhash

from ulmfit_dist.errors import UserError
from ulmfit_dist.models.ngrams import HASHED_FEATURES, columns_of, count_pairs
from ulmfit_dist.utils.files import make_folder, read_bounded, write_bytes, write_json

ARRAYS, METADATA = "linear.safetensors", "linear.json"
MOST_METADATA = 2**20
"""Maximum size of linear.json, in bytes."""
TOKENS_AT_ONCE = 1_000_000
"""Tokens of the documents that are computed together, which limits memory to about 100 MB."""
TARGETS = ("category", "multicategory", "regression")


@dataclass(frozen=True)
class LinearSettings:
    """Content of linear.json.

    Attributes:
        target: as `classifier.target`.
        num_outputs: classes, or 1 for a regression.
        vocab_size: tokens of the vocabulary.
        vocab: digest of the vocabulary.
        C: inverse regularization strength.
    """

    target: str
    num_outputs: int
    vocab_size: int
    vocab: str
    C: float


@dataclass(frozen=True)
class LinearModel:
    """A fitted linear model.

    Attributes:
        settings: target, sizes and vocabulary.
        idf: inverse document frequencies, float32 [F].
        coefficients, intercepts: float64 [K, F] and [K]. A single row of a category is that of the second class.
        constants: probability of a row whose class all training documents have, or none; NaN for other rows, float64 [K].
        classes: output of each row, or of both classes of a single row, int64.
        ngrams: n-grams by column, ascending int64 [F]; None: they are hashed.
    """

    settings: LinearSettings
    idf: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray
    constants: np.ndarray
    classes: np.ndarray
    ngrams: np.ndarray | None

    def answers(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Return class probabilities, or numbers, float64 [N, C], given the token ids of documents."""
        answers_NC = np.zeros((len(documents), self.settings.num_outputs))
        ends = np.cumsum([len(document) for document in documents])
        block_N = ends // TOKENS_AT_ONCE
        for block in np.unique(block_N):
            rows = np.flatnonzero(block_N == block)
            answers_NC[rows] = self._answers([documents[row] for row in rows.tolist()])
        return answers_NC

    def _answers(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        rows_P, columns_P, values_P = self._features(documents)
        scores_NK = np.empty((len(documents), len(self.intercepts)))
        for k, (weights_F, intercept) in enumerate(zip(self.coefficients, self.intercepts, strict=True)):
            scores_NK[:, k] = np.bincount(rows_P, weights_F[columns_P] * values_P, len(documents)) + intercept
        if self.settings.target == "regression":
            return scores_NK
        p_NK = np.exp(-np.logaddexp(0, -scores_NK))  # the logistic function, without overflow
        p_NK = np.where(np.isnan(self.constants), p_NK, self.constants)
        answers_NC = np.zeros((len(documents), self.settings.num_outputs))
        if self.settings.target == "multicategory":
            answers_NC[:, self.classes] = p_NK
        elif len(self.intercepts) == 1:
            answers_NC[:, self.classes] = np.concatenate([1 - p_NK, p_NK], axis=1)
        else:
            answers_NC[:, self.classes] = p_NK / p_NK.sum(1, keepdims=True)
        return answers_NC

    def _features(self, documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return document, column, int64 [P], and value, float64 [P], of each feature, rounded as in `TfidfFeatures`."""
        pairs = count_pairs(documents, self.settings.vocab_size)
        columns_P, is_known = columns_of(pairs.ngrams, self.ngrams)
        keys_P = pairs.documents[is_known] * len(self.idf) + columns_P[is_known]
        keys_P, indices = np.unique(keys_P, return_inverse=True)  # a collision of hashed n-grams adds their counts
        counts_P = np.bincount(indices, pairs.counts[is_known], len(keys_P))
        rows_P, columns_P = np.divmod(keys_P, len(self.idf))
        values_P = (np.log(counts_P.astype(np.float32)) + np.float32(1)) * self.idf[columns_P]
        lengths_N = np.sqrt(np.bincount(rows_P, values_P * values_P, len(documents)))
        lengths_N = np.where(lengths_N > 0, lengths_N, 1)  # an n-gram of all documents has an idf, so a value, of 0
        values_P = (values_P / lengths_N[rows_P]).astype(np.float32)
        return rows_P, columns_P, values_P.astype(np.float64)

    def save(self, folder: Path) -> None:
        """Write the model to a folder. Raises UserError if it cannot be written."""
        make_folder(folder, "runs_dir")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _names(self.ngrams is None)}
        write_bytes(folder / ARRAYS, safetensors.numpy.save(arrays))
        write_json(folder / METADATA, asdict(self.settings))


def load_linear(folder: Path) -> LinearModel:
    """Read a model that `save` wrote. Raises UserError if a file is missing or damaged."""
    try:
        settings = LinearSettings(**json.loads(read_bounded(folder / METADATA, MOST_METADATA)))
        arrays = safetensors.numpy.load_file(folder / ARRAYS)
        _check(settings, arrays)
        return LinearModel(settings, **{name: arrays.get(name) for name in _names(is_hashed=False)})  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError) as error:
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(
            f"{folder}: the linear model is missing or damaged ({reason}): start the command that trained the ensemble again"
        ) from None


def vocab_digest(vocab: Sequence[str]) -> str:
    """Return a digest of the tokens by id: a linear model reads only the ids of the vocabulary that it was fitted to."""
    return xxhash.xxh3_128_hexdigest("\0".join(vocab).encode("utf-8", "surrogatepass"))


def _names(is_hashed: bool) -> tuple[str, ...]:
    return ("idf", "coefficients", "intercepts", "constants", "classes", *(() if is_hashed else ("ngrams",)))


def _check(settings: LinearSettings, arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError if the arrays do not fit together, so that an index of a damaged file cannot fail later."""
    if settings.target not in TARGETS or not all(type(size) is int for size in (settings.num_outputs, settings.vocab_size)):
        raise ValueError("wrong settings")
    idf, coefficients, classes = arrays["idf"], arrays["coefficients"], arrays["classes"]
    num_rows, num_columns = coefficients.shape
    shapes = arrays["intercepts"].shape == arrays["constants"].shape == (num_rows,) and idf.shape == (num_columns,)
    expected = HASHED_FEATURES if "ngrams" not in arrays else len(arrays["ngrams"])
    num_classes = 2 if settings.target == "category" and num_rows == 1 else num_rows
    if not shapes or num_columns != expected or num_columns == 0 or classes.shape != (num_classes,):
        raise ValueError("arrays of other sizes")
    if not (classes.min() >= 0 and classes.max() < settings.num_outputs):
        raise ValueError("classes outside the outputs")
