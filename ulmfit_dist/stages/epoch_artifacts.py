"""What there is to look at beside figures: texts that the language model makes up, and what the classifier gets wrong.

Texts leave the token store only where tracking.log_text says so; without it documents are named by their number.
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
TOKENS_OF_A_DOCUMENT = 200
"""How much of a wrongly labelled document is shown."""


def compute_artifacts(
    learner: DistributedLearner, store: TokenStore, config: Config, before: dict[str, Any]
) -> dict[str, Any]:
    """What tables.json says of a stage after an epoch, from what it said before it.

    A language model's `samples`. Of a classifier that says one class its `labels`, its `confusion_matrix` (documents by true
    and predicted class), `reliability` (of labels, by the probability that they are given with) and `most_wrong`, all of the
    last validation.
    """
    metrics = learner.evaluation.metrics
    if isinstance(metrics, ClassifierMetrics):
        return _mistakes(metrics, store, config)
    if not isinstance(metrics, LMMetrics) or not config.tracking.log_text:
        return {}
    return {"samples": [*before.get("samples", []), *_samples(learner, store, config)]}


def _samples(learner: DistributedLearner, store: TokenStore, config: Config) -> list[dict[str, Any]]:
    """Texts from their beginning, or from their end: backwards xxbos comes before the last word of the next document."""
    model = learner.accelerate.accelerator.unwrap_model(learner.model)
    beginning_bT = torch.full((config.tracking.num_samples, 1), token_ids(store.vocab)[BOS], device=learner.dls.device)
    never = never_drawn(store.vocab)
    position = (config.seed, "samples", learner.stage_epoch)
    texts = continue_tokens(model, beginning_bT, WORDS_OF_A_SAMPLE, SAMPLING, never, *position).tolist()
    direction = -1 if config.model.backwards else 1
    shown = [_running_text(store, text[::direction], config.tokenizer) for text in texts]
    return [{"epoch": learner.stage_epoch, "text": text} for text in shown]


def _mistakes(metrics: ClassifierMetrics, store: TokenStore, config: Config) -> dict[str, Any]:
    wrong = [asdict(prediction) for prediction in metrics.most_wrong]
    for entry in wrong:
        entry |= {key: store.label_names[entry[key]] for key in ("label", "predicted")}
        if config.tracking.log_text:
            entry["text"] = _text(store, entry["document"], config.tokenizer)
    return {
        "labels": store.label_names,
        "confusion_matrix": metrics.confusion_CC.long().tolist(),
        "reliability": [entry._asdict() for entry in reliability(metrics.bins_K3.numpy())],
        "most_wrong": wrong,
    }


def _text(store: TokenStore, document: int, tokenizer: TokenizerConfig) -> str:
    ids = store.document(document)
    text = _running_text(store, ids[:TOKENS_OF_A_DOCUMENT].tolist(), tokenizer)
    return text if len(ids) <= TOKENS_OF_A_DOCUMENT else f"{text} …"


def _running_text(store: TokenStore, ids: Sequence[int], tokenizer: TokenizerConfig) -> str:
    return detokenize((store.vocab[i] for i in ids), tokenizer.type, tokenizer.lang)
