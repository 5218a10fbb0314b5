"""Adaptive masking compared with the formulas of the paper, implemented with numpy and loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ltg_mdlm_amlm.masked_lm import DecliningRate
from ltg_mdlm_amlm.masking import AdaptiveMasking, scale_to_rate, smoothed_accuracy
from ltg_mdlm_amlm.plugin import Options
from torch import Tensor

from ltg_mdlm.api import Batch, Noise, Observation, Step, Supervised
from ltg_mdlm.testing import toy

VOCAB, SPECIAL = 40, 16


def strategy(**options: object) -> AdaptiveMasking:
    """Masking with these options."""
    chosen = Options(**options)
    return AdaptiveMasking(
        toy.context(VOCAB),
        mask_rate=chosen.schedule().at,
        history=chosen.history,
        smoothing=chosen.smoothing,
        update_every=chosen.update_every,
    )


def step_at(index: int) -> Step:
    """One of the run's 1000 steps."""
    return Step(seed=0, step=index, progress=index / 1000, epoch=0.0, rows=4)


def rows_of(ids: Sequence[Sequence[int]]) -> Batch:
    """Rows of one document each."""
    ids_BT = torch.tensor(ids)
    return Batch(
        ids_BT=ids_BT,
        document_BT=torch.zeros_like(ids_BT, dtype=torch.int32),
        position_BT=torch.full_like(ids_BT, -1),
        maskable_BT=ids_BT >= SPECIAL,
        row_B=torch.arange(len(ids)),
    )


def noise_at(rate: float, rows: int) -> Noise:
    """The same mask rate in every row."""
    rate_B = torch.full((rows,), rate, dtype=torch.float64)
    return Noise(t_B=rate_B, rate_B=rate_B, slope_B=torch.ones_like(rate_B))


def observation(label_N: Tensor, correct_N: Tensor, step: Step, **changes: Tensor) -> Observation:
    """Predictions of masked tokens."""
    ones_N = torch.ones(len(label_N), dtype=torch.float64)
    values = {
        "label_N": label_N,
        "row_N": torch.zeros_like(label_N),
        "column_N": torch.zeros_like(label_N),
        "causal_N": torch.zeros_like(correct_N),
        "masked_N": torch.ones_like(correct_N),
        "rate_N": ones_N,
        "realised_rate_N": ones_N,
        "slope_N": ones_N,
        "hazard_N": ones_N,
    }
    nll_N = changes.pop("nll_N", torch.ones(len(label_N)))
    supervised = Supervised(**{**values, **changes})
    return Observation(step=step, batch=rows_of([[20]]), supervised=supervised, correct_N=correct_N, nll_N=nll_N)


def predictions(seed: int, step: Step, count: int = 30) -> Observation:
    """Random predictions; higher ids are harder, and the last few types do not occur."""
    rng = np.random.default_rng([seed, step.step])
    label = rng.integers(SPECIAL, VOCAB - 4, count)
    correct = rng.random(count) < (VOCAB - label) / VOCAB
    return observation(torch.from_numpy(label), torch.from_numpy(correct), step)


def weight_of(masking: AdaptiveMasking) -> np.ndarray:
    """float64[V]"""
    return masking.state_dict()["weight"].numpy()


# Formulas


def test_accuracy_is_smoothed_as_published_and_one_half_for_types_not_seen() -> None:
    correct, incorrect = torch.tensor([0, 3, 0, 7]), torch.tensor([0, 0, 9, 2])
    assert smoothed_accuracy(correct, incorrect, 0.5).tolist() == pytest.approx([0.5, 3.5 / 4, 0.5 / 10, 7.5 / 10])


def test_the_mask_rate_falls_linearly_between_its_ends() -> None:
    assert [DecliningRate(0.4, 0.15).at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.4, 0.275, 0.15])


# Scaling


@pytest.mark.parametrize("rate", [1e-9, 0.01, 0.15, 0.4, 0.9, 1 - 1e-9, 1.0])
def test_the_mean_probability_of_every_row_is_its_mask_rate(rate: float) -> None:
    """Weights are equal, nearly equal, or differ by orders of magnitude, so that probabilities would exceed 1."""
    rng = np.random.default_rng(0)
    equal_BT = torch.full((1, 64), 0.3, dtype=torch.float64)
    weight_BT = torch.cat([torch.from_numpy(rng.beta(0.2, 3, (50, 64)) + 1e-12), equal_BT, equal_BT + 1e-13])
    weight_BT[-1, 3] += 1e-15
    maskable_BT = torch.from_numpy(rng.random(weight_BT.shape) < 0.7)
    probability_BT = scale_to_rate(weight_BT, maskable_BT, torch.full((len(weight_BT), 1), rate, dtype=torch.float64))
    assert float(probability_BT.min()) >= 0
    assert float(probability_BT.max()) <= 1
    for b in range(len(weight_BT)):
        assert float(probability_BT[b][maskable_BT[b]].mean()) == pytest.approx(rate, rel=1e-9)


def test_probabilities_are_proportional_to_weights_until_the_largest_is_1() -> None:
    weight_BT = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    maskable_BT = torch.ones_like(weight_BT, dtype=torch.bool)

    def at(rate: float) -> list[float]:
        return scale_to_rate(weight_BT, maskable_BT, torch.tensor([[rate]], dtype=torch.float64))[0].tolist()

    assert at(0.25) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert at(0.625) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert at(0.625 + 1e-12) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    # beyond, the probabilities of staying visible are scaled by (1 - 0.8) / (1 - 0.625)
    assert at(0.8) == pytest.approx([1 - 0.75 * 0.2 / 0.375, 1 - 0.5 * 0.2 / 0.375, 1 - 0.25 * 0.2 / 0.375, 1.0])


def test_rows_without_maskable_tokens_give_finite_numbers() -> None:
    batch = rows_of([[1, 2, 3], [1, 20, 3]])
    probability_BT = strategy().mask_probability(batch, noise_at(0.3, 2), step_at(0))
    assert bool(probability_BT.isfinite().all())
    assert float(probability_BT[1, 1]) == pytest.approx(0.3)


# Adapting


def test_before_the_first_update_masking_is_uniform() -> None:
    masking = strategy()
    masking.observe(predictions(0, step_at(0)))
    masking.step_end(step_at(0))
    probability_BT = masking.mask_probability(rows_of([[20, 30, 39]]), noise_at(0.4, 1), step_at(1))
    assert probability_BT[0].tolist() == pytest.approx([0.4, 0.4, 0.4])


def literal_weights(steps: int, micro_batches: int, every: int) -> np.ndarray:
    """The update of the paper, token by token."""
    weight = [0.4] * VOCAB
    correct, incorrect = [0] * VOCAB, [0] * VOCAB
    for index in range(steps):
        for part in range(micro_batches):
            seen = predictions(part, step_at(index))
            for label, right in zip(seen.supervised.label_N.tolist(), seen.correct_N.tolist(), strict=True):
                if right:
                    correct[label] += 1
                else:
                    incorrect[label] += 1
        if (index + 1) % every == 0:
            m = 0.4 - 0.25 * index / 1000
            for v in range(VOCAB):
                accuracy = (correct[v] + 0.5) / (correct[v] + incorrect[v] + 1)
                weight[v] = 0.2 * weight[v] + 0.8 * m * (1 - accuracy)
            correct, incorrect = [0] * VOCAB, [0] * VOCAB
    return np.array(weight)


def test_weights_follow_the_published_update_over_many_steps() -> None:
    masking = strategy(update_every=50)
    for index in range(170):
        for part in range(2):
            masking.observe(predictions(part, step_at(index)))
        masking.step_end(step_at(index))
    assert weight_of(masking) == pytest.approx(literal_weights(170, 2, every=50), rel=1e-12)


def test_types_that_are_predicted_poorly_are_masked_more_often() -> None:
    masking = strategy(update_every=1)
    label_N = torch.tensor([20] * 9 + [30] * 9)
    masking.observe(observation(label_N, label_N == 20, step_at(0)))
    masking.step_end(step_at(0))
    easy, hard = masking.mask_probability(rows_of([[20, 30]]), noise_at(0.15, 1), step_at(1))[0].tolist()
    # 0.2 * 0.4 + 0.8 * 0.4 * (1 - accuracy), accuracies 9.5 / 10 and 0.5 / 10
    assert hard / easy == pytest.approx((0.08 + 0.32 * 0.95) / (0.08 + 0.32 * 0.05))
    assert hard + easy == pytest.approx(0.3)


def test_only_masked_positions_of_finite_micro_batches_count() -> None:
    """Causal positions are not masked tokens, and a step that is refused for a NaN must not change the weights."""
    expected, masking = strategy(update_every=1), strategy(update_every=1)
    label_N, correct_N = torch.tensor([20, 21, 22]), torch.tensor([True, False, False])
    expected.observe(observation(label_N[:1], correct_N[:1], step_at(0)))
    masking.observe(observation(label_N, correct_N, step_at(0), masked_N=torch.tensor([True, False, False])))
    for number in (float("nan"), float("inf")):
        masking.observe(observation(label_N, correct_N, step_at(0), nll_N=torch.tensor([1.0, number, 1.0])))
    for each in (expected, masking):
        each.step_end(step_at(0))
    assert weight_of(masking).tolist() == weight_of(expected).tolist()
    assert np.isfinite(weight_of(masking)).all()


def test_a_micro_batch_without_predictions_changes_nothing() -> None:
    masking = strategy(update_every=1)
    masking.observe(observation(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.bool), step_at(0)))
    masking.step_end(step_at(0))
    assert {f"{weight:.12f}" for weight in weight_of(masking)} == {f"{0.08 + 0.32 * 0.5:.12f}"}
    assert float(masking.metrics()["accuracy"]) == 0


@pytest.mark.parametrize("saved_after", [1, 19, 20, 35])
def test_a_restored_strategy_continues_bit_exactly(saved_after: int) -> None:
    whole, first, second = (strategy(update_every=20) for _ in range(3))
    for index in range(45):
        if index == saved_after:
            second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
        for masking in (whole, first if index < saved_after else second):
            masking.observe(predictions(0, step_at(index)))
            masking.step_end(step_at(index))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


def test_metrics_are_the_accuracy_of_the_step_and_the_spread_of_ordinary_weights() -> None:
    masking = strategy(update_every=1)
    assert float(masking.metrics()["weight_spread"]) == pytest.approx(0, abs=1e-12)
    seen = predictions(0, step_at(0))
    masking.observe(seen)
    masking.step_end(step_at(0))
    logged = {name: float(value) for name, value in masking.metrics().items()}
    ordinary = weight_of(masking)[SPECIAL:]
    assert logged == pytest.approx(
        {"accuracy": float(seen.correct_N.float().mean()), "weight_spread": ordinary.std() / ordinary.mean()}
    )


def test_the_batch_is_not_modified() -> None:
    batch = rows_of([[1, 20, 21, 3]])
    before = batch.map(torch.clone)
    strategy().corrupt(batch, torch.tensor([False]), noise_at(0.5, 1), step_at(0))
    assert torch.equal(batch.ids_BT, before.ids_BT)
    assert torch.equal(batch.maskable_BT, before.maskable_BT)
