"""Artifacts of an epoch: samples of the language model, and errors of the classifier.

Texts are logged only if tracking.log_text is set, for privacy. Trade-off: by default, errors are identified only by the
document's index in the token store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ulmfit_dist.config.schema import Config, TokenizerConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.data.tokenizers.detokenize import detokenize
from ulmfit_dist.data.tokenizers.rules import BOS
from ulmfit_dist.data.vocab import token_ids
from ulmfit_dist.metrics.accumulators import ClassifierMetrics, LMMetrics
from ulmfit_dist.metrics.calibration import reliability
from ulmfit_dist.models.sampling import Sampling, continue_tokens, never_drawn
from ulmfit_dist.training.learner import DistributedLearner

WORDS_OF_A_SAMPLE, SAMPLING = 40, Sampling()
"""Number of generated tokens of a sample, and sampling parameters."""
TOKENS_OF_A_DOCUMENT = 200
"""Maximum number of logged tokens of a misclassified document."""


def compute_artifacts(
    learner: DistributedLearner, store: TokenStore, config: Config, before: dict[str, Any]
) -> dict[str, Any]:
    """Return the tables of a stage in tables.json after an epoch, given those before it.

    Language model: `samples` of all epochs. Single-label classifier, from the last validation: `labels`, `confusion_matrix`
    (documents by true and predicted class), `reliability` (accuracy by confidence) and `most_wrong`. Other classifiers have
    no tables.
    """
    metrics = learner.evaluation.metrics
    if isinstance(metrics, ClassifierMetrics):
        return _errors(metrics, store, config)
    if not isinstance(metrics, LMMetrics) or not config.tracking.log_text:
        return {}
    return {"samples": [*before.get("samples", []), *_samples(learner, store, config)]}


def _samples(learner: DistributedLearner, store: TokenStore, config: Config) -> list[dict[str, Any]]:
    """Return generated texts, in reading order also for a backward model, which starts at the end of a text."""
    model = learner.accelerate.accelerator.unwrap_model(learner.model)
    beginning_bT = torch.full((config.tracking.num_samples, 1), token_ids(store.vocab)[BOS], device=learner.dls.device)
    never = never_drawn(store.vocab)
    position = (config.seed, "samples", learner.stage_epoch)
    texts = continue_tokens(model, beginning_bT, WORDS_OF_A_SAMPLE, SAMPLING, never, *position).tolist()
    direction = -1 if config.model.backwards else 1
    shown = [_running_text(store, text[::direction], config.tokenizer) for text in texts]
    return [{"epoch": learner.stage_epoch, "text": text} for text in shown]


def _errors(metrics: ClassifierMetrics, store: TokenStore, config: Config) -> dict[str, Any]:
    misclassified = [asdict(prediction) for prediction in metrics.most_wrong]
    for entry in misclassified:
        entry |= {key: store.label_names[entry[key]] for key in ("label", "predicted")}
        if config.tracking.log_text:
            entry["text"] = _text(store, entry["document"], config.tokenizer)
    return {
        "labels": store.label_names,
        "confusion_matrix": metrics.confusion_CC.long().tolist(),
        "reliability": [entry._asdict() for entry in reliability(metrics.bins_K3.numpy())],
        "most_wrong": misclassified,
    }


def _text(store: TokenStore, document: int, tokenizer: TokenizerConfig) -> str:
    ids = store.document(document)
    text = _running_text(store, ids[:TOKENS_OF_A_DOCUMENT].tolist(), tokenizer)
    return text if len(ids) <= TOKENS_OF_A_DOCUMENT else f"{text} …"


def _running_text(store: TokenStore, ids: Sequence[int], tokenizer: TokenizerConfig) -> str:
    return detokenize((store.vocab[i] for i in ids), tokenizer.type, tokenizer.lang)
