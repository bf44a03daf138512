"""Models for tests of what goes between fastai and here: exported ones, untrained, made in a moment."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from conftest import FILLERS, TOPICS, make_text
from fastai.text.core import defaults
from stores import make_store
from torch import nn

from ulmfit_dist.config.schema import ClassifierConfig, Config, DataConfig, LMConfig, ModelConfig
from ulmfit_dist.data.targets import num_outputs
from ulmfit_dist.data.token_store import MODEL_FILE
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.networks import build_classifier, build_language_model

SIZES = {"emb_sz": 6, "n_hid": 8, "n_layers": 2}
LABELS = ["sport", "tech", "food"]
WORDS = sorted({word.lower() for words in (*TOPICS.values(), FILLERS) for word in words})
VOCAB = [*defaults.text_spec_tok, *WORDS, "."]
CONFIG = Config(
    data=DataConfig(path="texts"),
    model=ModelConfig(**SIZES),
    lm=LMConfig(seq_len=10),
    classifier=ClassifierConfig(seq_len=10, max_len=20, lin_ftrs=[7, 5]),
)


def make_models(
    run: Path, config: Config = CONFIG, vocab: list[str] = VOCAB, pieces: bytes | None = None
) -> dict[str, nn.Module]:
    """A run directory with a language model and a classifier of random weights, and the models by stage.

    Args:
        pieces: the model of SentencePiece that makes their tokens.
    """
    torch.manual_seed(1)
    run.mkdir()
    store = make_store(run / "store", [np.array([2, 3, 4])], np.array([0]), vocab)
    if pieces is not None:
        (run / "store" / MODEL_FILE).write_bytes(pieces)
    target = config.classifier.target
    models: dict[str, nn.Module] = {
        "lm": build_language_model(len(vocab), config.model, config.lm),
        "classifier": build_classifier(len(vocab), num_outputs(target, LABELS), config.model, config.classifier),
    }
    for stage, model in models.items():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)  # so that outputs differ
        labels = None if stage == "lm" else [] if target == "regression" else LABELS
        save_bundle(run / stage, model, config, store, labels, {"data_fingerprint": "x"})
        model.eval()
    return models


def make_table(rows: int = 40) -> pd.DataFrame:
    """Labelled texts of `VOCAB`."""
    rng = random.Random(0)
    labels = [LABELS[i % 3] for i in range(rows)]
    return pd.DataFrame({"text": [make_text(label, rng.randint(12, 50), rng) for label in labels], "label": labels})


@torch.no_grad()
def lm_logits(model: nn.Module, x_bT: torch.Tensor) -> torch.Tensor:
    """Logits of our language model, [b, T, V]: its forward leaves the decoder to the loss."""
    model[0].reset()
    return model[1].decoder(model(x_bT)[0])
