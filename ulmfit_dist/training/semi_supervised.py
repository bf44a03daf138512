"""Semi-supervised training of the classifier (`classifier.unlabelled`): what unlabelled documents and perturbations teach.

Three losses are added to that of the labelled documents, each with its weight (Sachan et al., 2019):

* entropy minimization: the entropy of the predictions of the unlabelled documents;
* adversarial training: the loss of the labelled documents, their embeddings moved in the direction that raises it most;
* virtual adversarial training (Miyato et al., 2017): the divergence of the predictions of all documents from those with
  their embeddings moved in the direction that changes them most, which needs no label.

A perturbation is a function of its document alone: its norm is `epsilon`, over the document's tokens that are pooled, in
units of the standard deviation of each feature of the embedding, weighted by the frequency of the tokens. Its direction is
the gradient at zero, or for virtual adversarial training at a random perturbation of the same norm, whose signs are keyed
by the step and the row of the global batch. (A smaller one would vanish in bf16.) The gradient of a document's pooled output
is normalized before it is propagated through the encoder, so it does not underflow in fp16; a direction has no scale.

The clean pass of labelled and unlabelled documents is one batch for the head's batch norm, whose running statistics it
updates. Passes with perturbations have the dropout masks of the clean one, and statistics of their own documents, which
update nothing. AR and TAR are of the clean pass of the labelled documents. As in `train_steps.py`, all ranks compute the
head of the whole global batch, so the model does not depend on their number. Trade-off: the step costs some three to five
times as much, and the graphs of all passes are held unless micro-batches are used.

B, U: labelled and unlabelled documents of the global batch, b: rows of a micro-batch, T: pooled tokens, E: width of the
embedding, V: tokens of the vocabulary, C: classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from fastai.callback.core import CancelBackwardException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ulmfit_dist.config.schema import UnlabelledConfig
from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.models.masks import Mask, compute_masks
from ulmfit_dist.models.networks import concat_pool, encoder_of
from ulmfit_dist.training.out_of_memory import agree_on_memory
from ulmfit_dist.training.train_steps import ClassifierLearner, Encoded, in_rows, one_thread, rows_slice

COUNTED_DOCUMENTS = 20_000
"""Maximum number of documents, evenly spaced, that token frequencies are counted in."""


@dataclass(frozen=True)
class SemiSupervised:
    """Constants of the losses.

    Attributes:
        settings: weights and perturbations.
        target: `classifier.target`.
        num_steps: optimizer steps of the stage, for the ramp.
        token_shares: share of each token in the training documents, float64 [V].
    """

    settings: UnlabelledConfig
    target: str
    num_steps: int
    token_shares: Tensor

    def ramp(self, step: int) -> float:
        """Return the factor on the weights in a step of the stage."""
        steps = self.settings.ramp * self.num_steps
        return min(1.0, (step + 1) / steps) if steps else 1.0


def token_frequencies(store: TokenStore, documents: np.ndarray) -> Tensor:
    """Return the share of each token of the vocabulary in documents, float64 [V]; of many, in a sample of them."""
    sample = documents[:: max(1, len(documents) // COUNTED_DOCUMENTS)]
    counts_V = np.zeros(len(store.vocab), dtype=np.int64)
    for document in sample.tolist():
        counts_V += np.bincount(store.document(document), minlength=len(counts_V))
    return torch.from_numpy(counts_V / counts_V.sum())


@dataclass
class Pass:
    """Forward pass of this rank's documents.

    Attributes:
        batches: their micro-batches, one canonical rank after the other.
        perturbations: perturbation of each, [b, T, E], in standard deviations of the embedding; None for none.
        encoded: encoder output of each with its graph; only the last one if the encoder runs twice.
        pooled: pooled output of the global batch, the head's input; a leaf.
    """

    batches: list[MicroBatch]
    perturbations: Sequence[Tensor | None]
    encoded: list[Encoded] = field(default_factory=list)
    pooled: Tensor = field(default_factory=lambda: torch.empty(0))


class SemiSupervisedLearner(ClassifierLearner):
    """Trains a classifier with the losses of `classifier.unlabelled`. Events are those of a step of `ClassifierLearner`.

    Attributes:
        semi_supervised: constants of the losses, set once after construction.
        unlabelled_batches: micro-batches of unlabelled documents of the step.
        passes: passes of the step: clean, adversarial, virtual adversarial.
        embedding_scale: standard deviation of each feature of the embedding, [E].
        further_losses: `entropy`, `adversarial_loss` and `virtual_adversarial_loss`, unweighted, as far as they are used.
    """

    semi_supervised: SemiSupervised
    unlabelled_batches: list[MicroBatch]
    passes: list[Pass]
    embedding_scale: Tensor

    def _split(self, micro_batches: list[MicroBatch]) -> None:
        self.micro_batches = [batch for batch in micro_batches if batch.has_labels]
        self.unlabelled_batches = [batch for batch in micro_batches if not batch.has_labels]

    @property
    def rows_of_step(self) -> int:
        return max(part[0].global_rows for part in (self.micro_batches, self.unlabelled_batches) if part)

    def recut_micro_batches(self) -> None:
        shard, ranks = self.accelerate.shard, len(self.accelerate.shard.canonical_ranks)
        parts = [part for part in (self.micro_batches, self.unlabelled_batches) if part]
        if any(len(part) != shard.num_pieces(part[0].global_rows) * ranks for part in parts):
            self._split(self._set_device(next(self.dl.from_step(self.iter))))

    def release(self) -> None:
        super().release()
        self.passes = []

    def _compute_gradients(self) -> None:
        runtime, settings = self.accelerate.runtime, self.semi_supervised.settings
        documents = self._by_canonical_rank(self.micro_batches, self.unlabelled_batches)
        self.embedding_scale = self._embedding_scale()
        self.targets = runtime.all_reduce_sum(in_rows([batch.y for batch in self.micro_batches], self.micro_batches))
        self.runs_twice = len(documents) > 1 and self.accelerate.shard.micro_batch_size is not None
        needs_gradient = settings.adversarial_weight > 0
        zeros = [self._zeros(batch) if needs_gradient and batch.has_labels else None for batch in documents]
        self.passes = [self._encoded(Pass(documents, zeros))]
        if settings.adversarial_weight:
            perturbations = agree_on_memory(self, self._adversarial)
            labelled = [batch for batch in documents if batch.has_labels]
            self.passes.append(self._encoded(Pass(labelled, perturbations)))
        if settings.virtual_adversarial_weight:
            self.passes.append(self._encoded(Pass(documents, self._virtual_adversarial(documents))))
        agree_on_memory(self, self._classify, has_exchange=True)
        self.passes = []
        self.accelerate.finish_exchange()

    # forward passes

    def _encoded(self, one: Pass) -> Pass:
        """Compute the encoder for the documents of a pass, and the pooled output of the global batch. Collective."""

        def encode() -> Tensor:
            pieces: list[Tensor] = []
            for batch, perturbation in zip(one.batches, one.perturbations, strict=True):
                if self.runs_twice:
                    with self.accelerate.without_exchange(self.model[0]):
                        pooled_bE, output_bTE = self._encode_perturbed(batch, perturbation)
                    one.encoded = [(pooled_bE.detach(), output_bTE.detach())]
                else:
                    one.encoded.append(self._encode_perturbed(batch, perturbation))
                pieces.append(one.encoded[-1][0].detach())
            rows_BE = pieces[0].new_zeros(self._num_rows(one.batches), pieces[0].shape[1])
            for batch, piece in zip(one.batches, pieces, strict=True):
                rows_BE[rows_slice(batch.rows)] = piece
            return rows_BE

        pooled_BE = agree_on_memory(self, encode)
        one.pooled = self.accelerate.runtime.all_reduce_sum(pooled_BE).requires_grad_()
        return one

    def _encode_perturbed(self, batch: MicroBatch, perturbation_bTE: Tensor | None) -> Encoded:
        self.set_dropout_context(batch.rows)
        moved_bTE = None if perturbation_bTE is None else perturbation_bTE * self.embedding_scale
        output_bTE, padding_bT = self.model[0](batch.x, batch.chunk_rows, moved_bTE)
        return concat_pool(output_bTE, padding_bT), output_bTE

    def _num_rows(self, batches: Sequence[MicroBatch]) -> int:
        """Return the number of documents of the global batch: with those without a label if the micro-batches have some."""
        has_unlabelled = not all(batch.has_labels for batch in batches)
        return self.micro_batches[0].global_rows + (self.unlabelled_batches[0].global_rows if has_unlabelled else 0)

    def _by_canonical_rank(self, *parts: list[MicroBatch]) -> list[MicroBatch]:
        """Return micro-batches one canonical rank after the other, each with its share of every part."""
        ranks = len(self.accelerate.shard.canonical_ranks)
        sizes = [len(part) // ranks for part in parts]
        return [
            batch
            for rank in range(ranks)
            for part, size in zip(parts, sizes, strict=True)
            for batch in part[rank * size : (rank + 1) * size]
        ]

    # perturbations

    def _adversarial(self) -> list[Tensor]:
        """Return the perturbations that raise the loss of the labelled documents most, one for each micro-batch."""
        clean = self.passes[0]
        num_labelled = self.micro_batches[0].global_rows
        with self._unrecorded_head() as head:
            loss = self.loss_func(head(clean.pooled)[:num_labelled], self.targets)
        (gradient_BE,) = torch.autograd.grad(loss, clean.pooled)
        return self._directions(clean, gradient_BE, lambda batch: batch.has_labels)

    def _virtual_adversarial(self, documents: list[MicroBatch]) -> list[Tensor]:
        """Return the perturbations that change the predictions most, one for each micro-batch. Collective."""
        clean, settings = self.passes[0], self.semi_supervised.settings
        with self._unrecorded_head() as head, torch.no_grad():
            expected_BC = head(clean.pooled)
        perturbations = [self._first_direction(batch) for batch in documents]
        for _ in range(settings.power_iterations):
            perturbed = [perturbation.requires_grad_() for perturbation in perturbations]
            moved = self._without_exchange(partial(self._encoded, Pass(documents, perturbed)))
            perturbations = agree_on_memory(self, partial(self._diverging, moved, expected_BC))
        return perturbations

    def _diverging(self, moved: Pass, expected_BC: Tensor) -> list[Tensor]:
        """Return the directions in which the divergence of a perturbed pass grows most."""
        with self._unrecorded_head() as head:
            loss = divergence(expected_BC, head(moved.pooled), self.semi_supervised.target)
        (gradient_BE,) = torch.autograd.grad(loss, moved.pooled)
        return self._directions(moved, gradient_BE, lambda batch: True)

    def _directions(self, one: Pass, gradient_BE: Tensor, is_used: Callable[[MicroBatch], bool]) -> list[Tensor]:
        """Propagate the gradient of the pooled output to the perturbations, and scale it to their norm."""
        gradient_BE = _unit_rows(gradient_BE)
        directions = []
        for number, (batch, leaf) in enumerate(zip(one.batches, one.perturbations, strict=True)):
            if not is_used(batch):
                continue
            assert leaf is not None
            if self.runs_twice:
                with self.accelerate.without_exchange(self.model[0]):
                    pooled_bE, _ = self._encode_perturbed(batch, leaf)
            else:
                pooled_bE, _ = one.encoded[number]
            (gradient,) = torch.autograd.grad(pooled_bE, leaf, gradient_BE[rows_slice(batch.rows)], retain_graph=True)
            directions.append(self._scaled(gradient))
        return directions

    def _zeros(self, batch: MicroBatch) -> Tensor:
        """Return a perturbation of nothing, [b, T, E], a leaf of the graph."""
        width = self.embedding_scale.shape[0]
        sentence_encoder = self.model[0].module if isinstance(self.model[0], DistributedDataParallel) else self.model[0]
        num_tokens = batch.x.shape[1] - sentence_encoder.first_pooled(batch.x.shape[1])
        zeros_bTE = torch.zeros(len(batch.x), num_tokens, width, dtype=self.embedding_scale.dtype, device=batch.x.device)
        return zeros_bTE.requires_grad_()

    def _first_direction(self, batch: MicroBatch) -> Tensor:
        """Return a random perturbation, [b, T, E]: signs that are keyed by step and row, zeros at padding."""
        like_bTE = self._zeros(batch)
        num_tokens, width = like_bTE.shape[1:]
        part = "labelled" if batch.has_labels else "unlabelled"
        key = self.dropout_context.noise_key(f"virtual adversarial {part}")
        mask = Mask(key, batch.rows, num_tokens * width, 0.5, like_bTE.dtype)
        signs_bTE = (compute_masks([mask], batch.x.device)[0] - 1).view(like_bTE.shape)
        is_text_bT = batch.x[:, batch.x.shape[1] - num_tokens :] != PAD_ID
        return self._scaled(signs_bTE * is_text_bT[:, :, None])

    def _scaled(self, direction_bTE: Tensor) -> Tensor:
        unit_bTE = _unit_rows(direction_bTE.flatten(1)).view(direction_bTE.shape)
        return unit_bTE.detach() * self.semi_supervised.settings.epsilon

    def _embedding_scale(self) -> Tensor:
        """Return the standard deviation of each feature of the embedding, weighted by the frequency of the tokens, [E]."""
        weight_VE = encoder_of(self.model).encoder.weight.detach()
        frequency_V = self.semi_supervised.token_shares.to(weight_VE)
        mean_E = frequency_V @ weight_VE
        scale_E: Tensor = (frequency_V @ (weight_VE - mean_E).square()).sqrt()
        return scale_E

    # head and gradients

    def _classify(self) -> None:
        """Compute the head of all passes, the losses and all gradients."""
        clean, *others = self.passes
        constants, num_labelled = self.semi_supervised, self.micro_batches[0].global_rows
        settings, output_bTE = constants.settings, clean.encoded[-1][1]
        self.pooled, self.encoded = clean.pooled, clean.encoded
        self.xb = (torch.cat([batch.x for batch in self.micro_batches]),)
        self.yb = (self.targets,)
        head = self.model[1].layers
        self.set_dropout_context(range(len(clean.pooled)))
        with one_thread(clean.pooled.device):
            outputs_BC = head(clean.pooled)
        self.pred = (outputs_BC[:num_labelled], output_bTE, output_bTE)
        self("after_pred")
        self.loss_grad = self.loss_func(self.pred, *self.yb)
        self.loss = self.loss_grad.detach()
        self("after_loss")
        losses: dict[str, tuple[float, Tensor]] = {}
        with one_thread(clean.pooled.device), _without_statistics(head):
            if settings.entropy_weight:
                losses["entropy"] = settings.entropy_weight, entropy(outputs_BC[num_labelled:], constants.target)
            if settings.adversarial_weight:
                adversarial, *others = others
                loss = self.loss_func(head(adversarial.pooled), self.targets)
                losses["adversarial_loss"] = settings.adversarial_weight, loss
            for virtual in others:
                loss = divergence(outputs_BC.detach(), head(virtual.pooled), constants.target)
                losses["virtual_adversarial_loss"] = settings.virtual_adversarial_weight, loss
        ramp = constants.ramp(self.stage_step)
        for weight, loss in losses.values():
            self.loss_grad = self.loss_grad + weight * ramp * loss
        self.further_losses = {name: loss.detach() for name, (_, loss) in losses.items()}
        self._with_events(self._backward, "backward", CancelBackwardException)

    def _backward(self) -> None:
        """Propagate through the head, then through the encoder: from stored graphs, or by one more pass for each part."""
        with one_thread(self.pooled.device):
            self.accelerate.backward(self.loss_grad)
        if not any(parameter.requires_grad for parameter in self.model[0].parameters()):
            return
        ranks = len(self.accelerate.shard.canonical_ranks)
        by_rank = [self._of_canonical_rank(rank, ranks) for rank in range(ranks)]
        groups = [[one] for group in by_rank for one in group] if self.runs_twice else by_rank
        for number, group in enumerate(groups):
            with self.accelerate.gradients(self.model[0], number, len(groups)):
                regularization: Tensor | None = None
                pairs = []
                for one, index in group:
                    batch = one.batches[index]
                    is_clean = one is self.passes[0]
                    perturbation = None if is_clean else one.perturbations[index]
                    stored = None if self.runs_twice else one.encoded[index]
                    pooled_bE, output_bTE = stored or self._encode_perturbed(batch, perturbation)
                    assert one.pooled.grad is not None
                    scale = self.accelerate.scale
                    pairs.append((pooled_bE, one.pooled.grad[rows_slice(batch.rows)] * scale))
                    if is_clean and batch.has_labels:
                        added = self.regularization(output_bTE, output_bTE) * (batch.weight * scale)
                        regularization = added if regularization is None else regularization + added
                self.accelerate.backward(regularization, *pairs)

    def _of_canonical_rank(self, rank: int, ranks: int) -> list[tuple[Pass, int]]:
        """Return the micro-batches of all passes that belong to a local canonical rank, as pass and index."""
        sizes = [(one, len(one.batches) // ranks) for one in self.passes]
        return [(one, index) for one, size in sizes for index in range(rank * size, (rank + 1) * size)]

    @contextmanager
    def _unrecorded_head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Provide the head without gradient exchange and without changes to its running statistics."""
        layers = self.model[1].layers
        head = layers.module if isinstance(layers, DistributedDataParallel) else layers

        def compute(pooled_BE: Tensor) -> Tensor:
            self.set_dropout_context(range(len(pooled_BE)))
            outputs_BC: Tensor = head(pooled_BE)
            return outputs_BC

        with one_thread(self.passes[0].pooled.device), _without_statistics(head):
            yield compute

    def _without_exchange(self, compute: Callable[[], Pass]) -> Pass:
        with self.accelerate.without_exchange(self.model[0]):
            return compute()


def entropy(outputs_BC: Tensor, target: str) -> Tensor:
    """Return the mean entropy of predictions in nats; of several labels, summed over the classes."""
    return -_expected_log(outputs_BC, outputs_BC, target)


def divergence(expected_BC: Tensor, outputs_BC: Tensor, target: str) -> Tensor:
    """Return the mean Kullback-Leibler divergence of predictions from the expected ones, in nats."""
    return _expected_log(expected_BC, expected_BC, target) - _expected_log(expected_BC, outputs_BC, target)


def _expected_log(expected_BC: Tensor, outputs_BC: Tensor, target: str) -> Tensor:
    """Return the mean of the log probabilities of outputs under the probabilities of the expected outputs."""
    if target == "category":
        return (expected_BC.softmax(1) * outputs_BC.log_softmax(1)).sum(1).mean()
    p_BC = expected_BC.sigmoid()
    return (p_BC * F.logsigmoid(outputs_BC) + (1 - p_BC) * F.logsigmoid(-outputs_BC)).sum(1).mean()


def _unit_rows(rows: Tensor) -> Tensor:
    """Return rows of norm 1; rows of zeros stay zeros."""
    tiny = torch.finfo(rows.dtype).tiny
    largest = rows.abs().amax(1, keepdim=True).clamp_min(tiny)  # squares of small numbers would underflow
    rows = rows / largest
    unit_rows: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(tiny)
    return unit_rows


@contextmanager
def _without_statistics(head: nn.Module) -> Iterator[None]:
    """Make batch norms use the statistics of their batch without updating the running ones."""
    norms = [module for module in head.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
