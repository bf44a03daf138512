"""Plain fastai's classifier for `few_labels`: its learner and loaders, with our language model's encoder.

    python -m benchmarks.few_labels_fastai OUTPUT OVERRIDE ...

The overrides are those of a supervised run, so documents, encoder, phases, dropout and clipping are the same.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fastai.torch_core import set_seed

from benchmarks.workloads import fastai_classifier_learner, fastai_classifier_loaders
from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.networks import build_classifier, encoder_of
from ulmfit_dist.models.pretrained import load_pretrained_encoder
from ulmfit_dist.stages.prepare import prepare


def accuracy(config: Config) -> float:
    """Train fastai's classifier, and return its accuracy on the test split."""
    runtime = Runtime(config.runtime)
    store = prepare(config, runtime)
    splits = split_documents(store, config)
    learner = fastai_classifier_learner(config, store, fastai_classifier_loaders(config, store, splits, runtime.device))
    learner.model[0].module.load_state_dict(_encoder(config, store))
    set_seed(config.seed)
    with learner.no_bar():
        for phase in config.classifier.phases:
            learner.freeze_to(phase.freeze_to)
            rates = phase.lr if isinstance(phase.lr, list) else [phase.lr]
            learner.fit_one_cycle(phase.epochs, rates[0] if len(rates) == 1 else slice(*rates))
        tested = replace(splits, classifier_valid=splits.test)
        loaders = fastai_classifier_loaders(config, store, tested, runtime.device)
        predicted_NC, labels_N = learner.get_preds(dl=loaders.valid)
    return float(np.mean(predicted_NC.argmax(1).numpy() == labels_N.numpy()))


def _encoder(config: Config, store: TokenStore) -> dict[str, torch.Tensor]:
    model = build_classifier(len(store.vocab), len(store.label_names), config.model, config.classifier)
    assert config.encoder_source is not None
    load_pretrained_encoder(encoder_of(model), config.encoder_source, store.vocab, config.model)
    return dict(encoder_of(model).state_dict())


def main() -> None:
    output, *overrides = sys.argv[1:]
    config = load_config(None, overrides)
    Path(output).write_text(json.dumps({"accuracy": accuracy(config)}))


if __name__ == "__main__":
    main()
