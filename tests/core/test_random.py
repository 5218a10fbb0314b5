"""Counter-based random numbers: as uniform and as independent as the training needs, and the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ltg_mdlm.core.random import gumbel, hash_bits, permutation, stream_key, uniform, uniform_open

MIN_P = 1e-4
"""The draws are fixed, so a test either always passes or always fails; good generators fail one in 10,000 of them."""
CPU = torch.device("cpu")


def draws(*parts: int | str, rows: int = 256, cols: int = 256) -> Tensor:
    return uniform(stream_key(*parts), torch.arange(rows), cols)


def p_uniform(u: Tensor, bins: int = 64) -> float:
    """p-value of the chi-square test that u is uniform."""
    return stats.chisquare(torch.histc(u.double(), bins, 0, 1).numpy()).pvalue


def p_independent(u: Tensor, v: Tensor, bins: int = 16) -> float:
    """p-value of the chi-square test that pairs are uniform on the unit square."""
    cell = (u * bins).long() * bins + (v * bins).long()
    return stats.chisquare(torch.bincount(cell.flatten(), minlength=bins**2).numpy()).pvalue


def test_draws_are_uniform_over_rows_columns_steps_and_streams():
    assert p_uniform(draws(0, 0, "mask")) > MIN_P
    assert p_uniform(draws(0, 0, "mask", rows=65536, cols=1)) > MIN_P
    assert p_uniform(torch.cat([draws(0, step, "mask", rows=1, cols=64) for step in range(400)])) > MIN_P
    assert p_uniform(torch.cat([draws(seed, 0, "mask", rows=1, cols=64) for seed in range(400)])) > MIN_P
    assert p_uniform(torch.cat([draws(0, 0, f"pair {i}", rows=1, cols=64) for i in range(400)])) > MIN_P


def test_low_bits_are_as_uniform_as_high_ones():
    bits = hash_bits(stream_key(0, 0, "mask"), torch.arange(256), 256)
    for shift in (0, 8, 16, 24):
        assert stats.chisquare(torch.bincount((bits >> shift).flatten() & 255, minlength=256).numpy()).pvalue > MIN_P


def test_neighbouring_rows_columns_steps_seeds_and_streams_are_independent():
    u = draws(0, 7, "mask")
    assert p_independent(u[:-1], u[1:]) > MIN_P
    assert p_independent(u[:, :-1], u[:, 1:]) > MIN_P
    assert p_independent(u, draws(0, 8, "mask")) > MIN_P
    assert p_independent(u, draws(1, 7, "mask")) > MIN_P
    assert p_independent(u, draws(0, 7, "masks")) > MIN_P
    above = torch.ones_like(u).triu(1).bool()
    assert p_independent(u[above], u.T[above]) > MIN_P


def test_a_rows_number_changes_half_of_the_bits_of_its_draws():
    """Avalanche: rows whose numbers differ in one bit have unrelated draws."""
    key, row = stream_key(0, 0, "mask"), torch.arange(4096)
    for bit in range(20):
        changed = hash_bits(key, row, 1) ^ hash_bits(key, row ^ (1 << bit), 1)
        share = torch.stack([(changed >> i) & 1 for i in range(32)]).double().mean(dim=(1, 2))
        assert (share - 0.5).abs().max() < 0.05


def test_draws_lie_strictly_between_zero_and_one_and_are_exact_in_float32():
    u = draws(0, 0, "mask", rows=4096, cols=256)
    assert 0 < u.min() < 1e-5
    assert 1 - 1e-5 < u.max() < 1
    assert torch.all((u.double() * 2**24) % 2 == 1)
    t = uniform_open(stream_key(0, 0, "noise"), torch.arange(100_000))
    assert t.dtype == torch.float64
    assert t.min() > 0
    assert t.max() < 1


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.permutations(range(12)))
@settings(max_examples=30, deadline=None)
def test_a_draw_depends_on_its_row_alone_not_on_the_rows_beside_it(seed, step, order):
    key, row = stream_key(seed, step, "mask"), torch.tensor(order) * 1000
    together = uniform(key, row, 8)
    apart = torch.cat([uniform(key, row[i : i + 1], 8) for i in range(12)])
    assert torch.equal(together, apart)
    assert torch.equal(together[:, :3], uniform(key, row, 3))


@given(st.integers(0, 2**31), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_a_permutation_holds_every_place_once(seed, size):
    assert torch.equal(permutation(stream_key(seed), size, CPU).sort().values, torch.arange(size))


def test_permutations_put_every_row_in_every_place_equally_often():
    places = torch.stack([permutation(stream_key(0, step, "row_mode"), 8, CPU) for step in range(1600)])
    for row in range(8):
        assert stats.chisquare(torch.bincount(places[:, row], minlength=8).numpy()).pvalue > MIN_P
    pairs = torch.bincount(places[:, 0] * 8 + places[:, 1], minlength=64).view(8, 8)
    assert stats.chisquare(pairs[~torch.eye(8, dtype=torch.bool)].numpy()).pvalue > MIN_P


def test_stream_keys_do_not_run_together():
    """Neither by concatenation of their parts nor by Python's equality of numbers and strings."""
    keys = [stream_key(1, 23), stream_key(12, 3), stream_key("1", 23), stream_key(123), stream_key(1, 2, 3)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("row", "expected"),
    [(0, [6645771, 258333, 9575195]), (1, [2208645, 8913377, 6828561]), (70000, [5640915, 13314365, 4803363])],
)
def test_golden_draws(row, expected):
    """Changing these makes every run irreproducible.

    Made by: python -c "import torch; from ltg_mdlm.core.random import *;
    print((uniform(stream_key(0, 0, 'mask'), torch.tensor([0, 1, 70000]), 3) * 2**24).long().tolist())"
    """
    assert (uniform(stream_key(0, 0, "mask"), torch.tensor([row]), 3) * 2**24).long().tolist() == [expected]


def test_golden_permutation():
    """Made by: python -c "import torch; from ltg_mdlm.core.random import *;
    print(permutation(stream_key(0, 0, 'row_mode'), 8, torch.device('cpu')).tolist())"
    """
    assert permutation(stream_key(0, 0, "row_mode"), 8, CPU).tolist() == [7, 5, 4, 1, 6, 0, 2, 3]


def test_gumbel_noise_follows_its_distribution():
    noise = gumbel(stream_key(0, "tokens"), torch.arange(256), 256)
    assert noise.dtype == torch.float64
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > MIN_P


@pytest.mark.parametrize("bits", [0, 2**32 - 1], ids=["lowest", "highest"])
def test_the_ends_of_gumbel_noise_are_exact_where_float32_has_none(monkeypatch, bits):
    """arXiv 2409.02908: in float32 the noise is cut off at 16.6, or infinite where the uniform number is rounded to 1.

    Beyond 16.6 lies a probability of 6e-8, and a vocabulary asks 16,384 times per token.
    """
    monkeypatch.setattr("ltg_mdlm.core.random.hash_bits", lambda key, row_B, cols: torch.full((len(row_B), cols), bits))
    (noise,) = gumbel((0, 0), torch.tensor([0]), 1).flatten().tolist()
    assert noise == pytest.approx(stats.gumbel_r.isf(1 - (bits + 0.5) / 2**32), rel=1e-9)
    if bits:
        assert noise > 22
        with np.errstate(divide="ignore"):
            assert -np.log(-np.log(np.float32((bits + 0.5) / 2**32))) == np.inf
        assert -np.log(-np.log(np.float32(1 - 2**-24))) < 16.7
