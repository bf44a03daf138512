"""The figures of a finished run, computed again from its exported models, on as many ranks as share its batches evenly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fastai.text.models.core import SequentialRNN
from torch import nn

from ulmfit_dist.data.batches import Batches
from ulmfit_dist.data.store import TokenStore
from ulmfit_dist.errors import UserError
from ulmfit_dist.functions import check_trust
from ulmfit_dist.model.awd_lstm import encoder_of
from ulmfit_dist.model.export import Exported, load_model, read_exported
from ulmfit_dist.model.loss import DecoderLoss
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.stages.classifier import classifier_loaders
from ulmfit_dist.stages.lm import PRODUCT_DTYPES, lm_loaders
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.run import find_model
from ulmfit_dist.training.metrics import ClassifierMetrics, LMMetrics, Metrics


def evaluate(run: Path, runtime: Runtime, trust_rules: bool = False) -> dict[str, dict[str, Any]]:
    """Metrics by stage on the validation documents, for each model that the folder has.

    The classifier's have its confusion matrix, too: documents by true class (rows) and predicted class, in the order of
    its labels.

    Args:
        trust_rules: whether to call the functions that the model's config names (tokenizer.rules).

    Raises:
        UserError: no exported model, no store of its texts, or texts that have changed since.
    """
    folders = {stage: folder for stage in ("lm", "classifier") if (folder := find_model(run, stage)) is not None}
    if not folders:
        raise UserError(f"{run}: no exported model here: give a run directory, or an exported model's folder")
    exports = {stage: read_exported(folder) for stage, folder in folders.items()}
    for exported in exports.values():
        check_functions(exported, trust_rules)
    return {stage: _evaluate_stage(stage, exported, runtime) for stage, exported in exports.items()}


def _evaluate_stage(stage: str, exported: Exported, runtime: Runtime) -> dict[str, Any]:
    store = prepare(exported.config, runtime)
    with runtime.together():
        check_store(exported, store)
        model = load_model(exported, runtime.device)
        metrics: Metrics
        if stage == "lm":
            metrics = LMMetrics(DecoderLoss(model[1].decoder, PRODUCT_DTYPES[runtime.precision]))  # type: ignore[index]
            valid: Batches = lm_loaders(exported.config, runtime, store)[1]
        else:
            metrics = ClassifierMetrics(len(store.label_names))
            valid = classifier_loaders(exported.config, runtime, store)[1]
        metrics.reset(runtime.device)
        _run(_in_precision(model, stage, runtime), valid, metrics, runtime)
    found: dict[str, Any] = metrics.compute(runtime)
    if isinstance(metrics, ClassifierMetrics):
        found["confusion_matrix"] = metrics.confusion_CC.long().tolist()
    return found


def _in_precision(model: nn.Module, stage: str, runtime: Runtime) -> nn.Module:
    """The model, its modules in mixed precision that are so while they are trained, what they give in fp32.

    Those are the modules that `replace_modules` of the stage's learner replaces: a classifier pools in fp32.
    """

    def prepare_module(module: nn.Module) -> nn.Module:
        return runtime.accelerator.prepare_model(module, evaluation_mode=True)

    if stage == "lm":
        return prepare_module(model)
    assert isinstance(model, SequentialRNN)
    model[0], model[1].layers = prepare_module(model[0]), prepare_module(model[1].layers)
    return model


@torch.no_grad()
def _run(model: nn.Module, valid: Batches, metrics: Metrics, runtime: Runtime) -> None:
    encoder = encoder_of(model)
    encoder.reset()
    for batches in valid:
        for batch in batches:
            encoder.position.rows = batch.rows
            metrics.update(model(batch.to(runtime.device).x)[0], batch.to(runtime.device))


def check_functions(exported: Exported, trust_rules: bool) -> None:
    """Refuse to prepare the texts of a model by functions that nobody has said to trust. Raises UserError."""
    data = exported.config.data
    named = {"tokenizer.rules": exported.config.tokenizer.rules}
    named |= {f"data.{key}": [path] for key in ("splitter", "get_label") if (path := getattr(data, key)) is not None}
    check_trust(named, exported.folder, trust_rules)


def check_store(exported: Exported, store: TokenStore) -> None:
    """Refuse a store that is not the one that the model was trained on. Raises UserError."""
    if exported.training["data_fingerprint"] != store.fingerprint or exported.vocab != store.vocab:
        raise UserError(
            f"{exported.folder} was not trained on the texts of {store.path}: texts or labels have changed since; "
            f"train again, or bring back what it was trained on"
        )
