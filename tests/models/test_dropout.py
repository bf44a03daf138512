"""Masks against fastai's, and against themselves where the rows are cut otherwise."""

from types import SimpleNamespace

import pytest
import torch
from fastai.text.models import awdlstm
from torch import nn

from ulmfit_dist.config.schema import ClassifierConfig, LMConfig, ModelConfig
from ulmfit_dist.models import dropout as dropout_module
from ulmfit_dist.models.dropout import DropoutContext, EmbeddingDropout, RowDropout, WeightDropout, lstm_from_flat_weights
from ulmfit_dist.models.masks import compute_masks
from ulmfit_dist.models.networks import build_classifier, build_language_model, encoder_of

B, T, H = 64, 5, 1150
PROBABILITIES = [0.02, 0.15, 0.5]


@pytest.fixture(autouse=True)
def _fastai_draws_the_same_each_time():
    torch.manual_seed(0)


def position(rows: range = range(B), step: int = 3) -> DropoutContext:
    return DropoutContext(seed=42, stage="lm", step=step, rows=rows)


def rows_dropped(rows: range, p: float = 0.5, step: int = 3, site: str = "input") -> torch.Tensor:
    return RowDropout(p, site, position(rows, step))(torch.ones(len(rows), T, H))


def weight_dropped(p: float, dropout: type[awdlstm.WeightDropout]) -> torch.Tensor:
    """Weights that the LSTM computes with, in place of ones."""
    lstm = nn.LSTM(8, 300)
    nn.init.ones_(lstm.weight_hh_l0)
    ours = (lstm, p, "weights 0", position()) if dropout is WeightDropout else (lstm, p)
    module = dropout(*ours)
    module._setweights()
    return lstm.weight_hh_l0.detach()


def words_dropped(p: float, dropout: type[awdlstm.EmbeddingDropout]) -> torch.Tensor:
    """[V, 2] of an embedding of ones."""
    embedding = nn.Embedding(20_000, 2)
    nn.init.ones_(embedding.weight)
    ours = (embedding, p, "embedding", position()) if dropout is EmbeddingDropout else (embedding, p)
    return dropout(*ours)(torch.arange(20_000)[None])[0].detach()


def check_statistics(ours: torch.Tensor, reference: torch.Tensor, p: float) -> None:
    """The same values; kept as often, within what chance allows."""
    assert ours.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=2e-5)
    assert reference.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=2e-5)
    limit = 4 * (p * (1 - p) / ours.numel()) ** 0.5
    for mask in (ours, reference):
        assert (mask != 0).double().mean().item() == pytest.approx(1 - p, abs=limit)
        assert mask.double().mean().item() == pytest.approx(1, abs=limit / (1 - p))


@pytest.mark.parametrize("p", PROBABILITIES)
def test_row_dropout_has_fastais_statistics_and_is_constant_over_time(p: float):
    ours, reference = rows_dropped(range(B), p), awdlstm.RNNDropout(p)(torch.ones(B, T, H))
    for mask in (ours, reference):
        assert torch.equal(mask, mask[:, :1].expand_as(mask))
    check_statistics(ours[:, 0], reference[:, 0], p)
    kept_per_row = (ours[:, 0] != 0).double().mean(1)
    assert kept_per_row.std().item() == pytest.approx((p * (1 - p) / H) ** 0.5, rel=0.5)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_weight_dropout_has_fastais_statistics(p: float):
    check_statistics(weight_dropped(p, WeightDropout), weight_dropped(p, awdlstm.WeightDropout), p)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_embedding_dropout_has_fastais_statistics_and_drops_whole_words(p: float):
    ours, reference = words_dropped(p, EmbeddingDropout), words_dropped(p, awdlstm.EmbeddingDropout)
    for mask in (ours, reference):
        assert torch.equal(mask[:, 0], mask[:, 1])
    check_statistics(ours[:, 0], reference[:, 0], p)


@pytest.mark.parametrize("rows", [range(0, 32), range(17, 18), range(1, 64, 2), range(3, 60, 4)])
def test_a_row_is_dropped_alike_whichever_rows_are_with_it(rows: range):
    whole = rows_dropped(range(B))
    assert torch.equal(rows_dropped(rows), whole[rows.start : rows.stop : rows.step])


def test_masks_differ_between_steps_and_places_and_come_back():
    mask = rows_dropped(range(B))
    assert torch.equal(rows_dropped(range(B)), mask)
    for other in (rows_dropped(range(B), step=4), rows_dropped(range(B), site="output")):
        assert (other == mask).double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_all_rows_of_a_narrower_input_are_dropped_as_in_the_head():
    features = RowDropout(0.5, "head 0", position())(torch.ones(B, H))
    assert torch.equal(features, rows_dropped(range(B), site="head 0")[:, 0])


def test_gradients_flow_through_what_is_kept():
    embedding = nn.Embedding(50, 3)
    words = torch.randint(0, 50, (4, 9))
    dropped = EmbeddingDropout(embedding, 0.5, "embedding", position())
    dropped(words).sum().backward()
    mask = dropped(words)[0, 0] / embedding.weight[words[0, 0]]
    times = (words == words[0, 0]).sum()
    torch.testing.assert_close(embedding.weight.grad[words[0, 0]], mask.detach() * times)


def test_every_dropout_of_both_networks_is_ours_and_has_a_place_of_its_own():
    sizes = ModelConfig(emb_sz=6, n_hid=8, n_layers=3)
    for model, places in (
        (build_language_model(40, sizes, LMConfig()), 9),
        (build_classifier(40, 3, sizes, ClassifierConfig()), 10),
    ):
        ours = [m for m in model.modules() if isinstance(m, (RowDropout, WeightDropout, EmbeddingDropout))]
        assert len({module.site for module in ours}) == len(ours) == places
        assert all(module.position is encoder_of(model).position for module in ours)
        left = [m for m in model.modules() if isinstance(m, (nn.Dropout, awdlstm.RNNDropout))]
        assert not left


def test_training_without_a_step_is_refused():
    model = build_language_model(40, ModelConfig(emb_sz=6, n_hid=8, n_layers=2), LMConfig()).train()
    with pytest.raises(RuntimeError, match="set step and rows"):
        model(torch.randint(2, 40, (4, 7)))
    encoder_of(model).position.step = 0
    with pytest.raises(RuntimeError, match="has 0 rows, but the input has 4"):
        model(torch.randint(2, 40, (4, 7)))
    encoder_of(model).position.rows = range(4)
    assert torch.isfinite(model(torch.randint(2, 40, (4, 7)))[0]).all()


def test_a_probability_close_to_one_drops_nearly_all():
    assert 0 < rows_dropped(range(B), p=0.999999).ne(0).double().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("weight_p", "is_training"), [(0.5, True), (0.0, True), (0.5, False)])
def test_the_gpu_branch_computes_a_weight_dropped_lstm_from_one_flat_tensor(
    dtype: torch.dtype, weight_p: float, is_training: bool, monkeypatch: pytest.MonkeyPatch
):
    operator, calls = torch._VF.lstm, []

    def recorded(x, state, weights, *options):
        calls.append(weights)
        return operator(x, state, weights, *options)

    layer = WeightDropout(nn.LSTM(4, 5, batch_first=True), weight_p, "weights 0", position()).train(is_training)
    x_bTE, hidden = torch.randn(2, 3, 4), (torch.randn(1, 2, 5), torch.randn(1, 2, 5))
    expected = layer(x_bTE, hidden)
    expected_gradients = torch.autograd.grad(expected[0].sum(), list(layer.parameters()))
    monkeypatch.setattr(torch._VF, "lstm", recorded)
    for _ in range(2):  # the second call meets whatever the first one has left behind
        layer._setweights()
        with torch.autocast("cpu", torch.bfloat16):  # which must not reach the LSTM
            output, state = lstm_from_flat_weights(layer.module, x_bTE, hidden, dtype)
    assert {part.dtype for part in (output, *state)} == {dtype}
    tolerance = {"rtol": 0, "atol": {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]}
    for actual, wanted in zip((output, *state), (expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(actual.float(), wanted, **tolerance)
    gradients = torch.autograd.grad(output.float().sum(), list(layer.parameters()))
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=10 * tolerance["atol"])
    assert len(calls) == 2
    for weights in calls:  # cuDNN's order: input weights, hidden weights, their biases
        assert [tuple(weight.shape) for weight in weights] == [(20, 4), (20, 5), (20,), (20,)]
        assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
        assert [weight.storage_offset() for weight in weights] == [0, 80, 180, 200]
        assert {weight.dtype for weight in weights} == {dtype}


def test_masks_depend_on_seed_stage_step_chunk_and_site():
    at = {"seed": 42, "stage": "lm", "step": 3, "chunk": 1}
    keys = [DropoutContext(**at).key("input"), DropoutContext(**at).key("output")]
    keys += [DropoutContext(**{**at, **other}).key("input") for other in ({"seed": 43}, {"stage": "classifier"})]
    keys += [DropoutContext(**{**at, **other}).key("input") for other in ({"step": 4}, {"chunk": 0})]
    assert len(set(keys)) == 6
    assert DropoutContext(**at, rows=range(5)).key("input") == keys[0]
    assert keys[0] == (14176821590765691784, 8510495584966028558)  # as in every version: a run may resume in a later one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_branch_has_the_masks_of_a_cpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dropout_module, "compute_masks", lambda masks, device: compute_masks(masks, torch.device("cpu")))
    here, there = torch.ones(1, dtype=dtype), SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
    for _ in range(2):  # the second step computes all masks of the first in advance
        at = position(range(2, 12, 2))
        for at.step in (1, 2):
            expected = at.row_mask("input", at.rows[:3], 40, 0.25, here)
            actual = at.row_mask("input", at.rows[:3], 40, 0.25, there)
            assert (actual.dtype, actual.shape) == (dtype, (3, 40))
            assert torch.equal(actual, expected)
            expected = at.shared_mask("weights", 50, 0.5, here)
            actual = at.shared_mask("weights", 50, 0.5, there)
            assert (actual.dtype, actual.shape) == (dtype, (50,))
            assert torch.equal(actual, expected)


def test_a_single_row_may_be_duplicated_and_no_other_number_of_rows_fits():
    dropout = RowDropout(0.5, "input", position(range(3, 4)))
    twice = dropout(torch.ones(2, T, H))
    assert torch.equal(twice[0], twice[1])
    assert torch.equal(twice[:1], rows_dropped(range(3, 4)))
    with pytest.raises(RuntimeError, match=r"position\.rows has 1 rows, but the input has 3"):
        dropout(torch.ones(3, T, H))
    first = RowDropout(0.5, "input", position(range(8)))(torch.ones(5, T, H))  # the rows that have tokens in a chunk
    assert torch.equal(first, rows_dropped(range(8))[:5])


def test_in_evaluation_and_with_a_probability_of_zero_nothing_is_dropped():
    x, ids = torch.randn(2, 3, 4), torch.tensor([[1, 2]])
    nowhere = DropoutContext()  # no step is needed
    for p, is_training in ((0.5, False), (0.0, True)):
        assert RowDropout(p, "input", nowhere).train(is_training)(x) is x
        embedding = nn.Embedding(9, 4)
        assert torch.equal(EmbeddingDropout(embedding, p, "words", nowhere).train(is_training)(ids), embedding(ids))
        lstm = nn.LSTM(4, 5, batch_first=True)
        expected = lstm(x)[0]
        weights = WeightDropout(lstm, p, "weights", nowhere).train(is_training)
        torch.testing.assert_close(weights(x, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))[0], expected)


def test_padding_of_an_embedding_gets_no_gradient():
    embedding = nn.Embedding(9, 4, padding_idx=1)
    EmbeddingDropout(embedding, 0.0, "words", position())(torch.tensor([[1, 2, 1]])).sum().backward()
    assert embedding.weight.grad.sum(1).nonzero().flatten().tolist() == [2]


def test_the_dropped_weight_has_one_name_in_a_state_and_starts_as_it_was():
    lstm = nn.LSTM(4, 5)
    weight = lstm.weight_hh_l0.detach().clone()
    module = WeightDropout(lstm, 0.5, "weights", position())
    assert "weight_hh_l0_raw" in module.state_dict()
    assert "module.weight_hh_l0" not in module.state_dict()
    assert torch.equal(module.weight_hh_l0_raw, weight)
    assert torch.equal(lstm.weight_hh_l0, weight)
    assert module.weight_hh_l0_raw.requires_grad
    assert lstm.flatten_parameters() is None
    module.reset()
    assert torch.equal(lstm.weight_hh_l0, weight)


def test_layers_show_their_probability_and_site():
    assert "p=0.25, site='input'" in repr(RowDropout(0.25, "input", position()))
