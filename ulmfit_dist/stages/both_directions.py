"""Forward and backward models of one config, and their ensemble: `run --both-directions`.

The paper's best results average two such classifiers (Howard & Ruder, 2018, section 3.3). Each direction is a separate run,
`<name>-forward` and `<name>-backward`, resumed, reported and tracked like any other; `runs/<name>` is their ensemble
(`ensemble_run.py`). Trade-off: the directions are trained one after the other, on all ranks each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.pretrained.registry import FASTAI_NAMES, find_public_model
from ulmfit_dist.stages.classifier import check_classifier
from ulmfit_dist.stages.ensemble_run import make_ensemble
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.run import plan_runs, run
from ulmfit_dist.stages.run_directories import check_free_for_ensemble, check_free_for_training
from ulmfit_dist.stages.sub_runs import grouped, sub_run
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

DIRECTIONS = {"forward": False, "backward": True}
"""Values of `model.backwards` by direction, in the order of training."""
KIND = "directions"


def run_both_directions(config: Config, runtime: Runtime, fresh: bool = False) -> dict[str, Any]:
    """Train both directions, as far as they are not trained, and make their ensemble in `runs/<name>`. Collective.

    Args:
        fresh: train both directions again.

    Returns:
        As `make_ensemble`.

    Raises:
        UserError: as `run`; the config sets a direction, or weights that only one direction can start from.
        ResumableInterrupt: a signal has requested a stop, and everything is saved.
    """
    configs = configs_of_directions(config)
    with runtime.fail_together():
        check_free_for_ensemble(config, KIND)
        for direction in configs:
            check_free_for_training(direction)
    store = _common_store(configs, runtime)
    plan_runs(config.name, configs, runtime, store, fresh)
    for number, direction in enumerate(configs, start=1):
        logger.info(f"\n{direction.name}: direction {number} of {len(configs)}")
        run(direction, runtime, fresh)
    logger.info(f"\n{config.name}: mean of {' and '.join(direction.name for direction in configs)}")
    return make_ensemble(KIND, grouped(config), configs, store, runtime, fresh)


def configs_of_directions(config: Config) -> list[Config]:
    """Return the config of each direction, with its own name and a common W&B group.

    Raises:
        UserError: the config sets a direction or a fold, or weights that only one direction can start from.
    """
    if config.model.backwards:
        raise UserError("model.backwards=true, but --both-directions trains both: leave out model.backwards, or the option")
    if config.data.folds is not None:
        raise UserError(
            f"data.folds={config.data.folds} is for cross-validate, which has no --both-directions: set data.folds=null, or "
            f"use cross-validate --ensemble"
        )
    return [
        sub_run(
            config,
            direction,
            model=replace(
                config.model,
                backwards=backwards,
                pretrained=_weights("model.pretrained", config.model.pretrained, backwards),
            ),
            classifier=replace(
                config.classifier, encoder=_weights("classifier.encoder", config.classifier.encoder, backwards)
            ),
        )
        for direction, backwards in DIRECTIONS.items()
    ]


def _weights(key: str, name: str | None, backwards: bool) -> str | None:
    """Return the name of the weights that a direction starts from. Raises UserError if only one direction has any."""
    if name is None or (key == "classifier.encoder" and name == "pretrained"):
        return name
    model = find_public_model(name)
    if model is None:
        raise UserError(
            f"{key}={name} holds a model of one direction, but --both-directions trains both: name a public model that has "
            f"both, such as en, or null, or start a run for each direction and average them with 'ulmfit-dist ensemble'"
        )
    model.addresses(backwards)
    if name in FASTAI_NAMES:
        return next(other for other, read in FASTAI_NAMES.items() if read == (model.name, backwards))
    return name


def _common_store(configs: Sequence[Config], runtime: Runtime) -> TokenStore:
    """Prepare the token store of all directions, and check that each can be trained on it. Collective."""
    stores = [prepare(config, runtime) for config in configs]
    with runtime.fail_together():
        for config, store in zip(configs, stores, strict=True):
            check_classifier(config, runtime, store)
        if stores[0].fingerprint != stores[-1].fingerprint:
            raise UserError(
                f"tokenizer.sp_model={configs[0].tokenizer.sp_model}: the forward and the backward weights have different "
                f"SentencePiece models, so their classifiers cannot share a token store: name one file"
            )
    return stores[0]
