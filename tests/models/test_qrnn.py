"""QRNN: fastai's keys and outputs, exact gradients, states from call to call, and dropout masks by position."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ulmfit_dist.config.schema import ClassifierConfig, LMConfig, ModelConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.export.fastai_qrnn import QRNN as FASTAI_QRNN
from ulmfit_dist.models.forget_mult import forget_mult
from ulmfit_dist.models.networks import build_classifier, build_language_model, classifier_groups, encoder_of, lm_groups
from ulmfit_dist.models.qrnn import QRNN
from ulmfit_dist.rng.counter_based import seed_torch

V, T = 40, 19
SIZES = ModelConfig(emb_sz=6, n_hid=10, n_layers=3, arch="qrnn")
DROPOUTS = {"embed_p": 0.1, "input_p": 0.2, "hidden_p": 0.3, "weight_p": 0.4}
NONE = dict.fromkeys(DROPOUTS, 0.0)
IDS = torch.randint(2, V, (4, 3 * T), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fastais_class() -> type:
    """AWD_QRNN as the export defines it: fastai's AWD_LSTM with layers that are written as formulas."""
    names: dict = {}
    exec(f"from fastai.text.all import *\n{FASTAI_QRNN}", names)
    return names["AWD_QRNN"]


def make_encoder(dropouts: dict[str, float] = NONE, dtype: torch.dtype = torch.float32, **kwargs: float) -> QRNN:
    seed_torch(0)
    encoder = QRNN(V, SIZES, dropouts, **kwargs).to(dtype)
    encoder.position.step, encoder.position.rows = 0, range(len(IDS))
    return encoder


def test_keys_initial_weights_and_outputs_are_fastais(fastais_class: type):
    encoder = make_encoder().eval()
    seed_torch(0)
    reference = fastais_class(V, 6, 10, 3, **{**NONE, "weight_p": 0.5}).eval()
    expected = reference.state_dict()
    assert list(encoder.state_dict()) == list(expected)
    assert "rnns.0.layers.0.linear.weight_raw" in expected
    assert "rnns.2.layers.0.linear.module.bias" in expected
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with torch.no_grad():
        for start in (0, T, 2 * T):  # the state, and the input before the first, are those of the previous call
            x_bT = IDS[: 4 - start // T, start : start + T]
            torch.testing.assert_close(encoder(x_bT), reference(x_bT), rtol=1e-6, atol=1e-7)


def as_formula(gates_TbG: Tensor, h_bH: Tensor, kept_TbH: Tensor | None = None) -> tuple[Tensor, Tensor]:
    z_TbH, f_TbH, o_TbH = gates_TbG.chunk(3, dim=2)
    f_TbH = f_TbH.sigmoid() if kept_TbH is None else f_TbH.sigmoid() * kept_TbH
    outputs = []
    for z_bH, f_bH, o_bH in zip(z_TbH.tanh(), f_TbH, o_TbH.sigmoid(), strict=True):
        h_bH = f_bH * z_bH + (1 - f_bH) * h_bH
        outputs.append(o_bH * h_bH)
    return torch.stack(outputs), h_bH


@pytest.mark.parametrize("num_steps", [1, 8, T])
@pytest.mark.parametrize("zoneout", [False, True])
def test_gradients_are_exact(num_steps: int, zoneout: bool):
    seed_torch(1)
    gates = torch.randn(num_steps, 2, 9, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    kept = (torch.rand(num_steps, 2, 3) > 0.3) if zoneout else None
    assert torch.autograd.gradcheck(lambda gates, h: forget_mult(gates * 1, h, kept), (gates, h))
    for actual, expected in zip(forget_mult(gates * 1, h, kept), as_formula(gates, h, kept), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float32, 1e-6)])
def test_each_dtype_has_its_precision_and_a_state_of_at_least_fp32(dtype: torch.dtype, tolerance: float):
    seed_torch(2)
    gates = (4 * torch.randn(200, 3, 12)).requires_grad_()
    actual, last = forget_mult((gates * 1).to(dtype), torch.zeros(3, 4))
    expected, expected_last = as_formula(gates.double(), torch.zeros(3, 4).double())
    assert (actual.dtype, last.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(last.double(), expected_last, rtol=tolerance, atol=tolerance)
    (grad,) = torch.autograd.grad(actual.double().square().sum(), gates)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), gates)
    assert (grad - expected_grad).norm() / expected_grad.norm() < tolerance


def test_saturated_gates_neither_overflow_nor_forget():
    """A closed forget gate keeps the state over any number of tokens, where a product of gates underflows."""
    gates = torch.full((3000, 1, 3), 100.0)
    gates[1:, :, 1] = -100.0
    output, last = forget_mult(gates.requires_grad_() * 1, torch.zeros(1, 1))
    assert torch.equal(output, torch.ones(3000, 1, 1))
    assert torch.isfinite(torch.autograd.grad(last.sum(), gates)[0]).all()


def test_bits_of_a_row_depend_on_no_other_row():
    seed_torch(3)
    gates, h = torch.randn(T, 64, 3 * 40), torch.randn(64, 40)
    whole, last = forget_mult(gates.clone(), h)
    for rows in (slice(0, 1), slice(5, 7), slice(10, 64)):
        part, part_last = forget_mult(gates[:, rows].clone(), h[rows])
        assert torch.equal(part, whole[:, rows])
        assert torch.equal(part_last, last[rows])


def test_chunks_compute_what_the_whole_does():
    encoder = make_encoder(dtype=torch.float64).eval()
    whole = encoder(IDS)
    encoder.reset()
    for pieces in ([0, 1, 2, 20, 57], [0, 30, 57]):
        parts = [encoder(IDS[:, start:end]) for start, end in pairwise(pieces)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
        encoder.reset()


@pytest.mark.parametrize("zoneout", [0.0, 0.3])
def test_training_in_micro_batches_is_training_at_once(zoneout: float):
    def gradients(size: int) -> list[Tensor]:
        encoder = make_encoder(DROPOUTS, torch.float64, zoneout=zoneout).train()
        for start in range(0, len(IDS), size):
            encoder.position.rows = range(start, start + size)
            for chunk in range(3):
                encoder.position.chunk = chunk
                encoder(IDS[start : start + size, chunk * T : (chunk + 1) * T]).square().sum().backward()
        return [parameter.grad for parameter in encoder.parameters()]

    for actual, other, expected in zip(gradients(1), gradients(2), gradients(4), strict=True):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(other, expected, rtol=1e-11, atol=1e-13)


def test_zone_out_keeps_the_state_of_its_share_of_features():
    encoder = make_encoder(NONE, zoneout=0.25).train()
    kept_TbH = encoder.layers[1]._kept(torch.zeros(200, 4, 10))
    assert kept_TbH.shape == (200, 4, 10)
    assert kept_TbH.float().mean() == pytest.approx(0.75, abs=0.02)
    assert encoder.eval().layers[1]._kept(torch.zeros(200, 4, 10)) is None
    with pytest.raises(UserError, match=r"qrnn cannot be instantiated .*zoneout=1.*arch_kwargs"):
        build_language_model(V, ModelConfig(6, 10, 3, arch="qrnn", arch_kwargs={"zoneout": 1}), LMConfig())


def test_networks_have_one_group_per_layer():
    language_model, classifier = (
        build_language_model(V, SIZES, LMConfig()),
        build_classifier(V, 2, SIZES, ClassifierConfig()),
    )
    assert isinstance(encoder_of(language_model), QRNN)
    assert [len(group) for group in lm_groups(language_model)] == [2, 2, 2, 2]
    assert [len(group) for group in classifier_groups(classifier)] == [1, 2, 2, 2, 6]


def test_a_wrong_name_names_the_right_ones():
    with pytest.raises(UserError, match=r"'qrn' cannot be imported .*module.Class, or as qrnn"):
        build_language_model(V, ModelConfig(6, 10, 3, arch="qrn"), LMConfig())
