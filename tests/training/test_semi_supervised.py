"""The losses of `classifier.unlabelled`: gradients of a step against those of torch's autograd, computed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from out_of_memory import OutOfMemory, config_of, make_texts
from test_train_steps import FirstStep, first_step, penalty
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional as F

from ulmfit_dist.config.schema import UnlabelledConfig
from ulmfit_dist.data.batches import BatchLayout, BatchShard, MicroBatch
from ulmfit_dist.data.classifier_loader import UnlabelledLoader
from ulmfit_dist.data.splits import describe_duplicates, split_documents
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.doctor.synthetic import RandomStore
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.awd_lstm import AWDLSTM
from ulmfit_dist.models.masks import Mask, compute_masks
from ulmfit_dist.models.networks import concat_pool, encoder_of
from ulmfit_dist.models.registry import check_perturbation
from ulmfit_dist.rng.counter_based import derive_key
from ulmfit_dist.stages.classifier import check_classifier, classifier_learner
from ulmfit_dist.training.semi_supervised import SemiSupervisedLearner, divergence, entropy, token_frequencies
from ulmfit_dist.training.train_steps import ClassifierLearner

EPSILON = 3.0
ALL = UnlabelledConfig(6, 0.7, 0.8, 0.9, EPSILON, power_iterations=1, ramp=0.0)


@pytest.fixture
def runtime(no_process_group: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with Runtime(config_of().runtime, keeps_group=True) as runtime:
        yield runtime


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    store = make_texts(tmp_path / "store")
    store.labels = np.where(np.arange(len(store)) % 2, store.labels, NO_LABEL)
    return store


def learner_of(
    store: TokenStore, runtime: Runtime, unlabelled: UnlabelledConfig = ALL, **settings: Any
) -> ClassifierLearner:
    runtime.micro_batch_size, arch = None, settings.pop("arch", None)
    config = config_of(**settings)
    classifier = replace(config.classifier, unlabelled=unlabelled)
    config = replace(config, classifier=classifier, model=replace(config.model, arch=arch))
    return classifier_learner(config, runtime, store, needs_encoder=False)


class Reference:
    """One step on the whole global batch, by operations of torch."""

    def __init__(self, learner: ClassifierLearner, settings: UnlabelledConfig):
        self.model, self.settings = learner.model.train(), settings
        self.encoder, self.sentences = encoder_of(self.model), self.model[0]
        self.encoder.position.step = 0
        batches = learner.dls.train.step(0)
        self.labelled = next(batch for batch in batches if batch.has_labels)
        self.unlabelled = [batch for batch in batches if not batch.has_labels]
        documents = np.sort(np.concatenate([part.documents for part in _loaders(learner)]))
        shares_V = token_frequencies(learner.dls.train.store, documents)
        weight_VE = self.encoder.encoder.weight.detach()
        self.scale_E = (shares_V @ (weight_VE - shares_V @ weight_VE) ** 2).sqrt()

    def gradients(self) -> tuple[dict[str, float], dict[str, Tensor | None]]:
        """Return the losses and the gradients of the parameters."""
        settings, losses = self.settings, {}
        num_labelled = self.labelled.global_rows
        everything = [self.labelled, *self.unlabelled]
        clean_BC = self.head(everything)
        losses["loss"] = F.cross_entropy(clean_BC[:num_labelled], self.labelled.y)
        total = losses["loss"] + self.penalty
        if settings.entropy_weight:
            losses["entropy"] = Categorical(logits=clean_BC[num_labelled:]).entropy().mean()
            total = total + settings.entropy_weight * losses["entropy"]
        if settings.adversarial_weight:
            (leaf,) = self.zeros([self.labelled])
            moved = [leaf, *self.zeros(self.unlabelled)]
            loss = F.cross_entropy(self.head(everything, moved)[:num_labelled], self.labelled.y)
            self.adversarial = self.step_along(torch.autograd.grad(loss, leaf)[0])
            losses["adversarial_loss"] = F.cross_entropy(self.head([self.labelled], [self.adversarial]), self.labelled.y)
            total = total + settings.adversarial_weight * losses["adversarial_loss"]
        if settings.virtual_adversarial_weight:
            expected = Categorical(logits=clean_BC.detach())
            moved = [self.signs(batch) for batch in everything]
            for _ in range(settings.power_iterations):
                leaves = [one.detach().requires_grad_() for one in moved]
                loss = kl_divergence(expected, Categorical(logits=self.head(everything, leaves))).mean()
                moved = [self.step_along(gradient) for gradient in torch.autograd.grad(loss, leaves)]
            self.virtual = moved
            loss = kl_divergence(expected, Categorical(logits=self.head(everything, moved))).mean()
            losses["virtual_adversarial_loss"] = loss
            total = total + settings.virtual_adversarial_weight * loss
        total.backward()
        gradients = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        return {name: loss.item() for name, loss in losses.items()}, gradients

    def head(self, batches: list[MicroBatch], moved: list[Tensor] | None = None) -> Tensor:
        """Return the logits of documents in the order of their rows."""
        pooled = []
        for number, batch in enumerate(batches):
            self.encoder.position.rows = batch.rows
            handle = self.encoder.encoder_dp.register_forward_hook(self.mover(batch, moved[number] if moved else None))
            output, padding = self.sentences(batch.x, batch.chunk_rows)
            handle.remove()
            pooled.append(concat_pool(output, padding))
            if batch.has_labels and moved is None:
                self.penalty = penalty(output, output)
        rows = sum(len(part) for part in pooled)
        self.encoder.position.rows = range(rows)
        return self.model[1].layers(torch.cat(pooled))

    def mover(self, batch: MicroBatch, moved: Tensor | None) -> Callable[..., Tensor | None]:
        """Return a hook that adds a perturbation to the embeddings of a chunk."""
        begin = self.first(batch)

        def hook(_: object, arguments: tuple[Tensor], embedded: Tensor) -> Tensor | None:
            start = self.encoder.position.chunk * self.sentences.bptt - begin
            if moved is None or start < 0:
                return None
            is_transposed = embedded.shape[0] != arguments[0].shape[0] or type(self.encoder).__name__ == "QRNN"
            rows = embedded.shape[1] if is_transposed else embedded.shape[0]
            piece = (moved * self.scale_E)[:rows, start : start + self.sentences.bptt]
            return embedded + (piece.transpose(0, 1) if is_transposed else piece)

        return hook

    def first(self, batch: MicroBatch) -> int:
        starts = range(0, batch.x.shape[1], self.sentences.bptt)
        return next(start for start in starts if batch.x.shape[1] - start <= self.sentences.max_len)

    def zeros(self, batches: list[MicroBatch]) -> list[Tensor]:
        shapes = [(len(batch.x), batch.x.shape[1] - self.first(batch), len(self.scale_E)) for batch in batches]
        return [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def signs(self, batch: MicroBatch) -> Tensor:
        (zeros,) = self.zeros([batch])
        part = "labelled" if batch.has_labels else "unlabelled"
        key = derive_key(self.encoder.position.seed, "classifier", f"virtual adversarial {part}", 0)
        mask = Mask(key, batch.rows, zeros[0].numel(), 0.5, torch.float64)
        signs = (compute_masks([mask], torch.device("cpu"))[0] - 1).view_as(zeros)
        assert set(signs.unique().tolist()) == {-1.0, 1.0}
        return self.step_along(signs * (batch.x[:, self.first(batch) :] != PAD_ID)[:, :, None])

    def step_along(self, gradient: Tensor) -> Tensor:
        return self.settings.epsilon * gradient / gradient.flatten(1).norm(dim=1)[:, None, None]


def _loaders(learner: ClassifierLearner) -> list[Any]:
    train = learner.dls.train
    return [train] if train.unlabelled is None else [train, train.unlabelled]


ONE_LOSS = {
    "entropy": replace(ALL, adversarial_weight=0.0, virtual_adversarial_weight=0.0),
    "adversarial, no unlabelled": UnlabelledConfig(None, adversarial_weight=0.8, epsilon=EPSILON, ramp=0.0),
    "virtual, no unlabelled": UnlabelledConfig(None, virtual_adversarial_weight=0.8, epsilon=EPSILON, ramp=0.0),
    "virtual, two iterations": replace(ALL, adversarial_weight=0.0, entropy_weight=0.0, power_iterations=2),
}


@pytest.mark.parametrize(
    ("unlabelled", "settings"),
    [
        (ALL, {}),
        (ALL, {"micro_batch_size": 1}),
        (ALL, {"micro_batch_size": 3}),
        (ALL, {"canonical_ranks": 2}),
        (ALL, {"canonical_ranks": 2, "micro_batch_size": 2}),
        (ALL, {"arch": "qrnn"}),
        *((one, {}) for one in ONE_LOSS.values()),
        (ONE_LOSS["adversarial, no unlabelled"], {"micro_batch_size": 3}),
    ],
    ids=str,
)
def test_a_step_has_the_losses_and_gradients_of_the_whole_batch(
    unlabelled: UnlabelledConfig, settings: dict, store: TokenStore, runtime: Runtime
):
    arch = {key: value for key, value in settings.items() if key == "arch"}
    losses, gradients = Reference(learner_of(store, runtime, unlabelled, **arch), unlabelled).gradients()
    learner = learner_of(store, runtime, unlabelled, **settings)
    actual = first_step(learner)
    assert {"loss": actual.mean_loss, **{n: x.item() for n, x in learner.further_losses.items()}} == pytest.approx(
        losses, rel=1e-9
    )
    for name, gradient in gradients.items():
        torch.testing.assert_close(actual.gradients[name], gradient, rtol=1e-8, atol=1e-11, msg=name)
    statistics = [tensor for name, tensor in learner.model.named_buffers() if name.endswith("num_batches_tracked")]
    assert [int(number) for number in statistics] == [1, 1]  # of the clean pass only
    assert actual.events == {"after_pred": 1, "after_loss": 1, "before_backward": 1}


def test_perturbations_have_their_norm_and_are_zero_at_padding(store: TokenStore, runtime: Runtime):
    reference = Reference(learner_of(store, runtime), ALL)
    reference.gradients()
    learner = learner_of(store, runtime)
    kept: list[Any] = []
    with_passes = learner._classify

    def classify() -> None:
        kept.extend(one.perturbations for one in learner.passes)
        with_passes()

    learner._classify = classify
    first_step(learner)
    _, adversarial, virtual = kept
    for one, batch in zip(
        [*adversarial, *virtual], [reference.labelled, reference.labelled, *reference.unlabelled], strict=True
    ):
        torch.testing.assert_close(one.flatten(1).norm(dim=1), torch.full((len(one),), EPSILON, dtype=torch.float64))
        assert not one[batch.x[:, reference.first(batch) :] == PAD_ID].any()
        assert not one.requires_grad
    torch.testing.assert_close(adversarial[0], reference.adversarial, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(virtual[1], reference.virtual[1], rtol=1e-8, atol=1e-11)


def test_directions_do_not_vanish_in_bf16(store: TokenStore, runtime: Runtime):
    learner = learner_of(store, runtime, arch="qrnn")  # every CPU has its operations in bf16
    learner.model.float()
    with torch.autocast("cpu", torch.bfloat16):
        actual = first_step(learner)
    assert actual.mean_loss < learner.further_losses["adversarial_loss"].item()
    assert learner.further_losses["virtual_adversarial_loss"].item() > 1e-5


def test_a_weight_rises_over_its_ramp(store: TokenStore, runtime: Runtime):
    learner = learner_of(store, runtime, replace(ALL, ramp=0.5))
    assert isinstance(learner, SemiSupervisedLearner)
    constants = replace(learner.semi_supervised, num_steps=20)
    assert [constants.ramp(step) for step in (0, 4, 9, 10, 19)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert replace(constants, settings=ALL).ramp(0) == 1.0


def test_a_frozen_encoder_gets_no_gradient(store: TokenStore, runtime: Runtime):
    learner = learner_of(store, runtime)
    learner.freeze()
    actual: FirstStep = first_step(learner)
    assert all(gradient is None for name, gradient in actual.gradients.items() if name.startswith("0."))
    _, gradients = Reference(learner_of(store, runtime), ALL).gradients()
    for name in gradients:
        if name.startswith("1."):
            torch.testing.assert_close(actual.gradients[name], gradients[name], rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("place", ["forward", "head", "backward", "pooled"])
def test_a_step_that_runs_out_of_memory_is_repeated_with_smaller_micro_batches(
    place: str, store: TokenStore, runtime: Runtime
):
    def trained(*failures: OutOfMemory) -> dict[str, Tensor]:
        learner = learner_of(store, runtime)
        learner.fit(1, 1e-2, cbs=list(failures))
        return learner.model.state_dict()

    failure = OutOfMemory(place, 1)
    actual, expected = trained(failure), trained()
    assert failure.is_over
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-8, atol=1e-11, msg=name)


def test_unlabelled_documents_continue_across_epochs_and_are_shared_by_the_ranks(store: TokenStore):
    documents = np.flatnonzero(store.labels == NO_LABEL)

    def rows(rank: int, ranks: int, step: int) -> dict[int, int]:
        layout = BatchLayout(6, 10, BatchShard(range(rank, rank + 1), ranks))
        batches = UnlabelledLoader(store, documents, layout, seed=1).at(step, first_row=8)
        assert all(len(batch.y) == 0 and not batch.has_labels for batch in batches)
        return {row: int(document) for batch in batches for row, document in zip(batch.rows, batch.documents, strict=True)}

    per_pass = len(documents) // 6
    whole = [rows(0, 1, step) for step in range(2 * per_pass)]
    assert sorted(document for part in whole[:per_pass] for document in part.values()) == documents.tolist()
    assert sorted(document for part in whole[per_pass:] for document in part.values()) == documents.tolist()
    assert [*whole[0]] == [*range(8, 8 + len(whole[0]))]
    assert {tuple(part.values()) for part in whole[:per_pass]} != {tuple(part.values()) for part in whole[per_pass:]}
    for step in (0, per_pass, 1):  # also back, as a resumed run jumps
        assert rows(0, 2, step) | rows(1, 2, step) == whole[step]


def test_steps_of_a_resumed_epoch_read_what_an_uninterrupted_one_reads(store: TokenStore, runtime: Runtime):
    loader = learner_of(store, runtime).dls.train
    loader.set_epoch(1)
    expected = [[batch.documents.tolist() for batch in step] for step in loader]
    assert [[batch.documents.tolist() for batch in step] for step in islice(loader.from_step(1), 5)] == expected[1:]


def test_entropy_and_divergence_are_those_of_torch():
    first_BC, second_BC = torch.randn(2, 5, 3, dtype=torch.float64)
    one, other = Categorical(logits=first_BC), Categorical(logits=second_BC)
    torch.testing.assert_close(entropy(first_BC, "category"), one.entropy().mean())
    torch.testing.assert_close(divergence(first_BC, second_BC, "category"), kl_divergence(one, other).mean())
    some, others = Bernoulli(logits=first_BC), Bernoulli(logits=second_BC)
    torch.testing.assert_close(entropy(first_BC, "multicategory"), some.entropy().sum(1).mean())
    expected = kl_divergence(some, others).sum(1).mean()
    torch.testing.assert_close(divergence(first_BC, second_BC, "multicategory"), expected)


def test_too_few_unlabelled_documents_are_counted(store: TokenStore, runtime: Runtime):
    with pytest.raises(UserError, match=r"classifier\.unlabelled\.batch_size=60, but there are \d+ unlabelled documents"):
        learner_of(store, runtime, replace(ALL, batch_size=60))


def test_without_weights_the_learner_is_the_supervised_one(store: TokenStore, runtime: Runtime):
    assert type(learner_of(store, runtime, UnlabelledConfig())) is ClassifierLearner


def test_texts_of_valid_among_the_unlabelled_are_counted_and_left_out(store: TokenStore):
    config = config_of()
    config = replace(config, classifier=replace(config.classifier, unlabelled=ALL))
    unlabelled = split_documents(store, config).unlabelled
    valid = split_documents(store, config).classifier_valid
    hashes = store.text_hashes.copy()
    hashes[unlabelled[0]] = hashes[valid[0]]
    store.text_hashes = hashes
    splits = split_documents(store, config)
    assert "1 of the classifier's unlabelled texts in the valid split" in describe_duplicates(store, splits, config)
    dropping = replace(config, data=replace(config.data, on_duplicates="drop"))
    assert split_documents(store, dropping).unlabelled.tolist() == unlabelled[1:].tolist()


class PlainEncoder(AWDLSTM):
    """An encoder of one's own, which knows nothing of perturbations."""

    can_be_perturbed = False


def test_an_encoder_that_is_not_perturbed_is_refused_before_any_training(store: TokenStore, runtime: Runtime):
    config = config_of()
    model = replace(config.model, arch=f"{__name__}.PlainEncoder")
    config = replace(config, model=model, classifier=replace(config.classifier, unlabelled=ALL))
    with pytest.raises(
        UserError, match=r"classifier\.unlabelled: model\.arch=.*PlainEncoder does not perturb its embeddings"
    ):
        check_classifier(config, runtime, store)
    check_perturbation(model, ONE_LOSS["entropy"])


def test_the_expected_duration_counts_passes():
    assert UnlabelledConfig().passes == (1, 1)
    assert ONE_LOSS["entropy"].passes == (1, 1)
    assert ALL.passes == pytest.approx((1 + 4 / 3 + 5 / 3, 1 + 5 / 3))


def test_the_doctor_has_documents_without_a_label():
    store = RandomStore(50, 20, 30, seed=0, unlabelled=7)
    assert (store.labels == NO_LABEL).sum() == len(store.split("unlabelled")) == 7
    assert (store.labels[store.split("valid")] != NO_LABEL).all()
