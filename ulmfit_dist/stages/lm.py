"""The language model stage: its loaders and its learner, from pretrained or fresh weights."""

from __future__ import annotations

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import BatchLayout, make_batch_shard
from ulmfit_dist.data.lm_loader import LMLoader
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.accumulators import LMMetrics
from ulmfit_dist.models.fused_cross_entropy import PRODUCT_DTYPES, DecoderLoss
from ulmfit_dist.models.networks import build_language_model, lm_groups
from ulmfit_dist.models.pretrained import load_pretrained
from ulmfit_dist.models.vocab_match import report_match
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.training.callbacks.user import add_callbacks
from ulmfit_dist.training.learner import LearnerParts, build_learner
from ulmfit_dist.training.train_steps import LMLearner


def lm_learner(config: Config, runtime: Runtime, store: TokenStore) -> LMLearner:
    """Return the untrained learner of the stage; `model.pretrained` must be fetched already.

    Raises:
        UserError: batch size and ranks do not fit, too little text, or pretrained weights that do not fit.
    """
    train, valid = lm_loaders(config, runtime, store)
    seed_torch(config.seed, "lm", "weights")
    model = build_language_model(len(store.vocab), config.model, config.lm)
    if config.model.pretrained is not None:
        match = load_pretrained(model, config.model.pretrained, store.vocab, config.model)
        report_match(config.model.pretrained, match, store, runtime)
    loss = DecoderLoss(model[1].decoder, PRODUCT_DTYPES[runtime.precision])
    parts = LearnerParts(model, lm_groups, loss, LMMetrics(loss), train, valid)
    learner = build_learner(LMLearner, "lm", parts, config.lm, runtime, config.seed)
    add_callbacks(learner, "lm", config.lm.callbacks)
    return learner


def lm_loaders(config: Config, runtime: Runtime, store: TokenStore) -> tuple[LMLoader, LMLoader]:
    """Return training and validation loaders of this rank. Raises UserError for too little text, or batch size and ranks."""
    settings, splits = config.lm, split_documents(store, config)
    shard = make_batch_shard(runtime.rank, runtime.world_size, config.runtime, runtime.micro_batch_size)
    shard = shard.in_steps(runtime.launch.accumulation_steps, settings.global_batch_size, "lm.global_batch_size")
    layout = BatchLayout(settings.global_batch_size, settings.seq_len, shard, config.model.backwards)
    return LMLoader(store, splits.lm_train, layout, config.seed), LMLoader(store, splits.lm_valid, layout)
