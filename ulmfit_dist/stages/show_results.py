"""fastai's `show_batch` and `show_results`: training batches and predictions as tables of texts.

The batch is the first one of this rank. Results are of validation documents drawn by seed, or of evenly spaced positions of
the validation stream; fastai shows the first batch, which has the longest documents. Trade-off: one forward pass on a single
batch, which must fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import IGNORED, BatchLayout, BatchShard, MicroBatch
from ulmfit_dist.data.classifier_loader import ClassifierLoader
from ulmfit_dist.data.lm_loader import LMLoader
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import Targets, check_targets, read_targets
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.data.tokenizers.spec_tokens import readable
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import ModelBundle, find_model, load_model, read_bundle
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.pretrained.hub import model_paths
from ulmfit_dist.rng.counter_based import permutation
from ulmfit_dist.stages.classifier import classifier_loaders
from ulmfit_dist.stages.evaluate import check_functions, check_store
from ulmfit_dist.stages.lm import lm_loaders
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.utils.text_table import TextTable

STAGES = ("lm", "classifier")
TOKENS_SHOWN = 150
"""Number of shown tokens of a document, from its start; as in fastai."""


class TokenDecoder:
    """Decoder of token ids to text or tokens.

    Args:
        as_tokens: return tokens in the order that the model reads them, with fastai's special tokens.
    """

    def __init__(self, store: TokenStore, config: Config, as_tokens: bool):
        self.vocab, self.tokenizer_type, self.as_tokens = store.vocab, config.tokenizer.type, as_tokens
        self.backwards = config.model.backwards

    def of(self, ids: Tensor, most: int | None = None) -> str:
        """Return a row of ids as text, without padding and ignored positions."""
        shown = ids[(ids != PAD_ID) & (ids != IGNORED)].tolist()
        cut = most is not None and len(shown) > most
        if cut:
            shown = shown[-most:] if self.backwards else shown[:most]  # type: ignore[operator]
        tokens = [self.vocab[i] for i in shown]
        text = " ".join(tokens) if self.as_tokens else readable(tokens[:: -1 if self.backwards else 1], self.tokenizer_type)
        return f"{text} …" if cut else text


def batch_tables(config: Config, runtime: Runtime, stage: str | None, rows: int, as_tokens: bool) -> list[TextTable]:
    """Return the first rows of the first training batch of a stage, or of all stages that the texts allow.

    Returns:
        A table of `text` and `text_` (the targets, shifted by one token) for the language model, one of `text` and
        `category` for the classifier.

    Raises:
        UserError: config or texts are invalid, or the classifier is requested without labels.
    """
    check_rows(rows)
    store = prepare(config, runtime)
    tables = []
    with runtime.fail_together():
        decoder = TokenDecoder(store, config, as_tokens)
        stages = STAGES if (store.labels != NO_LABEL).any() else STAGES[:1]
        for name in stages if stage is None else [stage]:
            tables.append((_lm_batch if name == "lm" else _classifier_batch)(config, runtime, store, decoder, rows))
    return tables


def result_tables(
    run: Path, runtime: Runtime, stage: str | None, rows: int, as_tokens: bool, trust_remote_code: bool = False
) -> list[TextTable]:
    """Return predictions of the models of a run, or of an exported model, on validation texts.

    Args:
        trust_remote_code: call user-defined functions of the model's config.

    Returns:
        A table of `text`, `text_` and `pred` (most likely next tokens) for the language model, one of `text`, `category`
        and `predicted` for the classifier.

    Raises:
        UserError: the exported model or the token store of its texts is missing, or the texts have changed.
    """
    check_rows(rows)
    (run,) = model_paths([run], runtime)
    stages = STAGES if stage is None else (stage,)
    folders = {name: folder for name in stages if (folder := find_model(run, name)) is not None}
    if not folders:
        raise UserError(
            f"{run}: no {stage or 'exported'} model here: give a run directory or the folder of an exported model"
        )
    tables = []
    for name, folder in folders.items():
        exported = read_bundle(folder)
        check_functions(exported, trust_remote_code)
        store = prepare(exported.config, runtime)
        with runtime.fail_together():
            check_store(exported, store)
            decoder = TokenDecoder(store, exported.config, as_tokens)
            model = load_model(exported, runtime.device, trust_remote_code)
            tables.append((_lm_results if name == "lm" else _classifier_results)(exported, model, store, decoder, rows))
    return tables


def check_rows(rows: int) -> None:
    """Raise UserError if there are fewer than one row."""
    if rows < 1:
        raise UserError(f"rows={rows}: give a whole number of at least 1")


def _lm_batch(config: Config, runtime: Runtime, store: TokenStore, decoder: TokenDecoder, rows: int) -> TextTable:
    train, _ = lm_loaders(config, runtime, store)
    shown = [(decoder.of(x), decoder.of(y)) for x, y in _first_rows(next(iter(train)), rows)]
    return TextTable("language model: the first training batch", ("text", "text_"), tuple(shown))


def _classifier_batch(config: Config, runtime: Runtime, store: TokenStore, decoder: TokenDecoder, rows: int) -> TextTable:
    train, _ = classifier_loaders(config, runtime, store)
    batches = next(iter(train))
    documents = [(x, label) for batch in batches for x, label in zip(batch.x, _labels(batch, train.store), strict=True)]
    shown = [(decoder.of(x, TOKENS_SHOWN), label) for x, label in documents[:rows]]
    return TextTable("classifier: the first training batch", ("text", "category"), tuple(shown))


def _first_rows(batches: list[MicroBatch], rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    pairs = [pair for batch in batches for pair in zip(batch.x, batch.y, strict=True)]
    return iter(pairs[:rows])


@torch.no_grad()
def _lm_results(exported: ModelBundle, model: nn.Module, store: TokenStore, decoder: TokenDecoder, rows: int) -> TextTable:
    config = exported.config
    documents = split_documents(store, config).lm_valid
    rows = max(1, min(rows, int(store.lengths[documents].sum()) - 1))
    layout = BatchLayout(rows, config.lm.seq_len, BatchShard(), config.model.backwards)
    (batch,) = LMLoader(store, documents, layout).step(0)
    x_bT = _to_model(model, batch)
    logits_bTV = model[1].decoder(model(x_bT)[0])  # type: ignore[index]
    predicted_bT = logits_bTV.argmax(2).cpu()
    predicted_bT[batch.y == IGNORED] = IGNORED
    shown = [(decoder.of(x), decoder.of(y), decoder.of(p)) for x, y, p in zip(batch.x, batch.y, predicted_bT, strict=True)]
    return TextTable("language model: validation texts", ("text", "text_", "pred"), tuple(shown))


@torch.no_grad()
def _classifier_results(
    exported: ModelBundle, model: nn.Module, store: TokenStore, decoder: TokenDecoder, rows: int
) -> TextTable:
    config, settings = exported.config, exported.config.classifier
    splits = split_documents(store, config)
    targets = read_targets(store, settings, config.data.label_delim)
    check_targets(targets, store.labels[splits.classifier_train], store.labels[splits.classifier_valid])
    drawn = permutation(len(splits.classifier_valid), config.seed, "show")[:rows]
    documents = splits.classifier_valid[np.sort(drawn)]
    layout = BatchLayout(len(documents), settings.seq_len, BatchShard(), config.model.backwards)
    batches = ClassifierLoader(store, documents, layout, max_doc_tokens=settings.max_doc_tokens)
    (batch,) = batches.step(0)
    predicted = _predicted_labels(model(_to_model(model, batch))[0].cpu(), targets, config)
    rows_of_table = zip(batch.x, _labels(batch, store), predicted, strict=True)
    shown = [(decoder.of(x, TOKENS_SHOWN), *labels) for x, *labels in rows_of_table]
    return TextTable("classifier: validation documents", ("text", "category", "predicted"), tuple(shown))


def _labels(batch: MicroBatch, store: TokenStore) -> list[str]:
    """Return the labels of a batch as text."""
    assert batch.documents is not None
    return [store.label_names[i] for i in store.labels[batch.documents].tolist()]


def _predicted_labels(outputs_bC: Tensor, targets: Targets, config: Config) -> list[str]:
    """Return the predictions of a classifier in the format of labels."""
    if targets.kind == "regression":
        return [f"{value:.4f}" for value in outputs_bC[:, 0].tolist()]
    if targets.kind == "category":
        return [targets.names[i] for i in outputs_bC.argmax(1).tolist()]
    predicted_bC = outputs_bC.sigmoid() > config.classifier.threshold
    return [config.data.label_delim.join(targets.names[i] for i in row.nonzero()[:, 0].tolist()) for row in predicted_bC]


def _to_model(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Return the ids of a batch on the model's device, and set the global rows in the encoder's dropout context."""
    encoder = encoder_of(model)
    encoder.reset()
    encoder.position.rows = batch.rows
    return batch.x.to(next(model.parameters()).device)
