"""The operations of `attention.py`, one by one: gradients, dropout, buckets, the two implementations of attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import VOCAB, disturbed_model, packed, small_config
from support.oracle import bucket
from torch import Tensor

from ltg_mdlm.model.attention import (
    Geometry,
    attend,
    attend_by_library,
    batch_geometry,
    bucket_sums,
    distance_buckets,
    dropout,
    gated_norm,
    keep_mask,
    weighted_sum,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def geometry_of(length: int, document_BT: Tensor | None = None, causal_B: Tensor | None = None) -> Geometry:
    """A geometry in float64, with 15 buckets for up to 128 positions."""
    return batch_geometry(length, 128, 8, document_BT, causal_B, None, like=torch.empty(0).double())


def attention_inputs(length: int) -> tuple[Geometry, list[Tensor]]:
    """A geometry of two documents and padding, one row causal; query, key, value and the position tables."""
    torch.manual_seed(length)
    document_BT = torch.stack([packed(2, length - 2), packed(length - 1, pad=1)])
    geometry = geometry_of(length, document_BT, torch.tensor([True, False]))
    rows = [torch.randn(2, 3, length, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    tables = [torch.randn(3, 15, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return geometry, [*rows, *tables]


def with_fixed_seed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same dropout in every call, so that finite differences exist."""

    def seeded(*arguments: Tensor) -> Tensor:
        torch.manual_seed(3)
        return function(*arguments)

    return seeded


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_gradients_of_attention_are_those_of_finite_differences(rate):
    geometry, operands = attention_inputs(5)
    assert torch.autograd.gradcheck(
        with_fixed_seed(partial(attend, geometry=geometry, scale=0.4, dropout_rate=rate)), operands, fast_mode=True
    )


def test_gradients_of_dropout_gated_norm_and_weighted_sum_are_those_of_finite_differences():
    x, gate = (torch.randn(3, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(with_fixed_seed(partial(dropout, rate=0.4, training=True)), [x])
    for approximate in ("none", "tanh"):
        assert torch.autograd.gradcheck(partial(gated_norm, eps=1e-5, approximate=approximate), [x, gate])
    weight_K = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda weight_K, *terms: weighted_sum(weight_K, list(terms)), [weight_K, x, gate])


@pytest.mark.parametrize("length", [3, 70])
def test_attention_on_cpus_equals_attention_by_the_library_kernel(length):
    """Accelerators run the second one."""
    geometry, operands = attention_inputs(length)
    ours = attend(*operands, geometry, 0.4, 0.0)
    library = attend_by_library(*operands, geometry, 0.4, 0.0)
    torch.testing.assert_close(ours, library)
    direction = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, operands, direction), torch.autograd.grad(library, operands, direction)
    )


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_bucket_sums_are_sums_over_the_columns_of_each_bucket_for_any_block_size(length, block, seed):
    torch.manual_seed(seed)
    geometry = geometry_of(length)
    x = torch.randn(2, 1, length, length, dtype=torch.float64)
    expected = torch.zeros(2, 1, length, 15, dtype=torch.float64)
    expected.scatter_add_(-1, geometry.bucket_XX.expand(x.shape), x)
    torch.testing.assert_close(bucket_sums(x, geometry.one_hot_UR, block), expected)


def test_buckets_equal_the_formula_and_never_leave_the_table():
    for max_positions in (2, 16, 17, 18, 33, 128, 192, 512, 600, 768):
        for buckets in (4, 16, 32, 48):
            expected = [bucket(distance, max_positions, buckets) for distance in range(max_positions)]
            assert list(distance_buckets(max_positions, buckets)) == expected
            assert max(expected) <= buckets - 1


def test_published_float32_buckets_leave_the_table_where_ours_do_not():
    """The published ceiling in float32 puts the largest distance one bucket too high."""
    distance = torch.tensor(599.0)
    published = torch.ceil(torch.log(distance / 24) / math.log(599 / 24) * 23) + 24
    assert published == 48
    assert distance_buckets(600, 48)[599] == 47


@pytest.mark.parametrize("rate", [0.1, 0.5, 1e-4])
def test_masks_keep_the_stated_share_in_each_16_bit_part_of_a_random_word(rate):
    torch.manual_seed(0)
    keep, scale = keep_mask(torch.empty(2**20), rate)
    assert set(keep.unique().tolist()) == {0, 1}
    assert 1 / scale == pytest.approx(1 - rate, abs=2**-17)
    probability = 1 / scale
    tolerance = 5 * math.sqrt(probability * (1 - probability) / (len(keep) / 4))
    assert keep.view(-1, 4).double().mean(0).tolist() == pytest.approx([probability] * 4, abs=tolerance)


def test_kept_elements_are_independent_of_their_neighbours():
    torch.manual_seed(0)
    keep, _ = keep_mask(torch.empty(2**20), 0.3)
    centred = keep.double() - keep.double().mean()
    for lag in (1, 2, 3, 4, 8, 624, 1248):  # within a word, between words, at the length of the generator's state
        correlation = (centred[lag:] * centred[:-lag]).mean() / centred.square().mean()
        assert abs(correlation) < 5 / math.sqrt(len(keep))


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_zeroes_or_scales_in_every_shape_and_dtype(shape, dtype):
    dropped = dropout(torch.ones(shape, dtype=dtype), 0.25, training=True)
    assert dropped.dtype == dtype
    assert all(value == 0 or value == pytest.approx(4 / 3, rel=2**-8) for value in dropped.flatten().tolist())


def test_dropout_is_a_function_of_the_seed_and_off_in_evaluation():
    x = torch.randn(50)
    torch.manual_seed(7)
    first, second = dropout(x, 0.5, True), dropout(x, 0.5, True)
    torch.manual_seed(7)
    assert torch.equal(dropout(x, 0.5, True), first)
    assert not torch.equal(first, second)
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x


def test_dropout_of_probabilities_leaves_the_mean_context_unchanged():
    geometry, operands = attention_inputs(6)
    exact = attend(*operands, geometry, 0.4, 0.0)
    torch.manual_seed(0)
    draws = torch.stack([attend(*operands, geometry, 0.4, 0.3) for _ in range(2000)]).detach()
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / math.sqrt(len(draws)) + 1e-9)
    assert error.max() < 5


def test_every_dropout_of_the_model_is_on_in_training_and_off_in_evaluation():
    """Tested with one of the two rates at a time."""
    ids_BT = torch.randint(VOCAB, (2, 8))
    for rates in ({"hidden_dropout_prob": 0.2}, {"attention_probs_dropout_prob": 0.2}):
        model = disturbed_model(small_config(cond_dim=None, **rates))
        assert not torch.equal(model(ids_BT), model(ids_BT))
        model.eval()
        assert torch.equal(model(ids_BT), model(ids_BT))


def test_bfloat16_gradients_of_attention_stay_close_to_float64():
    geometry, operands = attention_inputs(70)
    rounded = [x.detach().bfloat16().requires_grad_() for x in operands]
    mask = geometry.mask_B1XX
    assert mask is not None
    coarse = Geometry(geometry.bucket_XX, geometry.one_hot_UR.bfloat16(), mask.bfloat16())
    exact_operands = [x.detach().double().requires_grad_() for x in rounded]
    direction = torch.randn(2, 3, 70, 4)
    exact = torch.autograd.grad(attend(*exact_operands, geometry, 0.4, 0.0), exact_operands, direction.double())
    ours = torch.autograd.grad(attend(*rounded, coarse, 0.4, 0.0), rounded, direction.bfloat16())
    for gradient, expected in zip(ours, exact, strict=True):
        assert (gradient - expected).norm() < 0.03 * expected.norm()


def test_gated_norm_is_the_layer_norm_of_the_gated_input():
    x, gate = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    expected = F.layer_norm(x * 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))), (6,))
    torch.testing.assert_close(gated_norm(x, gate, 1e-5), expected)
