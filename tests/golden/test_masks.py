"""Masks, rates and causal rows of fixed steps: what a seed trains on must not change unnoticed.

Made by `PYTHONPATH=tests python tests/golden/test_masks.py`.
"""

from __future__ import annotations

import pytest
import torch
from ltg_mdlm_plugins.gpt_bert import CausalShare
from support.batches import MASKINGS, SCHEDULES, schedule

from ltg_mdlm.testing.toy import no_causal, noise_at, step_for, text_batch

BATCH = text_batch(3, 24)

MASKS: dict[str, list[str]] = {
    "uniform": ["010110010100001101011011", "000100000101000110111001", "010100100010100101000000"],
    "freq": ["010110010100001101011011", "000100000101000110111001", "010100100010100101000000"],
    "freq_token": ["010110010100001101011011", "000100000101000110111001", "010100100010100101000000"],
    "freq_strong": ["000110000001001111011011", "000110011001010100111011", "000010100010110101000010"],
    "freq_inverse": ["000110000101001101011011", "000110000001000100111011", "000000100010110101000010"],
    "freq_exponential": ["010110010100001101011011", "000100000101000110111001", "010100100010100101000000"],
    "freq_row_min": ["001101000101001111011011", "000110010001000110110011", "010100000011110101000010"],
    "freq_published": ["010111010100011101011011", "000100000101000110111011", "010100100011100101000000"],
    "freq_corpus": ["000110000101001101011011", "000110000001000110111011", "000000100010110101000010"],
    "freq_exact": ["000110000101001101011011", "000110000001000110111011", "000000100010110101000010"],
    "spans": ["011110000000011100000110", "000110000000000111111100", "010000000101110101010001"],
    "spans_unbalanced": ["011110000000011100000110", "000110000000000111111100", "010000000101110101010001"],
}
RATES: dict[str, list[float]] = {
    "linear": [0.75443209, 0.333745429, 0.130284096],
    "cosine": [0.623757757, 0.134298437, 0.0208677822],
    "cosine_squared": [0.858441775, 0.250560803, 0.0413001001],
    "gaussian": [0.287154162, 0.158771959, 0.0863735337],
    "gaussian_clamped": [0.28262041, 0.148448696, 0.0649940978],
    "bimodal": [0.525191971, 0.12282898, 0.104362237],
    "bimodal_mixture": [0.525191971, 0.12282898, 0.104362237],
    "bimodal_clamped": [0.525191972, 0.12282898, 0.104362237],
    "declining": [0.24, 0.24, 0.24],
}
CAUSAL: list[int] = [7, 13, 32, 50]


def masks(name: str) -> list[str]:
    """Masked columns of every row, as bits."""
    result = MASKINGS[name]().corrupt(BATCH, no_causal(BATCH), noise_at(0.4, BATCH), step_for(BATCH, seed=7))
    return ["".join(str(int(bit)) for bit in row) for row in result.masked_BT]


def mask_rates(name: str) -> list[float]:
    """The three rows' mask rates, to nine digits."""
    noise = schedule(name).sample(BATCH, step_for(BATCH, seed=7))
    return [float(f"{rate:.9g}") for rate in noise.rate_B.tolist()]


def causal() -> list[int]:
    """Causal rows of 64, at one in sixteen."""
    row_mode = CausalShare(0.0625).causal(step_for(BATCH, seed=7, rows=64), torch.device("cpu"))
    return row_mode.nonzero().flatten().tolist()


@pytest.mark.parametrize("name", MASKINGS)
def test_masks_are_the_known_ones(name):
    assert masks(name) == MASKS[name]


@pytest.mark.parametrize("name", SCHEDULES)
def test_mask_rates_are_the_known_ones(name):
    assert mask_rates(name) == pytest.approx(RATES[name], rel=1e-7)


def test_causal_rows_are_the_known_ones():
    assert causal() == CAUSAL


if __name__ == "__main__":
    print("MASKS =", {name: masks(name) for name in MASKINGS})
    print("RATES =", {name: mask_rates(name) for name in SCHEDULES})
    print("CAUSAL =", causal())
