"""Pseudo-labels: labels that a model has given to documents without one, in a Parquet file that a classifier trains on.

Columns: `document` (index in the token store), `label` and `confidence`. The schema's metadata has the fingerprint of the
token store and how the labels were made. A file holds no text. Its digest covers documents and labels, so a stage is
trained again if they change, and not if the file is copied or moved. Trade-off: the file is read whole, and only fits the
token store that it was made for.

N: documents.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ulmfit_dist.config.schema import ClassifierConfig, Config
from ulmfit_dist.data.prediction_table import DAMAGE
from ulmfit_dist.data.splits import DocumentSplits
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import read_bounded, write_bytes

PSEUDO_LABELS = "pseudo_labels.parquet"
MOST_BYTES = 2**30
"""Maximum file size, in bytes."""
COLUMNS = {"document": pa.int64(), "label": pa.string(), "confidence": pa.float64()}


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of documents of a token store.

    Attributes:
        documents: indices in the store, int64 [N], ascending.
        names: label of each document, [N].
        confidences: probability of the label, float64 [N].
        metadata: `fingerprint` of the store, `valid`, the digest of the validation documents, and how the labels were made,
            as JSON values.
    """

    documents: np.ndarray
    names: list[str]
    confidences: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of documents and labels."""
        digest = hashlib.blake2b(self.documents.astype("<i8").tobytes(), digest_size=16)
        digest.update(json.dumps(self.names).encode())
        return digest.hexdigest()

    def counts(self) -> dict[str, int]:
        """Return the number of documents by label, in the order of the labels."""
        names, counts = np.unique(np.array(self.names, dtype=object), return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def write(self, path: Path) -> None:
        """Write the file atomically. Raises UserError."""
        columns = (self.documents, self.names, self.confidences)
        arrays = {name: pa.array(values, COLUMNS[name]) for name, values in zip(COLUMNS, columns, strict=True)}
        metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in self.metadata.items()}
        buffer = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table(arrays).replace_schema_metadata(metadata), buffer)
        write_bytes(path, buffer.getvalue().to_pybytes())


def read_pseudo_labels(path: Path) -> PseudoLabels:
    """Read a file of pseudo-labels. Raises UserError if it is missing or damaged."""
    try:
        return _parse(read_bounded(path, MOST_BYTES))
    except FileNotFoundError:
        raise UserError(
            f"classifier.pseudo_labels={path}: no such file: 'ulmfit-dist self-train CONFIG' writes it, or set null"
        ) from None
    except (OSError, *DAMAGE) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise UserError(
            f"{path}: damaged, or no pseudo-labels ({' '.join(reason.split())[:200]}): delete it, and run the command again"
        ) from None


def digest_of_pseudo_labels(config: Config) -> str | None:
    """Return the digest of the pseudo-labels that the classifier trains on; None if it has none. Raises UserError."""
    path = config.classifier.pseudo_labels
    return None if path is None else read_pseudo_labels(Path(path)).digest


def training_documents(
    store: TokenStore, splits: DocumentSplits, settings: ClassifierConfig
) -> tuple[np.ndarray, TokenStore]:
    """Return the documents that the classifier trains on, and the store with their labels.

    Returns:
        Indices, int64 [N], ascending, with labelled documents repeated (`classifier.repeat_labelled`); and the store, in
        which documents with a pseudo-label have it as label.

    Raises:
        UserError: pseudo-labels that are damaged, of another store, or of documents that measure the classifier.
    """
    labelled_N = np.repeat(splits.classifier_train, settings.repeat_labelled)
    if settings.pseudo_labels is None:
        return labelled_N, store
    path = Path(settings.pseudo_labels)
    pseudo = read_pseudo_labels(path)
    _check_store(path, pseudo, store)
    _check_documents(path, pseudo.documents, splits)
    _check_valid(path, pseudo, splits)
    relabelled = copy.copy(store)
    relabelled.labels = store.labels.copy()
    index = {name: i for i, name in enumerate(store.label_names)}
    relabelled.labels[pseudo.documents] = [index[name] for name in pseudo.names]
    return np.sort(np.concatenate([labelled_N, pseudo.documents])), relabelled


def _parse(content: bytes) -> PseudoLabels:
    """Return the pseudo-labels of a file. Raises one of `DAMAGE` for a damaged one."""
    table = pa.parquet.read_table(pa.BufferReader(content), columns=list(COLUMNS))
    documents, names, confidences = (table.column(name).cast(dtype) for name, dtype in COLUMNS.items())
    if any(column.null_count for column in (documents, names, confidences)):
        raise ValueError("missing values")
    metadata = {
        key.decode(): json.loads(value) for key, value in (table.schema.metadata or {}).items() if key[:5] != b"ARROW"
    }
    documents_N = documents.to_numpy()
    if np.any(np.diff(documents_N) <= 0):
        raise ValueError("documents are not in ascending order")
    return PseudoLabels(documents_N, names.to_pylist(), confidences.to_numpy(), metadata)


def _check_store(path: Path, pseudo: PseudoLabels, store: TokenStore) -> None:
    """Raise UserError unless the file was made for this store."""
    if pseudo.metadata.get("fingerprint") != store.fingerprint:
        raise UserError(
            f"{path} was made for another token store than {store.path}: texts or tokenizer have changed; start over with "
            f"'ulmfit-dist self-train CONFIG --fresh'"
        )
    if unknown := sorted(set(pseudo.names) - set(store.label_names)):
        raise UserError(f"{path}: label {unknown[0]!r} is not a class of {store.path}: delete the file, and make it again")


def documents_digest(documents_N: np.ndarray) -> str:
    """Return a digest of indices of documents, int64 [N]."""
    return hashlib.blake2b(documents_N.astype("<i8").tobytes(), digest_size=16).hexdigest()


def _check_valid(path: Path, pseudo: PseudoLabels, splits: DocumentSplits) -> None:
    """Raise UserError if the teacher had another valid split: it may have learned labels that measure the classifier."""
    if "valid" not in pseudo.metadata:
        raise UserError(
            f"{path} was written by an earlier version, which did not record the valid split: start over with --fresh"
        )
    if pseudo.metadata["valid"] != documents_digest(splits.classifier_valid):
        raise UserError(
            f"{path} was made with another valid split, so its teacher has learned from documents that are valid now: use "
            f"the seed and data section of that self-training, or start one with these"
        )


def _check_documents(path: Path, documents_N: np.ndarray, splits: DocumentSplits) -> None:
    """Raise UserError if a document is not one of the training documents without a label."""
    others_N = np.setdiff1d(documents_N, splits.unlabelled)
    if len(others_N):
        raise UserError(
            f"{path}: document {others_N[0]} is labelled, or of the valid or test split ({len(others_N):,} such documents): "
            f"pseudo-labels are for training documents without a label; make them with the same seed and data section"
        )
