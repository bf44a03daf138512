"""Distributions that words are sampled from, and cached generation against the reference path, which reads the whole text
for each word."""

import pytest
import torch
from torch import Tensor, nn

from ulmfit_dist.config.schema import LMConfig, ModelConfig
from ulmfit_dist.data.vocab import FILLER
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.networks import build_language_model, encoder_of
from ulmfit_dist.models.sampling import Sampling, continue_tokens, never_drawn, pick
from ulmfit_dist.rng.counter_based import seed_torch, uniform

V = 50
NEVER = [0, 1, 48, 49]
POSITION = (42, "generate")
ALL = [0, 1, 2, 3, 4]
KNOWN = torch.tensor([[1 / 16, 1 / 2, 1 / 16, 1 / 8, 1 / 4], [1 / 5] * 5])
"""Probabilities of five words: falling by half, with a tie of the last two; and all the same."""


@pytest.fixture(params=[None, "qrnn"], ids=["lstm", "qrnn"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A network with weights large enough for words to differ, in double: rounding must not decide on a word."""
    seed_torch("a tiny model")
    sizes = ModelConfig(emb_sz=6, n_hid=8, n_layers=3, arch=request.param)
    network = build_language_model(V, sizes, LMConfig()).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def kept(**cuts: float) -> list[list[int]]:
    """Ids of the words of `KNOWN` that can be drawn after these cuts, for each row."""
    p_bV = Sampling(temperature=1, **cuts).probabilities(KNOWN.log())
    left = p_bV > 0
    torch.testing.assert_close(p_bV[left], KNOWN[left])
    return [row.nonzero()[:, 0].tolist() for row in left]


def beginnings(rows: int) -> Tensor:
    return torch.tensor([[2, 7, 11]]).repeat(rows, 1)


def reading_all_again(model: nn.Module, tokens_bT: Tensor, words: int, temperature: float) -> Tensor:
    for word in range(words):
        encoder_of(model).reset()
        logits_bV = model[1].decoder(model(tokens_bT)[0][:, -1])
        logits_bV[:, NEVER] = -torch.inf
        drawn_b = pick(torch.softmax(logits_bV / temperature, dim=1), uniform(len(tokens_bT), *POSITION, word))
        tokens_bT = torch.cat([tokens_bT, drawn_b[:, None]], dim=1)
    return tokens_bT


@pytest.mark.parametrize(
    ("cuts", "left"),
    [
        ({}, ALL),
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 4]),
        ({"top_k": 4}, ALL),  # the fourth and the fifth tie
        ({"top_k": 1000}, ALL),
        ({"top_p": 1e-20}, [1]),
        ({"top_p": 0.4}, [1]),
        ({"top_p": 0.6}, [1, 4]),
        ({"top_p": 0.8}, [1, 3, 4]),
        ({"top_p": 0.9}, ALL),
        ({"top_p": 1}, ALL),
        ({"min_p": 0}, ALL),
        ({"min_p": 0.1}, ALL),
        ({"min_p": 0.2}, [1, 3, 4]),
        ({"min_p": 0.4}, [1, 4]),  # as a probability it would cut the second word too
        ({"min_p": 1}, [1]),
        ({"top_k": 2, "top_p": 0.7}, [1, 4]),  # of what top-k has left: 0.7 of 3/4 is more than a half
        ({"top_k": 2, "top_p": 0.65}, [1]),  # and 0.65 of 3/4 is less, though 0.65 of all is more
        ({"top_k": 3, "top_p": 0.95, "min_p": 0.4}, [1, 4]),
    ],
)
def test_a_cut_keeps_the_most_likely_words_and_ties_whole(cuts: dict[str, float], left: list[int]):
    assert kept(**cuts) == [left, ALL]


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_no_cut_takes_the_most_likely_word(cut: dict[str, float]):
    logits_bV = torch.randn(200, V) * torch.logspace(-3, 2, 200)[:, None]
    p_bV = Sampling(0.75, **cut).probabilities(logits_bV)
    assert torch.all(p_bV[torch.arange(200), logits_bV.argmax(1)] > 0)


def test_the_temperature_comes_before_the_cuts():
    assert (Sampling(2, min_p=0.4).probabilities(KNOWN.log())[0] > 0).tolist() == [False, True, False, True, True]
    assert (Sampling(0.5, min_p=0.4).probabilities(KNOWN.log())[0] > 0).tolist() == [False, True, False, False, False]


def test_without_cuts_the_probabilities_are_the_softmax_to_the_last_bit():
    logits_bV = torch.randn(3, V)
    assert torch.equal(Sampling(0.75).probabilities(logits_bV), torch.softmax(logits_bV / 0.75, dim=1))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": 0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_k": 2.5},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.1},
    ],
)
def test_a_value_out_of_range_is_one_line_that_names_it(bad: dict[str, float]):
    ((name, value),) = bad.items()
    with pytest.raises(UserError, match=rf"^{name}={value}: give [^\n]+$"):
        Sampling(**bad)


def test_words_are_picked_as_often_as_they_are_likely_and_never_where_they_are_cut():
    p_bV = Sampling(1, top_k=3).probabilities(KNOWN[:1].log()).expand(20_000, -1)
    actual = torch.bincount(pick(p_bV, uniform(20_000, *POSITION)), minlength=5) / 20_000
    torch.testing.assert_close(actual, torch.tensor([0, 4 / 7, 0, 1 / 7, 2 / 7]), atol=0.015, rtol=0)


@torch.no_grad()
def test_texts_are_those_of_reading_all_that_is_there_for_each_word(model: nn.Module):
    different = torch.randint(2, V, (4, 5))
    different[3] = different[1]  # read as one
    for tokens_bT in (beginnings(4), different, different[:1], different[:, :1]):
        written = continue_tokens(model, tokens_bT, 12, Sampling(0.9), NEVER, *POSITION)
        assert written.tolist() == reading_all_again(model, tokens_bT, 12, 0.9).tolist()
        assert not set(written[:, tokens_bT.shape[1] :].unique().tolist()) & set(NEVER)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.0, top_k=5, top_p=0.9, min_p=0.01)])
def test_a_text_does_not_depend_on_how_many_are_written_with_it(model: nn.Module, sampling: Sampling):
    several = continue_tokens(model, beginnings(5), 12, sampling, NEVER, *POSITION)
    assert len(several.unique(dim=0)) == 5
    for samples in (1, 2, 4):
        fewer = continue_tokens(model, beginnings(samples), 12, sampling, NEVER, *POSITION)
        assert fewer.tolist() == several[:samples].tolist()


def test_with_the_most_likely_words_alone_all_texts_are_the_same(model: nn.Module):
    texts = continue_tokens(model, beginnings(6), 12, Sampling(5, top_k=1), NEVER, *POSITION)
    assert len(texts.unique(dim=0)) == 1


def test_writing_leaves_no_hidden_state_behind(model: nn.Module):
    written = [continue_tokens(model, beginnings(2), 6, Sampling(), NEVER, *POSITION).tolist() for _ in range(2)]
    assert written[0] == written[1]
    assert encoder_of(model).hidden_states == {}


def test_padding_filler_and_the_unknown_word_are_never_drawn():
    assert never_drawn(["xxunk", "xxpad", "xxbos", "the", FILLER, FILLER]) == [0, 1, 4, 5]
