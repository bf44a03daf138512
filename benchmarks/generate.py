"""Text generation: fastai's `predict`, which reads the whole text again for each word, and `generate`.

Both use the same untrained weights, which cost the same per word. The figure is the median of ten calls, from prompt to
text, after a first one. fastai generates one text per call, so its words per second apply to any number of samples.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
import torch
from fastai.text.data import TextDataLoaders
from fastai.text.learner import language_model_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
from torch import nn

from benchmarks.harness import Benchmark, Measured
from benchmarks.workloads import configured
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.inference.generator import LanguageModel
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.networks import build_language_model
from ulmfit_dist.models.sampling import Sampling
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages.prepare import prepare

PROMPT, WORDS, TEMPERATURE = "The government said", 40, 0.75
CALLS = 10


def fastai(case: str) -> Measured:
    config, store, model = workload()
    texts = pd.DataFrame({"text": [PROMPT] * 8})  # a learner needs loaders, but does not read them here
    shape = {"bs": 2, "seq_len": 4}
    dls = TextDataLoaders.from_df(texts, text_col="text", is_lm=True, text_vocab=store.vocab, device=device(), **shape)
    sizes = {"emb_sz": config.model.emb_sz, "n_hid": config.model.n_hid, "n_layers": config.model.n_layers}
    learner = language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, **sizes}, pretrained=False)
    learner.model.load_state_dict(model.state_dict())
    return _measured(lambda: learner.predict(PROMPT, WORDS, temperature=TEMPERATURE, no_bar=True), 1)


def ours(case: str, top_p: float | None = None) -> Measured:
    config, store, model = workload()
    with tempfile.TemporaryDirectory() as folder:
        training = {"data_fingerprint": store.fingerprint}
        save_bundle(Path(folder) / "lm", model, config, store, labels=None, training=training)
        language_model = LanguageModel(folder, device())
    samples = int(case.split()[0])
    sampling = Sampling(TEMPERATURE, top_p=top_p)
    return _measured(lambda: language_model.generate(PROMPT, WORDS, samples, sampling=sampling), samples)


def workload() -> tuple[Config, TokenStore, nn.Module]:
    """Return the quick start's config and token store, and a network of its size."""
    config = configured()
    store = prepare(config, Runtime(RuntimeConfig(precision="fp32")))
    seed_torch("benchmark")
    return config, store, build_language_model(len(store.vocab), config.model, config.lm)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _measured(write: Callable[[], object], samples: int) -> Measured:
    write()
    seconds = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        write()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    return Measured(WORDS * samples / median, {"ms per call": median * 1000})


BENCHMARK = Benchmark(
    title=f"{WORDS} words after {PROMPT!r}, AWD-LSTM 200/400/2, vocabulary of 8,000",
    unit="words/s",
    contenders={
        "fastai": fastai,
        "ours": ours,
        "ours top-p 0.9": lambda case: ours(case, top_p=0.9),
    },
    cases=["1 sample", "16 samples"],
)
