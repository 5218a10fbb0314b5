"""Frequency-informed masking: rarity, weights, curriculum, and the published options."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltg_mdlm_plugins.freq_mdlm import FreqMDLM, Options
from ltg_mdlm_plugins.frequency_masking import (
    Exponent,
    inverse_rarity,
    masking_hazard,
    rank_rarity,
    scale_to_rate,
)
from ltg_mdlm_plugins.schedules import Cosine
from pydantic import ValidationError
from support.batches import frequency_masking
from torch import Tensor

from ltg_mdlm.api import Batch, UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.data.tokenizer import NUM_SPECIAL, PAD
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.testing.toy import (
    VOCAB,
    batch_of,
    context,
    no_causal,
    noise_at,
    statistics,
    step_for,
    text_batch,
    zipfian_counts,
)

SPECIAL_V = torch.arange(VOCAB) < NUM_SPECIAL


def mask_probability(batch: Batch, rate: float | Tensor, **options: object) -> Tensor:
    options = {"curriculum": "none", **options}
    return frequency_masking(**options).mask_probability(batch, noise_at(rate, batch), step_for(batch)).double()


def literal_probabilities(rarity: list[float], rate: float, power: float, low: float) -> list[float]:
    """The four steps of the paper for one row, without tensors."""
    weight = [((r - low) / (max(rarity) - low)) ** power for r in rarity]
    mean = sum(weight) / len(weight)
    if mean > rate:
        return [w * rate / mean for w in weight]
    return [1 - (1 - w) * (1 - rate) / (1 - mean) for w in weight]


@given(
    tokens=st.lists(st.integers(NUM_SPECIAL, VOCAB - 1), min_size=2, max_size=20, unique=True),
    rate=st.floats(0.01, 0.99),
    power=st.sampled_from([0.02, 0.3, 1.0]),
    minimum=st.sampled_from(["virtual", "row"]),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_are_the_papers_formula(tokens, rate, power, minimum):
    rank = {v: i + 1 for i, v in enumerate(sorted(range(NUM_SPECIAL, VOCAB), key=lambda v: (-zipfian_counts()[v], v)))}
    rarity = [rank[v] / VOCAB for v in tokens]
    expected = literal_probabilities(rarity, rate, power, min(rarity) if minimum == "row" else 0.0)
    batch = batch_of([[tokens]], 24)
    probability_BT = mask_probability(batch, rate, power=power, row_min=minimum)
    assert probability_BT[0, 1 : 1 + len(tokens)].tolist() == pytest.approx(expected, abs=1e-6)


def test_ranks_order_types_by_count_with_ties_by_id_and_unseen_types_last():
    count_V = torch.tensor([99, 0, 5, 7, 0, 5, 0])
    special_V = torch.tensor([True, True, False, False, False, False, False])
    assert (rank_rarity(count_V, special_V) * 7).round().long().tolist() == [0, 0, 2, 1, 4, 3, 5]


def test_exponential_weights_at_scale_one_are_inverse_frequencies():
    count_V = zipfian_counts()
    inverse_V = inverse_rarity(count_V, SPECIAL_V)
    seen_V = count_V > 0
    expected_V = count_V.sum() / count_V[seen_V].double()
    assert torch.allclose(inverse_V[seen_V], expected_V, rtol=1e-3)
    one = mask_probability(text_batch(4, 32), 0.3, weights="exponential")
    assert torch.equal(one, mask_probability(text_batch(4, 32), 0.3, weights="inverse"))
    other = mask_probability(text_batch(4, 32), 0.3, weights="exponential", frequency_scale=0.5)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("weights", ["rank", "inverse", "exponential"])
def test_rare_tokens_are_masked_more_often_than_frequent_ones(weights):
    by_count = sorted(range(NUM_SPECIAL, VOCAB), key=lambda v: (-zipfian_counts()[v], v))
    probability = mask_probability(batch_of([[by_count]], 40), 0.3, weights=weights, power=0.5)[0, 1:33]
    assert torch.all(probability.diff() >= 0)
    assert float(probability[0]) < 0.3 < float(probability[-1])


def test_power_zero_is_uniform_masking():
    batch = text_batch(4, 32)
    probability_BT = mask_probability(batch, 0.3, power=0.0)
    assert torch.allclose(probability_BT[batch.maskable_BT], torch.tensor(0.3, dtype=torch.float64), atol=1e-6)


def test_the_rows_own_minimum_leaves_its_most_frequent_type_unmasked_and_the_virtual_one_does_not():
    """The published minimum, in a row without padding and `<s>`, whose rarity would be smaller."""
    most_frequent = int(zipfian_counts().argmax())
    batch = batch_of([[[most_frequent, *range(30, 46)]]], 20)
    assert float(mask_probability(batch, 0.3, row_min="row")[0, 1]) == 0.0
    assert float(mask_probability(batch, 0.3, row_min="virtual")[0, 1]) > 0.25


def test_published_statistics_mask_most_real_tokens_of_padded_rows_and_the_corrected_ones_keep_the_rate():
    """63 % padding and the cosine schedule, mean mask rate 36 %: 64 % of the real tokens are masked."""
    rows = 500
    batch = batch_of([[[20 + i % 25 for i in range(46)]]] * rows, 128)
    assert float((batch.ids_BT == PAD).double().mean()) == pytest.approx(0.63, abs=0.005)
    rate_B = Cosine().rate((torch.arange(rows, dtype=torch.float64) + 0.5) / rows, 0.0)
    published = mask_probability(batch, rate_B, statistics="all_positions", row_min="row")
    assert float(published[batch.maskable_BT].mean()) == pytest.approx(0.64, abs=0.02)
    corrected = mask_probability(batch, rate_B)
    assert float(corrected[batch.maskable_BT].mean()) == pytest.approx(1 - 2 / math.pi, abs=1e-5)


def test_published_weights_give_the_most_frequent_type_most_of_its_weight_through_the_control_tokens_minimum():
    """With `<s>` as the row's minimum, w of rank 1 is (1 / V / max)^0.02, about 0.83 at V = 16384."""
    by_count = sorted(range(NUM_SPECIAL, VOCAB), key=lambda v: (-zipfian_counts()[v], v))
    batch = batch_of([[by_count]], 33)
    probability = mask_probability(batch, 0.1, statistics="all_positions", row_min="row")[0, 1:]
    assert float(probability[0] / probability[-1]) == pytest.approx((1 / 32) ** 0.02, rel=1e-5)
    assert math.isclose((1 / 16384) ** 0.02, 0.83, abs_tol=0.01)


def test_the_mean_over_the_corpus_is_the_mask_rate_when_statistics_come_from_the_corpus():
    share_V = zipfian_counts() / zipfian_counts().sum()
    batch = batch_of([[list(range(NUM_SPECIAL, VOCAB))]], 40)
    for rate in (0.1, 0.5, 0.95):
        probability = mask_probability(batch, rate, statistics="corpus", power=0.4)[0, 1:33]
        assert float((probability * share_V[NUM_SPECIAL:]).sum()) == pytest.approx(rate, rel=1e-6)


def test_with_corpus_statistics_a_tokens_probability_depends_on_its_type_alone():
    first, second = batch_of([[[20, 21, 22]]], 8), batch_of([[[22, 40, 41, 42, 43, 20]]], 8)
    one, two = (mask_probability(b, 0.9, statistics="corpus", power=0.5)[0] for b in (first, second))
    assert (one[1], one[3]) == (two[6], two[1])


@given(st.floats(1e-6, 0.999), st.lists(st.floats(0.01, 1), min_size=2, max_size=8))
@settings(max_examples=80, deadline=None)
def test_the_hazard_is_the_logarithmic_derivative_of_the_probability(rate, weights):
    complement = 1 - torch.tensor(weights, dtype=torch.float64)
    mean = complement.mean()
    step = 1e-6 * rate
    if abs(rate - float(1 - mean)) < 2 * step or float(mean) < 1e-6:
        return  # where the branches meet, the derivative is one-sided
    rates = torch.tensor([rate - step, rate, rate + step], dtype=torch.float64).unsqueeze(1)
    log_p = scale_to_rate(complement, mean, rates).log()
    numerical = (log_p[2] - log_p[0]) / (2 * step)
    assert torch.allclose(masking_hazard(complement, mean, rates)[1], numerical, rtol=1e-4, atol=1e-6)


def test_scaling_is_exact_at_both_ends_and_where_its_branches_meet():
    complement = torch.tensor([0.7, 0.2, 0.0], dtype=torch.float64)
    mean = complement.mean()
    for rate, expected in ((0.0, [0.0] * 3), (0.7, [0.3, 0.8, 1.0]), (1.0, [1.0] * 3)):
        scaled = scale_to_rate(complement, mean, torch.tensor(rate, dtype=torch.float64))
        assert scaled.tolist() == pytest.approx(expected, abs=1e-15)


@given(st.floats(0.001, 1))
@settings(max_examples=30, deadline=None)
def test_probabilities_do_not_cancel_when_all_weights_are_almost_one(rate):
    """At exponent 1e-9 masking is uniform to 1e-8; 1 - mean(w) in float32 would be noise."""
    probability_BT = mask_probability(text_batch(2, 32), rate, power=1e-9)
    kept = probability_BT[text_batch(2, 32).maskable_BT]
    assert torch.allclose(kept, torch.full_like(kept, rate), rtol=1e-6)


@pytest.mark.parametrize("weighting", ["row", "token", "exact"])
def test_weightings_differ_only_in_the_hazards_they_report(weighting):
    batch = text_batch(3, 32)
    options = {"statistics": "corpus", "power": 0.5, "weighting": weighting}
    strategy = frequency_masking(**options)
    result = strategy.corrupt(batch, no_causal(batch), noise_at(0.9, batch), step_for(batch))
    plain = frequency_masking(**{**options, "weighting": "row"})
    assert torch.equal(
        result.masked_BT, plain.corrupt(batch, no_causal(batch), noise_at(0.9, batch), step_for(batch)).masked_BT
    )
    assert (result.hazard_BT is None) == (weighting == "row")
    assert (result.hazard_by_type_BV is None) == (weighting != "exact")
    if weighting == "exact":
        by_type_BT = result.hazard_by_type_BV.gather(1, batch.ids_BT)
        assert torch.equal(by_type_BT[batch.maskable_BT], result.hazard_BT[batch.maskable_BT])
        assert torch.all(result.hazard_by_type_BV[:, :NUM_SPECIAL] == 0)


def test_token_hazards_of_rows_follow_the_rows_own_mean():
    batch = text_batch(3, 32)
    strategy = frequency_masking(power=1.0, curriculum="none", weighting="token")
    low, high = (strategy.hazard(batch, noise_at(rate, batch), step_for(batch))[0] for rate in (0.1, 0.95))
    assert torch.allclose(low[batch.maskable_BT], torch.tensor(10.0, dtype=torch.float64))
    assert float(high[batch.maskable_BT].std()) > 0.01


def exponents(max_steps: int, epochs: float, **options: object) -> list[float]:
    made = {"power": 0.02, "curriculum": "linear", "until": 1.0, "epochs": 10, **options}
    exponent = Exponent(**made, max_steps=max_steps)
    batch = text_batch(1, 8)
    return [
        exponent(step_for(batch, step=s, progress=s / max_steps, epoch=epochs * s / max_steps))
        for s in range(max_steps)
    ]


@given(st.integers(2, 2000), st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_the_linear_curriculum_starts_at_zero_and_reaches_its_end(max_steps, until):
    values = exponents(max_steps, 10, until=until)
    assert values[0] == 0
    assert values[-1] == pytest.approx(0.02)
    assert all(a <= b for a, b in itertools.pairwise(values))
    quarter = max_steps // 4
    if quarter / max_steps < until:
        assert values[quarter] == pytest.approx(min(0.02 * quarter / (max_steps - 1) / until, 0.02))


def test_the_published_curriculum_grows_by_a_ninth_in_each_of_ten_epochs():
    values = exponents(100, 10, curriculum="epochs")
    assert values[::10] == pytest.approx([0.02 * epoch / 9 for epoch in range(10)])
    assert values[9] == 0


def test_without_a_curriculum_the_exponent_is_constant():
    assert exponents(10, 10, curriculum="none") == [0.02] * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "exact"}, "statistics: corpus"),
        ({"weighting": "exact", "statistics": "corpus", "row_min": "row"}, "row_min: virtual"),
        ({"power": -1}, "greater than or equal"),
        ({"weights": "rare"}, "rank"),
        ({"pwer": 0.1}, "Extra inputs"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Options(**options)


def config(power: float = 1.0, epochs: float | None = 10, conditioning: str = "mask_rate") -> SimpleNamespace:
    uniform = {"derivative_power": power, "conditioning": conditioning}
    return SimpleNamespace(plugins={"uniform_mdlm": uniform}, training=SimpleNamespace(epochs=epochs))


def test_the_exact_weighting_refuses_another_derivative_power():
    exact = FreqMDLM(Options(weighting="exact", statistics="corpus"))
    assert exact.ltg_mdlm_check_config(config()) == []
    with pytest.raises(UserError, match=r"derivative_power is 0\.1"):
        exact.ltg_mdlm_check_config(config(power=0.1))
    assert FreqMDLM(Options()).ltg_mdlm_check_config(config(power=0.1)) == []


def test_an_epoch_curriculum_of_another_length_than_training_is_warned_about():
    plugin = FreqMDLM(Options(curriculum="epochs"))
    assert plugin.ltg_mdlm_check_config(config(epochs=10)) == []
    assert "curriculum_epochs is 10" in plugin.ltg_mdlm_check_config(config(epochs=4))[0]
    assert plugin.ltg_mdlm_check_config(config(epochs=None)) == []


def test_only_the_exact_weighting_provides_an_objective():
    assert FreqMDLM(Options()).ltg_mdlm_objective() is None
    assert FreqMDLM(Options(weighting="token")).ltg_mdlm_objective() is None
    assert FreqMDLM(Options(weighting="exact", statistics="corpus")).ltg_mdlm_objective() is not None


@pytest.mark.parametrize(
    ("options", "kind", "keeps_rate"),
    [
        ({}, "other", True),
        ({"statistics": "all_positions"}, "other", False),
        ({"statistics": "corpus"}, "by_type", False),
    ],
)
def test_strategies_declare_their_kind_and_whether_they_keep_the_rate(options, kind, keeps_rate):
    strategy = frequency_masking(**options)
    assert (strategy.kind, strategy.keeps_rate) == (kind, keeps_rate)


def test_an_empty_corpus_still_gives_probabilities():
    plugin = FreqMDLM(Options(statistics="corpus"))
    plugin.ltg_mdlm_corpus_statistics(statistics(torch.zeros(VOCAB, dtype=torch.int64)), context())
    batch = text_batch(2, 16)
    probability_BT = plugin.ltg_mdlm_masking(context()).mask_probability(batch, noise_at(0.4, batch), step_for(batch))
    kept = probability_BT[batch.maskable_BT]
    assert torch.all((kept >= 0) & (kept <= 1))


def test_every_option_has_a_description():
    assert all(field.description for field in Options.model_fields.values())


def test_options_of_other_choices_are_warnings():
    def warnings(*sets: str) -> list[str]:
        return Host(load_settings(plugins=["freq_mdlm"], sets=sets).config).check_config()

    assert warnings("plugins.freq_mdlm.curriculum_until=0.5") == []
    (text,) = warnings("plugins.freq_mdlm.curriculum_until=0.5", "plugins.freq_mdlm.curriculum=none")
    assert "curriculum_until has no effect with weights rank and curriculum none" in text
    assert len(warnings("plugins.freq_mdlm.frequency_scale=0.5", "plugins.freq_mdlm.curriculum_epochs=3")) == 2
