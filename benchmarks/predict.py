"""Classification of raw texts: fastai's `test_dl` and `get_preds`, and `TextClassifier.predict`.

The texts are strings, so tokenization counts; fastai's loaders use spaCy, with their default number of worker processes.
All use the same untrained weights, drawn with a wide spread so that probabilities differ between documents. The figure is
that of the second call. `equal` is the share of documents whose most probable class is that of fp32.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
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
"""Number of texts whose probabilities are compared, one by one, because fastai may truncate a text in a batch."""


def fastai(case: str) -> Measured:
    config, store, texts, model = workload(case)
    learner = fastai_learner(config, store, model)
    seconds = seconds_of(lambda: fastai_probabilities(learner, texts))
    workers = learner.dls.test_dl(texts[:1]).fake_l.num_workers
    return Measured(len(texts) / seconds, {"seconds": seconds, "workers": workers})


def ours(case: str) -> Measured:
    config, store, texts, model = workload(case)
    (classifier,) = exported(config, store, model, [None])
    seconds = seconds_of(lambda: classifier.predict(texts))
    predictions = [prediction for prediction in classifier.predict(texts) if isinstance(prediction, Prediction)]
    probabilities = np.array([[*prediction.probabilities.values()] for prediction in predictions])
    compared = np.arange(0, len(texts), -(-len(texts) // NUM_COMPARED))
    fastais = fastai_probabilities(fastai_learner(config, store, model), [texts[i] for i in compared], bs=1)
    difference, spread = np.abs(probabilities[compared] - fastais).max(), probabilities.std(0).max()
    return Measured(len(texts) / seconds, {"seconds": seconds, "difference": difference, "of a spread of": spread})


def ours_int8(case: str) -> Measured:
    config, store, texts, model = workload(case)
    quantized, original = exported(config, store, model, ["int8", None])
    seconds = seconds_of(lambda: quantized.predict(texts))
    actual, expected = quantized.predict_proba(texts), original.predict_proba(texts)
    equal = float((actual.argmax(1) == expected.argmax(1)).mean())
    return Measured(len(texts) / seconds, {"difference": np.abs(actual - expected).max(), "equal": equal})


def exported(
    config: Config, store: TokenStore, model: nn.Module, quantizations: Sequence[str | None]
) -> list[TextClassifier]:
    """Return the model as exported classifiers, one for each quantization; int8 is computed on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        training = {"data_fingerprint": store.fingerprint}
        save_bundle(Path(folder) / "classifier", model, config, store, store.label_names, training)
        devices = [device() if "int8" not in quantizations else torch.device("cpu")] * len(quantizations)
        return [TextClassifier(folder, to, quantize=kind) for to, kind in zip(devices, quantizations, strict=True)]


def workload(case: str, *overrides: str) -> tuple[Config, TokenStore, list[str], nn.Module]:
    """Return config and token store, the texts of a case, and a classifier."""
    config = configured(*overrides)
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
    samples = pd.DataFrame({"text": ["a text"] * len(labels), "label": labels})  # only test_dl of the loaders is used
    vocab = {"text_vocab": store.vocab, "y_block": CategoryBlock(vocab=labels)}
    dls = TextDataLoaders.from_df(samples, text_col="text", label_col="label", device=device(), **vocab)
    learner = fastai_classifier_learner(config, store, dls)
    learner.model.load_state_dict(model.state_dict())
    return learner


def fastai_probabilities(learner: TextLearner, texts: list[str], **loader: int) -> np.ndarray:
    """Return fastai's probabilities, float64 [texts, classes], in the order of the texts."""
    with learner.no_bar():
        probabilities: np.ndarray = learner.get_preds(dl=learner.dls.test_dl(texts, **loader))[0].double().numpy()
        return probabilities


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(predict: Callable[[], object]) -> float:
    """Return the duration of the second call, in seconds."""
    predict()
    begin = time.perf_counter()
    predict()
    return time.perf_counter() - begin


BENCHMARK = Benchmark(
    title="classification of BBC News articles from raw text, AWD-LSTM 200/400/2, vocabulary of 8,000",
    unit="documents/s",
    contenders={"fastai": fastai, "ours": ours, "ours in int8": ours_int8},
    cases=["445 articles"],
)
