"""Chunked losses compared with the computation on all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ltg_mdlm.model import cross_entropy
from ltg_mdlm.model.cross_entropy import chunked_loss, matrix_product, weighted_cross_entropy

VOCAB, WIDTH = 13, 6


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def inputs(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features, weight, bias (all of which require gradients), labels, nll weights, z weights."""
    torch.manual_seed(count)
    shapes = [(count, WIDTH), (VOCAB, WIDTH), (VOCAB,)]
    leaves = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    weights = torch.rand(2, count, dtype=dtype)
    return (*leaves, torch.randint(VOCAB, (count,)), *weights)


def plain(
    features: Tensor, weight: Tensor, bias: Tensor, label: Tensor, nll_weight: Tensor, z_weight: Tensor
) -> Tensor:
    logits = F.linear(features, weight, bias)
    nll = F.cross_entropy(logits, label, reduction="none")
    return (nll_weight * nll + z_weight * logits.logsumexp(-1) ** 2).sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(1, 50))
def test_loss_and_gradients_equal_the_plain_computation_for_any_chunk(count, chunk):
    arguments = inputs(count)
    leaves = arguments[:3]
    ours = weighted_cross_entropy(*arguments, chunk=chunk)
    torch.testing.assert_close(ours.loss, plain(*arguments), rtol=1e-10, atol=1e-10)
    ours_by, plain_by = (torch.autograd.grad(3 * loss, leaves) for loss in (ours.loss, plain(*arguments)))
    torch.testing.assert_close(ours_by, plain_by, rtol=1e-9, atol=1e-10)


def test_values_per_position_equal_the_plain_computation_and_have_no_gradient():
    features, weight, bias, label, nll_weight, z_weight = inputs(29)
    logits = F.linear(features, weight, bias)
    ours = weighted_cross_entropy(features, weight, bias, label, nll_weight, z_weight, chunk=10)
    torch.testing.assert_close(ours.nll_N, F.cross_entropy(logits, label, reduction="none").detach())
    torch.testing.assert_close(ours.log_normalizer_N, logits.logsumexp(-1).detach())
    assert torch.equal(ours.correct_N, logits.argmax(-1) == label)
    assert not any(x.requires_grad for x in ours[1:])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 16))
def test_further_rows_of_the_features_change_no_number_and_have_no_gradient(count, further, chunk):
    arguments = inputs(count)
    features, *others = arguments
    padded = torch.cat([features.detach(), torch.randn(further, WIDTH, dtype=torch.float64)]).requires_grad_()
    ours = weighted_cross_entropy(padded, *others, chunk=chunk)
    without = weighted_cross_entropy(*arguments, chunk=chunk)
    torch.testing.assert_close(ours, without)
    leaves = others[:2]
    ours_by, by = torch.autograd.grad(ours.loss, (padded, *leaves)), torch.autograd.grad(without.loss, arguments[:3])
    torch.testing.assert_close((ours_by[0][:count], *ours_by[1:]), by)
    assert not ours_by[0][count:].any()


def test_without_z_weight_there_is_no_z_loss():
    *arguments, z_weight = inputs(5)
    ours = weighted_cross_entropy(*arguments)
    torch.testing.assert_close(ours.loss, plain(*arguments, torch.zeros_like(z_weight)))


def test_no_supervised_position_gives_zero_loss_and_zero_gradients_of_every_shape():
    arguments = inputs(0)
    gradients = torch.autograd.grad(weighted_cross_entropy(*arguments).loss, arguments[:3])
    assert [g.shape for g in gradients] == [(0, WIDTH), (VOCAB, WIDTH), (VOCAB,)]
    assert all(g.abs().sum() == 0 for g in gradients)


def test_gradients_propagate_through_the_features():
    features, *rest = inputs(8)
    root = features.detach().clone().requires_grad_()
    weighted_cross_entropy(root.tanh(), *rest).loss.backward()
    expected = torch.autograd.grad(plain(root.tanh(), *rest), root)[0]
    torch.testing.assert_close(root.grad, expected)


def test_with_gradients_disabled_the_loss_is_equal_and_has_no_graph():
    arguments = inputs(12)
    with torch.no_grad():
        quiet = weighted_cross_entropy(*arguments, chunk=5)
    assert not quiet.loss.requires_grad
    torch.testing.assert_close(quiet.loss, weighted_cross_entropy(*arguments).loss.detach())


def test_equal_logits_count_as_correct_for_one_label_only():
    """A model with constant logits must not count as correct everywhere."""
    features, weight, bias, *_ = (torch.zeros_like(x) for x in inputs(VOCAB))
    ours = weighted_cross_entropy(features, weight, bias, torch.arange(VOCAB), torch.ones(VOCAB))
    assert ours.correct_N.sum() == 1


def test_bfloat16_products_are_followed_by_float32_softmax():
    """The error is that of rounding the logits, not that of a softmax in bfloat16."""
    arguments = inputs(300, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = weighted_cross_entropy(*arguments, chunk=128)
    rounded = [x.detach().to(torch.bfloat16) for x in arguments[:2]]
    logits = (rounded[0] @ rounded[1].T).float() + arguments[2].detach()
    assert ours.nll_N.dtype == torch.float32
    torch.testing.assert_close(ours.nll_N, F.cross_entropy(logits, arguments[3], reduction="none"))
    gradients = torch.autograd.grad(ours.loss, arguments[:3])
    exact = torch.autograd.grad(plain(*arguments), arguments[:3])
    assert all((g - e).norm() < 0.02 * e.norm() for g, e in zip(gradients, exact, strict=True))
    assert [g.dtype for g in gradients] == [torch.float32] * 3


def test_the_graph_keeps_nothing_of_the_size_of_the_logits():
    *arguments, _ = inputs(40)
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        weighted_cross_entropy(*arguments, chunk=7).loss.backward()
    assert max(sizes) == 40 * WIDTH < 40 * VOCAB


def test_extreme_logits_stay_finite():
    features, weight, bias, label, nll_weight, z_weight = inputs(4, torch.float32)
    ours = weighted_cross_entropy(features * 1e4, weight, bias, label, nll_weight, z_weight)
    assert ours.loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(ours.loss, [features, weight, bias]))


def two_terms(label: Tensor, seen: list[Tensor]):
    """Cross-entropy of the even and of the odd positions; keeps the detached nll."""

    def loss_terms(logits: Tensor, part: slice) -> Tensor:
        nll = F.cross_entropy(logits, label[part], reduction="none")
        seen.append(nll.detach())
        odd = torch.arange(len(label))[part] % 2
        return torch.stack([(nll * (1 - odd)).sum(), (nll * odd).sum()])

    return loss_terms


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 30), st.integers(1, 40))
def test_terms_of_chunks_add_up_and_so_do_their_gradients(count, chunk):
    features, weight, bias, label, *_ = inputs(count)
    coefficient = torch.tensor([0.25, 3.0], dtype=torch.float64)
    seen: list[Tensor] = []
    ours = chunked_loss(features, weight, bias, two_terms(label, seen), coefficient, chunk)
    whole = two_terms(label, [])(F.linear(features, weight, bias), slice(None))
    torch.testing.assert_close(ours.terms_K, whole.detach())
    torch.testing.assert_close(ours.loss, (coefficient * whole).sum())
    assert sum(map(len, seen)) == count
    leaves = (features, weight, bias)
    ours_by, plain_by = (torch.autograd.grad(loss, leaves) for loss in (ours.loss, (coefficient * whole).sum()))
    torch.testing.assert_close(ours_by, plain_by, rtol=1e-9, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 16))
def test_loss_terms_never_see_further_rows_of_the_features(count, further, chunk):
    features, weight, bias, label, *_ = inputs(count)
    padded = torch.cat([features.detach(), torch.randn(further, WIDTH, dtype=torch.float64)]).requires_grad_()
    coefficient = torch.tensor([0.25, 3.0], dtype=torch.float64)
    seen: list[Tensor] = []
    ours = chunked_loss(padded, weight, bias, two_terms(label, seen), coefficient, chunk, positions=count)
    without = chunked_loss(features, weight, bias, two_terms(label, []), coefficient, chunk)
    torch.testing.assert_close(ours, without)
    assert sum(map(len, seen)) == count
    grad_padded, *grads = torch.autograd.grad(ours.loss, (padded, weight, bias))
    torch.testing.assert_close(
        (grad_padded[:count], *grads), torch.autograd.grad(without.loss, (features, weight, bias))
    )
    assert not grad_padded[count:].any()


@pytest.mark.skipif(not hasattr(torch.ops.aten.mm, "dtype"), reason="torch before 2.8 has no such product")
def test_on_a_gpu_products_of_bfloat16_for_the_gradient_of_the_weight_stay_in_float32():
    """On fake tensors, which have the device of a GPU and no values."""
    names = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    for device, dtype in (("cuda", torch.bfloat16), ("cuda", torch.float32), ("cpu", torch.bfloat16)):
        with FakeTensorMode(), Names():
            left, right = torch.empty(4, 3, device=device, dtype=dtype), torch.empty(3, 5, device=device, dtype=dtype)
            matrix_product(left, right, torch.float32)
    assert [name for name in names if ".mm" in name] == ["aten.mm.dtype", "aten.mm.default", "aten.mm.default"]


@pytest.mark.parametrize(("rows", "chunk", "starts"), [(9, 4, [0, 4, 8]), (8, None, [0, 3, 6]), (0, None, [])])
def test_every_row_is_in_one_chunk_whose_default_size_depends_on_the_device(monkeypatch, rows, chunk, starts):
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", 3)
    parts = []
    features, weight, bias, *_ = inputs(rows)
    chunked_loss(features, weight, bias, lambda logits, part: parts.append(part) or logits.sum(0)[:1], bias[:1], chunk)
    assert [part.start for part in parts] == starts
    assert [place for part in parts for place in range(part.start, part.stop)] == list(range(rows))


def test_terms_with_gradients_disabled_build_no_graph():
    features, weight, bias, label, *_ = inputs(9)
    with torch.no_grad():
        ours = chunked_loss(features, weight, bias, two_terms(label, []), torch.ones(2, dtype=torch.float64), 4)
    assert not ours.loss.requires_grad
    assert ours.terms_K.sum() == pytest.approx(ours.loss.item())


def test_losses_read_no_value_on_the_host():
    """Fake tensors hold no values: reading one (item, nonzero, a boolean index) raises."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        features, weight, bias, label, nll_weight, z_weight = inputs(9)
        weighted_cross_entropy(features, weight, bias, label, nll_weight, z_weight, chunk=4).loss.backward()
        chunked_loss(features, weight, bias, lambda logits, _: logits.sum(0)[:2], nll_weight[:2]).loss.backward()
    assert all(leaf.grad is not None for leaf in (features, weight, bias))
