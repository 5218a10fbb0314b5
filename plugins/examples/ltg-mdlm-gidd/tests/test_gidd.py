"""The process compared with its formula, and its bound with the entropy of a language that can be enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltg_mdlm_gidd.diffusion import Interpolating, Process
from ltg_mdlm_gidd.plugin import GIDD, Options
from torch import Tensor

from ltg_mdlm.testing import toy

FIRST, TYPES, LENGTH = 16, 2, 2
VOCAB = FIRST + TYPES
SEQUENCES = list(itertools.product(range(FIRST, VOCAB), repeat=LENGTH))
JOINT = torch.tensor([0.5, 0.05, 0.15, 0.3], dtype=torch.float64)
ENTROPY = float(-(JOINT * JOINT.log()).sum())


def process(**options: float) -> Process:
    """The process for a vocabulary with two ordinary types."""
    return GIDD(Options(**options)).process(toy.context(VOCAB))


def formula(x: int, z: int, s: float, share: float, exponent: float) -> float:
    """q(z | x), written as in the paper."""
    c = 2**exponent * share / (1 - share) * s ** (exponent / 2) * (1 - s) ** (exponent / 2)
    return ((1 - s) * (z == x) + s * (z == toy.context(VOCAB).mask_id) + c / TYPES * (z >= FIRST)) / (1 + c)


levels = st.floats(0.01, 0.99)


@settings(deadline=None)
@given(s=levels, share=st.floats(0, 0.9), exponent=st.floats(0.1, 2))
def test_the_probabilities_are_those_of_the_formula(s: float, share: float, exponent: float) -> None:
    batch = toy.batch_of([[[FIRST, FIRST + 1]]], 3)
    made = process(uniform_share=share, exponent=exponent)
    q_BTV = Interpolating(toy.context(VOCAB), made).transition(batch.ids_BT, toy.noise_at(s, batch))
    for column in (1, 2):
        x = int(batch.ids_BT[0, column])
        expected = torch.tensor([formula(x, z, s, share, exponent) for z in range(VOCAB)], dtype=torch.float64)
        torch.testing.assert_close(q_BTV[0, column], expected, rtol=1e-5, atol=1e-7)


@settings(deadline=None)
@given(s=levels, share=st.floats(0.01, 0.9), exponent=st.floats(0.1, 2))
def test_the_rate_is_the_derivative_of_the_process(s: float, share: float, exponent: float) -> None:
    """d q(z | x) / ds for z != x is rate(z) + q(z | x) d log kept / ds, where q(x | x) - q(y | x) is kept."""
    made = process(uniform_share=share, exponent=exponent)
    h, x, y = 1e-6, FIRST, FIRST + 1

    def kept(at: float) -> float:
        return formula(x, x, at, share, exponent) - formula(x, y, at, share, exponent)

    slope = float(np.log(kept(s + h) / kept(s - h))) / (2 * h)
    for z in (made.mask_id, y):
        growth = (formula(x, z, s + h, share, exponent) - formula(x, z, s - h, share, exponent)) / (2 * h)
        rate = made.rate(torch.tensor([z]), torch.tensor([s], dtype=torch.float64))
        assert float(rate) == pytest.approx(growth - formula(x, z, s, share, exponent) * slope, rel=1e-4, abs=1e-5)


def test_the_shown_tokens_have_the_probabilities_of_the_process() -> None:
    made = process(uniform_share=0.3)
    strategy = Interpolating(toy.context(VOCAB), made)
    batch = toy.batch_of([[[FIRST] * 31]] * 500, 32)
    noise = toy.noise_at(0.4, batch)
    shown = strategy.corrupt(batch, toy.no_causal(batch), noise, toy.step_for(batch)).input_BT[batch.maskable_BT]
    share_V = torch.bincount(shown, minlength=VOCAB) / len(shown)
    torch.testing.assert_close(share_V.double(), strategy.transition(batch.ids_BT, noise)[0, 1], rtol=0, atol=0.015)


def leave_one_out(made: Process, s: float, z: tuple[int, ...]) -> Tensor:
    """float64[L, V]: the distribution of each token given the shown tokens at the other positions."""
    said_LV = torch.zeros(LENGTH, VOCAB, dtype=torch.float64)
    share, exponent = made.uniform_share, made.exponent
    for column in range(LENGTH):
        for x, p in zip(SEQUENCES, JOINT.tolist(), strict=True):
            others = [formula(x[i], z[i], s, share, exponent) for i in range(LENGTH) if i != column]
            said_LV[column, x[column]] += p * float(np.prod(others))
    return said_LV / said_LV.sum(1, keepdim=True).clamp(min=1e-300)


def enumerated_bound(made: Process, spread: float = 0.0) -> float:
    """Nats per row of the bound: the integral over noise levels of the expected terms, and the constant.

    The denoiser is the best one, mixed with a uniform distribution by `spread`.
    """
    shown = [FIRST, FIRST + 1, made.mask_id]
    node, weight = np.polynomial.legendre.leggauss(80)
    angle = (node + 1) / 2 * np.pi  # s = last (1 - cos) / 2 makes the integrand smooth at both ends
    total = 0.0
    for phi, w in zip(angle, weight * np.pi / 2, strict=True):
        s = made.last * (1 - np.cos(phi)) / 2
        ds = made.last * np.sin(phi) / 2 * w
        pairs, probabilities, said = [], [], []
        for z in itertools.product(shown, repeat=LENGTH):
            said_LV = leave_one_out(made, s, z) * (1 - spread) + spread * made.noise_V.double()
            for x, p in zip(SEQUENCES, JOINT.tolist(), strict=True):
                q = [formula(a, b, s, made.uniform_share, made.exponent) for a, b in zip(x, z, strict=True)]
                if min(q) == 0:  # without random tokens, no other token is shown
                    continue
                pairs += list(zip(x, z, strict=True))
                probabilities += [p * float(np.prod(q))] * LENGTH
                said += list(said_LV)
        label_N, z_N = torch.tensor(pairs).T
        s_N = torch.full((len(pairs),), s, dtype=torch.float64)
        terms_N = made.bound_terms(torch.stack(said).float(), label_N, z_N, s_N).double()
        total += ds * float((torch.tensor(probabilities, dtype=torch.float64) * terms_N).sum())
    types_QV = torch.nn.functional.one_hot(torch.tensor(SEQUENCES), VOCAB).sum(1).double()
    share_V = (types_QV * JOINT.unsqueeze(1)).sum(0) / LENGTH
    return total + float((types_QV @ made.end(share_V) * JOINT).sum())


@pytest.mark.parametrize("options", [{"uniform_share": 0.0}, {}, {"uniform_share": 0.3}, {"exponent": 2.0}])
def test_the_bound_of_the_best_denoiser_is_the_entropy_of_the_language(options: dict[str, float]) -> None:
    made = process(**options)
    assert enumerated_bound(made) == pytest.approx(ENTROPY, abs=3e-4)
    assert enumerated_bound(made, spread=0.2) > ENTROPY + 0.01


def test_the_constant_grows_as_the_noise_levels_end_earlier() -> None:
    """What the model does not learn of the last noise levels is part of the constant, and the sum is no less."""
    shorter, longer = process(last=0.9), process(last=0.999)
    share_V = torch.zeros(VOCAB, dtype=torch.float64)
    share_V[FIRST:] = 0.5
    assert float(shorter.end(share_V)[FIRST]) > 10 * float(longer.end(share_V)[FIRST]) > 0
    assert enumerated_bound(shorter) > ENTROPY + 5e-4


def test_without_random_tokens_the_terms_are_those_of_masked_diffusion() -> None:
    """-log p / s where the token is masked, and 0 where it is shown."""
    made = process(uniform_share=0.0)
    logits_NV = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    logits_NV[:, :FIRST] = -40
    label_N, s_N = torch.tensor([FIRST, FIRST]), torch.tensor([0.3, 0.3], dtype=torch.float64)
    z_N = torch.tensor([made.mask_id, FIRST])
    terms_N = made.bound_terms(logits_NV.softmax(1), label_N, z_N, s_N)
    nll = float(-logits_NV.log_softmax(1)[0, FIRST])
    torch.testing.assert_close(terms_N, torch.tensor([nll / 0.3, 0.0]), rtol=1e-4, atol=1e-5)
