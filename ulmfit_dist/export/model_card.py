"""Model card of an exported model: README.md of its repository on the hub, written from the run.

It names counts, sizes and metrics, never a text, a path or a user. Metrics with 95 % intervals are those of the test split;
figures of the validation split, which selected the epoch, stand in the same table and are marked. Trade-off: data counts are
known only on a machine that has the token store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ulmfit_dist import __version__
from ulmfit_dist.data.token_store import read_meta
from ulmfit_dist.errors import UserError
from ulmfit_dist.export.card_figures import METRICS, Figure, read_figures, valid_is_test
from ulmfit_dist.models.bundle import ModelBundle
from ulmfit_dist.models.registry import user_class
from ulmfit_dist.pretrained.bundle_files import WEIGHTS

LIBRARY = "ulmfit_dist"
TAGS = ("ulmfit", "fastai")
ENCODERS = {None: "AWD-LSTM", "qrnn": "AWD-QRNN"}
"""Name of an encoder of this package by `model.arch`."""
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Endings of tensors of batch norms that are not parameters."""
MOST_LABELS = 20
"""Maximum number of classes that the card names."""
SPLITS = {"train": "training", "valid": "validation", "unlabelled": "unlabelled", "test": "test"}


@dataclass(frozen=True)
class CardOptions:
    """Metadata of a model card that the user gives.

    Attributes:
        name: USER/NAME of the repository.
        license: identifier of the license, as on the hub.
        languages: language codes.
    """

    name: str
    license: str
    languages: Sequence[str] = ()


def model_card(exported: ModelBundle, options: CardOptions) -> str:
    """Return README.md of a model: YAML front matter and Markdown.

    Args:
        exported: the model, in its run directory if its test figures and the baseline are wanted.
    """
    figures = read_figures(exported)
    sections = (
        _introduction(exported, options),
        _usage(exported, options),
        _metrics(exported, figures),
        _data(exported),
        _sizes(exported),
        _limits(exported),
    )
    lines = [line for section in sections for line in section]
    return f"---\n{_front_matter(exported, options, figures)}\n---\n\n" + "\n".join(lines) + "\n"


def num_parameters(weights: Path) -> int:
    """Return the number of parameters in a safetensors file; tied weights count once. Raises UserError if it is damaged."""
    try:
        with safe_open(str(weights), framework="numpy") as file:
            keys = [key for key in file.keys() if not key.endswith(BUFFERS)]  # noqa: SIM118  not a mapping
            return sum(math.prod(file.get_slice(key).get_shape()) for key in keys)
    except Exception as error:
        raise UserError(f"{weights}: damaged or unreadable ({error})") from None


def times(number: int) -> str:
    """Return a number of occurrences as text."""
    return "once" if number == 1 else f"{number:,} times"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.1f} kB"


def _front_matter(exported: ModelBundle, options: CardOptions, figures: Sequence[Figure]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    is_lm = exported.labels is None
    task = "text-generation" if is_lm else "text-classification"
    results = [
        EvalResult(
            task_type=task,
            dataset_type="private",
            dataset_name=f"{SPLITS[figure.split]} split of the run's texts",
            dataset_split="validation" if figure.split == "valid" else figure.split,
            metric_type=METRICS[figure.metric][0],
            metric_name=METRICS[figure.metric][1],
            metric_value=round(figure.value, 4),
        )
        for figure in figures
    ]
    data = ModelCardData(
        license=options.license,
        language=[*options.languages] or None,
        library_name=LIBRARY,
        pipeline_tag=task,
        tags=[*TAGS, *_tags(exported)],
        metrics=list(dict.fromkeys(METRICS[figure.metric][0] for figure in figures)) or None,
        model_name=options.name.partition("/")[2],
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _tags(exported: ModelBundle) -> list[str]:
    encoder = ENCODERS.get(exported.config.model.arch)
    kind = "language-model" if exported.labels is None else f"{exported.config.classifier.target}-classifier"
    return [kind] if encoder is None else [encoder.lower(), kind]


def _introduction(exported: ModelBundle, options: CardOptions) -> Iterator[str]:
    config = exported.config
    yield f"# {options.name.partition('/')[2]}"
    yield ""
    kind = "A language model" if exported.labels is None else "A text classifier"
    name = ENCODERS.get(config.model.arch)
    encoder = f"a user-defined encoder (`{config.model.arch}`)" if name is None else f"an {name}"
    direction = ", which reads texts from their end to their beginning" if config.model.backwards else ""
    yield (
        f"{kind} by the method of [ULMFiT](https://arxiv.org/abs/1801.06146) (Howard & Ruder, 2018) with {encoder}"
        f"{direction}, trained by ulmfit_dist."
    )
    if exported.labels is not None:
        yield ""
        yield _describe_target(exported)


def _describe_target(exported: ModelBundle) -> str:
    labels, target = exported.labels or [], exported.config.classifier.target
    if target == "regression":
        return "It predicts a number for a text."
    shown = ", ".join(f"`{label.replace('`', chr(39))}`" for label in labels[:MOST_LABELS])
    more = f", and {len(labels) - MOST_LABELS} more" if len(labels) > MOST_LABELS else ""
    each = "any number of" if target == "multicategory" else "one of"
    return f"It assigns {each} {len(labels)} classes to a text: {' '.join(shown.split())}{more}."


def _usage(exported: ModelBundle, options: CardOptions) -> Iterator[str]:
    reference = f"hf:{options.name}"
    config = exported.config
    trusts = user_class(config.model) is not None or config.tokenizer.rules
    flag, argument = (" --trust-remote-code", ", trust_remote_code=True") if trusts else ("", "")
    is_lm = exported.labels is None
    yield from ("", "## Use", "", "```bash", "pip install ulmfit-dist")
    command = f'generate {reference} "The beginning of a text"' if is_lm else f'predict {reference} "A text to label."'
    if is_lm and config.model.backwards:
        yield f"ulmfit-dist run CONFIG model.pretrained={reference} model.backwards=true"
        yield "```"
        return
    yield from (f"ulmfit-dist {command}{flag}", "```", "", "```python")
    load = "load_language_model" if is_lm else "load_classifier"
    yield from (f"from ulmfit_dist import {load}", "", f'model = {load}("{reference}"{argument})')
    yield 'print(model.generate("The beginning of a text"))' if is_lm else 'print(model.predict(["A text to label."]))'
    yield "```"
    if is_lm:
        yield ""
        yield f"Fine-tune it on other texts: `ulmfit-dist run CONFIG model.pretrained={reference}`."


def _metrics(exported: ModelBundle, figures: Sequence[Figure]) -> Iterator[str]:
    yield from ("", "## Metrics", "")
    if not figures:
        yield "This model was exported without metrics."
        return
    yield "| split | metric | this model | 95 % interval | linear baseline |"
    yield "| --- | --- | --- | --- | --- |"
    for figure in figures:
        interval = "" if figure.interval is None else f"{figure.interval[0]:.4f} to {figure.interval[1]:.4f}"
        baseline = "" if figure.baseline is None else f"{figure.baseline:.4f}"
        cells = (SPLITS[figure.split], METRICS[figure.metric][1], f"{figure.value:.4f}", interval, baseline)
        yield f"| {' | '.join(cells)} |"
    yield ""
    if any(figure.interval is not None for figure in figures):
        yield (
            "Intervals are a bootstrap over the documents of the split: they do not contain the variation between training "
            "seeds."
        )
    if valid_is_test(exported):
        yield "The validation split is the one that the source names test."
    yield "Epochs may have been chosen by the validation split, so its figures can be optimistic."


def _data(exported: ModelBundle) -> Iterator[str]:
    yield from ("", "## Data", "")
    meta = _read_store(exported)
    if meta is not None:
        yield "| split | documents | tokens |"
        yield "| --- | --- | --- |"
        for split, (start, stop) in meta["splits"].items():
            yield f"| {SPLITS.get(split, split)} | {stop - start:,} | {meta['tokens'][split]:,} |"
        yield ""
        if "valid" not in meta["splits"]:
            yield "Validation documents were held out from the training split."
            yield ""
    yield "The texts are not part of this repository. The words of the vocabulary (`vocab.json`) come from them."


def _sizes(exported: ModelBundle) -> Iterator[str]:
    config = exported.config
    weights = exported.folder / WEIGHTS
    tokenizer = config.tokenizer
    kind = "SentencePiece" if tokenizer.type == "sentencepiece" else f"spaCy's word tokenizer (`{tokenizer.lang}`)"
    rules = f", and `{'`, `'.join(tokenizer.rules)}`" if tokenizer.rules else ""
    model = config.model
    rows = {
        "parameters": f"{num_parameters(weights):,}, {_size(weights.stat().st_size)}",
        "encoder": f"{model.n_layers} layers, hidden size {model.n_hid}, embedding size {model.emb_sz}",
        "vocabulary": f"{len(exported.vocab):,} tokens, each at least {times(tokenizer.min_freq)} in the training texts",
        "tokenizer": f"{kind} after fastai's text rules{rules}",
        "initial weights": _initial_weights(exported),
        "training precision": str(exported.training.get("precision", "not recorded")),
        "version of ulmfit_dist": __version__,
    }
    yield from ("", "## Model", "", "| property | value |", "| --- | --- |")
    yield from (f"| {name} | {value} |" for name, value in rows.items())


def _initial_weights(exported: ModelBundle) -> str:
    name = exported.config.encoder_source if exported.labels is not None else exported.config.model.pretrained
    if name is None and exported.labels is not None:
        name = exported.config.model.pretrained
    return "random" if name is None else f"`{name if name.startswith('hf:') else Path(name).name}`"


def _limits(exported: ModelBundle) -> Iterator[str]:
    yield from ("", "## Limits", "")
    yield "* It is fitted to texts like those that it was trained on: evaluate it on your own texts before you rely on it."
    yield "* A word that is not in the vocabulary is read as an unknown token."
    settings = exported.config.classifier
    if exported.labels is None:
        yield "* Generated text is likely text, not true text, and can repeat what the training texts contain."
        return
    if settings.max_doc_tokens is not None:
        yield f"* It reads the first {settings.max_doc_tokens:,} tokens of a text."
    yield "* Biases of the training texts and of their labels are part of the predictions."


def _read_store(exported: ModelBundle) -> dict[str, Any] | None:
    """Return meta.json of the token store that the model was trained on; None if it is not on this machine."""
    data, fingerprint = exported.config.data, str(exported.training["data_fingerprint"])
    try:
        meta = read_meta(Path(data.token_store) if data.token_store is not None else Path(data.cache_dir) / fingerprint)
    except UserError:
        return None
    return meta if meta.get("fingerprint") == fingerprint else None
