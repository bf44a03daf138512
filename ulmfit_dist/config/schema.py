"""Schema of the configuration: every key with its type, valid values, default and meaning.

This file is the manual: `ulmfit-dist config` and docs/configuration.md print the string under a field as the key's meaning.
The trade-off: the file is long, and the meaning of a key must fit one line. Batch sizes are global: what a rank computes
follows from the world size. `loading.py` composes a config.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ulmfit_dist.config.fields import checked, choice, count, is_positive, number, share

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp64")
"""Precisions; a recipe may also use `no`, Accelerate's name of fp32."""
TARGETS = ("category", "multicategory", "regression")
"""Kinds of label."""
SPLITS = ("train", "valid", "unlabelled", "test")
"""Names of splits."""
FORBIDDEN_IN_PROJECT = "/\\#?%:"
"""Characters that W&B rejects in a project name."""


def _is_encoding(name: str) -> bool:
    try:
        return "a".encode(name).decode(name) == "a"
    except (LookupError, UnicodeError):
        return False


def _is_project(name: str) -> bool:
    return 1 <= len(name) <= 128 and not set(name) & set(FORBIDDEN_IN_PROJECT)


def _is_learning_rate(lr: Any) -> bool:
    rates = lr if isinstance(lr, list) else [lr]
    return len(rates) in (1, 2) and all(map(is_positive, rates))


def _is_class_weights(weights: Any) -> bool:
    return weights in (None, "balanced") or (isinstance(weights, list) and all(map(is_positive, weights)))


def _is_shares(shares: list[float]) -> bool:
    return bool(shares) and shares[0] > 0 and shares[-1] <= 1 and all(a < b for a, b in pairwise(shares))


def _is_interval(bounds: list[float]) -> bool:
    return len(bounds) == 2 and all(map(math.isfinite, bounds)) and bounds[0] < bounds[1]


@dataclass
class DataConfig:
    """Source of the texts, splits, labels and token store."""

    source: str = choice("folder", "csv", "json", "parquet", "hub", "bbc_news", "frame")
    """Source: folder (a sub-folder per class), csv (or TSV), json (lines), parquet, hub, bbc_news, or frame (Python)."""
    path: str | None = None
    """Folder or file of the source; hub: name of the data set; bbc_news and frame: not used."""
    splits: dict[str, str] = field(default_factory=dict)
    """Sub-folder, file (or glob) or hub split by name of the split: train, valid, unlabelled, test."""
    text_col: list[str] = checked(["text"], bool, "at least one column")
    """Text columns; several are joined as in fastai, each marked with xxfld."""
    file_col: str | None = None
    """Column of text file names relative to the table's folder, read in place of text_col; csv, json and parquet only."""
    label_col: str | None = "label"
    """Label column. Rows without a label (empty or missing_label) train the language model only. null: no labels."""
    missing_label: str | None = "-1"
    """Label that marks a row as unlabelled, in addition to an empty one. null: none."""
    label_delim: str = checked(";", bool, "the text between a document's labels, such as ';' (YAML needs quotes around '|')")
    """Delimiter of a document's labels if classifier.target=multicategory; alone, it means a document of no class."""
    valid_pct: float = share(0.1)
    """Share of the training documents, between 0 and 1, that is held out by seed if the source has no valid split."""
    test_pct: float | None = share(None)
    """Share of the training documents, between 0 and 1, held out as test split, independent of the seed. null: none."""
    valid_col: str | None = None
    """Column that is true in validation rows and false in all others. null: the valid split, or valid_pct."""
    folds: int | None = count(None, at_least=2)
    """Number of stratified folds for cross-validation, cut by seed: at least 2. null: no folds."""
    fold: int = 0
    """Fold to validate on, from 0 to below folds; the other folds are trained on."""
    splitter: str | None = None
    """User-defined function, as module.function: a document's path or row to the name of its split, or None to drop it."""
    get_y: str | None = None
    """User-defined function, as module.function: a document's path or row to its label, or None. null: label_col."""
    max_documents: int | None = count(None)
    """Maximum number of documents per split, drawn by seed. null: all."""
    on_error: str = choice("strict", "replace", "skip")
    """Undecodable bytes and malformed rows: strict stops with an error, replace decodes to U+FFFD, skip drops the row."""
    encoding: str | None = checked(None, _is_encoding, "the name of an encoding, such as utf-8, cp1252 or utf-16-le")
    """Encoding of files without a byte-order mark, such as cp1252; not for parquet and hub. null: UTF-8."""
    on_duplicates: str = choice("warn", "drop", "error")
    """Texts that are both trained on and evaluated on: warn, drop them from training, or stop with an error."""
    min_chars: int | None = count(None)
    """Minimum length of a document in characters, white space runs as one; not applied to test. null: no minimum."""
    min_letter_share: float | None = share(None, example=0.5)
    """Minimum share of letters and combining marks among non-space characters; not applied to test. null: no minimum."""
    drop_duplicates: bool = False
    """Keep only the first of documents that are equal up to white space, in all of the source except test."""
    quoting: bool | None = None
    """Parse quotes in CSV and TSV files, so that quoted fields may contain delimiters. null: true for CSV, false for TSV."""
    subset: str | None = None
    """Configuration name of the hub data set."""
    stream_documents: int | None = count(None)
    """hub: number of rows to fetch from the beginning of each split, in place of all files, kept in cache_dir. null: all."""
    num_proc: int = count(2)
    """Tokenizer processes per rank; small data sets use fewer."""
    documents_per_shard: int = count(2000)
    """Documents per shard of the token store; ranks tokenize whole shards."""
    cache_dir: str = "cache"
    """Folder of the token stores; runs with the same texts and tokenizer share one."""
    token_store: str | None = None
    """Existing token store to train from; needs neither the texts nor spaCy. null: prepare one in cache_dir."""
    node_cache_dir: str | None = None
    """Folder on each node's local disk for a copy of the store, such as ${oc.env:TMPDIR}/tokens. null: no copy."""


@dataclass
class TokenizerConfig:
    """fastai's rules, followed by spaCy's word tokenizer or SentencePiece."""

    type: str = choice("word", "sentencepiece")
    """word: spaCy's tokenizer, as in fastai; sentencepiece: subwords, for languages without spaces between words."""
    lang: str = "en"
    """spaCy's language code, such as en, de, fr or es."""
    rules: list[str] = field(default_factory=list)
    """User-defined functions from text to text, as module.function, applied after fastai's rules on the reference path."""
    min_freq: int = count(3)
    """Minimum number of occurrences of a token in the vocabulary; rarer tokens become xxunk."""
    max_vocab: int = count(60000)
    """Maximum size of the vocabulary, special tokens included."""
    sp_model: str | None = None
    """SentencePiece model file; pretrained: that of model.pretrained. null: train one and keep it in the token store."""
    sp_model_type: str = choice("unigram", "bpe")
    """Algorithm of a SentencePiece model trained here."""
    sp_vocab_size: int | None = count(None)
    """Vocabulary size of a SentencePiece model trained here. null: distinct words / 4, at most 30000, as in fastai."""
    sp_sample_documents: int = count(20000)
    """Maximum number of documents, evenly spaced, that SentencePiece trains on; at most 20 million characters."""


@dataclass
class ModelConfig:
    """AWD-LSTM (Merity et al., 2017) as in fastai, or a user-defined encoder, shared by language model and classifier."""

    emb_sz: int = count(400)
    """Width of the embedding and of the last LSTM layer."""
    n_hid: int = count(1152)
    """Width of the other LSTM layers."""
    n_layers: int = count(3)
    """Number of LSTM layers."""
    pretrained: str | None = None
    """Initial weights: a public model such as de or wt103_fwd, hf:USER/NAME, a run, a folder, or a .pth. null: random."""
    backwards: bool = False
    """Read each text from its end to its beginning."""
    arch: str | None = None
    """Encoder: null (AWD-LSTM), qrnn, or a user-defined module.Class, which receives emb_sz, n_hid and n_layers."""
    arch_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of arch; of qrnn: zoneout, a probability."""


@dataclass
class RuntimeConfig:
    """Use of the machine: results differ by rounding only."""

    precision: str = choice(*PRECISIONS)
    """auto: the fastest safe one of this machine; fp32 (in Accelerate: no); bf16; fp16 (GPU only); fp64 (CPU only)."""
    micro_batch_size: int | None = count(None)
    """Maximum rows or documents of a (canonical) rank per forward pass. null: all, or as set by accelerate launch."""
    canonical_ranks: int | None = checked(
        None, lambda ranks: ranks >= 1 and ranks & (ranks - 1) == 0, "a power of two, such as 2, 4 or 8"
    )
    """Fix the reduction order to N canonical ranks: bitwise-equal weights on every world size that divides N."""
    gradient_compression: str | None = choice(None, "fp16", "bf16")
    """Type for the exchange of gradients: fp16 (not if precision=fp16), bf16 (GPU only). null: not compressed."""
    join_timeout: float = number(5.0, "number of minutes", above=0, example=5)
    """Minutes that a rank waits for the others at start-up; it prints the missing ranks every 30 seconds."""
    deterministic: bool = False
    """Use deterministic torch and cuDNN algorithms only: repeated runs on a GPU give equal bits, at lower speed."""
    detect_anomaly: bool = False
    """Enable torch's anomaly detection, which names the operation that produced a NaN; slow."""
    show_first_batch: bool = False
    """Print shapes and decoded text of each stage's first batch."""


@dataclass
class Phase:
    """One call of fit_one_cycle."""

    epochs: int = count(1)
    """Epochs of the phase."""
    lr: Any = checked(1e-3, _is_learning_rate, "one rate, such as 1e-2, or [low, high]")
    """Maximum learning rate of the one-cycle schedule; [low, high] spaces it geometrically over the layer groups."""
    freeze_to: int = 0
    """First layer group that is trained: -1 the last one only, -2 the last two, 0 all."""
    pct_start: float | None = share(None, example=0.3)
    """Share of the phase, between 0 and 1, in which the learning rate rises. null: 0.25, as in fastai."""
    div: float | None = number(None, at_least=1, example=5)
    """Ratio of the maximum to the initial learning rate: at least 1. null: 25, as in fastai."""


def schedule(*phases: Phase) -> Any:
    """Return a field for the phases of a stage."""
    return checked(list(phases), bool, "at least one phase, such as [{epochs: 1, lr: 1e-2}]")


@dataclass
class StageConfig:
    """Training of one stage. Defaults are fastai's."""

    global_batch_size: int = count(64)
    """Rows per optimizer step over all ranks."""
    seq_len: int = count(72)
    """Tokens per row and forward pass of the encoder."""
    drop_mult: float = number(1.0, "factor", at_least=0, below=4)
    """Factor on all dropout probabilities of fastai's configuration."""
    wd: float = number(0.1, at_least=0)
    """Decoupled weight decay; not applied to biases and norms."""
    alpha: float = number(2.0, at_least=0)
    """Weight of activation regularization (AR): on the last layer's output after dropout."""
    beta: float = number(1.0, at_least=0)
    """Weight of temporal activation regularization (TAR): on the last layer's output before dropout."""
    moms: list[float] = checked(
        [0.8, 0.7, 0.8],
        lambda moms: len(moms) == 3 and all(0 <= mom < 1 for mom in moms),
        "three values from 0 to below 1, such as [0.8, 0.7, 0.8]",
    )
    """Adam's beta1 at the start, the peak and the end of the one-cycle schedule."""
    grad_clip: float | None = checked(None, lambda norm: norm > 0, "a norm above 0")
    """Maximum norm of the gradient. null: no clipping."""
    phases: list[Phase] = schedule(Phase())
    """Training schedule: epochs, learning rates and frozen layers of each phase."""
    export_epoch: str = choice("last", "best")
    """Epoch whose model is exported: last, or best by the validation metric."""
    early_stopping_patience: int | None = count(None)
    """End the stage after this many consecutive epochs without improvement. null: never."""
    callbacks: list[Any] = field(default_factory=list)
    """User-defined fastai callbacks, on every rank: module.Class, or {path: module.Class, argument: value}."""


@dataclass
class LMConfig(StageConfig):
    """Training or fine-tuning of the language model. Defaults are fastai's."""

    global_batch_size: int = count(64)
    """Rows that the token stream is cut into, over all ranks."""
    seq_len: int = count(72)
    """Tokens per row and step: the length of truncated back-propagation through time."""
    drop_mult: float = number(1.0, "factor", at_least=0, below=4)  # keeps the largest dropout, 0.25, below 1
    """Factor on all dropout probabilities of fastai's awd_lstm_lm_config: from 0 to below 4."""
    phases: list[Phase] = schedule(Phase(1, 1e-2, -1), Phase(10, 1e-3, 0))
    """Training schedule: epochs, learning rates and frozen layers of each phase."""
    export_epoch: str = choice("last", "best")
    """Epoch whose model is exported: last, or best by valid_loss (lowest)."""
    valid_pct: float | None = share(None)
    """Share of all documents, labelled or not, between 0 and 1, held out for validation by seed. null: the valid split."""
    use_test_texts: bool = False
    """Train on the texts of the test split too, without labels: the transductive setting of the paper."""


@dataclass
class UnlabelledConfig:
    """Losses of a semi-supervised classifier: what unlabelled documents and perturbed embeddings teach."""

    batch_size: int | None = count(None)
    """Unlabelled documents per optimizer step over all ranks, from the unlabelled split and train. null: none."""
    entropy_weight: float = number(0.0, at_least=0)
    """Weight of entropy minimization: the mean entropy of the predictions of the unlabelled documents."""
    adversarial_weight: float = number(0.0, at_least=0)
    """Weight of adversarial training: the loss of the labelled documents with perturbed embeddings."""
    virtual_adversarial_weight: float = number(0.0, at_least=0)
    """Weight of virtual adversarial training: the divergence of all documents' predictions with perturbed embeddings."""
    epsilon: float = number(5.0, above=0)
    """Norm of the perturbation of a document, in standard deviations of the embedding."""
    power_iterations: int = count(1)
    """Steps of the search for the virtual adversarial direction; each costs a forward and a backward pass."""
    ramp: float = number(0.1, "share", at_least=0, below=1, example=0.1)
    """Share of the stage's steps, from 0 to below 1, over which the weights rise linearly from 0."""

    @property
    def is_active(self) -> bool:
        """True if a loss has a weight."""
        return bool(self.entropy_weight or self.is_perturbed)

    @property
    def is_perturbed(self) -> bool:
        """True if a loss is computed at perturbed embeddings."""
        return bool(self.adversarial_weight or self.virtual_adversarial_weight)

    @property
    def passes(self) -> tuple[float, float]:
        """Cost of a labelled and of an unlabelled document, in forward and backward passes of the encoder.

        A pass of which only the gradient of the embeddings is computed counts as two thirds of one.
        """
        virtual = (1 + self.power_iterations * 2 / 3) * bool(self.virtual_adversarial_weight)
        adversarial = (1 + 1 / 3) * bool(self.adversarial_weight)  # its direction reuses the clean forward pass
        return 1 + adversarial + virtual, 1 + virtual


@dataclass
class ClassifierConfig(StageConfig):
    """Training of the classifier on the language model's encoder. Defaults are fastai's."""

    global_batch_size: int = count(64)
    """Documents per optimizer step over all ranks."""
    seq_len: int = count(72)
    """Tokens per document and forward pass of the encoder."""
    drop_mult: float = number(0.5, "factor", at_least=0, below=2)  # keeps the largest dropout, 0.5, below 1
    """Factor on all dropout probabilities of fastai's awd_lstm_clas_config: from 0 to below 2."""
    wd: float = number(0.01, at_least=0)
    """Decoupled weight decay; not applied to biases and norms."""
    phases: list[Phase] = schedule(
        Phase(1, 2e-2, -1),
        Phase(1, [1e-2 / 2.6**4, 1e-2], -2),
        Phase(1, [5e-3 / 2.6**4, 5e-3], -3),
        Phase(2, [1e-3 / 2.6**4, 1e-3], 0),
    )
    """Training schedule: gradual unfreezing with discriminative learning rates."""
    export_epoch: str = choice("last", "best")
    """Epoch whose model is exported: last, or best by accuracy, f1_macro (multicategory) or valid_loss (regression)."""
    temperature_scaling: bool = False
    """Divide the exported logits by a temperature fitted to the valid split, which changes confidence, not predictions."""
    target: str = choice(*TARGETS)
    """Kind of label: category (one class), multicategory (several, joined by data.label_delim) or regression (a number)."""
    threshold: float = number(0.5, "probability", above=0, below=1)
    """Probability, between 0 and 1, from which a multicategory document is assigned a class."""
    y_range: list[float] | None = checked(None, _is_interval, "the lowest and the highest number, such as [0, 5]")
    """[low, high] of a regression's predictions, through a scaled sigmoid as in fastai. null: unbounded."""
    encoder: str | None = None
    """Initial encoder weights: null (this run's LM), `pretrained` (model.pretrained), a path, or hf:USER/NAME."""
    max_len: int = count(1440)
    """Tokens that the head pools and back-propagates through, counted from the end of a batch's longest document."""
    max_doc_tokens: int | None = count(None)
    """Tokens read per document, counted from its beginning; the rest is dropped. null: all, as in fastai."""
    lin_ftrs: list[int] = checked([50], lambda widths: all(width >= 1 for width in widths), "widths of at least 1")
    """Widths of the head's hidden layers."""
    head_dropout: float = number(0.1, "probability", at_least=0, below=1)
    """Dropout probability after each hidden layer of the head, from 0 to below 1; not scaled by drop_mult, as in fastai."""
    label_smoothing: float = number(0.0, "share", at_least=0, below=1, example=0.1)
    """Share of the target probability, from 0 to below 1, that the training loss spreads over all classes."""
    pseudo_labels: str | None = None
    """Parquet file with labels of unlabelled documents to train on as well; `self-train` writes and sets it. null: none."""
    repeat_labelled: int = count(1)
    """Number of times that an epoch reads each document with a label of its own, beside pseudo-labels."""
    unlabelled: UnlabelledConfig = field(default_factory=UnlabelledConfig)
    """Semi-supervised training."""
    class_weights: Any = checked(None, _is_class_weights, "balanced, null, or a list of numbers above 0")
    """Class weights in the training loss: a list in the order of labels.json, or balanced. null: equal."""
    baseline: bool = True
    """Evaluate a linear model on TF-IDF features of the same documents before the first epoch of `run`."""
    baseline_features: str = choice("tfidf", "naive_bayes", "lsa")
    """Features of that linear model: tfidf; for many labels naive_bayes; for few lsa, which learns from all texts."""
    metrics: list[Any] = field(default_factory=list)
    """Further validation metrics: module.name, such as fastai.metrics.F1Score, or {path: module.name, argument: value}."""


@dataclass
class SelfTrainingConfig:
    """Rounds of `ulmfit-dist self-train`: classifiers that also train on labels which a model gives to unlabelled texts."""

    rounds: int = count(3)
    """Maximum number of rounds with pseudo-labels; they end earlier if a round does not improve the metric on valid."""
    teacher: str = choice("mean", "classifier", "baseline")
    """Model that labels the texts: classifier (of the round before), baseline (the linear model), or the mean of both."""
    voters: list[str] = field(default_factory=list)
    """Runs of the same texts whose classifiers are averaged with the teacher, such as [runs/imdb-backward]."""
    shares: list[float] = checked(
        [0.1, 0.25, 0.5, 0.75, 1.0], _is_shares, "shares above 0, at most 1, in ascending order, such as [0.25, 0.5, 1.0]"
    )
    """Candidate shares of the unlabelled texts, the most confident ones: the largest with few errors on valid is chosen."""
    error_ratio: float = number(0.5, "factor", above=0)
    """Error of a share on valid that is low enough, relative to the error of all valid documents."""
    accepted_error: float = number(0.1, "share", at_least=0, below=1)
    """Error of a share on valid, from 0 to below 1, that is low enough in any case."""
    scored_documents: int | None = count(None)
    """Number of unlabelled texts, drawn by seed in each round, that the teacher labels: it is the slow part. null: all."""
    max_documents: int | None = count(None)
    """Maximum number of pseudo-labels per round, drawn evenly from the chosen share. null: no maximum."""
    labelled_share: float = share(0.1)
    """Least share of an epoch, between 0 and 1, that are documents with a label of their own: they are repeated to it."""
    phases: list[Phase] = field(default_factory=list)
    """Training schedule of the rounds with pseudo-labels. []: that of the classifier."""


@dataclass
class CheckpointConfig:
    """Checkpoints that a run resumes from; one is also saved after each epoch and when a signal stops the run."""

    interval_minutes: float | None = number(5, above=0)
    """Minutes of training between checkpoints. null: no interval in minutes."""
    interval_steps: int | None = count(None)
    """Optimizer steps between checkpoints, in addition to interval_minutes. null: no interval in steps."""
    keep_latest: int = count(2)
    """Number of latest checkpoints to keep per stage, in addition to the best one by the validation metric."""


@dataclass
class TrackingConfig:
    """Trackers and metrics.jsonl, on rank 0 only."""

    trackers: list[str] = field(default_factory=lambda: ["wandb"])
    """wandb, tensorboard, mlflow and other trackers of Accelerate; []: metrics.jsonl and terminal only."""
    wandb_mode: str = choice("auto", "online", "offline", "disabled")
    """auto: online if logged in, otherwise offline; WANDB_MODE overrides auto."""
    project: str = checked("ulmfit", _is_project, f"at most 128 characters, none of {' '.join(FORBIDDEN_IN_PROJECT)}")
    """W&B project; WANDB_PROJECT overrides the default."""
    group: str | None = None
    """W&B group, such as the seeds of one recipe; WANDB_RUN_GROUP overrides the default."""
    tags: list[str] = field(default_factory=list)
    """W&B tags; WANDB_TAGS overrides the default."""
    log_interval: int = count(20)
    """Steps per line of metrics.jsonl, whose loss is their mean."""
    log_text: bool = False
    """Log texts to W&B and the report: generated samples and misclassified documents."""
    num_samples: int = count(3)
    """Texts that the language model generates after each epoch if log_text is true."""
    log_model: bool = False
    """Upload exported models as W&B artifacts; online only."""
    wandb_timeout: float = number(30, "number of seconds", above=0)
    """Maximum seconds that the end of a run waits for W&B, or another tracker; `wandb sync` uploads the rest."""


@dataclass
class Config:
    """Name, seed and folder of a run, and the sections."""

    name: str = checked(
        "run",
        lambda name: re.fullmatch(r"\w[\w.+-]*", name) is not None,
        "a plain folder name of letters, digits, '.', '+', '-' and '_'",
    )
    """Name of the run and of its folder in runs_dir."""
    seed: int = 42
    """Seed of the splits, the order of documents, the initial weights and dropout."""
    runs_dir: str = "runs"
    """Parent folder of the run directories."""
    data: DataConfig = field(default_factory=DataConfig)
    """Source of the texts."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Tokenizer and vocabulary."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Use of the machine."""
    lm: LMConfig = field(default_factory=LMConfig)
    """Language model training."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Classifier training."""
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    """Self-training."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Logging."""

    @property
    def encoder_source(self) -> str | None:
        """Source of the classifier's encoder weights, as in `model.pretrained`; None: the run's language model."""
        return self.model.pretrained if self.classifier.encoder == "pretrained" else self.classifier.encoder

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages that `run` trains: the language model is skipped if the encoder comes from elsewhere."""
        return ("lm", "classifier") if self.classifier.encoder is None else ("classifier",)

    @property
    def run_dir(self) -> Path:
        """Run directory."""
        return Path(self.runs_dir) / self.name

    @property
    def checkpoints_dir(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.run_dir / "checkpoints"
