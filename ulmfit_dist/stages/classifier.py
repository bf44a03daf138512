"""The classifier stage: the language model's encoder, a fresh head, gradual unfreezing, an exported model."""

from __future__ import annotations

from pathlib import Path

from fastai.text.models.awdlstm import awd_lstm_clas_split
from torch.nn import functional as F

from ulmfit_dist.config import Config
from ulmfit_dist.data.batches import share_of_rank
from ulmfit_dist.data.classifier_batches import ClassifierBatches
from ulmfit_dist.data.splits import check_labels, split_documents
from ulmfit_dist.data.store import TokenStore
from ulmfit_dist.model.awd_lstm import build_classifier, encoder_of
from ulmfit_dist.model.export import load_encoder, read_exported
from ulmfit_dist.randomness import seed_torch
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.stages.resume import Found
from ulmfit_dist.stages.train import train_stage
from ulmfit_dist.training.learner import build_learner
from ulmfit_dist.training.metrics import ClassifierMetrics
from ulmfit_dist.training.steps import ClassifierLearner
from ulmfit_dist.training.tracking import Tracker


def train_classifier(
    config: Config, runtime: Runtime, store: TokenStore, tracker: Tracker, found: Found | None = None
) -> Path:
    """Train the classifier on the encoder in `<run>/lm`, from a checkpoint on if one was found; export it beside that.

    Raises:
        UserError: no language model yet or one that does not fit, labels that cannot be learned, batch size and ranks.
    """
    with runtime.together():
        learner = classifier_learner(config, runtime, store)
    return train_stage(learner, config.classifier, "examples", store.label_names, config, runtime, store, tracker, found)


def classifier_learner(config: Config, runtime: Runtime, store: TokenStore, needs_encoder: bool = True) -> ClassifierLearner:
    """The learner of the stage, untrained but for its encoder: for `train_classifier`, and for a notebook.

    Args:
        needs_encoder: whether there must be a language model in `<run>/lm`; else the encoder may be a fresh one.
    """
    train, valid = classifier_loaders(config, runtime, store)
    seed_torch(config.seed, "classifier", "weights")
    model = build_classifier(len(store.vocab), len(store.label_names), config.model, config.classifier)
    if needs_encoder or (config.run_dir / "lm").is_dir():
        load_encoder(encoder_of(model), read_exported(config.run_dir / "lm"), store.vocab)
    return build_learner(
        ClassifierLearner,
        "classifier",
        config.classifier,
        model,
        awd_lstm_clas_split,
        F.cross_entropy,
        ClassifierMetrics(len(store.label_names)),
        train,
        valid,
        runtime,
        config.seed,
    )


def classifier_loaders(config: Config, runtime: Runtime, store: TokenStore) -> tuple[ClassifierBatches, ClassifierBatches]:
    """Training and validation batches of this rank."""
    settings, splits = config.classifier, split_documents(store, config)
    check_labels(store, splits)
    share = share_of_rank(runtime.rank, runtime.world_size, config.runtime)
    shape = (settings.global_batch_size, settings.seq_len, share)
    backwards, truncate_to = config.model.backwards, settings.truncate_to
    return (
        ClassifierBatches(store, splits.classifier_train, *shape, config.seed, backwards, truncate_to),
        ClassifierBatches(store, splits.classifier_valid, *shape, None, backwards, truncate_to),
    )
