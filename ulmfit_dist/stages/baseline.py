"""Baselines of a classifier on the same documents: TF-IDF with a linear model, and the most frequent class.

Rank 0 fits the linear model (`linear_fit.py`), and all ranks get its answers. Trade-off: a few seconds per run, for a
reference that shows what the language model adds.

N: documents, C: classes, or 1 for a regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
import xxhash
from torch import Tensor

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import Targets, check_targets, read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.inference.answers import figures_of_answers, with_intervals
from ulmfit_dist.models.linear import LinearModel
from ulmfit_dist.stages.baseline_figures import features_name, main_metric
from ulmfit_dist.stages.linear_fit import Figures, Fitted, fit, unlabelled_texts
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


def baseline(config: Config, runtime: Runtime) -> Figures:
    """Prepare the texts and return the figures of their baseline. Collective."""
    return compute_baseline(config, runtime, prepare(config, runtime))


def compute_baseline(config: Config, runtime: Runtime, store: TokenStore) -> Figures:
    """Fit the baseline on rank 0 and return its figures on every rank. Collective.

    Returns:
        `features`, as `classifier.baseline_features`, `C`, `num_features`, `num_documents` (of training), with `lsa` also
        `num_components` and `num_texts` (labelled or not), and `seconds`; the metrics on `valid`, and with 95 % intervals
        on `test`, if it is labelled; `majority`: the same metrics of the most frequent class, or of the mean.

    Raises:
        UserError: no classifier can be trained on these labels.
    """
    sides, metadata, *answers = baseline_answers(config, runtime, store)
    targets = read_targets(store, config.classifier, config.data.label_delim)
    linear, majority = (
        {
            side: _score(part[side], targets.of(store.labels[documents_N]), targets, config, runtime, side == "test")
            for side, documents_N in sides.items()
        }
        for part in answers
    )
    return {**metadata, **linear, "majority": majority}


def baseline_answers(
    config: Config, runtime: Runtime, store: TokenStore, others: Mapping[str, np.ndarray] | None = None
) -> tuple[dict[str, np.ndarray], Figures, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Fit the baseline on rank 0 and return its answers on every rank. Collective.

    Args:
        others: documents to answer beside valid, by name, int64 [N], in place of the test split; None: test.

    Returns:
        Documents by split, int64 [N]: valid, and the others, or test if it is labelled and the run is not a fold of a
        cross-validation; metadata of `compute_baseline`; answers of the linear model by split, float64 [N, C]; and those of
        the most frequent class.

    Raises:
        UserError: no classifier can be trained on these labels.
    """
    sides, train_N, targets = _documents(config, runtime, store, others)
    fitted: Fitted | None = None
    with runtime.fail_together():
        if runtime.is_main:
            fitted, _ = fit(config, store, targets, train_N, sides)
    return sides, *cast(Fitted, runtime.broadcast_object(fitted))


def fit_linear_model(config: Config, runtime: Runtime, store: TokenStore) -> tuple[LinearModel | None, Figures]:
    """Fit the linear model of the baseline on rank 0. Collective.

    Returns:
        The model, None on other ranks; metadata of `compute_baseline`, on every rank.

    Raises:
        UserError: as for `baseline_answers`.
    """
    sides, train_N, targets = _documents(config, runtime, store)
    model, metadata = None, Figures()
    with runtime.fail_together():
        if runtime.is_main:
            (metadata, _, _), make_model = fit(config, store, targets, train_N, sides)
            model = make_model()
    return model, runtime.broadcast_object(metadata)


def _documents(
    config: Config, runtime: Runtime, store: TokenStore, others: Mapping[str, np.ndarray] | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray, Targets]:
    """Return the documents to evaluate by split, as `baseline_answers`, those to train on, and the targets. Collective."""
    with runtime.fail_together():
        splits = split_documents(store, config)
        targets = read_targets(store, config.classifier, config.data.label_delim)
        sides = {"valid": splits.classifier_valid}
        if others is not None:
            sides |= others
        elif len(splits.test) and config.data.folds is None:
            sides["test"] = splits.test
        test_b = store.labels[splits.test] if len(splits.test) else None
        check_targets(targets, store.labels[splits.classifier_train], store.labels[splits.classifier_valid], test_b)
    return sides, splits.classifier_train, targets


def measure_baseline(config: Config, runtime: Runtime, store: TokenStore, tracker: Tracker) -> None:
    """Add the figures of the baseline to the run's summary, unless an earlier start has computed them. Collective."""
    identity = _identity(config, store)
    known = tracker.summary.get("baseline", {}) if runtime.is_main else {}
    if not runtime.broadcast_object(known.get("identity") == identity):
        known = {**compute_baseline(config, runtime, store), "identity": identity}
        tracker.set_baseline(known)
    if runtime.is_main:
        name = main_metric(known["valid"])
        simplest = "mean" if config.classifier.target == "regression" else "most frequent class"
        value, other = known["valid"][name], known["majority"]["valid"][name]
        figures = f"{name} {value:.4f} on valid ({simplest}: {other:.4f})"
        logger.info(f"baseline: {features_name(known)} with a linear model, {known['seconds']:.1f} s: {figures}")


def _identity(config: Config, store: TokenStore) -> str:
    """Return a hash of everything that the figures depend on."""
    splits = split_documents(store, config)
    digest = xxhash.xxh3_64(store.fingerprint.encode())
    for part in (splits.classifier_train, splits.classifier_valid, splits.test):
        digest.update(part.tobytes())
        digest.update(b"|")
    settings = config.classifier
    digest.update(
        repr((settings.target, settings.threshold, config.data.label_delim, config.data.folds, config.seed)).encode()
    )
    if settings.baseline_features != "tfidf":
        digest.update(settings.baseline_features.encode())
    if settings.baseline_features == "lsa":
        digest.update(unlabelled_texts(splits, store).tobytes())
    return digest.hexdigest()


def _score(
    answers: np.ndarray, y_N: Tensor, targets: Targets, config: Config, runtime: Runtime, has_intervals: bool
) -> Figures:
    """Return the loss and the metrics of answers, float64 [N, C], optionally with intervals. Collective."""
    answers_NC = torch.from_numpy(answers).to(runtime.device)
    figures = with_intervals(
        figures_of_answers(answers_NC, y_N, targets, config.classifier, runtime), answers_NC, y_N, config
    )
    intervals = [name for name in figures if name.endswith("_interval")] if has_intervals else []
    return {name: value for name, value in figures.items() if isinstance(value, float) or name in intervals}
