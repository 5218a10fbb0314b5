"""The Monte Carlo bound agrees with exhaustive enumeration over masks."""

import itertools
import math

import pytest
import torch

from ltg_mdlm.api import Batch, Step
from ltg_mdlm.inference.likelihood import block_sums, complementary_masks, estimate_bound
from ltg_mdlm.model.visibility import block_of


def make_batch(lengths: list[int], width: int) -> Batch:
    column = torch.arange(width)
    maskable_BT = (column >= 1) & (column <= torch.tensor(lengths).unsqueeze(1))
    return Batch(
        ids_BT=torch.where(maskable_BT, 16 + column, 3),
        document_BT=torch.where(column <= torch.tensor(lengths).unsqueeze(1), 0, -1).int(),
        position_BT=torch.full((len(lengths), width), -1),
        maskable_BT=maskable_BT,
        row_B=torch.arange(len(lengths)),
    )


def table_nll(batch: Batch, masked_BT: torch.Tensor, rate_B: torch.Tensor) -> torch.Tensor:
    """An artificial denoiser: the cost of a token grows with the number of masked tokens to its left."""
    cost_BT = 1 + torch.arange(masked_BT.shape[1]) * 0.3 + masked_BT.cumsum(1) * 0.7
    return (cost_BT * masked_BT).sum(1).double()


def exact_bound(length: int) -> float:
    """The NELBO in its any-order form: sum over k of 1/k times the mean summed cost over all masks of k tokens."""
    batch, total = make_batch([length], length + 1), 0.0
    for k in range(1, length + 1):
        masks = list(itertools.combinations(range(1, length + 1), k))
        for chosen in masks:
            masked_BT = torch.zeros(1, length + 1, dtype=torch.bool)
            masked_BT[0, list(chosen)] = True
            total += float(table_nll(batch, masked_BT, torch.ones(1))) / k / len(masks)
    return total


def test_estimate_agrees_with_enumeration_within_its_standard_error():
    rows, length = 4096, 5
    batch = make_batch([length] * rows, length + 2)
    bound = estimate_bound([batch], table_nll, rows=rows, draws=2, seed=1)
    exact = exact_bound(length) / length
    assert bound.standard_error < 0.01
    assert abs(bound.nats_per_token - exact) < 4 * bound.standard_error


def block_table_nll(batch: Batch, masked_BT: torch.Tensor, rate_B: torch.Tensor) -> torch.Tensor:
    """The artificial denoiser for blocks of 3 columns, whose costs depend on the masks of the same block only."""
    per_block_BCT = torch.nn.functional.pad(masked_BT, (0, -masked_BT.shape[1] % 3)).view(len(masked_BT), -1, 3)
    order_BCT = per_block_BCT.cumsum(2) * torch.tensor([1, 4, 2])
    cost_BCT = 1 + torch.arange(per_block_BCT.shape[1])[:, None] * 0.9 + order_BCT.square() * 0.7
    return (cost_BCT * per_block_BCT).sum(2).double()


def exact_block_bound(length: int) -> float:
    """Sum over blocks of 3 columns (the first has `<s>` and 2 tokens) of the any-order form of each block's NELBO."""
    batch, total = make_batch([length], length + 1), 0.0
    for block in range(length // 3 + 1):
        columns = [column for column in range(max(3 * block, 1), 3 * block + 3) if column <= length]
        for k in range(1, len(columns) + 1):
            masks = list(itertools.combinations(columns, k))
            for chosen in masks:
                masked_BT = torch.zeros(1, length + 1, dtype=torch.bool)
                masked_BT[0, list(chosen)] = True
                total += float(block_table_nll(batch, masked_BT, torch.ones(1)).sum()) / k / len(masks)
    return total


@pytest.mark.parametrize("baseline_V", [None, torch.arange(32) * 0.7 - 12], ids=["plain", "baseline"])
def test_the_bound_of_blocks_agrees_with_enumeration_within_its_standard_error(baseline_V):
    rows, length = 4096, 6
    batch = make_batch([length] * rows, length + 1)
    bound = estimate_bound([batch], block_table_nll, rows=rows, draws=2, seed=1, baseline_V=baseline_V, block_length=3)
    assert bound.tokens == rows * length
    assert abs(bound.nats_per_token - exact_block_bound(length) / length) < 4 * bound.standard_error


def test_blocks_that_hold_whole_rows_give_the_bound_of_rows():
    batch = make_batch([3, 5, 2, 6], 8)

    def one_block(batch: Batch, masked_BT: torch.Tensor, rate_B: torch.Tensor) -> torch.Tensor:
        """The rows, then their padding, which is a block of its own without maskable tokens."""
        nll_B = table_nll(batch, masked_BT, rate_B)
        return torch.stack([nll_B, torch.zeros_like(nll_B)], dim=1)

    whole = estimate_bound([batch], table_nll, rows=4, draws=4, seed=0)
    assert estimate_bound([batch], one_block, rows=4, draws=4, seed=0, block_length=8) == whole


@pytest.mark.parametrize("block_length", [1, 2, 3, 5])
def test_masks_of_a_pair_cover_the_maskable_tokens_of_every_block(block_length):
    batch = make_batch([1, 4, 7, 0], 9)
    step = Step(seed=3, step=0, progress=0.0, epoch=0.0, rows=4)
    block_BT = block_of(batch.document_BT, block_length)
    first, second = complementary_masks(batch, step, "x", block_BT)
    assert torch.equal(first | second, batch.maskable_BT)
    size_BC, one_BC, other_BC = (block_sums(mask, block_BT) for mask in (batch.maskable_BT, first, second))
    assert torch.equal(one_BC + other_BC, torch.where(size_BC > 0, size_BC + 1, 0))


def test_no_baseline_however_wrong_moves_the_estimate():
    rows, length = 4096, 5
    batch = make_batch([length] * rows, length + 2)
    baseline_V = torch.arange(32) * 0.7 - 12
    bound = estimate_bound([batch], table_nll, rows=rows, draws=2, seed=1, baseline_V=baseline_V)
    assert abs(bound.nats_per_token - exact_bound(length) / length) < 4 * bound.standard_error


def test_the_estimate_is_exact_for_a_model_that_equals_the_baseline():
    batch = make_batch([1, 4, 7, 0], 9)
    cost_V = torch.linspace(0.5, 9, 32, dtype=torch.float64)

    def unigram_nll(batch: Batch, masked_BT: torch.Tensor, rate_B: torch.Tensor) -> torch.Tensor:
        return (cost_V[batch.ids_BT] * masked_BT).sum(1)

    exact = float((cost_V[batch.ids_BT] * batch.maskable_BT).sum()) / 12
    for seed in range(5):
        with_baseline = estimate_bound([batch], unigram_nll, rows=4, draws=2, seed=seed, baseline_V=cost_V)
        without = estimate_bound([batch], unigram_nll, rows=4, draws=2, seed=seed)
        assert with_baseline.nats_per_token == pytest.approx(exact, abs=1e-12)
        assert without.nats_per_token != pytest.approx(exact, abs=1e-3)


TYPE_COST_V = torch.tensor([0.0] * 16 + [0.5, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0, 12.0], dtype=torch.float64)
CROWDING = 0.2
SHORTEST, LONGEST = 4, 20


def random_text(rows: int, seed: int) -> Batch:
    """Rows of 4 to 20 tokens of eight types, all equally likely."""
    generator = torch.Generator().manual_seed(seed)
    length_B = torch.randint(SHORTEST, LONGEST + 1, (rows,), generator=generator)
    maskable_BT = torch.arange(LONGEST) < length_B.unsqueeze(1)
    ids_BT = torch.randint(16, 24, maskable_BT.shape, generator=generator)
    return Batch(
        ids_BT=torch.where(maskable_BT, ids_BT, 3),
        document_BT=torch.where(maskable_BT, 0, -1).int(),
        position_BT=torch.full(maskable_BT.shape, -1),
        maskable_BT=maskable_BT,
        row_B=torch.arange(rows),
    )


def crowded_nll(batch: Batch, masked_BT: torch.Tensor, rate_B: torch.Tensor) -> torch.Tensor:
    """The cost of a token is that of its type plus a term that grows with the number of masked tokens."""
    count_B = masked_BT.sum(1).double()
    return (TYPE_COST_V[batch.ids_BT] * masked_BT).sum(1) + CROWDING * count_B.square()


def crowded_bound() -> float:
    """Exact nats per token: averaging L/k * (k * mean cost + c k^2) over k gives L * mean cost + c L (L + 1) / 2."""
    lengths = torch.arange(SHORTEST, LONGEST + 1).double()
    row_costs = lengths * TYPE_COST_V[16:].mean() + CROWDING * lengths * (lengths + 1) / 2
    return float(row_costs.sum() / lengths.sum())


@pytest.mark.parametrize("baseline_V", [None, TYPE_COST_V + 1], ids=["plain", "baseline"])
@pytest.mark.parametrize("draws", [2, 4])
def test_nominal_95_percent_intervals_over_texts_and_masks_cover_the_truth(baseline_V, draws):
    texts, truth, hits = 300, crowded_bound(), 0
    for seed in range(texts):
        bound = estimate_bound(
            [random_text(120, seed)], crowded_nll, rows=120, draws=draws, seed=seed, baseline_V=baseline_V
        )
        hits += abs(bound.nats_per_token - truth) < 1.96 * bound.standard_error
    assert abs(hits / texts - 0.95) < 3 * math.sqrt(0.95 * 0.05 / texts)


def test_masks_alone_move_the_estimate_less_than_the_stated_error():
    batch = random_text(120, seed=0)
    bounds = [estimate_bound([batch], crowded_nll, rows=120, draws=2, seed=seed) for seed in range(40)]
    deviation = torch.tensor([bound.nats_per_token for bound in bounds]).std()
    assert deviation < min(bound.standard_error for bound in bounds)


def test_masks_of_a_pair_cover_every_maskable_token_and_nothing_else():
    batch = make_batch([1, 4, 7, 0], 9)
    step = Step(seed=3, step=0, progress=0.0, epoch=0.0, rows=4)
    first, second = complementary_masks(batch, step, "x")
    assert torch.equal(first | second, batch.maskable_BT)
    assert torch.equal(
        first.sum(1) + second.sum(1), torch.where(batch.maskable_BT.any(1), batch.maskable_BT.sum(1) + 1, 0)
    )


def test_number_of_masked_tokens_is_uniform_over_the_rows():
    rows, length = 6000, 6
    step = Step(seed=0, step=0, progress=0.0, epoch=0.0, rows=rows)
    first, _ = complementary_masks(make_batch([length] * rows, length + 1), step, "x")
    assert first.sum(1).bincount(minlength=7).tolist() == [0, *[rows // length] * length]


def test_splitting_the_rows_into_batches_changes_nothing():
    batch = make_batch([3, 5, 2, 6], 8)
    halves = [
        Batch(**{n: getattr(batch, n)[part] for n in ("ids_BT", "document_BT", "position_BT", "maskable_BT", "row_B")})
        for part in (slice(0, 1), slice(1, 4))
    ]
    whole = estimate_bound([batch], table_nll, rows=4, draws=4, seed=0)
    split = estimate_bound(halves, table_nll, rows=4, draws=4, seed=0)
    assert whole.nats_per_token == pytest.approx(split.nats_per_token, abs=1e-12)
    assert whole.standard_error == pytest.approx(split.standard_error, abs=1e-9)


def test_bits_per_byte_counts_bytes_not_tokens():
    bound = estimate_bound([make_batch([4] * 8, 5)], table_nll, rows=8, draws=2, seed=0)
    assert bound.bits_per_byte(0.25) == pytest.approx(bound.nats_per_token / 4 / math.log(2))
