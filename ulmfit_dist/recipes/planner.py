"""Size and schedule of a recipe: the largest of four model sizes that fits the time limit.

Durations are proportional to tokens and documents, so one measurement of a size gives the durations of all its schedules.
This module only computes; `recipes/init.py` measures. Order of preference: enough steps for both stages, then a larger
model, then more epochs of the language model. If the smallest size does not fit, it reads only the beginning of each
document, then fewer documents. Trade-off: a coarse choice, but no search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

SIZES = ((100, 200, 1), (200, 400, 2), (300, 600, 2), (400, 1152, 3))
"""Model sizes (emb_sz, n_hid, n_layers), from small to that of the paper."""
FEWEST_TOKENS = (0, 30_000, 2_000_000, 10_000_000)
"""Minimum training tokens of the language model per size; with fewer, a model of this size overfits."""
LM_STEPS = 700
"""Minimum steps of the language model: one epoch of BBC News."""
LM_STEPS_OF_EPOCH = 500
"""Minimum steps per epoch of the language model, which limits the batch size."""
CLASSIFIER_STEPS = 550
"""Minimum steps of the unfrozen classifier: five epochs of BBC News."""
CLASSIFIER_STEPS_OF_EPOCH = 100
"""Minimum steps per epoch of the classifier, which limits the batch size."""
MOST_LM_EPOCHS = 10
MOST_CLASSIFIER_EPOCHS = 10
SEQ_LEN = 72
BEGINNING = 400
"""Tokens per document that a classifier on a CPU reads if over 5 % of the documents are much longer."""
SHORTENED = 200
"""Tokens per document that it reads if time is short, as in the quick start."""
FEWEST_DOCUMENTS = 200
"""Minimum of `data.max_documents`."""
START_SECONDS = 12.0
"""Duration of the rest of a run, in seconds: imports, loading, exports, report."""


@dataclass(frozen=True)
class Corpus:
    """Amounts of text that the stages read.

    Attributes:
        documents: number of documents by split.
        labelled: labelled documents of train, including those held out for valid.
        tokens_per_document: mean length.
        p95, longest: 95th percentile and maximum of the lengths in tokens.
        cut: share of train held out for valid; 0 if there is a valid split.
        prepare_seconds: expected duration of `prepare`.
        shares_read: share of all tokens that is read, by `classifier.max_doc_tokens`.
    """

    documents: Mapping[str, int]
    labelled: int
    tokens_per_document: float
    p95: int
    longest: int
    cut: float
    prepare_seconds: float
    shares_read: Mapping[int | None, float] = field(default_factory=dict)

    @property
    def lm_tokens(self) -> float:
        """Training tokens of the language model."""
        train = self.documents.get("train", 0) * (1 - self.cut) + self.documents.get("unlabelled", 0)
        return train * self.tokens_per_document

    @property
    def num_trained(self) -> float:
        """Training documents of the classifier."""
        return self.labelled * (1 - self.cut)

    def tokens_read(self, max_doc_tokens: int | None) -> float:
        """Return the mean number of tokens read per document."""
        return self.tokens_per_document * float(self.shares_read.get(max_doc_tokens, 1.0))

    def limited(self, limit: int) -> Corpus:
        """Return the corpus with at most `limit` documents of each split."""
        documents = {split: min(num_documents, limit) for split, num_documents in self.documents.items()}
        share = documents["train"] / max(self.documents["train"], 1)
        whole = sum(documents.values()) / max(sum(self.documents.values()), 1)
        return replace(
            self,
            documents=documents,
            labelled=round(self.labelled * share),
            prepare_seconds=self.prepare_seconds * whole,
        )


@dataclass(frozen=True)
class Speed:
    """Measured durations of a model size.

    Attributes:
        lm: seconds of a language model epoch per training token, validation included.
        frozen, full: seconds of a classifier epoch per training token, validation included: with a frozen encoder, and with
            all layers trained.
        test: seconds to score the test split, per document.
    """

    lm: float
    frozen: float
    full: float
    test: float = 0.0

    def scaled(self, size: tuple[int, int, int], other: tuple[int, int, int], vocab_size: int) -> Speed:
        """Return the expected speed of another size, proportional to the weights that each token is multiplied with."""
        lm = num_weights(other, vocab_size) / num_weights(size, vocab_size)
        classifier = num_weights(other, 0) / num_weights(size, 0)
        return Speed(self.lm * lm, self.frozen * classifier, self.full * classifier, self.test * classifier)


@dataclass(frozen=True)
class Plan:
    """Model size and schedule.

    Attributes:
        size: (emb_sz, n_hid, n_layers).
        lm_batch, classifier_batch: global batch sizes.
        lm_epochs: epochs of the language model.
        classifier_epochs: epochs of the unfrozen classifier, after one with a frozen encoder.
        max_doc_tokens: `classifier.max_doc_tokens`.
        limit: `data.max_documents`.
        is_pretrained: True if training starts from the Wikipedia weights, which have the paper's size.
    """

    size: tuple[int, int, int]
    lm_batch: int
    classifier_batch: int
    lm_epochs: int
    classifier_epochs: int
    max_doc_tokens: int | None = None
    limit: int | None = None
    is_pretrained: bool = False


@dataclass(frozen=True)
class Durations:
    """Expected seconds of each stage, and of the rest of a run."""

    prepare: float
    lm: float
    classifier: float
    start: float = START_SECONDS

    @property
    def total(self) -> float:
        return self.prepare + self.lm + self.classifier + self.start


def num_weights(size: tuple[int, int, int], vocab_size: int) -> int:
    """Return the number of weights that each token is multiplied with: LSTM layers and decoder."""
    emb_sz, n_hid, n_layers = size
    widths = [emb_sz, *[n_hid] * (n_layers - 1), emb_sz]
    return sum(4 * (a + b) * b for a, b in pairwise(widths)) + emb_sz * vocab_size


def first_plan(corpus: Corpus, size: tuple[int, int, int], has_gpu: bool) -> Plan:
    """Return the schedule of a size with enough steps for both stages."""
    largest = 64 if has_gpu else 32
    lm_batch = _batch(corpus.lm_tokens / SEQ_LEN, LM_STEPS_OF_EPOCH, largest)
    classifier_batch = _batch(corpus.num_trained, CLASSIFIER_STEPS_OF_EPOCH, largest)
    lm_steps = max(corpus.lm_tokens / SEQ_LEN / lm_batch, 1)
    classifier_steps = max(corpus.num_trained / classifier_batch, 1)
    lm_epochs = min(max(math.ceil(LM_STEPS / lm_steps), 1), MOST_LM_EPOCHS)
    epochs = min(max(math.ceil(CLASSIFIER_STEPS / classifier_steps), 3), MOST_CLASSIFIER_EPOCHS)
    max_doc_tokens = BEGINNING if not has_gpu and corpus.p95 > 1.5 * BEGINNING and corpus.labelled else None
    return Plan(size, lm_batch, classifier_batch, lm_epochs, epochs if corpus.labelled else 0, max_doc_tokens)


def variants(corpus: Corpus, size: tuple[int, int, int], has_gpu: bool) -> Iterator[Plan]:
    """Yield the first plan of a size, and for long documents one that reads less of each."""
    plan = first_plan(corpus, size, has_gpu)
    yield plan
    if corpus.labelled and size in SIZES[:2] and corpus.tokens_per_document > SHORTENED:
        yield replace(plan, max_doc_tokens=SHORTENED)


def durations(plan: Plan, corpus: Corpus, speed: Speed) -> Durations:
    """Return the expected duration of a plan on a corpus, limited to `plan.limit` documents per split."""
    if plan.limit is not None:
        corpus = corpus.limited(plan.limit)
    tokens = corpus.num_trained * corpus.tokens_read(plan.max_doc_tokens)
    lm = plan.lm_epochs * speed.lm * corpus.lm_tokens
    classifier = (speed.frozen + plan.classifier_epochs * speed.full) * tokens + speed.test * corpus.documents.get("test", 0)
    return Durations(corpus.prepare_seconds, lm, classifier if plan.classifier_epochs else 0.0)


def choose_plan(
    corpus: Corpus,
    measure: Callable[[Plan], Speed],
    seconds: float,
    vocab_size: int,
    has_gpu: bool,
    has_weights: bool = False,
) -> tuple[Plan, Speed, bool]:
    """Return the largest plan that fits, its speed, and True if it fits.

    Args:
        measure: function that measures the speed of a plan; called for two or three sizes.
        seconds: maximum duration of a run.
        has_weights: True if there are pretrained weights of the largest size, which then has no minimum of tokens.
    """
    allowed = [size for size, tokens in zip(SIZES, FEWEST_TOKENS, strict=True) if corpus.lm_tokens >= tokens]
    if has_weights and SIZES[-1] not in allowed:
        allowed.append(SIZES[-1])
    speeds: dict[tuple[int, int, int], Speed] = {}
    measured = allowed[min(1, len(allowed) - 1)]
    speeds[measured] = measure(first_plan(corpus, measured, has_gpu))

    def fitting(size: tuple[int, int, int]) -> Plan | None:
        speed = speeds.get(size) or speeds[measured].scaled(measured, size, vocab_size)
        plans = variants(corpus, size, has_gpu)
        return next((plan for plan in plans if durations(plan, corpus, speed).total <= seconds), None)

    for size in reversed(allowed):
        if size not in speeds and (plan := fitting(size)) is not None:
            speeds[size] = measure(plan)
        if (plan := fitting(size)) is not None:
            plan = replace(plan, is_pretrained=has_weights and size == SIZES[-1])
            return _with_more_epochs(plan, corpus, speeds[size], seconds), speeds[size], True
    smallest = allowed[0]
    if smallest not in speeds:
        speeds[smallest] = measure(first_plan(corpus, smallest, has_gpu))
    plan = _shortened(first_plan(corpus, smallest, has_gpu), corpus, speeds[smallest], seconds)
    return plan, speeds[smallest], durations(plan, corpus, speeds[smallest]).total <= seconds


def _with_more_epochs(plan: Plan, corpus: Corpus, speed: Speed, seconds: float) -> Plan:
    """Return the plan with as many more language model epochs as fit."""
    while plan.lm_epochs < MOST_LM_EPOCHS:
        longer = replace(plan, lm_epochs=plan.lm_epochs + 1)
        if durations(longer, corpus, speed).total > seconds:
            break
        plan = longer
    return plan


def _shortened(plan: Plan, corpus: Corpus, speed: Speed, seconds: float) -> Plan:
    """Return the plan with fewer epochs, then fewer tokens per document, then fewer documents, until it fits."""

    def fits(plan: Plan) -> bool:
        return durations(plan, corpus, speed).total <= seconds

    while not fits(plan) and (plan.lm_epochs > 1 or plan.classifier_epochs > 2):
        stage = "lm_epochs" if plan.lm_epochs > max(plan.classifier_epochs - 2, 1) else "classifier_epochs"
        plan = replace(plan, **{stage: getattr(plan, stage) - 1})
    if not fits(plan) and corpus.tokens_per_document > SHORTENED and plan.classifier_epochs:
        plan = replace(plan, max_doc_tokens=SHORTENED)
    if fits(plan):
        return plan
    low, high = FEWEST_DOCUMENTS, max(corpus.documents.values())
    while high - low > max(low // 50, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(replace(plan, limit=middle)) else (low, middle)
    limit = low // 100 * 100
    refit = first_plan(corpus.limited(limit), plan.size, False)
    return replace(plan, limit=limit, lm_batch=refit.lm_batch, classifier_batch=refit.classifier_batch)


def _batch(rows: float, steps: int, largest: int) -> int:
    """Return the largest power of two, at least 8, that leaves at least `steps` steps."""
    size = largest
    while size > 8 and rows / size < steps:
        size //= 2
    return size
