"""Visibility and copies: the patterns of the documentation, the oracle with them, and blocks that are run alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import VOCAB, disturbed_model, packed, packed_rows, small_config
from support.oracle import Oracle
from torch import Tensor

from ltg_mdlm.model import attention as attention_module
from ltg_mdlm.model.attention import attend, attend_by_library
from ltg_mdlm.model.visibility import LAST, Visibility, block_of, block_visibility

SIZES = {"cond_dim": None, "max_position_embeddings": 32, "position_bucket_size": 8}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def literal_blocks(document_T: list[int], block_length: int) -> list[int]:
    """The block of every token, counted one token after the other."""
    blocks, inside = [], 0
    for column, document in enumerate(document_T):
        opens = column == 0 or document_T[column - 1] != document or inside == block_length
        inside = 1 if opens else inside + 1
        blocks.append((blocks[-1] if blocks else -1) + opens)
    return blocks


@given(packed_rows(), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_blocks_start_anew_with_each_document(rows, block_length):
    document_BT, _ = rows
    expected = [literal_blocks(document_T, block_length) for document_T in document_BT.tolist()]
    found_BT = block_of(document_BT, block_length)
    assert found_BT.tolist() == expected
    assert found_BT.dtype == torch.int32


def stacked(*columns: Tensor) -> Visibility:
    """A visibility of one row from group, order and limit of each part of its columns."""
    group_X, order_X, limit_X = (torch.cat(columns[start::3]).int() for start in range(3))
    return Visibility(group_BX=group_X[None], order_BX=order_X[None], limit_BX=limit_X[None])


T = 12
COLUMN = torch.arange(T)
PREFIX = 5
RANK = torch.tensor([3, 8, 0, 11, 5, 1, 9, 2, 10, 4, 7, 6])
BLOCK = COLUMN // 3
NEVER = torch.full((T,), LAST)
ANY = 7 * COLUMN

PATTERNS: dict[str, tuple[Visibility, Callable[[int, int], bool]]] = {
    "bidirectional": (stacked(0 * COLUMN, ANY, 0 * COLUMN), lambda q, k: True),
    "causal": (stacked(COLUMN, COLUMN, COLUMN), lambda q, k: k <= q),
    "prefix": (
        stacked(COLUMN.where(COLUMN >= PREFIX, 0), COLUMN, COLUMN.where(COLUMN >= PREFIX, 0)),
        lambda q, k: k < PREFIX or k <= q,
    ),
    "blocks": (stacked(BLOCK, BLOCK, BLOCK), lambda q, k: k // 3 <= q // 3),
    # the corrupted row in the columns 0 .. T - 1, its clean copy in the columns T .. 2T - 1
    "block diffusion": (
        stacked(4 + BLOCK, NEVER, BLOCK, BLOCK, BLOCK, BLOCK),
        lambda q, k: (
            (k < T and k // 3 == q // 3) or (k >= T and (k - T) // 3 < q // 3)
            if q < T
            else k >= T and (k - T) // 3 <= (q - T) // 3
        ),
    ),
    "any order": (
        stacked(T + COLUMN, NEVER, RANK, COLUMN, RANK, RANK),
        lambda q, k: (
            k == q or (k >= T and bool(RANK[k - T] < RANK[q])) if q < T else k >= T and bool(RANK[k - T] <= RANK[q - T])
        ),
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_the_documented_integers_are_the_patterns_they_are_named_after(name):
    visibility, sees = PATTERNS[name]
    columns = visibility.group_BX.shape[1]
    expected = [[sees(q, k) for k in range(columns)] for q in range(columns)]
    assert visibility.matrix()[0].tolist() == expected
    assert all(expected[q][q] for q in range(columns)), "a query without itself"


def test_a_clean_copy_makes_the_documented_patterns_with_two_copies():
    for clean, both in (("blocks", "block diffusion"), (None, "any order")):
        visibility = PATTERNS[clean][0] if clean else stacked(COLUMN, RANK, RANK)
        assert torch.equal(visibility.with_clean_copy().matrix(), PATTERNS[both][0].matrix())


def test_the_default_of_rows_is_bidirectional_or_causal_by_row():
    causal_B = torch.tensor([False, True])
    bidirectional, causal = Visibility.of_rows(causal_B, T).matrix()
    assert bool(bidirectional.all())
    assert torch.equal(causal, torch.ones(T, T).tril().bool())


def test_causal_rows_see_no_copy():
    documents_BT = torch.zeros(2, T)
    causal_B = torch.tensor([True, False])
    visibility = block_visibility(documents_BT, 3).with_clean_copy()
    matrix_BXX = visibility.with_causal_rows(causal_B).matrix()
    assert torch.equal(matrix_BXX[0, :T, :T], torch.ones(T, T).tril().bool())
    assert not matrix_BXX[0, :T, T:].any()
    assert torch.equal(matrix_BXX[1], visibility.matrix()[1])


def with_documents(visibility: Visibility, document_BT: Tensor) -> Tensor:
    """bool[B, X, X] of the oracle: the columns of a document see each other as `visibility` says, one by one."""
    rows, columns = visibility.group_BX.shape
    group, order, limit = (getattr(visibility, f"{name}_BX").tolist() for name in ("group", "order", "limit"))
    document, length = document_BT.tolist(), document_BT.shape[1]
    return torch.tensor(
        [
            [
                [
                    document[b][q % length] == document[b][k % length]
                    and (group[b][q] == group[b][k] or order[b][k] < limit[b][q])
                    for k in range(columns)
                ]
                for q in range(columns)
            ]
            for b in range(rows)
        ]
    )


@pytest.mark.parametrize("attention", [attend, attend_by_library])
@pytest.mark.parametrize(("length", "copies"), [(7, 0), (7, 1), (7, 3), (70, 1)])
def test_outputs_and_all_gradients_with_copies_equal_the_oracle(attention, length, copies, monkeypatch):
    """Also those of the position tables, whose rows are summed over the copies; random integers as visibility."""
    monkeypatch.setattr(attention_module, "attend", attention)
    config = small_config(**SIZES | {"max_position_embeddings": max(32, length)})
    model = disturbed_model(config)
    torch.manual_seed(copies)
    document_BT = torch.stack([packed(length - 3, 3), packed(2, length - 4, pad=2)])
    columns = length * (1 + copies)
    group_BX, order_BX, limit_BX = torch.randint(0, 6, (3, 2, columns), dtype=torch.int32)
    visibility = Visibility(group_BX=group_BX, order_BX=order_BX, limit_BX=limit_BX)
    ids_BX = torch.randint(VOCAB, (2, columns))
    direction_BTD = torch.randn(2, length, config.hidden_size, dtype=torch.float64)

    context_BS = ids_BX[:, length:] if copies else None
    hidden_BTD = model(ids_BX[:, :length], document_BT, None, None, visibility, context_BS=context_BS)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad((hidden_BTD * direction_BTD).sum(), parameters, allow_unused=True)

    state = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    oracle = Oracle(config, state)
    oracle.position_indices_QK = oracle.position_indices_QK[:length, :length].repeat(1 + copies, 1 + copies)
    expected_BTD = oracle.hidden(ids_BX, with_documents(visibility, document_BT))[:, :length]
    theirs = torch.autograd.grad((expected_BTD * direction_BTD).sum(), list(state.values()), allow_unused=True)

    torch.testing.assert_close(hidden_BTD, expected_BTD, rtol=0, atol=1e-10)
    for name, found, expected in zip(names, ours, theirs, strict=True):
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=name)
    assert all(gradient is not None for name, gradient in zip(names, ours, strict=True) if "relative" in name)


@pytest.mark.parametrize("block_length", [1, 3, 4, 50])
def test_packed_block_diffusion_equals_a_separate_run_of_every_block(block_length):
    """The corrupted block after the clean blocks before it, alone in a row, without copies and other documents."""
    model = disturbed_model(small_config(**SIZES))
    documents = (9, 4, 8)
    document_BT = packed(*documents, pad=2)[None]
    torch.manual_seed(0)
    clean_BT, corrupted_BT = torch.randint(5, VOCAB, (2, 1, 23))
    visibility = block_visibility(document_BT, block_length).with_clean_copy()
    packed_BTD = model(corrupted_BT, document_BT, None, None, visibility, context_BS=clean_BT)
    start = 0
    for size in documents:
        for first in range(0, size, block_length):
            stop = min(first + block_length, size)
            row = torch.cat([clean_BT[0, start : start + first], corrupted_BT[0, start + first : start + stop]])
            block = torch.arange(stop) // block_length
            earlier_1TT = (block[None, :] <= block[:, None])[None]
            alone_TD = model(row[None], visibility=earlier_1TT)[0]
            difference = packed_BTD[0, start + first : start + stop] - alone_TD[first:stop]
            assert difference.abs().max() < 1e-10, (start, first)
        start += size


def test_any_order_autoregression_equals_one_forward_pass_per_token():
    """Token i, masked, given the clean tokens of lower rank; each of them sees those of lower rank and itself."""
    model = disturbed_model(small_config(**SIZES))
    torch.manual_seed(0)
    ids_T, mask = torch.randint(5, VOCAB, (T,)), 4
    visibility = stacked(COLUMN, RANK, RANK).with_clean_copy()
    both_TD = model(torch.full((1, T), mask), torch.zeros(1, T), None, None, visibility, context_BS=ids_T[None])[0]
    for column in range(T):
        row = ids_T.clone()
        row[column] = mask
        sees_TT = RANK[None, :] <= RANK[:, None]
        alone_TD = model(row[None], visibility=sees_TT[None])[0]
        torch.testing.assert_close(both_TD[column], alone_TD[column], rtol=0, atol=1e-10)


@pytest.mark.parametrize("copies", [0, 1])
def test_the_default_visibility_and_the_explicit_one_are_bit_identical(copies):
    model = disturbed_model(small_config(**SIZES), dtype=torch.float32)
    document_BT, causal_B = torch.stack([packed(7, 5), packed(12)]), torch.tensor([True, False])
    ids_BT = torch.randint(VOCAB, (2, 12))
    explicit = Visibility.of_rows(causal_B, 12 * (1 + copies))
    if copies:  # the copies see only themselves, and nobody sees them
        own_BS = 100 + torch.arange(12, dtype=torch.int32).expand(2, -1)
        parts = [getattr(explicit, f.name)[:, :12] for f in explicit.__dataclass_fields__.values()]
        group_BX, order_BX, limit_BX = (
            torch.cat([part, own], dim=1)
            for part, own in zip(parts, (own_BS, torch.full_like(own_BS, LAST), 0 * own_BS), strict=True)
        )
        explicit = Visibility(group_BX=group_BX, order_BX=order_BX, limit_BX=limit_BX)
        found = model(ids_BT, document_BT, None, None, explicit, context_BS=ids_BT.flip(1))
        torch.testing.assert_close(found, model(ids_BT, document_BT, causal_B))
    else:
        assert torch.equal(model(ids_BT, document_BT, None, None, explicit), model(ids_BT, document_BT, causal_B))


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
def test_layers_with_copies_are_whole_graphs_for_the_compiler(monkeypatch):
    monkeypatch.setattr(attention_module, "attend", attend_by_library)
    model = disturbed_model(small_config(**SIZES))
    document_BT = torch.stack([packed(5, 4)])
    visibility = block_visibility(document_BT, 3).with_clean_copy()
    ids_BT = torch.randint(VOCAB, (1, 9))

    def gradients() -> tuple[Tensor, ...]:
        hidden_BTD = model(ids_BT, document_BT, None, None, visibility, context_BS=ids_BT)
        return torch.autograd.grad(hidden_BTD.square().sum(), list(model.transformer.parameters()))

    plain = gradients()
    compiled = torch.compile(model.transformer.residual, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(model.transformer, "residual", compiled)
    torch.testing.assert_close(gradients(), plain, rtol=1e-9, atol=1e-12)
