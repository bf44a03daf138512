"""What both sides of a comparison work on: BBC News as token store, and plain fastai's learners on its documents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders
from fastai.text.data import LMDataLoader, LMTensorText
from fastai.text.learner import TextLearner, language_model_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config

from ulmfit_dist.compose import load_config
from ulmfit_dist.config import Config, RuntimeConfig
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.store import TokenStore
from ulmfit_dist.data.vocab import FILLER
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.stages.prepare import prepare

RECIPE = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


def configured(*overrides: str) -> Config:
    """The quick start's recipe, computed by one process as it is, with other values."""
    return load_config(RECIPE, ["runtime.virtual_ranks=null", "tracking.wandb=disabled", *overrides])


def filled_store(config: Config, num_words: int) -> TokenStore:
    """The token store of a config, its vocabulary filled up with words that occur nowhere."""
    store = prepare(config, Runtime(RuntimeConfig(precision="no")))
    store.vocab += [FILLER] * (num_words - len(store.vocab))
    return store


def fastai_documents(store: TokenStore, indices: np.ndarray) -> list[LMTensorText]:
    """Documents as fastai holds them: ids in memory, int64."""
    return [LMTensorText(store.document(i).astype(np.int64)) for i in indices]


def fastai_lm_loaders(config: Config, store: TokenStore, device: torch.device) -> DataLoaders:
    """fastai's own loaders, over the same documents."""
    splits, settings = split_documents(store, config), config.lm
    loaders = []
    for indices, shuffle in ((splits.lm_train, True), (splits.lm_valid, False)):
        documents = fastai_documents(store, indices)
        items = [(document,) for document in documents]
        shape = {"bs": settings.global_batch_size, "seq_len": settings.seq_len}
        loaders.append(LMDataLoader(items, lens=[*map(len, documents)], shuffle=shuffle, device=device, **shape))
    dls = DataLoaders(*loaders, device=device)
    dls.vocab = store.vocab
    return dls


def fastai_lm_learner(config: Config, store: TokenStore, device: torch.device) -> TextLearner:
    """Plain fastai, with all that it does by default but the progress bar; on a GPU in mixed precision."""
    sizes = {"emb_sz": config.model.emb_sz, "n_hid": config.model.n_hid, "n_layers": config.model.n_layers}
    learner = language_model_learner(
        fastai_lm_loaders(config, store, device),
        AWD_LSTM,
        config={**awd_lstm_lm_config, **sizes},
        drop_mult=config.lm.drop_mult,
        pretrained=False,
        wd=config.lm.wd,
        moms=tuple(config.lm.moms),
    )
    return learner.to_fp16() if device.type == "cuda" else learner


class StepClock(Callback):
    """Ends a fit after some steps, and knows what they took.

    Args:
        warm_up: steps that do not count.
        steps: steps that do.
    """

    order, run_valid = 99, False

    def __init__(self, warm_up: int, steps: int):
        self.warm_up, self.steps, self.done = warm_up, steps, 0

    def after_batch(self) -> None:
        self.done += 1
        if self.done == self.warm_up:
            self.begin = self._now()
        if self.done == self.warm_up + self.steps:
            self.seconds = (self._now() - self.begin) / self.steps
            raise CancelFitException

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def seconds_per_step(learner: Any, lr: float, warm_up: int, steps: int) -> float:
    """Of the first steps of a one-cycle fit, mean of those after the warm-up."""
    clock = StepClock(warm_up, steps)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, lr, cbs=clock)
    return clock.seconds
