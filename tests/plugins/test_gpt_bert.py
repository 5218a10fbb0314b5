"""The GPT-BERT hybrid: shares of causal rows, spans, and the history that balances them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltg_mdlm_plugins.gpt_bert import CausalShare, GPTBert, Options, causal_rows
from ltg_mdlm_plugins.spans import MaskHistory, SpanMasking, quota, span_of
from pydantic import ValidationError
from scipy import stats
from support.batches import batches, span_masking
from torch import Tensor

from ltg_mdlm.api import IGNORE, Batch, Corrupted, Observation, Step, Supervised
from ltg_mdlm.data.tokenizer import MASK, NUM_SPECIAL
from ltg_mdlm.testing.host_reads import NoHostReads
from ltg_mdlm.testing.toy import VOCAB, batch_of, context, no_causal, noise_at, rows_of, step_for, text_batch

CPU = torch.device("cpu")


# Rows


@given(
    share=st.sampled_from([0.0, 0.0625, 0.1, 0.29, 1 / 3, 0.5, 1.0]),
    rows=st.lists(st.integers(1, 70), min_size=1, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_any_number_of_steps_has_exactly_its_share_of_causal_rows(share, rows):
    """Also while the batch grows."""
    first_row, causal = 0, 0
    for count in rows:
        causal += causal_rows(share, first_row, count)
        first_row += count
        assert causal == math.floor(Fraction(str(share)) * first_row)


def test_published_batches_have_one_causal_row_in_sixteen():
    for step in range(5):
        causal_R = CausalShare(0.0625).causal(
            step_for(text_batch(1, 4), rows=128, step=step, first_row=128 * step), CPU
        )
        assert int(causal_R.sum()) == 8


def test_causal_rows_are_selected_anew_in_every_step():
    made = [CausalShare(0.5).causal(step_for(text_batch(1, 4), rows=32, step=s), CPU) for s in range(200)]
    share_R = torch.stack(made).double().mean(0)
    assert float((share_R - 0.5).abs().max()) < 0.2
    assert len({tuple(row.tolist()) for row in made}) == 200


def test_no_causal_rows_are_none():
    assert CausalShare(0.0).causal(step_for(text_batch(1, 4), rows=32), CPU) is None


# Spans


@given(batch=batches(), seed=st.integers(0, 1000), max_span=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_spans_are_short_and_stay_within_stretches_of_maskable_tokens(batch, seed, max_span):
    span_BT = span_of(batch, step_for(batch, seed=seed), max_span)
    for b in range(len(batch.row_B)):
        for start in set(span_BT[b].tolist()):
            members = (span_BT[b] == start).nonzero().flatten()
            assert members.tolist() == list(range(start, start + len(members)))
            kinds = {(bool(batch.maskable_BT[b, i]), int(batch.document_BT[b, i])) for i in members}
            if batch.maskable_BT[b, start]:
                assert len(kinds) == 1
                assert len(members) <= max_span


def test_span_lengths_are_uniform():
    batch = batch_of([[[20] * 120]] * 300, 121)
    span_BT = span_of(batch, step_for(batch), 3)
    lengths = torch.cat([torch.unique_consecutive(row[1:], return_counts=True)[1][:-1] for row in span_BT])
    counts = torch.bincount(lengths, minlength=4)[1:]
    assert len(counts) == 3
    # the span at the end of the row is truncated, so it is left out; it would be longer than others on average
    assert torch.allclose(counts / counts.sum(), torch.tensor(1 / 3), atol=0.015)


def test_a_documents_first_span_is_as_long_as_any_other():
    batch = batch_of([[[20] * 10, [21] * 10]] * 2000, 22)
    span_BT = span_of(batch, step_for(batch), 3)
    first = (span_BT[:, 12:] == 12).sum(1)
    assert stats.chisquare(torch.bincount(first, minlength=4)[1:].numpy()).pvalue > 1e-4


@given(batch=batches(), seed=st.integers(0, 1000), rate=st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_every_documents_share_is_masked_rounded_up_or_down_and_at_least_one_token(batch, seed, rate):
    strategy = span_masking()
    result = strategy.corrupt(batch, no_causal(batch), noise_at(rate, batch), step_for(batch, seed=seed))
    for b in range(len(batch.row_B)):
        for document in range(int(batch.document_BT[b].max()) + 1):
            inside = (batch.document_BT[b] == document) & batch.maskable_BT[b]
            tokens, masked = int(inside.sum()), int(result.masked_BT[b][inside].sum())
            allowed = {max(math.floor(rate * tokens), 1), max(math.ceil(rate * tokens), 1)}
            assert masked in allowed if tokens else masked == 0


def test_rounding_keeps_the_mean():
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for tokens, rate in ((10, 0.15), (7, 0.3), (100, 0.151)):
        assert float(quota(torch.tensor(tokens), torch.tensor(rate), u).double().mean()) == pytest.approx(tokens * rate)


def test_at_most_one_span_of_a_document_is_masked_in_part():
    batch = batch_of([[[20] * 60]] * 50, 61)
    strategy, step = span_masking(balance=False), step_for(batch)
    masked_BT = strategy.corrupt(batch, no_causal(batch), noise_at(0.3, batch), step).masked_BT
    span_BT = span_of(batch, step, 3)
    for b in range(50):
        spans = [masked_BT[b][span_BT[b] == start] for start in set(span_BT[b, 1:].tolist())]
        assert sum(bool(span.any() and not span.all()) for span in spans) <= 1


def test_every_span_is_masked_equally_often():
    """Including the first and last tokens of a document."""
    batch = batch_of([[[20] * 20]] * 6000, 21)
    strategy = span_masking(balance=False)
    masked_BT = strategy.corrupt(batch, no_causal(batch), noise_at(0.3, batch), step_for(batch)).masked_BT
    assert torch.allclose(masked_BT[:, 1:].double().mean(0), torch.tensor(0.3, dtype=torch.float64), atol=0.04)


def test_selected_spans_are_masked_randomised_or_unchanged_in_the_published_shares():
    batch = batch_of([[[20] * 100]] * 200, 101)
    strategy, step = span_masking(balance=False), step_for(batch)
    result = strategy.corrupt(batch, no_causal(batch), noise_at(0.5, batch), step)
    span_BT = span_of(batch, step, 3)
    shown = result.input_BT[result.masked_BT]
    share = {"mask": (shown == MASK), "kept": (shown == 20), "random": (shown >= NUM_SPECIAL) & (shown != 20)}
    assert float(share["mask"].double().mean()) == pytest.approx(0.8, abs=0.02)
    assert float(share["kept"].double().mean()) == pytest.approx(0.1 + 0.1 / 32, abs=0.02)
    assert float(share["random"].double().mean()) == pytest.approx(0.1 * 31 / 32, abs=0.02)
    drawn = torch.bincount(shown[share["random"]], minlength=VOCAB)
    assert stats.chisquare(drawn[21:].numpy()).pvalue > 1e-4
    assert drawn[:NUM_SPECIAL].sum() == 0
    is_mask_BT = result.input_BT == MASK
    for b in range(200):  # decided per span
        for start in set(span_BT[b][result.masked_BT[b]].tolist()):
            fates = is_mask_BT[b][(span_BT[b] == start) & result.masked_BT[b]]
            assert fates.all() or not fates.any()


def test_the_mask_probability_is_the_expected_share_of_the_document():
    batch = batch_of([[[20] * 40, [21, 22]]] * 4000, 44)
    strategy = span_masking(balance=False)
    noise, step = noise_at(0.15, batch), step_for(batch)
    probability_T = strategy.mask_probability(batch, noise, step)[0]
    masked_BT = strategy.corrupt(batch, no_causal(batch), noise, step).masked_BT.double()
    for columns in (slice(1, 41), slice(42, 44)):
        assert float(masked_BT[:, columns].mean()) == pytest.approx(float(probability_T[columns].mean()), abs=0.01)


def test_the_mask_rate_falls_linearly_from_start_to_end():
    made = GPTBert(Options()).ltg_mdlm_noise_schedule()
    batch = text_batch(3, 8)
    for progress, rate in ((0.0, 0.3), (0.5, 0.225), (1.0, 0.15)):
        noise = made.sample(batch, step_for(batch, progress=progress))
        assert noise.rate_B.tolist() == pytest.approx([rate] * 3)
        assert noise.slope_B.tolist() == [1.0] * 3


# History


def observation(batch: Batch, result: Corrupted, step: Step) -> Observation:
    """The observation of a micro-batch, for next-token prediction."""
    row_N, column_N = (result.labels_BT != IGNORE).nonzero(as_tuple=True)
    nothing_N = torch.zeros_like(row_N, dtype=torch.float64)
    supervised = Supervised(
        label_N=result.labels_BT[row_N, column_N],
        row_N=row_N,
        column_N=column_N,
        causal_N=result.causal_B[row_N],
        masked_N=result.masked_BT[row_N, column_N + 1],
        rate_N=nothing_N,
        realised_rate_N=nothing_N,
        slope_N=nothing_N,
        hazard_N=nothing_N,
    )
    return Observation(step=step, batch=batch, supervised=supervised, correct_N=nothing_N, nll_N=nothing_N)


def train(strategy: SpanMasking, parts: list[Batch], steps: range, rows: int) -> list[Tensor]:
    """Masks of every step; all micro-batches are corrupted before any is observed."""
    masks = []
    for number in steps:
        step = step_for(parts[0], step=number, rows=rows)
        causal_R = torch.arange(rows) % 4 == 0
        made = [(part, strategy.corrupt(part, causal_R[part.row_B], noise_at(0.3, part), step)) for part in parts]
        for part, result in made:
            strategy.observe(observation(part, result, step))
        strategy.step_end(step)
        masks.append(torch.cat([result.masked_BT for _, result in made]))
    return masks


def test_tokens_masked_less_often_are_preferred():
    """After ten passes over the same rows the counts are much closer together than those of independent draws."""
    batch = batch_of([[[20] * 30]] * 16, 31)
    spread = {}
    for balance in (True, False):
        masks = train(span_masking(balance=balance), [batch], range(10), 16)
        counts = torch.stack(masks).sum(0)[torch.arange(16) % 4 != 0][:, 1:]
        spread[balance] = float(counts.double().var())
    assert spread[True] < 0.5 * spread[False]


def test_the_history_counts_what_was_masked_and_nothing_else():
    batch = text_batch(8, 32)
    strategy = span_masking()
    masks = train(strategy, [batch], range(5), 8)
    count = strategy.state_dict()["mask_count"]
    expected = torch.stack(masks).sum(0)
    assert torch.equal(count[batch.position_BT[batch.maskable_BT]].long(), expected[batch.maskable_BT])
    assert int(count.sum()) == int(expected.sum())


class Sum:
    """A sum over two threads, which call it like ranks."""

    def __init__(self) -> None:
        self.barrier, self.parts = threading.Barrier(2), {}

    def of_rank(self, rank: int) -> Callable[[Tensor], Tensor]:
        def add(part: Tensor) -> Tensor:
            self.parts[rank] = part
            self.barrier.wait(timeout=20)
            total = self.parts[0] + self.parts[1]
            self.barrier.wait(timeout=20)
            return total

        return add


def test_histories_and_masks_are_the_same_on_all_ranks_and_for_any_split():
    batch = text_batch(13, 32)
    single = span_masking()
    masks = train(single, [batch], range(4), 13)
    split = [
        [rows_of(batch, slice(0, 2)), rows_of(batch, slice(2, 7))],
        [rows_of(batch, slice(7, 8)), rows_of(batch, slice(8, 13))],
    ]
    total = Sum()
    strategies = [
        GPTBert(Options()).ltg_mdlm_masking(context(rank=r, world_size=2, sum_over_ranks=total.of_rank(r)))
        for r in (0, 1)
    ]
    found: dict[int, list[Tensor]] = {}

    def work(rank: int) -> None:
        found[rank] = train(strategies[rank], split[rank], range(4), 13)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, first, second in zip(masks, found[0], found[1], strict=True):
        assert torch.equal(one, torch.cat([first, second]))
    for strategy in strategies:
        assert torch.equal(strategy.state_dict()["mask_count"], single.state_dict()["mask_count"])


def test_the_history_does_not_synchronise_with_the_device():
    batch, strategy = text_batch(8, 32), span_masking()
    step = step_for(batch)
    seen = observation(batch, strategy.corrupt(batch, no_causal(batch), noise_at(0.3, batch), step), step)
    with NoHostReads():
        CausalShare(0.25).causal(step, CPU)
        strategy.observe(seen)
        strategy.step_end(step)


def test_a_restored_history_continues_bit_exactly():
    batch = text_batch(8, 32)
    whole = span_masking()
    expected = train(whole, [batch], range(6), 8)[3:]
    first, second = span_masking(), span_masking()
    train(first, [batch], range(3), 8)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for ours, theirs in zip(train(second, [batch], range(3, 6), 8), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_held_out_rows_do_not_change_the_history():
    """Their tokens are not in the training corpus."""
    batch = text_batch(8, 32)
    held_out = Batch(
        ids_BT=batch.ids_BT,
        document_BT=batch.document_BT,
        position_BT=torch.full_like(batch.position_BT, -1),
        maskable_BT=batch.maskable_BT,
        row_B=batch.row_B,
    )
    strategy = span_masking()
    train(strategy, [held_out], range(3), 8)
    assert int(strategy.state_dict()["mask_count"].sum()) == 0


def test_counts_stop_at_the_largest_byte():
    history = MaskHistory(context(num_positions=64))
    history.load_state_dict({"mask_count": torch.full((65,), 255, dtype=torch.uint8)})
    batch = batch_of([[[20] * 20]], 21)
    strategy = span_masking(balance=False)
    step = step_for(batch)
    result = strategy.corrupt(batch, no_causal(batch), noise_at(1.0, batch), step)
    history.observe(observation(batch, result, step))
    history.step_end(step)
    assert history.state_dict()["mask_count"][:64].tolist() == [255] * 64


def test_without_balance_there_is_no_state():
    strategy = span_masking(balance=False)
    train(strategy, [text_batch(4, 32)], range(2), 4)
    assert strategy.state_dict() == {}


# Plugin


def test_the_slots_of_the_published_recipe_are_provided():
    plugin = GPTBert(Options())
    assert isinstance(plugin.ltg_mdlm_row_mode(), CausalShare)
    assert plugin.ltg_mdlm_masking(context()).predicts == "next"
    assert plugin.ltg_mdlm_objective().group_names == ("masked", "causal")
    assert not plugin.ltg_mdlm_time_conditioning().active


def test_the_losses_are_weighted_with_the_share_of_rows_by_default():
    some = torch.ones(2)
    supervised = Supervised(
        **{f"{n}_N": some for n in ("label", "row", "column", "masked", "rate", "realised_rate", "slope", "hazard")},
        causal_N=torch.tensor([False, True]),
    )
    step = replace(step_for(text_batch(1, 4)), rows=16)
    published = GPTBert(Options()).ltg_mdlm_objective().weights(supervised, step)
    assert published[0].tolist() == [15 / 16, 1 / 16]
    assert published[1].tolist() == pytest.approx([15 / 16 * 1e-4, 1 / 16 * 1e-4])
    half = GPTBert(Options(causal_weight=0.5, z_loss=0.0)).ltg_mdlm_objective().weights(supervised, step)
    assert half[0].tolist() == [0.5, 0.5]
    assert half[1] is None


@pytest.mark.parametrize(
    "wrong", [{"causal_share": 1.5}, {"max_span": 0}, {"random_share": 0.6, "keep_share": 0.5}, {"mask_rate_end": 0.0}]
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        Options(**wrong)


def test_every_option_has_a_description():
    assert all(field.description for field in Options.model_fields.values())
