"""The whole configuration: each key with its type, its default and, in the line below it, its meaning.

This file is the manual. The string under a field is what `ulmfit-dist config` prints beside the key, so it is written
once. Batch sizes are global: what one rank does follows from the number of ranks. `loading.py` puts a config together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCES = ("folder", "csv", "json", "parquet", "hub", "bbc_news", "frame")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp64")
HIGHEST_DROPOUT = {"lm": 0.25, "classifier": 0.5}
"""The largest dropout in fastai's configurations of the two stages, which drop_mult scales."""
TARGETS = ("category", "multicategory", "regression")
SPLITS = ("train", "valid", "unlabelled", "test")


@dataclass
class DataConfig:
    """Where the texts come from, and which of them are for what."""

    source: str = "folder"
    """folder (a sub-folder per class), csv (TSV too), json (JSON lines), parquet, hub, bbc_news, or frame: from Python."""
    path: str | None = None
    """Folder or file of the source; for hub, the data set's name. bbc_news needs none, nor does frame."""
    splits: dict[str, str] = field(default_factory=dict)
    """Which part of the source is train, valid, test and unlabelled: sub-folders, files (globs too) or hub splits."""
    text_col: list[str] = field(default_factory=lambda: ["text"])
    """Columns that hold the text; several are joined as fastai does, each marked with xxfld."""
    file_col: str | None = None
    """Column that names a file with the text, by its path from the table's folder, in place of text. csv, json, parquet."""
    label_col: str | None = "label"
    """Column that holds the label. Rows with none (empty, or missing_label) train the language model only. null: no
    labels."""
    missing_label: str | None = "-1"
    """Label that means none, beside an empty one. null: no other."""
    label_delim: str = ";"
    """What separates a document's labels (classifier.target: multicategory), and alone means a document of no class."""
    valid_pct: float = 0.1
    """Share of the training documents cut off to validate on, by seed, where no valid split is named."""
    test_pct: float | None = None
    """Share of the training documents cut off as the test split, where there is none: the same for every seed. null: 0."""
    valid_col: str | None = None
    """Column that is true for the rows to validate on and false for all others. null: a valid split, or valid_pct."""
    folds: int | None = None
    """For cross-validation: cut the training documents by seed into so many parts, each with its share of every class."""
    fold: int = 0
    """The part, from 0 on, to validate on, where there are folds; the others are trained on."""
    splitter: str | None = None
    """A function of yours, as module.function, from a document's path or row to its split's name, or to None: left out."""
    get_y: str | None = None
    """A function of yours, as module.function, from a document's path or row to its label, or None. null: data.label_col."""
    max_documents: int | None = None
    """Use this many documents of each split at most, drawn by seed: for a first try."""
    on_error: str = "strict"
    """Bytes that are no UTF-8, lines that are no row: strict stops and says where, replace reads U+FFFD, skip leaves out."""
    encoding: str | None = None
    """Encoding of files without a byte-order mark, such as cp1252 or utf-16-le. null: UTF-8. Not for Parquet and the hub."""
    on_duplicates: str = "warn"
    """Equal texts to learn from and to measure on: warn, drop (leave them out of training) or error."""
    quoting: bool | None = None
    """Whether fields of a CSV or TSV file may stand in quotes, within which delimiters count for nothing. null: CSV only."""
    subset: str | None = None
    """Name of the hub data set's configuration, where it has several."""
    num_proc: int = 2
    """Processes of each rank that tokenize, where there are texts enough for them."""
    documents_per_shard: int = 2000
    """Documents in a shard of the token store: the unit of work that is dealt to ranks."""
    cache_dir: str = "cache"
    """Folder of the token stores. One store serves all runs with the same texts and tokenizer."""
    token_store: str | None = None
    """A prepared token store to train from as it is: then neither the texts nor spaCy are needed."""
    node_cache_dir: str | None = None
    """Folder on each node's own disk, such as ${oc.env:TMPDIR}/tokens, to read a copy of the store from. null: no copy."""


@dataclass
class TokenizerConfig:
    """fastai's rules, then spaCy's word tokenizer or SentencePiece."""

    type: str = "word"
    """word: spaCy's tokenizer, as fastai uses it; sentencepiece: pieces of words, where words are no unit."""
    lang: str = "en"
    """spaCy's code of the language: en, de, fr, es, ..."""
    rules: list[str] = field(default_factory=list)
    """Functions of yours from text to text, as module.function, called after fastai's rules. They take the slow way."""
    min_freq: int = 3
    """A token that occurs less often becomes xxunk."""
    max_vocab: int = 60000
    """Tokens in the vocabulary at most, the special ones included."""
    sp_model: str | None = None
    """A SentencePiece model file to use. null: one is trained on a sample of the texts, and kept in the token store."""
    sp_model_type: str = "unigram"
    """Of the SentencePiece model to train: unigram or bpe."""
    sp_vocab_size: int | None = None
    """Pieces of the SentencePiece model to train. null: a quarter of the distinct words, 30000 at most, as in fastai."""
    sp_sample_documents: int = 20000
    """Documents that a SentencePiece model is trained on at most, evenly from all, and 20 million characters of them."""


@dataclass
class ModelConfig:
    """AWD-LSTM (Merity et al., 2017), as fastai builds it, or your own. Language model and classifier share the encoder."""

    emb_sz: int = 400
    """Width of the word embedding, and of the last LSTM layer."""
    n_hid: int = 1152
    """Width of the other LSTM layers."""
    n_layers: int = 3
    """Number of LSTM layers."""
    pretrained: str | None = None
    """What to start from: wt103_fwd, wt103_bwd, another run or exported model, fastai's .pth (with its .pkl). null: none."""
    backwards: bool = False
    """Read each text from its end to its beginning."""
    arch: str | None = None
    """An encoder of yours in place of AWD-LSTM, as module.Class; the sizes above are then given to it. null: AWD-LSTM."""
    arch_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of model.arch by name, beside the sizes."""


@dataclass
class RuntimeConfig:
    """How the machine is used. What is computed changes by rounding alone."""

    precision: str = "auto"
    """fp32 (or no, its name in Accelerate), bf16, fp16 (GPUs), fp64 (CPUs), or auto: the fastest safe one of this
    machine."""
    micro_batch_size: int | None = None
    """Rows or documents that a (virtual) rank computes at once; more are accumulated. null: all, or by the launch flags."""
    canonical_ranks: int | None = None
    """Compute as this power of two of ranks would: any number of ranks that divides it gives equal bits. null: one each."""
    gradient_compression: str | None = None
    """Exchange gradients as fp16 (not with precision fp16), or bf16 (GPUs only): half the bytes. Not with
    canonical_ranks."""
    join_timeout: float = 5.0
    """Minutes that a rank waits for the others to start. It says for whom it waits, every half minute."""
    deterministic: bool = False
    """Only deterministic algorithms, in torch and cuDNN: the same run twice gives equal bits on a GPU as well. Slower."""
    detect_anomaly: bool = False
    """torch's anomaly detection: names the operation that made a NaN. Slow."""
    show_first_batch: bool = False
    """Print the shapes and the decoded text of each stage's first batch."""


@dataclass
class Phase:
    """One call of fit_one_cycle."""

    epochs: int = 1
    """Epochs of the phase."""
    lr: Any = 1e-3
    """Highest learning rate of the one-cycle schedule; [low, high] spreads it over the layer groups, geometrically."""
    freeze_to: int = 0
    """First layer group that is trained: -1 only the last one, -2 the last two, 0 all."""
    pct_start: float | None = None
    """Share of the phase in which the learning rate rises. null: fastai's default, 0.25."""
    div: float | None = None
    """What the highest learning rate is divided by to begin with. null: fastai's default, 25."""


@dataclass
class LMConfig:
    """Fine-tuning, or training, of the language model. Values are fastai's unless a recipe says otherwise."""

    global_batch_size: int = 64
    """Rows that the corpus is cut into, over all ranks."""
    seq_len: int = 72
    """Tokens of a row per step: the length of back-propagation through time."""
    drop_mult: float = 1.0
    """Factor on all dropouts of fastai's awd_lstm_lm_config."""
    valid_pct: float | None = None
    """Share of all documents, labelled or not, held out to validate the language model, by seed. null: the valid split."""
    use_test_texts: bool = False
    """Whether the language model reads the texts of the test split, labels left out: the paper's transductive way."""
    wd: float = 0.1
    """Decoupled weight decay; biases and norms are spared."""
    alpha: float = 2.0
    """Activation regularization (AR) on the last layer's dropped-out output."""
    beta: float = 1.0
    """Temporal activation regularization (TAR) on the last layer's raw output."""
    moms: list[float] = field(default_factory=lambda: [0.8, 0.7, 0.8])
    """Adam's first beta at the start, the top and the end of a cycle."""
    grad_clip: float | None = None
    """Norm that the gradient is clipped to. null: no clipping."""
    export_epoch: str = "last"
    """Whose model is exported: last, or best: that of the epoch with the lowest valid_loss."""
    early_stopping_patience: int | None = None
    """End the stage after so many epochs in a row that were no better than the best before. null: never."""
    callbacks: list[Any] = field(default_factory=list)
    """fastai callbacks of yours on every rank: module.Class, or {path: module.Class, argument: value}."""
    phases: list[Phase] = field(default_factory=lambda: [Phase(1, 1e-2, -1), Phase(10, 1e-3, 0)])
    """The recipe: what is trained, how long, at which learning rate."""


@dataclass
class ClassifierConfig:
    """The classifier on the language model's encoder. Values are fastai's unless a recipe says otherwise."""

    target: str = "category"
    """What a label is: category (one class), multicategory (several, cut at data.label_delim) or regression (a number)."""
    threshold: float = 0.5
    """Probability from which on a document is said to have a class, where it may have several."""
    y_range: list[float] | None = None
    """[low, high] that a regression's numbers are kept between by a sigmoid, as in fastai. null: any number."""
    encoder: str | None = None
    """Whose to take. null: the run's own language model's; pretrained: that of model.pretrained; or a run, model or .pth."""
    global_batch_size: int = 64
    """Documents of a step, over all ranks."""
    seq_len: int = 72
    """Tokens that the encoder reads at a time."""
    max_len: int = 1440
    """Tokens that are pooled and learned from, from the end of a batch's longest document; others are read only."""
    max_doc_tokens: int | None = None
    """Tokens of a document that are read at all, from its beginning; the rest is left out. null: all, as in fastai."""
    drop_mult: float = 0.5
    """Factor on all dropouts of fastai's awd_lstm_clas_config."""
    lin_ftrs: list[int] = field(default_factory=lambda: [50])
    """Widths of the head's hidden layers."""
    head_dropout: float = 0.1
    """Dropout after each hidden layer of the head; drop_mult does not scale it, as in fastai."""
    label_smoothing: float = 0.0
    """Share of a target's probability that the training loss spreads over all classes, such as 0.1."""
    class_weights: Any = None
    """Weights in the training loss: a list in the order of labels.json; balanced: all classes count alike. null: equal."""
    wd: float = 0.01
    """Decoupled weight decay; biases and norms are spared."""
    alpha: float = 2.0
    """Activation regularization (AR), as in the language model."""
    beta: float = 1.0
    """Temporal activation regularization (TAR), as in the language model."""
    moms: list[float] = field(default_factory=lambda: [0.8, 0.7, 0.8])
    """Adam's first beta at the start, the top and the end of a cycle."""
    grad_clip: float | None = None
    """Norm that the gradient is clipped to. null: no clipping."""
    export_epoch: str = "last"
    """Whose model is exported: last, or best: that of the epoch with the highest accuracy."""
    early_stopping_patience: int | None = None
    """End the stage after so many epochs in a row that were no better than the best before. null: never."""
    baseline: bool = True
    """Measure TF-IDF with a linear model on the same documents, before the first epoch of run."""
    callbacks: list[Any] = field(default_factory=list)
    """fastai callbacks of yours on every rank: module.Class, or {path: module.Class, argument: value}."""
    metrics: list[Any] = field(default_factory=list)
    """Metrics over all validation documents: module.name, such as fastai.metrics.F1Score, or {path: ..., average: macro}."""
    phases: list[Phase] = field(
        default_factory=lambda: [
            Phase(1, 2e-2, -1),
            Phase(1, [1e-2 / 2.6**4, 1e-2], -2),
            Phase(1, [5e-3 / 2.6**4, 5e-3], -3),
            Phase(2, [1e-3 / 2.6**4, 1e-3], 0),
        ]
    )
    """The recipe: gradual unfreezing with discriminative learning rates."""


@dataclass
class CheckpointConfig:
    """What a killed run goes on from. One is also saved at the end of each epoch, and when a signal asks to stop."""

    interval_minutes: float | None = 5
    """Minutes of training from one checkpoint to the next; null: none by the clock."""
    interval_steps: int | None = None
    """Optimizer steps of the stage from one checkpoint to the next, beside interval_minutes; null: none by steps."""
    keep_latest: int = 2
    """Newest checkpoints of each stage that are kept, beside the best one by the validation metric."""


@dataclass
class TrackingConfig:
    """Weights & Biases, on rank 0 alone."""

    wandb_mode: str = "auto"
    """online, offline, disabled, or auto: online for who is logged in, else offline. WANDB_MODE wins over auto."""
    project: str = "ulmfit"
    """Project of the run. WANDB_PROJECT replaces the default."""
    group: str | None = None
    """Group of the run: for several seeds of one recipe. WANDB_RUN_GROUP replaces the default."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run. WANDB_TAGS replaces the default."""
    log_interval: int = 20
    """Steps from one line of metrics.jsonl to the next; its loss is their mean."""
    log_text: bool = False
    """Whether texts leave the token store: generated samples and wrongly labelled documents, in W&B and in the report."""
    num_samples: int = 3
    """Texts that the language model makes up after each epoch, where log_text allows them."""
    log_model: bool = False
    """Upload the exported models as artifacts. Where W&B is online only."""
    wandb_timeout: float = 30
    """Seconds that W&B may keep the end of a run waiting. What it has not sent by then `wandb sync` sends."""


@dataclass
class Config:
    """All of it: the name, seed and folder of a run, and the sections."""

    name: str = "run"
    """Name of the run, and of its folder in runs_dir."""
    seed: int = 42
    """Decides the cut of the data, the order of documents, the initial weights and the dropout."""
    runs_dir: str = "runs"
    """Folder that holds the run folders."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where the texts come from."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How texts become tokens."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """How the machine is used."""
    lm: LMConfig = field(default_factory=LMConfig)
    """The language model's training."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """The classifier's training."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What is saved while training."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """What is logged, and where."""

    @property
    def encoder_source(self) -> str | None:
        """What the classifier's encoder comes from, as `model.pretrained` would name it; None: the run's language model."""
        return self.model.pretrained if self.classifier.encoder == "pretrained" else self.classifier.encoder

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that `run` trains: a classifier on an encoder from elsewhere needs no language model of the run's."""
        return ("lm", "classifier") if self.classifier.encoder is None else ("classifier",)

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name

    @property
    def checkpoints_dir(self) -> Path:
        return self.run_dir / "checkpoints"
