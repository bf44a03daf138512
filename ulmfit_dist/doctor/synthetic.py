"""Training steps on random tokens: the learners of the stages, and single steps on one rank.

Random tokens need no text, token store or pretrained weights. Sizes are those of the config. The trade-off: on a CPU, where
a full step takes minutes, steps have fewer rows and tokens, with the network and vocabulary of the config.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelFitException
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import make_batch_shard
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore, read_meta, token_dtype
from ulmfit_dist.doctor.checks import Context
from ulmfit_dist.models.fused_cross_entropy import ActivationRegularization, DecoderLoss
from ulmfit_dist.models.networks import build_classifier, build_language_model, encoder_of
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.optimizer import FusedAdam

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtypes of matrix products by precision."""
ROWS_ON_CPU, TOKENS_ON_CPU = 2, 32
"""Largest numbers of rows per canonical rank and tokens per row on a CPU."""
LABELS = ["0", "1"]
"""Labels of the classifier."""
FIRST_ID = 10
"""First id that is not a special token."""
LOSS_SCALE = 1024.0
"""Factor on the loss of a single step in fp16, so that small gradients are not lost."""


class RandomStore(TokenStore):
    """Token store of random ids, in memory.

    Args:
        vocab_size: number of tokens in the vocabulary.
        documents: number of training documents; a fifth as many are added for validation.
        length: tokens per document.
        seed: seed of the ids.
        unlabelled: number of documents without a label.
    """

    def __init__(self, vocab_size: int, documents: int, length: int, seed: int, unlabelled: int = 0):
        rng = np.random.default_rng(seed)
        valid = max(2, documents // 5)
        labelled, total = documents + valid, documents + valid + unlabelled
        self.path = Path("random")
        self.vocab = [f"token{i}" for i in range(vocab_size)]
        self.label_names = LABELS
        self.lengths = np.full(total, length, dtype=np.int64)
        self.labels = np.where(np.arange(total) < labelled, np.arange(total) % len(LABELS), NO_LABEL).astype(np.int32)
        self.meta = {
            "fingerprint": f"random-{seed}",
            "num_documents": len(self.lengths),
            "splits": {"train": [0, documents], "valid": [documents, labelled], "unlabelled": [labelled, total]},
            "labels": LABELS,
        }
        ids = rng.integers(min(FIRST_ID, vocab_size - 1), vocab_size, int(self.lengths.sum()))
        self._begins = np.arange(len(self.lengths), dtype=np.int64) * length
        self._first_documents = np.array([0])
        self._tokens = [ids.astype(token_dtype(self.vocab))]


@dataclass(frozen=True)
class Sizes:
    """Sizes of probe steps.

    Attributes:
        rows, tokens: rows over all ranks, and tokens per row, in a step of the language model.
        documents: documents over all ranks in a step of the classifier.
        is_reduced: whether they are smaller than the config's, for a CPU.
    """

    rows: int
    tokens: int
    documents: int
    is_reduced: bool

    def describe(self, config: Config) -> str:
        step = f"{self.rows} x {self.tokens} tokens"
        full = f"{config.lm.global_batch_size} x {config.lm.seq_len}"
        return f"{step} instead of {full} on a CPU" if self.is_reduced else step


def sizes_of(context: Context) -> Sizes:
    """Return the sizes of the config, reduced on a CPU."""
    config = context.config
    rows, tokens, documents = config.lm.global_batch_size, config.lm.seq_len, config.classifier.global_batch_size
    if context.device.type == "cuda":
        return Sizes(rows, tokens, documents, False)
    ranks = make_batch_shard(context.rank, context.world_size, config.runtime).num_canonical_ranks
    steps = None if context.runtime is None else context.runtime.launch.accumulation_steps
    max_rows = ROWS_ON_CPU * ranks * (1 if steps is None else steps.value)
    reduced = (min(rows, max_rows), min(tokens, TOKENS_ON_CPU), min(documents, max_rows))
    return Sizes(*reduced, is_reduced=reduced != (rows, tokens, documents))


def vocab_size(config: Config) -> int:
    """Return the vocabulary size of the config's token store, else the largest one of its tokenizer."""
    if config.data.token_store is not None:
        return int(read_meta(Path(config.data.token_store))["vocab_size"])
    if config.tokenizer.type == "sentencepiece":
        return config.tokenizer.sp_vocab_size or 30000
    return config.tokenizer.max_vocab


def num_parameters(config: Config) -> int:
    """Return the number of parameters of the language model, at the largest vocabulary."""
    with torch.device("meta"):
        model = build_language_model(vocab_size(config), config.model, config.lm)
    return sum(parameter.numel() for parameter in model.parameters())


def probe_learner(context: Context, stage: str, steps: int) -> DistributedLearner:
    """Return the stage's learner on random tokens for some steps, with the same initial weights in each call. Collective."""
    assert context.runtime is not None
    config, sizes = context.config, sizes_of(context)
    runtime = context.runtime
    runtime.reset_grad_scaler()
    lm = replace(config.lm, callbacks=[], valid_pct=None, global_batch_size=sizes.rows, seq_len=sizes.tokens)
    unlabelled = config.classifier.unlabelled.batch_size
    if unlabelled is not None and sizes.is_reduced:
        unlabelled = min(unlabelled, sizes.documents)
    classifier = replace(
        config.classifier,
        unlabelled=replace(config.classifier.unlabelled, batch_size=unlabelled),
        callbacks=[],
        metrics=[],
        class_weights=None,
        encoder=None,
        global_batch_size=sizes.documents,
        seq_len=sizes.tokens,
    )
    config = replace(
        config,
        runs_dir=str(Path(config.runs_dir) / ".doctor"),  # contains no language model to start from
        data=replace(config.data, folds=None),
        model=replace(config.model, pretrained=None),
        lm=lm,
        classifier=classifier,
    )
    if stage == "lm":
        documents, length = max(10, sizes.rows), (steps + 1) * sizes.tokens + 1
        store = RandomStore(vocab_size(config), documents, length, config.seed)
        learner: DistributedLearner = context.learners["lm"](config, runtime, store)
        return learner
    documents, length = sizes.documents * (steps + 1), 4 * sizes.tokens
    store = RandomStore(vocab_size(config), documents, length, config.seed, unlabelled or 0)
    learner = context.learners["classifier"](config, runtime, store)
    return learner


class _Steps(Callback):
    """Callback that ends a fit after some steps.

    Args:
        on_step: called after each step with the number of steps so far.
    """

    order = CallbackOrder.STEP_LIMIT

    def __init__(self, steps: int, on_step: Callable[[int], None]):
        self.steps, self.done, self.on_step = steps, 0, on_step

    def after_batch(self) -> None:
        self.done += 1
        self.on_step(self.done)
        if self.done == self.steps:
            raise CancelFitException


def train_steps(learner: DistributedLearner, steps: int, on_step: Callable[[int], None] = lambda step: None) -> None:
    """Train all layers for some steps, without a validation. Collective."""
    learner.freeze_to(0)
    learner.fit(1, 1e-3, cbs=[_Steps(steps, on_step)])
    if learner.stage_step != steps:
        raise RuntimeError(f"the fit made {learner.stage_step} steps instead of {steps}")


@dataclass(frozen=True)
class StepSpec:
    """Device, precision and sizes of a `LocalStep`.

    Attributes:
        precision: "fp32", "bf16", "fp16" or "fp64".
        rows, tokens: rows of the step, and tokens per row.
        fixed_norms: whether batch norms divide by their running variance, which is 1. With few documents and fresh weights
            the variance of a batch is so small that a batch norm amplifies the rounding of bf16 a hundredfold.
    """

    device: torch.device
    precision: str
    rows: int
    tokens: int
    fixed_norms: bool = False


class LocalStep:
    """One training step of a stage on one device, without other ranks and without Accelerate."""

    def __init__(self, config: Config, stage: str, spec: StepSpec):
        device, rows, tokens = spec.device, spec.rows, spec.tokens
        self.stage, self.device, self.dtype = stage, device, DTYPES[spec.precision]
        self.scale = LOSS_SCALE if spec.precision == "fp16" else 1.0
        num_tokens = vocab_size(config)
        seed_torch(config.seed, "doctor", stage)
        self.model: Any
        if stage == "lm":
            self.model = build_language_model(num_tokens, config.model, config.lm)
        else:
            self.model = build_classifier(num_tokens, len(LABELS), config.model, config.classifier)
        self.model.to(device).train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.train(not spec.fixed_norms)
        position = encoder_of(self.model).position
        position.seed, position.stage, position.step, position.rows = config.seed, stage, 0, range(rows)
        settings = config.lm if stage == "lm" else config.classifier
        self.regularization = ActivationRegularization(settings.alpha, settings.beta)
        rng = np.random.default_rng(config.seed)
        ids = rng.integers(min(FIRST_ID, num_tokens - 1), num_tokens, (rows, tokens + 1))
        self.x = torch.from_numpy(ids[:, :-1].copy()).to(device)
        self.y = torch.from_numpy(ids[:, 1:].copy() if stage == "lm" else np.arange(rows) % len(LABELS)).to(device)
        self.optimizer = FusedAdam(list(self.model.parameters()), lr=1e-3)

    def backward(self) -> Tensor:
        """Compute the gradients, and return the loss, a scalar."""
        low = self.dtype in (torch.bfloat16, torch.float16)
        self.model.reset()
        with torch.autocast(self.device.type, self.dtype) if low else nullcontext():
            output, raw, dropped = self.model(self.x)
        master = next(self.model.parameters()).dtype
        output, raw, dropped = output.to(master), raw.to(master), dropped.to(master)
        if self.stage == "lm":
            loss = DecoderLoss(self.model[1].decoder, self.dtype if low else master)(output, self.y)
        else:
            loss = F.cross_entropy(output, self.y)
        ((loss + self.regularization(dropped, raw)) * self.scale).backward()
        return loss.detach()

    def gradients(self) -> Tensor:
        """Return all gradients as one vector, fp64 on the CPU."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return torch.cat([gradient.detach().flatten().cpu().double() for gradient in gradients]) / self.scale

    def step(self) -> None:
        """Make one optimizer step from the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> Tensor:
        """Return all weights as one vector, fp64 on the CPU."""
        return flat_weights(self.model).double()


def flat_weights(model: nn.Module) -> Tensor:
    """Return all parameters as one vector on the CPU."""
    return torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()])
