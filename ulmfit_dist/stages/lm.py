"""The language model stage: pretrained or fresh weights, the recipe's phases, an exported model."""

from __future__ import annotations

from pathlib import Path

from ulmfit_dist.checkpointing.resume import ResumePoint
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import BatchLayout, make_batch_shard
from ulmfit_dist.data.lm_loader import LMLoader
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.accumulators import LMMetrics
from ulmfit_dist.models.fused_cross_entropy import PRODUCT_DTYPES, DecoderLoss
from ulmfit_dist.models.networks import build_language_model, lm_groups
from ulmfit_dist.models.pretrained import describe_match, fetch, load_pretrained
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages.train_stage import train_stage
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.training.callbacks.progress import StageClock
from ulmfit_dist.training.callbacks.user import add_callbacks
from ulmfit_dist.training.learner import build_learner
from ulmfit_dist.training.train_steps import LMLearner
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


def train_lm(
    config: Config,
    runtime: Runtime,
    store: TokenStore,
    tracker: Tracker,
    found: ResumePoint | None = None,
    clock: StageClock | None = None,
) -> Path:
    """Train the language model on the store's texts, from a checkpoint on if one was found, and export it to `<run>/lm`.

    Raises:
        UserError: batch size and ranks do not fit, too little text, pretrained weights that do not fit.
    """
    fetch(config.model.pretrained, runtime)
    with runtime.fail_together():
        learner = lm_learner(config, runtime, store)
    return train_stage(learner, None, config, runtime, store, tracker, found, clock)


def lm_learner(config: Config, runtime: Runtime, store: TokenStore) -> LMLearner:
    """The learner of the stage, untrained: for `train_lm`, and for a notebook."""
    train, valid = lm_loaders(config, runtime, store)
    seed_torch(config.seed, "lm", "weights")
    model = build_language_model(len(store.vocab), config.model, config.lm)
    if config.model.pretrained is not None:
        matched = load_pretrained(model, config.model.pretrained, store.vocab, config.model)
        logger.info(describe_match(config.model.pretrained, matched, store.vocab))
    loss = DecoderLoss(model[1].decoder, PRODUCT_DTYPES[runtime.precision])
    learner = build_learner(
        LMLearner, "lm", config.lm, model, lm_groups, loss, LMMetrics(loss), train, valid, runtime, config.seed
    )
    add_callbacks(learner, "lm", config.lm.callbacks)
    return learner


def lm_loaders(config: Config, runtime: Runtime, store: TokenStore) -> tuple[LMLoader, LMLoader]:
    """Training and validation batches of this rank."""
    settings, splits = config.lm, split_documents(store, config)
    shard = make_batch_shard(runtime.rank, runtime.world_size, config.runtime, runtime.micro_batch_size)
    shard = shard.in_steps(runtime.launch.accumulation_steps, settings.global_batch_size, "lm.global_batch_size")
    layout = BatchLayout(settings.global_batch_size, settings.seq_len, shard, config.model.backwards)
    return LMLoader(store, splits.lm_train, layout, config.seed), LMLoader(store, splits.lm_valid, layout)
