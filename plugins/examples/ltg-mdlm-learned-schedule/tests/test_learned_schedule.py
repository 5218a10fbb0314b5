"""The gradient of the exponents, compared with the derivative of the bound by enumeration of all masks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from ltg_mdlm_learned_schedule import LearnedMasking, bound_terms
from torch import Tensor

from ltg_mdlm.api import IGNORE, Corrupted, Observation, Supervised, labels_for, realised_rate
from ltg_mdlm.testing import toy

VOCAB, RATE, SLOPE = 20, 0.6, 0.7
BATCH = toy.batch_of([[[16, 17, 19]]], 4)
NOISE = toy.noise_at(RATE, BATCH)


def strategy() -> LearnedMasking:
    """Masking with different exponents."""
    made = LearnedMasking(toy.context(VOCAB))
    with torch.no_grad():
        made.exponents.log_exponent_V.copy_(torch.linspace(-1, 1, VOCAB))
    return made


def with_mask(masking: LearnedMasking, columns: Sequence[int]) -> Corrupted:
    """The rows with these columns masked."""
    masked_BT = torch.zeros_like(BATCH.maskable_BT)
    masked_BT[:, list(columns)] = True
    causal_B = torch.zeros(1, dtype=torch.bool)
    return Corrupted(
        input_BT=BATCH.ids_BT.masked_fill(masked_BT, masking.mask_id),
        labels_BT=labels_for(BATCH, masked_BT, causal_B, "same"),
        masked_BT=masked_BT,
        realised_rate_B=realised_rate(BATCH, masked_BT),
        causal_B=causal_B,
    )


def supervised_of(corrupted: Corrupted) -> Supervised:
    """The masked positions."""
    row_N, column_N = (corrupted.labels_BT != IGNORE).nonzero(as_tuple=True)
    rate_N = NOISE.rate_B[row_N]
    return Supervised(
        label_N=corrupted.labels_BT[row_N, column_N],
        row_N=row_N,
        column_N=column_N,
        causal_N=torch.zeros_like(row_N, dtype=torch.bool),
        masked_N=torch.ones_like(row_N, dtype=torch.bool),
        rate_N=rate_N,
        realised_rate_N=corrupted.realised_rate_B[row_N],
        slope_N=torch.full_like(rate_N, SLOPE),
        hazard_N=1 / rate_N,
    )


def model(corrupted: Corrupted) -> Tensor:
    """float32[N, V]: logits that depend on the whole input, as those of a model do."""
    seed = int((corrupted.input_BT * torch.tensor([1, 7, 49, 343])).sum())
    logits_TV = torch.randn(BATCH.ids_BT.shape[1], VOCAB, generator=torch.Generator().manual_seed(seed))
    return logits_TV[supervised_of(corrupted).column_N]


def observation_of(corrupted: Corrupted) -> Observation:
    """What the trainer shows of the predictions."""
    nothing_N = torch.zeros(len(supervised_of(corrupted).label_N))
    return Observation(
        step=toy.step_for(BATCH),
        batch=BATCH,
        supervised=supervised_of(corrupted),
        correct_N=nothing_N.bool(),
        nll_N=nothing_N,
        noise=NOISE,
    )


def all_masks(masking: LearnedMasking) -> list[tuple[Corrupted, Tensor]]:
    """Every mask, and its probability as a function of the exponents."""
    p_T = masking.mask_probability(BATCH, NOISE, toy.step_for(BATCH))[0]
    columns = BATCH.maskable_BT[0].nonzero().flatten().tolist()
    made = []
    for chosen in itertools.product([False, True], repeat=len(columns)):
        masked = [column for column, is_chosen in zip(columns, chosen, strict=True) if is_chosen]
        factors = [p_T[c] if is_chosen else 1 - p_T[c] for c, is_chosen in zip(columns, chosen, strict=True)]
        made.append((with_mask(masking, masked), torch.stack(factors).prod()))
    return made


def gradient(masking: LearnedMasking, value: Tensor) -> Tensor:
    """The derivative of a value with respect to the exponents."""
    [result] = torch.autograd.grad(value, [masking.exponents.log_exponent_V], retain_graph=True)
    return result


def test_the_expected_gradient_is_that_of_the_bound() -> None:
    masking = strategy()
    masks = all_masks(masking)
    exact = weights_alone = torch.zeros(())
    for corrupted, probability in masks:
        log_probability_NV = model(corrupted).log_softmax(1)
        terms_N = bound_terms(log_probability_NV, supervised_of(corrupted), masking.exponents())
        exact = exact + probability * terms_N.sum()
        weights_alone = weights_alone + probability.detach() * terms_N.sum()
    expected = torch.zeros(VOCAB)
    for (first, p), (second, q) in itertools.product(masks, repeat=2):
        views = (first, second)
        own_K = masking.own_loss(
            [observation_of(view) for view in views], views, lambda view, part, of=views: model(of[view])[part]
        )
        expected += (p * q).detach() * gradient(masking, own_K.sum())
    exact_V = gradient(masking, exact)
    torch.testing.assert_close(expected / 2, exact_V, rtol=1e-4, atol=1e-5)
    seen = BATCH.ids_BT[BATCH.maskable_BT]
    assert bool((exact_V[seen] < -0.1).all())
    assert bool((gradient(masking, weights_alone)[seen] > 0.1).all())  # at this mask rate, they have the opposite sign
