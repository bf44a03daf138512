"""The classifier stage: its loaders, its loss, and its learner on a language model's encoder with a fresh head."""

from __future__ import annotations

import numpy as np

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.classifier_loader import ClassifierLoader, classifier_batches, unlabelled_batches
from ulmfit_dist.data.pseudo_labels import training_documents
from ulmfit_dist.data.splits import missing_labels, split_documents
from ulmfit_dist.data.targets import check_targets, read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.objective import Loss, build_objective_loss, build_objective_metrics
from ulmfit_dist.models.bundle import load_encoder, read_bundle
from ulmfit_dist.models.encoder import Encoder
from ulmfit_dist.models.networks import build_classifier, classifier_groups, encoder_of
from ulmfit_dist.models.pretrained import load_pretrained_encoder
from ulmfit_dist.models.registry import check_perturbation
from ulmfit_dist.models.vocab_match import report_match
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages.calibrate import check_threshold
from ulmfit_dist.training.callbacks.user import add_callbacks, check_callbacks
from ulmfit_dist.training.learner import LearnerParts, build_learner
from ulmfit_dist.training.semi_supervised import SemiSupervised, SemiSupervisedLearner, token_frequencies
from ulmfit_dist.training.train_steps import ClassifierLearner


def classifier_learner(config: Config, runtime: Runtime, store: TokenStore, needs_encoder: bool = True) -> ClassifierLearner:
    """Return the learner of the stage, untrained except for its encoder; `config.encoder_source` must be fetched already.

    The encoder is that of `<run>/lm`, or the one that `classifier.encoder` names.

    Args:
        needs_encoder: whether `<run>/lm` must have a language model; else the encoder is a fresh one where there is none.

    Raises:
        UserError: no language model yet or one that does not fit, labels that cannot be learned, or batch size and ranks.
    """
    train, valid = classifier_loaders(config, runtime, store)
    seed_torch(config.seed, "classifier", "weights")
    model = build_classifier(len(store.vocab), train.targets.num_outputs, config.model, config.classifier)
    if needs_encoder or config.encoder_source is not None or (config.run_dir / "lm").is_dir():
        _load_encoder(encoder_of(model), config, runtime, store)
    metrics = build_objective_metrics(train.targets, config.classifier)
    parts = LearnerParts(model, classifier_groups, classifier_loss(config, train), metrics, train, valid)
    learner_class = SemiSupervisedLearner if config.classifier.unlabelled.is_active else ClassifierLearner
    learner = build_learner(learner_class, "classifier", parts, config.classifier, runtime, config.seed)
    if isinstance(learner, SemiSupervisedLearner):
        learner.semi_supervised = semi_supervised(config, store, train)
    add_callbacks(learner, "classifier", config.classifier.callbacks)
    return learner


def semi_supervised(config: Config, store: TokenStore, train: ClassifierLoader) -> SemiSupervised:
    """Return the constants of the losses of `classifier.unlabelled`."""
    settings = config.classifier
    num_steps = len(train) * sum(phase.epochs for phase in settings.phases)
    documents = (
        train.documents if train.unlabelled is None else np.concatenate([train.documents, train.unlabelled.documents])
    )
    return SemiSupervised(settings.unlabelled, settings.target, num_steps, token_frequencies(store, np.unique(documents)))


def check_classifier(config: Config, runtime: Runtime, store: TokenStore) -> None:
    """Raise UserError for texts, labels or settings that the stage cannot be trained on, before any stage is trained."""
    check_threshold(config.classifier)
    train, _ = classifier_loaders(config, runtime, store)
    classifier_loss(config, train)
    build_objective_metrics(train.targets, config.classifier)
    check_callbacks("classifier", config.classifier.callbacks)


def classifier_loss(config: Config, train: ClassifierLoader) -> Loss:
    """Return the training loss. Raises UserError if its weights do not match the classes."""
    return build_objective_loss(config.classifier, train.targets, train.store.labels[train.documents])


def classifier_loaders(config: Config, runtime: Runtime, store: TokenStore) -> tuple[ClassifierLoader, ClassifierLoader]:
    """Return training and validation loaders of this rank. Raises UserError for labels that cannot be learned."""
    check_perturbation(config.model, config.classifier.unlabelled)
    settings, splits = config.classifier, split_documents(store, config)
    targets = read_targets(store, settings, config.data.label_delim)
    missing = missing_labels(store, config)
    advice = f"; {missing}" if missing else ""
    train, labelled = training_documents(store, splits, settings)
    valid, test = (store.labels[part] for part in (splits.classifier_valid, splits.test))
    check_targets(targets, labelled.labels[train], valid, test if len(test) else None, advice)
    loader = classifier_batches(config, runtime, labelled, train, config.seed)
    if settings.unlabelled.batch_size is not None:
        loader.unlabelled = unlabelled_batches(config, runtime, store, splits.unlabelled)
    return loader, classifier_batches(config, runtime, store, splits.classifier_valid)


def _load_encoder(encoder: Encoder, config: Config, runtime: Runtime, store: TokenStore) -> None:
    source = config.encoder_source
    if source is None:
        load_encoder(encoder, read_bundle(config.run_dir / "lm"), store.vocab, config.model)
    else:
        match = load_pretrained_encoder(encoder, source, store.vocab, config.model)
        report_match(source, match, store, runtime)
