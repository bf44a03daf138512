"""Shared workloads of the benchmarks: BBC News as a token store, and plain fastai's learners on its documents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.text.data import LMDataLoader, LMTensorText, Pad_Chunk, SortedDL, TensorText
from fastai.text.learner import TextLearner, language_model_learner, text_classifier_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config, awd_lstm_lm_config
from fastai.torch_core import TensorCategory

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.splits import DocumentSplits, split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.data.vocab import FILLER
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.prepare import prepare

RECIPE = Path(__file__).parent / "bbc_news.yaml"


def configured(*overrides: str) -> Config:
    """Return the benchmarks' config with overrides, for one process; documents are not truncated, as in fastai."""
    fixed = ["runtime.canonical_ranks=null", "tracking.wandb_mode=disabled", "classifier.max_doc_tokens=null"]
    return load_config(RECIPE, [*fixed, *overrides])


def filled_store(config: Config, num_words: int, runtime: Runtime) -> TokenStore:
    """Return the token store of a config, with its vocabulary padded with unused words."""
    store = prepare(config, runtime)
    store.vocab += [FILLER] * (num_words - len(store.vocab))
    return store


def fastai_documents(store: TokenStore, indices: np.ndarray) -> list[LMTensorText]:
    """Return documents in fastai's representation: ids in memory, int64."""
    return [LMTensorText(store.document(i).astype(np.int64)) for i in indices]


def fastai_lm_loaders(config: Config, store: TokenStore, device: torch.device) -> DataLoaders:
    """Return fastai's own loaders over the same documents."""
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
    """Return plain fastai's learner with its defaults, without progress bar; on a GPU in mixed precision."""
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
    """Callback that measures the duration of steps, and ends the fit after them.

    Args:
        warm_up: number of steps before the measurement.
        steps: number of measured steps.
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
    """Return the mean duration of the first steps of a one-cycle fit after the warm-up, in seconds."""
    clock = StepClock(warm_up, steps)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, lr, cbs=clock)
    return clock.seconds


def articles(store: TokenStore, config: Config, indices: np.ndarray) -> list[str]:
    """Return the raw texts of documents."""
    documents = open_source(config.data).splits["train"]
    assert len(documents) == len(store)
    return [text for i in indices.tolist() for text in documents.read(i, i + 1)[0] if text is not None]


def fastai_classifier_loaders(
    config: Config, store: TokenStore, documents: DocumentSplits, device: torch.device
) -> DataLoaders:
    """Return fastai's own classifier loaders, built as by `TextBlock`, over the ids of these documents."""
    settings, loaders = config.classifier, []
    for indices, is_train in ((documents.classifier_train, True), (documents.classifier_valid, False)):
        texts = [TensorText(store.document(i).astype(np.int64)) for i in indices]
        items = [*zip(texts, map(TensorCategory, store.labels[indices].astype(np.int64)), strict=True)]
        batches = {"bs": settings.global_batch_size, "before_batch": Pad_Chunk(seq_len=settings.seq_len)}
        order = {"res": [*map(len, texts)], "shuffle": is_train, "drop_last": is_train}
        loaders.append(SortedDL(items, **batches, **order, device=device))
    dls = DataLoaders(*loaders, device=device)
    dls.vocab, dls.c = store.vocab, len(store.label_names)
    return dls


def fastai_classifier_learner(config: Config, store: TokenStore, dls: DataLoaders) -> TextLearner:
    """Return plain fastai's classifier, with all layers trainable; on a GPU in mixed precision."""
    settings = config.classifier
    sizes = {"emb_sz": config.model.emb_sz, "n_hid": config.model.n_hid, "n_layers": config.model.n_layers}
    learner = text_classifier_learner(
        dls,
        AWD_LSTM,
        seq_len=settings.seq_len,
        config={**awd_lstm_clas_config, **sizes},
        pretrained=False,
        drop_mult=settings.drop_mult,
        n_out=len(store.label_names),
        lin_ftrs=list(settings.lin_ftrs),
        ps=[settings.head_dropout] * len(settings.lin_ftrs),
        max_len=settings.max_len,
        loss_func=CrossEntropyLossFlat(),
        metrics=accuracy,
        wd=settings.wd,
        moms=tuple(settings.moms),
        cbs=[] if settings.grad_clip is None else [GradientClip(settings.grad_clip)],
    )
    return learner.to_fp16() if dls.device.type == "cuda" else learner
