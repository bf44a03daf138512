"""Config of a recipe: the profile of the texts, a model size and a schedule.

Learning rates, dropout and clipping are those of `configs/quickstart.yaml` and `configs/imdb.yaml`: robust rather than tuned
to the texts.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import psutil

from ulmfit_dist.config.schema import ClassifierConfig, Config, Phase
from ulmfit_dist.recipes.dataset_profile import Profile
from ulmfit_dist.recipes.planner import BEGINNING, SHORTENED, Corpus, Durations, Plan

CHUNK = 72
"""Tokens per chunk of the classifier's encoder."""
SHARE_OF_MEMORY = 0.25
"""Share of the available memory for the activations of a classifier step."""
COPIES = 12
"""Approximate number of values per hidden unit and token that the backward pass needs."""
FEW_LABELS = 5000
"""Labelled documents below which the classifier is chosen for few labels."""
TEXTS_PER_LABEL = 3
"""Texts per label above which, with few labels, the linear baseline learns from those without a label, too."""
FEWEST_VALID = 100
"""Validation documents below which the best epoch on valid is mostly chance."""
RATIO = 2.6
"""Ratio of the learning rates of adjacent layer groups, as in the paper."""


def corpus_of(profile: Profile) -> Corpus:
    """Return the amounts of text that determine the size of a recipe."""
    survey, tokens, data = profile.survey, profile.tokens, profile.config.data
    train = survey.splits["train"]
    missing = train.labels[data.missing_label] if data.missing_label is not None else 0
    labelled = sum(train.labels.values()) - missing if data.label_col is not None else 0
    num_documents = max(survey.num_documents, 1)
    workers = max(1, min(profile.config.data.num_proc, num_documents // 20_000))
    start = tokens.start_seconds
    if profile.config.tokenizer.type == "sentencepiece":
        start *= max(1.0, min(survey.characters, 20e6) / 2e6)  # SentencePiece trains on more than the sample
    corpus = Corpus(
        documents={name: split.num_documents for name, split in survey.splits.items()},
        labelled=round(labelled * train.scale),
        tokens_per_document=survey.characters * tokens.per_character / num_documents,
        p95=profile.card.tokens["p95"],
        longest=profile.card.tokens["longest"],
        cut=0.0 if "valid" in survey.splits else data.valid_pct,
        prepare_seconds=start + survey.characters / tokens.characters_per_second / workers,
    )
    lengths = tokens.lengths
    shares: dict[int | None, float] = {
        size: float(np.minimum(lengths, size).sum() / max(lengths.sum(), 1)) for size in (BEGINNING, SHORTENED)
    }
    corpus = replace(corpus, shares_read=shares)
    return corpus if data.max_documents is None else corpus.limited(data.max_documents)


def recipe_config(profile: Profile, plan: Plan) -> Config:
    """Return the config of a plan; keys that the user has set keep their values."""
    base, (emb_sz, n_hid, n_layers) = profile.config, plan.size
    is_large = n_layers > 2
    pretrained = "wt103_fwd" if plan.is_pretrained else None
    chosen = replace(
        base,
        data=replace(base.data, max_documents=plan.limit or base.data.max_documents),
        model=replace(base.model, emb_sz=emb_sz, n_hid=n_hid, n_layers=n_layers, pretrained=pretrained),
        lm=replace(
            base.lm,
            global_batch_size=plan.lm_batch,
            drop_mult=0.5 if is_large else 0.2 if plan.lm_epochs < 4 else 0.3,
            phases=_lm_phases(plan),
        ),
        classifier=replace(
            base.classifier,
            global_batch_size=plan.classifier_batch,
            max_len=_max_len(profile, plan),
            max_doc_tokens=plan.max_doc_tokens,
            grad_clip=0.1,
            y_range=_y_range(profile),
            phases=_classifier_phases(plan),
        ),
    )
    corpus = corpus_of(profile) if plan.limit is None else corpus_of(profile).limited(plan.limit)
    return profile.with_overrides(replace(chosen, classifier=for_number_of_labels(chosen.classifier, corpus)))


def recipe_reasons(profile: Profile, plan: Plan, expected: Durations) -> dict[str, str]:
    """Return the comments of the keys of a plan, by dotted key."""
    per_epoch = "documents" if plan.lm_epochs == 1 else "documents, each epoch"
    reasons = {
        "data.max_documents": "documents per split that fit into the minutes",
        "tokenizer.max_vocab": "rarer words become xxunk",
        "model": f"{'initialized with Wikipedia weights' if plan.is_pretrained else 'from scratch'}, the largest that fits",
        "model.pretrained": "English Wikipedia weights, already on this machine",
        "lm": f"about {_minutes(expected.lm)}: language model on all {per_epoch}",
        "lm.global_batch_size": "rows per step, small enough for enough steps",
        "lm.drop_mult": "low dropout for a small model and few epochs",
        "lm.phases": "more epochs give a better language model",
        "classifier": f"about {_minutes(expected.classifier)}: classifier on the language model's encoder",
        "classifier.global_batch_size": "documents per step",
        "classifier.max_len": "last tokens of each document that gradients flow through",
        "classifier.max_doc_tokens": "first tokens of each document that are read, to fit into the minutes",
        "classifier.grad_clip": "stabilizes training",
        "classifier.baseline_features": "the linear model's: lsa learns from all texts, naive_bayes weighs words by class",
        "classifier.temperature_scaling": "few labels make probabilities too high",
        "classifier.export_epoch": "valid has enough documents to choose by",
        "classifier.y_range": "range of the labels, widened by 5 % at each end",
        "classifier.phases": "gradual unfreezing: the head, then all layers; lr: [first, last layer group]",
    }
    return reasons


def for_number_of_labels(classifier: ClassifierConfig, corpus: Corpus) -> ClassifierConfig:
    """Return the section with the features of the linear model, and the keys that few labels need."""
    if corpus.labelled == 0:
        return classifier
    weighted = "tfidf" if classifier.target == "regression" else "naive_bayes"
    if corpus.labelled >= FEW_LABELS:
        return replace(classifier, baseline_features=weighted)
    num_texts = corpus.documents.get("train", 0) + corpus.documents.get("unlabelled", 0)
    is_half = classifier.threshold == 0.5  # a temperature moves probabilities across any other
    num_valid = corpus.documents.get("valid", corpus.labelled * corpus.cut)
    return replace(
        classifier,
        baseline_features="lsa" if num_texts >= TEXTS_PER_LABEL * corpus.labelled else weighted,
        temperature_scaling=classifier.target == "category" or (classifier.target == "multicategory" and is_half),
        export_epoch="best" if num_valid >= FEWEST_VALID else "last",
    )


def _lm_phases(plan: Plan) -> list[Phase]:
    if plan.is_pretrained:
        return [Phase(1, 1e-2, -1), *([Phase(plan.lm_epochs - 1, 1e-3, 0)] if plan.lm_epochs > 1 else [])]
    return [Phase(plan.lm_epochs, 3e-3 if plan.size[2] > 2 else 1e-2, 0)]


def _classifier_phases(plan: Plan) -> list[Phase]:
    epochs, n_layers = max(plan.classifier_epochs, 1), plan.size[2]
    if n_layers > 2 and epochs > 2:
        spread = RATIO**4
        middle = [Phase(1, [1e-2 / spread, 1e-2], -2), Phase(1, [5e-3 / spread, 5e-3], -3)]
        return [Phase(1, 2e-2, -1), *middle, Phase(epochs - 2, [1e-3 / spread, 1e-3], 0)]
    return [Phase(1, 2e-2, -1), Phase(epochs, [1e-2 / RATIO**n_layers, 1e-2], 0)]


def _max_len(profile: Profile, plan: Plan) -> int:
    """Return `classifier.max_len`: the 95th percentile of the lengths in whole chunks, limited by the memory."""
    emb_sz, n_hid, n_layers = plan.size
    units = emb_sz * 2 + n_hid * (n_layers - 1)
    room = SHARE_OF_MEMORY * psutil.virtual_memory().available / (4 * COPIES * units * plan.classifier_batch)
    wanted = min(profile.card.tokens["p95"], plan.max_doc_tokens or math.inf, 1440)
    return max(2 * CHUNK, min(math.ceil(wanted / CHUNK), int(room / CHUNK)) * CHUNK)


def _y_range(profile: Profile) -> list[float] | None:
    numbers = profile.card.numbers
    if not numbers or not profile.survey.is_exact or numbers["lowest"] == numbers["highest"]:
        return None
    margin = (numbers["highest"] - numbers["lowest"]) / 20
    return [float(f"{numbers['lowest'] - margin:.6g}"), float(f"{numbers['highest'] + margin:.6g}")]


def _minutes(seconds: float) -> str:
    return "half a minute" if seconds < 45 else "a minute" if seconds < 90 else f"{seconds / 60:.0f} minutes"
