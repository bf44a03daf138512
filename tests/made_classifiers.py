"""Exported classifiers that nobody has trained, of texts whose words are letters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from stores import make_store

from ulmfit_dist.config.schema import ClassifierConfig, Config, DataConfig, LMConfig, ModelConfig, Phase
from ulmfit_dist.data.targets import num_outputs, read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.networks import build_classifier
from ulmfit_dist.rng.counter_based import seed_torch

SEQ_LEN, MAX_LEN, CLASSES = 5, 10, 3
VOCAB = ["xxunk", "xxpad", "xxbos", "xxmaj", "xxrep", *"abcdefghijklmnopqrstuvwxyz"]
CONFIG = Config(
    name="run",
    data=DataConfig(source="bbc_news", valid_pct=0.3),
    model=ModelConfig(emb_sz=12, n_hid=16, n_layers=2),
    lm=LMConfig(global_batch_size=4, seq_len=SEQ_LEN, phases=[Phase(1, 2e-2, 0)]),
    classifier=ClassifierConfig(global_batch_size=8, seq_len=SEQ_LEN, max_len=MAX_LEN, phases=[Phase(2, 2e-2, 0)]),
)


def lettered_store(folder: Path) -> TokenStore:
    """Documents of one to forty words, whose class shows in them."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % CLASSES
    documents = [5 + rng.integers(0, 8, rng.integers(1, 40)) + 8 * label for label in labels]
    return make_store(folder, documents, labels, VOCAB)


def make_classifier(run: Path, store: TokenStore, seed: int = 1, config: Config = CONFIG) -> Path:
    """Export a classifier to a run directory: wide weights, so that documents differ in their answers."""
    seed_torch(seed)
    labels = read_targets(store, config.classifier, config.data.label_delim).names
    outputs = num_outputs(config.classifier.target, labels)
    model = build_classifier(len(store.vocab), outputs, config.model, config.classifier)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    save_bundle(run / "classifier", model, config, store, labels, {"data_fingerprint": "x"})
    return run
