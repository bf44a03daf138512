"""Exported models as files that plain fastai reads, and the lines of Python that read them.

    lm.pth  lm.pkl                    language model and its tokens
    lm_encoder.pth                    its encoder alone
    classifier.pth  classifier.pkl    classifier and its tokens
    classifier_labels.pkl             its class names
    sentencepiece.model               what makes the tokens, if that is SentencePiece
    load.py                           the lines

Weights are as `Learner.save(with_opt=False)` writes them: our networks have fastai's keys, so nothing is converted.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ulmfit_dist import __version__
from ulmfit_dist.config import Config, ModelConfig
from ulmfit_dist.data.store import MODEL_FILE, make_folder, write_bytes
from ulmfit_dist.errors import UserError
from ulmfit_dist.model.awd_lstm import encoder_of
from ulmfit_dist.model.export import Exported, find_model, load_model, read_exported
from ulmfit_dist.model.fastai_files import write_weights

LINES = "load.py"


def export_to_fastai(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the models of a run, or one exported model, as fastai's files.

    Args:
        run: a run directory, or an exported model's folder.
        output: where to; None: `fastai/` in `run`.

    Returns:
        The file with the lines of Python that read the others; it lies beside them.

    Raises:
        UserError: no exported model there, a damaged one, or a folder that cannot be written.
    """
    run = Path(run)
    models = [read_exported(folder) for stage in ("lm", "classifier") if (folder := find_model(run, stage)) is not None]
    if not models:
        raise UserError(f"{run}: no exported model here: give a run directory, or an exported model's folder")
    folder = run / "fastai" if output is None else Path(output)
    make_folder(folder, "--output")
    for exported in models:
        for name, content in _files(exported):
            write_bytes(folder / name, content)
    write_bytes(folder / LINES, "\n".join(_lines(models, folder)).encode())
    return folder / LINES


def _files(exported: Exported) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of a model."""
    model = load_model(exported)
    name = "lm" if exported.labels is None else "classifier"
    yield f"{name}.pth", write_weights(dict(model.state_dict()))
    yield f"{name}.pkl", pickle.dumps(exported.vocab)
    if exported.labels is None:
        yield "lm_encoder.pth", write_weights(dict(encoder_of(model).state_dict()))
    else:
        yield "classifier_labels.pkl", pickle.dumps(exported.labels)
    if exported.config.tokenizer.kind == "sentencepiece":
        yield MODEL_FILE, (exported.folder / MODEL_FILE).read_bytes()


def _lines(models: list[Exported], folder: Path) -> Iterator[str]:
    yield f"# Models of ulmfit-dist {__version__} in fastai. Yours is `df`: a table with the columns text and label."
    yield "from fastai.text.all import *"
    yield ""
    yield f"folder = Path({str(folder.absolute())!r})"
    for exported in models:
        yield ""
        yield from _lm_lines(exported.config) if exported.labels is None else _classifier_lines(exported.config)


def _lm_lines(config: Config) -> Iterator[str]:
    settings = _arguments(drop_mult=config.lm.drop_mult)
    yield "# The language model, with its own vocabulary"
    yield f"dls_lm = {_loaders(config, 'lm', is_lm=True, seq_len=config.lm.seq_len)}"
    yield f"lm_config = {_sizes(config.model, 'lm')}"
    yield f"lm = language_model_learner(dls_lm, AWD_LSTM, config=lm_config, {settings}, pretrained=False)"
    yield 'lm.load(folder / "lm", with_opt=False)'
    yield ""
    yield "# ... or with that of any `dls_lm`: words that it lacks get the mean embedding"
    yield 'lm.load_pretrained(folder / "lm.pth", folder / "lm.pkl")'
    yield ""
    yield "# Its encoder, for a classifier with its vocabulary"
    yield f"dls = {_loaders(config, 'lm', seq_len=config.classifier.seq_len)}"
    yield f"config = {_sizes(config.model, 'clas')}"
    yield "learn = text_classifier_learner(dls, AWD_LSTM, config=config, pretrained=False)"
    yield 'learn.load_encoder(folder / "lm_encoder")'


def _classifier_lines(config: Config) -> Iterator[str]:
    settings = config.classifier
    arguments = _arguments(
        seq_len=settings.seq_len,
        max_len=settings.max_len,
        drop_mult=settings.drop_mult,
        lin_ftrs=settings.lin_ftrs,
        ps=[settings.head_dropout] * len(settings.lin_ftrs),
    )
    yield "# The classifier"
    yield 'labels = load_pickle(folder / "classifier_labels.pkl")'
    yield f"dls = {_loaders(config, 'classifier', labels=True, seq_len=settings.seq_len)}"
    yield f"config = {_sizes(config.model, 'clas')}"
    yield f"learn = text_classifier_learner(dls, AWD_LSTM, config=config, {arguments}, n_out=len(labels), pretrained=False)"
    yield 'learn.load(folder / "classifier", with_opt=False)'
    if settings.truncate_to is not None:
        yield f"# It has learned from the first {settings.truncate_to} tokens of each text; fastai reads all of them."


def _loaders(config: Config, name: str, labels: bool = False, **arguments: Any) -> str:
    """The call that makes fastai's loaders, with the tokens of a model."""
    shown = _arguments(text_col="text", **arguments, backwards=config.model.backwards)
    block = ', label_col="label", y_block=CategoryBlock(vocab=labels)' if labels else ""
    vocab = f'text_vocab=load_pickle(folder / "{name}.pkl")'
    return f"TextDataLoaders.from_df(df, {shown}{block}, {vocab}, tok_tfm={_tokenizer(config)})"


def _tokenizer(config: Config) -> str:
    if config.tokenizer.kind == "sentencepiece":
        return f'SentencePieceTokenizer(sp_model=folder / "{MODEL_FILE}")'
    return f"WordTokenizer({config.tokenizer.lang!r})"


def _sizes(model: ModelConfig, kind: str) -> str:
    sizes = {"emb_sz": model.emb_sz, "n_hid": model.n_hid, "n_layers": model.n_layers}
    return f"{{**awd_lstm_{kind}_config, {', '.join(f'{name!r}: {size}' for name, size in sizes.items())}}}"


def _arguments(**arguments: Any) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
