"""Labels for raw texts: fastai's `test_dl` and `get_preds`, and `TextClassifier.predict`.

The texts are strings, so tokenizing counts; fastai's loaders do it with spaCy, in as many worker processes as they take by
themselves. Both have the same weights, drawn with a wide spread so that documents differ in their probabilities; nobody has
trained them, so what labels they give says nothing. What is timed is the second call.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from fastai.data.block import CategoryBlock
from fastai.text.data import TextDataLoaders
from fastai.text.learner import TextLearner
from torch import nn

from benchmarks.harness import Benchmark, Measured
from benchmarks.workloads import articles, configured, fastai_classifier_learner
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.inference.outputs import Prediction
from ulmfit_dist.inference.predictor import TextClassifier
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.networks import build_classifier, encoder_of
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages.prepare import prepare

NUM_COMPARED = 30
"""Texts whose probabilities are compared: fastai gets them one by one, since among others it does not read all of a text."""


def fastai(case: str) -> Measured:
    config, store, texts, model = workload(case)
    learner = fastai_learner(config, store, model)
    seconds = _seconds(lambda: fastai_probabilities(learner, texts))
    workers = learner.dls.test_dl(texts[:1]).fake_l.num_workers
    return Measured(len(texts) / seconds, {"seconds": seconds, "workers": workers})


def ours(case: str) -> Measured:
    config, store, texts, model = workload(case)
    with tempfile.TemporaryDirectory() as folder:
        training = {"data_fingerprint": store.fingerprint}
        save_bundle(Path(folder) / "classifier", model, config, store, store.label_names, training)
        classifier = TextClassifier(folder, device())
    seconds = _seconds(lambda: classifier.predict(texts))
    predictions = [found for found in classifier.predict(texts) if isinstance(found, Prediction)]
    found = np.array([[*prediction.probabilities.values()] for prediction in predictions])
    compared = np.arange(0, len(texts), -(-len(texts) // NUM_COMPARED))
    fastais = fastai_probabilities(fastai_learner(config, store, model), [texts[i] for i in compared], bs=1)
    difference, spread = np.abs(found[compared] - fastais).max(), found.std(0).max()
    return Measured(len(texts) / seconds, {"seconds": seconds, "difference": difference, "of a spread of": spread})


def workload(case: str) -> tuple[Config, TokenStore, list[str], nn.Module]:
    """Config and token store, texts of the case, and a classifier."""
    config = configured()
    store = prepare(config, Runtime(RuntimeConfig(precision="fp32")))
    texts = articles(store, config, split_documents(store, config).classifier_valid)[: int(case.split()[0])]
    seed_torch("benchmark")
    model = build_classifier(len(store.vocab), len(store.label_names), config.model, config.classifier)
    with torch.no_grad():
        for parameter in (encoder_of(model).encoder.weight, model[1].layers[-1][-1].weight):
            parameter.mul_(10)
    return config, store, texts, model


def fastai_learner(config: Config, store: TokenStore, model: nn.Module) -> TextLearner:
    labels = store.label_names
    made_up = pd.DataFrame({"text": ["a text"] * len(labels), "label": labels})  # the loaders are asked for test_dl alone
    vocab = {"text_vocab": store.vocab, "y_block": CategoryBlock(vocab=labels)}
    dls = TextDataLoaders.from_df(made_up, text_col="text", label_col="label", device=device(), **vocab)
    learner = fastai_classifier_learner(config, store, dls)
    learner.model.load_state_dict(model.state_dict())
    return learner


def fastai_probabilities(learner: TextLearner, texts: list[str], **loader: int) -> np.ndarray:
    """[texts, classes], in the order of the texts."""
    with learner.no_bar():
        return learner.get_preds(dl=learner.dls.test_dl(texts, **loader))[0].double().numpy()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _seconds(predict: Callable[[], object]) -> float:
    predict()
    begin = time.perf_counter()
    predict()
    return time.perf_counter() - begin


BENCHMARK = Benchmark(
    title="labels for articles of BBC News from raw text, AWD-LSTM 200/400/2, vocabulary of 8,000",
    unit="documents/s",
    contenders={"fastai": fastai, "ours": ours},
    cases=["445 articles"],
)
