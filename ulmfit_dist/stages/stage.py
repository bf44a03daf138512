"""The training stages as data: what differs between the language model and the classifier, looked up once by name.

`run.py`, `train_stage.py` and `notebook.py` are written against a `Stage`, and never compare its name. Trade-off: a reader
follows one more indirection from `train_stage` to `lm_learner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ulmfit_dist.config.schema import ClassifierConfig, Config, LMConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.classifier import check_classifier, classifier_learner, classifier_loaders
from ulmfit_dist.stages.lm import lm_learner, lm_loaders
from ulmfit_dist.training.learner import DistributedLearner

Loaders = tuple[Any, Any]
"""Training and validation loader of a rank."""


@dataclass(frozen=True)
class Stage:
    """Specification of a training stage.

    Attributes:
        name: key of its config section, and its folder in the run directory.
        unit: unit of its throughput, "tokens" or "examples".
        loaders: returns the training and validation loaders of this rank.
        check: raises UserError for input that the stage cannot be trained on.
        build: returns the untrained learner.
        weights: returns the name of the pretrained weights that the stage starts from; None for none.
        base: returns the name of the stage whose exported model this one starts from; None for none.
        labels: returns the class names of its learner; None for a language model.
        has_epoch_tables: whether its tables describe one epoch only, so that those of the exported epoch are reported.
    """

    name: str
    unit: str
    loaders: Callable[[Config, Runtime, TokenStore], Loaders]
    check: Callable[[Config, Runtime, TokenStore], object]
    build: Callable[[Config, Runtime, TokenStore], DistributedLearner]
    weights: Callable[[Config], str | None]
    base: Callable[[Config], str | None]
    labels: Callable[[DistributedLearner], list[str] | None]
    has_epoch_tables: bool

    def settings(self, config: Config) -> LMConfig | ClassifierConfig:
        """Return the stage's section of the config."""
        settings: LMConfig | ClassifierConfig = getattr(config, self.name)
        return settings


LM = Stage(
    name="lm",
    unit="tokens",
    loaders=lm_loaders,
    check=lm_loaders,
    build=lm_learner,
    weights=lambda config: config.model.pretrained,
    base=lambda config: None,
    labels=lambda learner: None,
    has_epoch_tables=False,  # its samples are of all epochs
)
CLASSIFIER = Stage(
    name="classifier",
    unit="examples",
    loaders=classifier_loaders,
    check=check_classifier,
    build=classifier_learner,
    weights=lambda config: config.encoder_source,
    base=lambda config: "lm" if config.classifier.encoder is None else None,
    labels=lambda learner: learner.dls.train.targets.names,
    has_epoch_tables=True,
)
STAGES = {stage.name: stage for stage in (LM, CLASSIFIER)}
"""Stages by name, in the order in which they are trained."""
