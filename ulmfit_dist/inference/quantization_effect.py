"""Change of a classifier's main metric by quantization, on the validation documents of its token store.

The metric is accuracy, or the RMSE of a regression. It is measured once for an exported model, and kept beside the token
store under the hash of the model's files. Trade-off: without the token store, as for a model that was copied to another
machine, it is not measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.predictor import TextClassifier
from ulmfit_dist.metrics.resampling import decide, sample_of
from ulmfit_dist.models.bundle import bundle_digest, model_folder, read_bundle
from ulmfit_dist.utils.files import read_bounded, write_json

MAX_CHARACTERS = 1 << 12
"""Maximum size of a kept result, in bytes."""


@dataclass(frozen=True)
class QuantizationEffect:
    """A metric of a classifier before and after quantization.

    Attributes:
        quantize: kind of quantization, such as int8.
        metric: name of the metric.
        quantized, original: values of the metric.
        num_documents: number of validation documents.
        num_different: number of documents with another prediction; None for a regression.
        largest_difference: largest difference of a probability or value.
    """

    quantize: str
    metric: str
    quantized: float
    original: float
    num_documents: int
    num_different: int | None
    largest_difference: float

    def __str__(self) -> str:
        different = f"{self.num_different} of {self.num_documents:,} predictions differ"
        if self.num_different is None:
            different = f"values differ by at most {self.largest_difference:.4g}"
        return (
            f"{self.quantize}: {self.metric} {self.quantized:.4f} on valid, {self.original:.4f} in fp32 "
            f"({self.quantized - self.original:+.4f}; {different})"
        )


def quantization_effect(
    run: Path, quantized: TextClassifier, trust: bool = False, report: Callable[[str], None] = lambda message: None
) -> QuantizationEffect | None:
    """Return the effect of quantization, measured now or before; None if the token store is missing.

    Args:
        run: run directory or exported model of the classifier.
        quantized: the classifier, quantized.
        trust: call user-defined functions of the model's config.
        report: function for messages about a measurement that takes time, or cannot be kept.
    """
    exported = read_bundle(model_folder(run, "classifier"))
    fingerprint = exported.training["data_fingerprint"]
    store = _find_store(exported.config.data.token_store, Path(exported.config.data.cache_dir), fingerprint)
    if store is None or store.vocab != exported.vocab:
        return None
    path = store.path.parent / "quantization" / f"{bundle_digest(exported.folder)}.{quantized.quantize}.json"
    known = _read(path)
    if known is not None:
        return known
    documents_N = split_documents(store, exported.config).classifier_valid
    report(f"{quantized.quantize}: computing the accuracy on {len(documents_N):,} validation documents, once")
    effect = _measure(quantized, TextClassifier(run, trust_remote_code=trust), store, documents_N)
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, asdict(effect))
    except (OSError, UserError):
        report(f"{path}: cannot be written, so the accuracy is computed again in the next call")
    return effect


def _find_store(token_store: str | None, cache: Path, fingerprint: str) -> TokenStore | None:
    try:
        store = TokenStore(Path(token_store) if token_store is not None else cache / fingerprint)
    except UserError:
        return None
    return store if store.fingerprint == fingerprint else None


def _read(path: Path) -> QuantizationEffect | None:
    """Return a kept result; None if there is none, or of another version."""
    try:
        return QuantizationEffect(**json.loads(read_bounded(path, MAX_CHARACTERS)))
    except (OSError, ValueError, TypeError):
        return None


def _measure(
    quantized: TextClassifier, original: TextClassifier, store: TokenStore, documents_N: np.ndarray
) -> QuantizationEffect:
    settings, delimiter = original.settings, original.data.label_delim
    y_N = read_targets(store, settings, delimiter).of(store.labels[documents_N]).numpy()
    y_N = y_N > 0 if settings.target == "multicategory" else y_N
    documents = [store.document(int(i)).astype(np.int64) for i in documents_N]
    answers = [model.predict_proba_of_tokens(model.as_read(documents)) for model in (quantized, original)]
    figures = sample_of(answers, y_N, settings.target, [settings.threshold] * 2).exact()
    metric = next(iter(figures[0]))
    num_different = None
    if settings.target != "regression":
        decisions = [decide(part_NC, settings.target, settings.threshold).reshape(len(part_NC), -1) for part_NC in answers]
        num_different = int((decisions[0] != decisions[1]).any(1).sum())
    return QuantizationEffect(
        quantize=quantized.quantize or "",
        metric=metric,
        quantized=figures[0][metric],
        original=figures[1][metric],
        num_documents=len(documents_N),
        num_different=num_different,
        largest_difference=float(np.abs(answers[0] - answers[1]).max()),
    )
