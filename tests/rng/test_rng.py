"""Tests of the random number generator against published vectors, and of its numbers against expected statistics."""

import numpy as np
import pytest
import torch

from ulmfit_dist.models.sampling import pick
from ulmfit_dist.rng.counter_based import derive_key, derive_seed, permutation, uniform
from ulmfit_dist.rng.philox import philox, random_words
from ulmfit_dist.rng.philox import signed as signed_word

ONES = 2**64 - 1
KNOWN = [  # counter, key and result: kat_vectors of Random123 (Salmon et al., 2011), philox4x64 10
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (ONES, ONES, ONES, ONES),
        (ONES, ONES),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def signed(words: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([signed_word(word) for word in words])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_numbers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]):
    assert torch.equal(philox(signed(counter)[:, None], signed(key))[0], signed(expected))


def test_the_first_numbers_of_the_stream_are_the_published_ones():
    assert torch.equal(random_words((0, 0), 0, 1)[0], signed(KNOWN[0][2]))


@pytest.mark.parametrize("first", [0, 1, 12_345, 2**32 - 3, 2**62])
def test_a_cpu_and_other_devices_compute_the_same_numbers(first: int):
    key = derive_key(42, "lm", "dropout", 7)
    counters = torch.zeros(4, 9, dtype=torch.int64)
    counters[0] = torch.arange(first, first + 9)
    assert torch.equal(random_words(key, first, 9), philox(counters, signed(key)))


def test_any_part_of_a_stream_can_be_computed_separately():
    whole = random_words((1, 2), 0, 100)
    assert torch.equal(random_words((1, 2), 37, 20), whole[37:57])


@pytest.fixture(scope="module")
def elements() -> np.ndarray:
    """Return a million 16-bit numbers for each of four adjacent positions, drawn as in dropout."""
    keys = [derive_key(42, "lm", "dropout", step, 0, site) for step in (7, 8) for site in ("hidden 0", "hidden 1")]
    return np.stack([random_words(key, 0, 62_500).view(torch.int16).flatten().numpy() for key in keys])


def test_numbers_are_uniform(elements: np.ndarray):
    for row in elements:
        counts = np.bincount(row.astype(np.int64) + 32_768 >> 8, minlength=256)
        chi2 = ((counts - len(row) / 256) ** 2).sum() / (len(row) / 256)
        assert 170 < chi2 < 350  # 255 degrees of freedom: 4 standard deviations


def test_neighbours_in_a_stream_and_streams_of_neighbouring_positions_are_independent(elements: np.ndarray):
    limit = 5 / elements.shape[1] ** 0.5
    scaled = elements / elements.std(axis=1, keepdims=True)
    between = scaled @ scaled.T / elements.shape[1]
    assert np.abs(between - np.eye(4)).max() < limit + 1e-3  # the diagonal is not exactly one
    for lag in (1, 2, 4, 16, 1152):
        assert np.abs((scaled[:, lag:] * scaled[:, :-lag]).mean(axis=1)).max() < limit


def test_every_bit_is_set_half_of_the_time(elements: np.ndarray):
    for bit in range(16):
        assert np.abs((elements >> bit & 1).mean(axis=1) - 0.5).max() < 5 * 0.5 / elements.shape[1] ** 0.5


def test_uniform_numbers_lie_between_zero_and_one_and_belong_to_their_position():
    numbers = uniform(100_000, 42, "generate", 3)
    assert 0 <= numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.005)
    assert torch.equal(uniform(5, 42, "generate", 3), numbers[:5])
    assert not torch.equal(uniform(5, 42, "generate", 4), numbers[:5])


def test_randomness_is_a_function_of_position():
    assert derive_seed(42, "lm", 3) == 6_207_555_202_310_102_606  # stays the same from version to version
    assert derive_key(42, "lm", 3) == (1_846_241_902_297_084_142, 15_421_596_834_394_450_927)
    assert permutation(5, 42, "lm", 0).tolist() == permutation(5, 42, "lm", 0).tolist()
    assert sorted(permutation(1000, 1)) == list(range(1000))
    assert permutation(1000, 1).tolist() != permutation(1000, 2).tolist()


def test_words_are_drawn_with_their_probability_and_never_with_probability_zero():
    p = torch.tensor([0.0, 0.1, 0.0, 0.7, 0.2, 0.0])
    drawn = pick(p.expand(20_000, 6), uniform(20_000, 42, "generate", 0))
    assert torch.bincount(drawn, minlength=6)[p == 0].sum() == 0
    torch.testing.assert_close(torch.bincount(drawn, minlength=6) / 20_000, p, atol=0.015, rtol=0)
    assert torch.equal(pick(p.expand(3, 6), uniform(3, 42, "generate", 0)), drawn[:3])
