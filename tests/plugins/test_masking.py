"""Every masking strategy with every noise schedule: masked tokens, their probabilities, and labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import INDEPENDENT, MASKINGS, SCHEDULES, batches, rates, schedule
from torch import Tensor

from ltg_mdlm.api import IGNORE, Batch, Corrupted, labels_for
from ltg_mdlm.data.tokenizer import BOS, MASK, NUM_SPECIAL
from ltg_mdlm.testing.host_reads import NoHostReads
from ltg_mdlm.testing.toy import batch_of, no_causal, noise_at, rows_of, step_for, text_batch

every_masking = pytest.mark.parametrize("masking", MASKINGS)
every_schedule = pytest.mark.parametrize("noise", SCHEDULES)
few = settings(max_examples=8, deadline=None)
KEEPS_RATE = ["uniform", "freq", "freq_token", "freq_strong", "freq_inverse", "freq_exponential", "freq_row_min"]


@st.composite
def causal_choices(draw: st.DrawFn, batch: Batch) -> Tensor:
    rows = len(batch.row_B)
    return torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))


def corrupted(masking: str, noise: str, batch: Batch, causal_B: Tensor, seed: int) -> Corrupted:
    step = step_for(batch, seed=seed)
    return MASKINGS[masking]().corrupt(batch, causal_B, schedule(noise).sample(batch, step), step)


@every_masking
@every_schedule
@given(data=st.data(), batch=batches(), seed=st.integers(0, 1000))
@few
def test_only_maskable_tokens_of_masked_rows_change(masking, noise, data, batch, seed):
    causal_B = data.draw(causal_choices(batch))
    result = corrupted(masking, noise, batch, causal_B, seed)
    assert not torch.any(result.masked_BT & ~batch.maskable_BT)
    assert not torch.any(result.masked_BT & causal_B.unsqueeze(1))
    untouched_BT = ~result.masked_BT
    assert torch.equal(result.input_BT[untouched_BT], batch.ids_BT[untouched_BT])
    shown = result.input_BT[result.masked_BT]
    assert torch.all((shown == MASK) | (shown >= NUM_SPECIAL))
    maskable_B = batch.maskable_BT.sum(1).clamp(min=1)
    assert torch.allclose(result.realised_rate_B, result.masked_BT.sum(1) / maskable_B)


@every_masking
@given(data=st.data(), batch=batches(), seed=st.integers(0, 1000))
@few
def test_labels_are_the_original_tokens_shifted_once_where_predicted_from_the_left(masking, data, batch, seed):
    """Computed position by position, without `labels_for`."""
    causal_B = data.draw(causal_choices(batch))
    result = corrupted(masking, "linear", batch, causal_B, seed)
    predicts_next = MASKINGS[masking]().predicts == "next"
    rows, columns = batch.ids_BT.shape
    for b in range(rows):
        expected = [IGNORE] * columns
        for column in range(columns):
            target = batch.maskable_BT[b, column] if causal_B[b] else result.masked_BT[b, column]
            shift = 1 if predicts_next or causal_B[b] else 0
            place = column - shift
            same_document = place >= 0 and batch.document_BT[b, place] == batch.document_BT[b, column]
            if target and same_document:
                expected[place] = int(batch.ids_BT[b, column])
        assert result.labels_BT[b].tolist() == expected


@every_masking
@given(batch=batches(), seed=st.integers(0, 1000))
@few
def test_the_batch_is_not_modified(masking, batch, seed):
    before = batch.map(torch.clone)
    corrupted(masking, "cosine", batch, no_causal(batch), seed)
    torch.testing.assert_close(dataclasses.asdict(batch), dataclasses.asdict(before), rtol=0, atol=0)


@every_masking
@every_schedule
def test_masks_do_not_depend_on_the_split_into_micro_batches(masking, noise):
    batch, strategy = text_batch(24, 32), MASKINGS[masking]()
    step = dataclasses.replace(step_for(batch), causal_R=torch.arange(24) % 5 == 0)
    made = schedule(noise)
    results = [
        strategy.corrupt(part, step.causal_R[part.row_B], made.sample(part, step), step)
        for part in (rows_of(batch, slice(0, 7)), rows_of(batch, slice(7, 8)), rows_of(batch, slice(8, 24)))
    ]
    whole = strategy.corrupt(batch, step.causal_R, made.sample(batch, step), step)
    for name in ("input_BT", "labels_BT", "masked_BT", "realised_rate_B"):
        assert torch.equal(torch.cat([getattr(result, name) for result in results]), getattr(whole, name))


@every_masking
@every_schedule
def test_corrupting_does_not_synchronise_with_the_device(masking, noise):
    batch, strategy, made = text_batch(4, 32), MASKINGS[masking](), schedule(noise)
    step = dataclasses.replace(step_for(batch), causal_R=torch.arange(4) == 1)
    with NoHostReads():
        strategy.corrupt(batch, step.causal_R[batch.row_B], made.sample(batch, step), step)


@pytest.mark.parametrize("masking", INDEPENDENT)
@given(batch=batches(), rate=rates())
@settings(max_examples=20, deadline=None)
def test_probabilities_are_probabilities(masking, batch, rate):
    probability_BT = MASKINGS[masking]().mask_probability(batch, noise_at(rate, batch), step_for(batch))
    assert probability_BT.shape == batch.ids_BT.shape
    assert probability_BT.dtype == torch.float32
    kept = probability_BT[batch.maskable_BT]
    assert torch.all((kept >= 0) & (kept <= 1))


@pytest.mark.parametrize("masking", KEEPS_RATE)
@given(batch=batches(), rate=rates())
@settings(max_examples=20, deadline=None)
def test_mean_probability_of_a_rows_maskable_tokens_is_its_mask_rate(masking, batch, rate):
    """arXiv 2509.05056, section 3.1: softening never changes how much is masked, only what."""
    strategy = MASKINGS[masking]()
    assert strategy.keeps_rate
    probability_BT = strategy.mask_probability(batch, noise_at(rate, batch), step_for(batch))
    for probability_T, maskable_T in zip(probability_BT, batch.maskable_BT, strict=True):
        if maskable_T.any():
            assert float(probability_T[maskable_T].double().mean()) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("masking", INDEPENDENT)
@given(batch=batches(max_rows=1))
@settings(max_examples=12, deadline=None)
def test_probabilities_grow_continuously_from_zero_to_one(masking, batch):
    """Non-decreasing in gamma, and without a jump where the two branches of the scaling meet."""
    strategy, columns = MASKINGS[masking](), batch.ids_BT.shape[1]
    rate_B = torch.cat([torch.tensor([1e-12]), torch.linspace(1e-9, 1, 501)]).double()
    copies = rows_of(batch, torch.zeros(len(rate_B), dtype=torch.int64))
    probability_BT = strategy.mask_probability(copies, noise_at(rate_B, copies), step_for(batch)).double()
    probability_BN = probability_BT[:, batch.maskable_BT[0]]
    change_BN = probability_BN.diff(dim=0)
    assert torch.all(change_BN >= -1e-7)
    # if the mean of n probabilities changes by 1 / 500, none of them changes by more than n / 500
    assert torch.all(change_BN <= columns / 500 + 1e-7)
    assert torch.all(probability_BN[0] < 1e-6)
    assert torch.all(probability_BN[-1] == 1)


@pytest.mark.parametrize("masking", INDEPENDENT)
@every_schedule
def test_masked_counts_agree_with_the_probabilities(masking, noise):
    """Realised minus expected, in binomial standard deviations."""
    batch, strategy = text_batch(64, 64), MASKINGS[masking]()
    step = step_for(batch)
    drawn = schedule(noise).sample(batch, step)
    expected_BT = strategy.mask_probability(batch, drawn, step).double() * batch.maskable_BT
    masked = strategy.corrupt(batch, no_causal(batch), drawn, step).masked_BT
    deviation = (expected_BT * (1 - expected_BT)).sum().sqrt()
    assert abs(masked.sum() - expected_BT.sum()) < 4 * deviation
    if strategy.keeps_rate:
        asked = (drawn.rate_B * batch.maskable_BT.sum(1)).sum()
        assert abs(masked.sum() - asked) < 4 * deviation


@every_masking
def test_masks_of_different_steps_and_rows_are_uncorrelated(masking):
    batch = batch_of([[[20] * 31]] * 200, 32)
    strategy, noise = MASKINGS[masking](), noise_at(0.5, batch)
    first, second = (
        strategy.corrupt(batch, no_causal(batch), noise, step_for(batch, step=s)).masked_BT for s in (40, 41)
    )
    for one, other in ((first, second), (first[:-1], first[1:])):
        pairs = torch.stack([one[:, 1:].flatten(), other[:, 1:].flatten()]).double()
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.1


@every_masking
@pytest.mark.parametrize("rate", [1e-12, 1e-6, 1 - 1e-9, 1.0])
def test_rows_with_one_maskable_token_or_none_or_only_specials_give_finite_results(masking, rate):
    batch = batch_of([[], [[20]], [[0, 2, 5]], [[], [21, 0, 22]], [[20] * 7]], 8)
    strategy, step = MASKINGS[masking](), step_for(batch)
    result = strategy.corrupt(batch, no_causal(batch), noise_at(rate, batch), step)
    assert result.masked_BT[[0, 2]].sum() == 0
    if rate > 0.5:
        assert torch.equal(result.masked_BT, batch.maskable_BT)
    assert torch.all(torch.isfinite(result.realised_rate_B))
    if result.hazard_BT is not None:
        assert torch.all(torch.isfinite(result.hazard_BT[batch.maskable_BT]))


def test_a_rate_below_the_resolution_of_the_draws_masks_nothing():
    """1 / gamma would be the weight of a token masked at that rate."""
    batch = text_batch(512, 128)
    result = MASKINGS["uniform"]().corrupt(batch, no_causal(batch), noise_at(1e-9, batch), step_for(batch))
    assert not result.masked_BT.any()


@given(batch=batches(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_predictions_from_the_left_begin_at_the_token_before_the_document(batch, data):
    """`<s>` predicts the first token of its document; the last token predicts nothing."""
    masked_BT = batch.maskable_BT
    labels_BT = labels_for(batch, masked_BT, data.draw(causal_choices(batch)) | True, "same")
    starts_BT = (batch.ids_BT == BOS) & (batch.document_BT >= 0)
    for b, column in starts_BT.nonzero().tolist():
        if column + 1 < batch.ids_BT.shape[1] and batch.document_BT[b, column + 1] == batch.document_BT[b, column]:
            following = int(batch.ids_BT[b, column + 1])
            assert int(labels_BT[b, column]) == (following if following >= NUM_SPECIAL else IGNORE)
    assert int((labels_BT != IGNORE).sum()) == int(masked_BT.sum())
