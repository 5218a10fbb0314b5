"""The two views: which tokens they predict, and that both estimate the same bound."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltg_mdlm_complementary import ComplementaryMasking

from ltg_mdlm.api import IGNORE, Noise
from ltg_mdlm.testing import toy


@settings(deadline=None)
@given(rate=st.floats(0.01, 0.99), seed=st.integers(0, 100))
def test_every_token_of_a_masked_row_is_predicted_in_exactly_one_view(rate: float, seed: int) -> None:
    batch = toy.text_batch(6, 32, seed)
    causal_B = torch.arange(6) % 3 == 2
    step = toy.step_for(batch, seed=seed)
    first, second = ComplementaryMasking(toy.context().mask_id).corrupt_views(
        batch, causal_B, toy.noise_at(rate, batch), step
    )
    assert not bool((first.masked_BT & second.masked_BT).any())
    assert torch.equal(first.masked_BT | second.masked_BT, batch.maskable_BT & ~causal_B.unsqueeze(1))
    for view in (first, second):
        assert torch.equal(view.labels_BT[~causal_B] != IGNORE, view.masked_BT[~causal_B])
        assert torch.equal(view.input_BT[causal_B], batch.ids_BT[causal_B])
    assert second.noise is not None
    torch.testing.assert_close(second.noise.rate_B, torch.full((6,), 1 - rate, dtype=torch.float64))


def test_both_views_estimate_the_same_integral() -> None:
    """With a loss h(g) of every masked token, the bound per token is the integral of h, for any schedule."""
    rows = 4000
    batch = toy.batch_of([[list(range(16, 31))]] * rows, 16)
    t_B = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    noise = Noise(t_B=t_B, rate_B=t_B.square(), slope_B=2 * t_B)  # not symmetric
    views = ComplementaryMasking(toy.context().mask_id).corrupt_views(
        batch, torch.zeros(rows, dtype=torch.bool), noise, toy.step_for(batch)
    )
    for view in views:
        of_view = view.noise or noise
        loss_B = 3 * of_view.rate_B.square() + of_view.rate_B
        share_B = view.masked_BT.sum(1) / batch.maskable_BT.sum(1)
        estimate = (of_view.slope_B / of_view.rate_B * share_B * loss_B).mean()
        assert abs(float(estimate) - 1.5) < 0.03
