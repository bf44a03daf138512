"""The classifier stage: a language model's encoder, a fresh head, gradual unfreezing, an exported model."""

from __future__ import annotations

from pathlib import Path

from ulmfit_dist.checkpointing.resume import ResumePoint
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.classifier_loader import ClassifierLoader, classifier_batches
from ulmfit_dist.data.splits import missing_labels, split_documents
from ulmfit_dist.data.targets import check_targets, read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.objective import Loss, build_objective_loss, build_objective_metrics
from ulmfit_dist.models.bundle import load_encoder, read_bundle
from ulmfit_dist.models.encoder import Encoder
from ulmfit_dist.models.networks import build_classifier, classifier_groups, encoder_of
from ulmfit_dist.models.pretrained import describe_match, fetch, load_pretrained_encoder
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages.train_stage import train_stage
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.training.callbacks.progress import StageClock
from ulmfit_dist.training.callbacks.user import add_callbacks, check_callbacks
from ulmfit_dist.training.learner import build_learner
from ulmfit_dist.training.train_steps import ClassifierLearner
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


def train_classifier(
    config: Config,
    runtime: Runtime,
    store: TokenStore,
    tracker: Tracker,
    found: ResumePoint | None = None,
    clock: StageClock | None = None,
) -> Path:
    """Train the classifier, from a checkpoint on if one was found, and export it to `<run>/classifier`.

    Its encoder is that of `<run>/lm`, or what `classifier.encoder` names.

    Raises:
        UserError: no language model yet or one that does not fit, labels that cannot be learned, batch size and ranks.
    """
    fetch(config.encoder_source, runtime)
    with runtime.fail_together():
        learner = classifier_learner(config, runtime, store)
    labels = learner.dls.train.targets.names
    return train_stage(learner, labels, config, runtime, store, tracker, found, clock)


def classifier_learner(config: Config, runtime: Runtime, store: TokenStore, needs_encoder: bool = True) -> ClassifierLearner:
    """The learner of the stage, untrained but for its encoder: for `train_classifier`, and for a notebook.

    Args:
        needs_encoder: whether there must be a language model in `<run>/lm`; else the encoder may be a fresh one.
    """
    train, valid = classifier_loaders(config, runtime, store)
    seed_torch(config.seed, "classifier", "weights")
    model = build_classifier(len(store.vocab), train.targets.num_outputs, config.model, config.classifier)
    if needs_encoder or config.encoder_source is not None or (config.run_dir / "lm").is_dir():
        _load_encoder(encoder_of(model), config, store)
    learner = build_learner(
        ClassifierLearner,
        "classifier",
        config.classifier,
        model,
        classifier_groups,
        classifier_loss(config, train),
        build_objective_metrics(train.targets, config.classifier),
        train,
        valid,
        runtime,
        config.seed,
    )
    add_callbacks(learner, "classifier", config.classifier.callbacks)
    return learner


def check_classifier(config: Config, runtime: Runtime, store: TokenStore) -> None:
    """Refuse, before anything is trained, what this stage cannot be trained on. Raises UserError."""
    train, _ = classifier_loaders(config, runtime, store)
    classifier_loss(config, train)
    build_objective_metrics(train.targets, config.classifier)
    check_callbacks("classifier", config.classifier.callbacks)


def classifier_loss(config: Config, train: ClassifierLoader) -> Loss:
    """The training loss. Raises UserError where its weights do not fit the classes."""
    return build_objective_loss(config.classifier, train.targets, train.store.labels[train.documents])


def _load_encoder(encoder: Encoder, config: Config, store: TokenStore) -> None:
    name = config.encoder_source
    if name is None:
        load_encoder(encoder, read_bundle(config.run_dir / "lm"), store.vocab, config.model)
    else:
        known = load_pretrained_encoder(encoder, name, store.vocab, config.model)
        logger.info(describe_match(name, known, store.vocab))


def classifier_loaders(config: Config, runtime: Runtime, store: TokenStore) -> tuple[ClassifierLoader, ClassifierLoader]:
    """Training and validation batches of this rank."""
    settings, splits = config.classifier, split_documents(store, config)
    targets = read_targets(store, settings, config.data.label_delim)
    missing = missing_labels(store, config)
    advice = f"; {missing}" if missing else ""
    train, valid, test = (store.labels[part] for part in (splits.classifier_train, splits.classifier_valid, splits.test))
    check_targets(targets, train, valid, test if len(test) else None, advice)
    return (
        classifier_batches(config, runtime, store, splits.classifier_train, config.seed),
        classifier_batches(config, runtime, store, splits.classifier_valid),
    )
