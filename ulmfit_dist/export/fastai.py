"""Export to files that plain fastai reads, with a script that loads them.

    lm.pth  lm.pkl                    language model and its vocabulary
    lm_encoder.pth                    its encoder
    classifier.pth  classifier.pkl    classifier and its vocabulary
    classifier_labels.pkl             its class names, if it has classes
    sentencepiece.model               the tokenizer's model, if it is SentencePiece
    load.py                           the script

Weights are as `Learner.save(with_opt=False)` writes them: the networks have fastai's keys, so nothing is converted. The
trade-off: only AWD-LSTMs and QRNNs can be exported.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ulmfit_dist import __version__
from ulmfit_dist.config.schema import Config, ModelConfig
from ulmfit_dist.data.token_store import MODEL_FILE
from ulmfit_dist.errors import UserError
from ulmfit_dist.export.fastai_qrnn import QRNN
from ulmfit_dist.models.bundle import ModelBundle, find_model, load_model, read_bundle
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.models.registry import user_class
from ulmfit_dist.pretrained.hub import is_hub_model, model_path
from ulmfit_dist.utils.files import make_folder, write_bytes

SCRIPT = "load.py"
HEAD = """\
# Models of ulmfit-dist {version} in fastai. `df` is your own table with the columns text and label.
from fastai.text.all import *

folder = Path({folder!r})
"""


PIECES = """
from sentencepiece import SentencePieceProcessor


class Pieces:
    "Subwords as the model reads them; fastai's special tokens are not split."
    special = re.compile(rf"(?<!\\S)({'|'.join(defaults.text_spec_tok)})(?!\\S)")
    model = SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))

    def __call__(self, texts):
        for parts in map(self.special.split, texts):
            yield [piece for i, part in enumerate(parts) for piece in ([part] if i % 2 else self.model.EncodeAsPieces(part))]

"""
"""Tokenizer of the script: fastai's own requires special tokens that only its own training adds to the model."""


def export_to_fastai(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the models of a run, or one exported model, as fastai's files.

    Args:
        run: a run directory, an exported model's folder, or `hf:USER/NAME`, a model of the hub.
        output: folder of the files; None: `fastai/` in `run`, which a model of the hub does not allow.

    Returns:
        The path of the script that loads the other files of the folder.

    Raises:
        UserError: no exported model, a damaged model, a model of a user-defined `model.arch`, or a folder that cannot be
            written.
    """
    check_output(run, output)
    run = model_path(run)
    models = [read_bundle(folder) for stage in ("lm", "classifier") if (folder := find_model(run, stage)) is not None]
    if not models:
        raise UserError(f"{run}: no exported model here: give a run directory, or an exported model's folder")
    for exported in models:
        if (arch := user_class(exported.config.model)) is not None:
            raise UserError(
                f"{exported.folder}: model.arch={arch}: fastai reads AWD-LSTMs and QRNNs only: save its state_dict yourself"
            )
    folder = run / "fastai" if output is None else Path(output)
    make_folder(folder, "--output")
    for exported in models:
        for name, content in _files(exported):
            write_bytes(folder / name, content)
    write_bytes(folder / SCRIPT, _script(models, folder).encode())
    return folder / SCRIPT


def check_output(run: str | Path, output: str | Path | None) -> None:
    """Raise UserError if files of a model of the hub would be written beside it, which is in the cache."""
    if output is None and is_hub_model(run):
        raise UserError(f"{run}: a model of the hub: name the files to write with --output")


def _files(exported: ModelBundle) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of a model."""
    model = load_model(exported)
    name = "lm" if exported.labels is None else "classifier"
    yield f"{name}.pth", _torch_bytes(dict(model.state_dict()))
    yield f"{name}.pkl", pickle.dumps(exported.vocab)
    if exported.labels is None:
        yield "lm_encoder.pth", _torch_bytes(dict(encoder_of(model).state_dict()))
    elif exported.labels:
        yield "classifier_labels.pkl", pickle.dumps(exported.labels)
    if exported.config.tokenizer.type == "sentencepiece":
        try:
            yield MODEL_FILE, (exported.folder / MODEL_FILE).read_bytes()
        except OSError as error:
            raise UserError(f"{exported.folder / MODEL_FILE}: cannot be read ({error.strerror})") from None


def _script(models: list[ModelBundle], folder: Path) -> str:
    parts = [_lm_lines(model.config) if model.labels is None else _classifier_lines(model.config) for model in models]
    has_pieces = any(model.config.tokenizer.type == "sentencepiece" for model in models)
    head = HEAD.format(version=__version__, folder=str(folder.absolute())) + (PIECES if has_pieces else "")
    if any(model.config.model.arch for model in models):
        head += QRNN
    return "\n".join([head, *parts])


def _lm_lines(config: Config) -> str:
    return f"""\
# The language model with its own vocabulary
vocab = load_pickle(folder / "lm.pkl")
dls_lm = TextDataLoaders.from_df(df, is_lm=True, text_col="text", text_vocab=vocab, {_dls_args(config, config.lm.seq_len)})
config = {_config(config.model, "lm")}
lm = language_model_learner(dls_lm, {_arch(config.model)}, config=config, drop_mult={config.lm.drop_mult}, pretrained=False)
lm.load(folder / "lm", with_opt=False)

# ... or with another one: words that it lacks get the mean embedding
lm.load_pretrained(folder / "lm.pth", folder / "lm.pkl")

# Its encoder in a classifier with its vocabulary
dls = TextDataLoaders.from_df(df, text_col="text", label_col="label", text_vocab=vocab, {_dls_args(config, 72)})
config = {_config(config.model, "clas")}
learn = text_classifier_learner(dls, {_arch(config.model)}, config=config, pretrained=False)
learn.load_encoder(folder / "lm_encoder")
"""


def _classifier_lines(config: Config) -> str:
    settings = config.classifier
    labels, block, outputs = _target_lines(config)
    sizes = f"seq_len={settings.seq_len}, max_len={settings.max_len}, lin_ftrs={settings.lin_ftrs}, {outputs}"
    dropouts = f"drop_mult={settings.drop_mult}, ps={[settings.head_dropout] * len(settings.lin_ftrs)}"
    truncated = f"# It was trained on the first {settings.max_doc_tokens} tokens of each text; fastai reads all of them.\n"
    return f"""\
# The classifier
vocab = load_pickle(folder / "classifier.pkl")
{labels}dls = TextDataLoaders.from_df(
    df, text_col="text", label_col="label", {block},
    text_vocab=vocab, {_dls_args(config, settings.seq_len)},
)
config = {_config(config.model, "clas")}
learn = text_classifier_learner(
    dls, {_arch(config.model)}, config=config, pretrained=False,
    {sizes},
    {dropouts},
)
learn.load(folder / "classifier", with_opt=False)
{"" if settings.max_doc_tokens is None else truncated}"""


def _target_lines(config: Config) -> tuple[str, str, str]:
    """Return, for the classifier's target, the line that loads class names, the target block, and the outputs."""
    settings = config.classifier
    if settings.target == "regression":
        y_range = "" if settings.y_range is None else f", y_range={tuple(settings.y_range)}"
        return "", "y_block=RegressionBlock()", f"n_out=1{y_range}"
    labels = 'labels = load_pickle(folder / "classifier_labels.pkl")\n'
    if settings.target == "multicategory":
        return (
            labels,
            f"y_block=MultiCategoryBlock(vocab=labels), label_delim={config.data.label_delim!r}",
            "n_out=len(labels)",
        )
    return labels, "y_block=CategoryBlock(vocab=labels)", "n_out=len(labels)"


def _dls_args(config: Config, seq_len: int) -> str:
    """Return the arguments with which fastai's loaders read a text as the model does, without those that are defaults."""
    parts = [f"seq_len={seq_len}"]
    if config.model.backwards:
        parts.append("backwards=True")
    if config.tokenizer.type == "sentencepiece":
        parts.append("tok_tfm=Pieces()")
    elif config.tokenizer.lang != "en":
        parts.append(f"tok_tfm=WordTokenizer({config.tokenizer.lang!r})")
    return ", ".join(parts)


def _arch(model: ModelConfig) -> str:
    return "AWD_LSTM" if model.arch is None else "AWD_QRNN"


def _config(model: ModelConfig, suffix: str) -> str:
    return f'{{**awd_lstm_{suffix}_config, "emb_sz": {model.emb_sz}, "n_hid": {model.n_hid}, "n_layers": {model.n_layers}}}'


def _torch_bytes(state: dict[str, Tensor]) -> bytes:
    """Return the bytes of a .pth with these tensors."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()
