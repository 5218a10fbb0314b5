"""The Triton kernels against the written-out formula in float64, on a GPU or else under Triton's interpreter."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from support.oracle import bucket
from support.triton_interpreter import DEVICE, multiply_bfloat16
from torch import Tensor

from ltg_mdlm.model.attention import batch_geometry
from ltg_mdlm.testing.host_reads import cuda_waits_are_errors

kernels = pytest.importorskip(
    "ltg_mdlm.model.fused_attention", reason="triton is not installed, or too old", exc_type=ImportError
)
AttentionRules, attention_rules = kernels.AttentionRules, kernels.attention_rules
causal_visibility, fused_attend = kernels.causal_visibility, kernels.fused_attend
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
MAX_POSITIONS, BUCKET_SIZE, SCALE = 1024, 8, 0.1
NUM_BUCKETS = 2 * BUCKET_SIZE - 1


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        multiply_bfloat16(monkeypatch)


class Case(NamedTuple):
    """Rows and their visibility, each [B, X]; group, order and limit can be None."""

    length: int
    document_BX: Tensor
    visibility: tuple[Tensor, Tensor, Tensor] | None = None

    def rules(self, width: int = 16, dtype: torch.dtype = torch.float32) -> AttentionRules:
        visibility = self.visibility or (None, None, None)
        return attention_rules(
            self.length, MAX_POSITIONS, BUCKET_SIZE, self.document_BX, *visibility, width=width, dtype=dtype
        )

    def visible(self) -> Tensor:
        """bool[B, X, X]: the rule, written out."""
        visible = self.document_BX[:, :, None] == self.document_BX[:, None, :]
        if self.visibility is not None:
            group, order, limit = self.visibility
            visible &= (group[:, :, None] == group[:, None, :]) | (order[:, None, :] < limit[:, :, None])
        return visible


def documents(length: int, *ends: int, pad: int = 0) -> Tensor:
    """[T]: documents that end before the given places and at the end of the row, and padding."""
    document_T = torch.zeros(length, dtype=torch.int32, device=DEVICE)
    for end in ends:
        document_T[end:] += 1
    document_T[length - pad :] = -1
    return document_T


def two_documents_and_padding(length: int) -> Tensor:
    return torch.stack(
        [documents(length, length // 3), documents(length, length // 2, length // 2 + 1, pad=length // 4)]
    )


def bidirectional(length: int) -> Case:
    return Case(length, two_documents_and_padding(length))


def causal(length: int) -> Case:
    """The first row is causal, the second is not."""
    causal_B = torch.tensor([True, False], device=DEVICE)
    return Case(length, two_documents_and_padding(length), causal_visibility(causal_B, length))


def prefix(length: int) -> Case:
    """The first third of the row sees itself, what follows is causal."""
    column = torch.arange(length, device=DEVICE).expand(2, -1)
    inside = column < length // 3
    group = torch.where(inside, 0, column)
    return Case(length, two_documents_and_padding(length), (group, column, group))


def blocks(length: int) -> Case:
    """Block diffusion: noisy blocks, then a clean copy; blocks start anew with each document."""
    document_BT = two_documents_and_padding(length)
    column = torch.arange(length, device=DEVICE)
    starts = torch.ones_like(document_BT, dtype=torch.bool)
    starts[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    place = column - torch.where(starts, column, 0).cummax(1).values
    block = (starts | (place % 5 == 0)).cumsum(1) - 1
    count = int(block.max()) + 1
    group = torch.cat([count + block, block], 1)
    order = torch.cat([torch.full_like(block, 10**6), block], 1)
    return Case(length, document_BT.repeat(1, 2), (group, order, torch.cat([block, block], 1)))


def any_order(length: int) -> Case:
    """Any-order autoregression: masked copy, then clean copy."""
    torch.manual_seed(length)
    column = torch.arange(length, device=DEVICE).expand(2, -1)
    rank = torch.stack([torch.randperm(length) for _ in range(2)]).to(DEVICE)
    group = torch.cat([length + column, column], 1)
    order = torch.cat([torch.full_like(rank, 10**6), rank], 1)
    return Case(length, two_documents_and_padding(length).repeat(1, 2), (group, order, torch.cat([rank, rank], 1)))


needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
PATTERNS = [bidirectional, causal, prefix, blocks, any_order]


def operands(case: Case, width: int = 16, heads: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """query, key, value [B, H, X, E], views of one tensor as in the model; query_pos and key_pos [H, R, E]."""
    torch.manual_seed(0)
    rows, columns = case.document_BX.shape
    query, key, value = torch.randn(rows, columns, 3, heads, width).movedim((2, 3), (0, 2)).to(DEVICE, dtype).unbind()
    tables = torch.randn(2, heads, NUM_BUCKETS, width).to(DEVICE, dtype).unbind()
    return [x.requires_grad_() for x in (query, key, value, *tables)]


def fused(inputs: list[Tensor], case: Case, rate: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """The context by the kernels."""
    return fused_attend(*inputs, case.rules(inputs[0].shape[-1], inputs[0].dtype), SCALE, rate, seed)


def formula(inputs: list[Tensor], case: Case, kept: Tensor | None = None) -> Tensor:
    """The context in float64, with dropout's factors [B, H, X, X] if given."""
    query, key, value, query_pos, key_pos = (x.double() for x in inputs)
    columns = query.shape[2]
    bucket_XX = torch.tensor(
        [
            [bucket(q % case.length - k % case.length, MAX_POSITIONS, BUCKET_SIZE) for k in range(columns)]
            for q in range(columns)
        ],
        device=DEVICE,
    )
    bucket_XX += BUCKET_SIZE - 1
    score = SCALE * torch.einsum("bhqe,bhke->bhqk", query, key)
    score = score + torch.einsum("bhqe,hqke->bhqk", query, key_pos[:, bucket_XX])
    score = score + torch.einsum("bhke,hqke->bhqk", key, query_pos[:, bucket_XX])
    probability = score.masked_fill(~case.visible()[:, None], -math.inf).softmax(-1)
    return (probability if kept is None else probability * kept) @ value


def errors(outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    """Largest difference of each tensor, relative to its largest value; some gradients for a single key are zero."""
    return [
        float((x.double() - y).abs().max() / y.abs().max().clamp(min=0.1))
        for x, y in zip(outputs, expected, strict=True)
    ]


def with_gradients(context: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The context and the gradients of the inputs for a fixed direction."""
    direction = torch.sin(torch.arange(context.numel(), device=DEVICE)).view_as(context).to(context.dtype)
    return context.detach(), *torch.autograd.grad(context, inputs, direction)


def dropout_factors(case: Case, heads: int, rate: float, seed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The dropout mask, [B, H, X, X], read from the kernel by values that are rows of an identity matrix."""
    rows, columns = case.document_BX.shape
    zero = torch.zeros(rows, heads, columns, 64, device=DEVICE, dtype=dtype)
    table = torch.zeros(heads, NUM_BUCKETS, 64, device=DEVICE, dtype=dtype)
    everything = Case(case.length, torch.zeros_like(case.document_BX))
    identity = torch.eye(columns, columns + 63, device=DEVICE, dtype=dtype).expand(rows, heads, -1, -1)
    parts = [
        fused([zero, zero, identity[..., start : start + 64], table, table], everything, rate, seed)
        for start in range(0, columns, 64)
    ]
    return (torch.cat(parts, -1)[..., :columns] * columns).double()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_outputs_and_gradients_are_those_of_the_formula_for_every_visibility(pattern):
    case = pattern(37)
    inputs = operands(case)
    context = fused(inputs, case)
    expected = with_gradients(formula(inputs, case), inputs)
    assert max(errors(with_gradients(context, inputs), expected)) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127])
def test_rows_of_any_length_work(length):
    case = causal(length)
    inputs = operands(case)
    context = fused(inputs, case)
    expected = with_gradients(formula(inputs, case), inputs)
    assert max(errors(with_gradients(context, inputs), expected)) < 1e-5


@pytest.mark.parametrize("width", [32, 64, 128])
def test_heads_of_every_width_work(width):
    case = bidirectional(20)
    inputs = operands(case, width)
    context = fused(inputs, case)
    expected = with_gradients(formula(inputs, case), inputs)
    assert max(errors(with_gradients(context, inputs), expected)) < 1e-5


@pytest.mark.parametrize("pattern", [causal, blocks])
def test_the_backward_pass_drops_the_same_probabilities_as_the_forward_pass(pattern):
    case, seed = pattern(35), torch.tensor([2**40 + 5], device=DEVICE)
    inputs = operands(case)
    context = fused(inputs, case, 0.3, seed)
    kept = dropout_factors(case, 1, 0.3, seed)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    expected = with_gradients(formula(inputs, case, kept), inputs)
    assert max(errors(with_gradients(context, inputs), expected)) < 1e-5


def test_dropout_keeps_the_stated_share_without_dependence_between_elements():
    case = Case(128, documents(128)[None].repeat(2, 1))
    masks = [dropout_factors(case, 2, 0.25, torch.tensor([seed], device=DEVICE), torch.bfloat16) > 0 for seed in (3, 4)]
    unit, other_seed = ((kept.double() - 0.75) / math.sqrt(0.75 * 0.25) for kept in masks)
    partners = [unit.roll(1, dim) for dim in range(2)] + [unit.roll(n, dim) for n in (1, 2, 8) for dim in (2, 3)]
    # In a weak hash of row and column, three corners of a rectangle determine the fourth.
    rectangles = [unit * unit.roll(n, 2) * unit.roll(n, 3) * unit.roll((n, n), (2, 3)) for n in (1, 8)]
    for mean in (unit, unit * other_seed, *(unit * partner for partner in partners), *rectangles):
        assert abs(float(mean.mean())) < 5 / math.sqrt(unit.numel())


def test_dropout_follows_the_default_generator():
    case = bidirectional(9)
    inputs = operands(case)
    torch.manual_seed(5)
    first = fused(inputs, case, 0.5)
    second = fused(inputs, case, 0.5)
    torch.manual_seed(5)
    assert torch.equal(first, fused(inputs, case, 0.5))
    assert not torch.equal(first, second)


def library(inputs: list[Tensor], case: Case) -> Tensor:
    """The context by the library kernel, with relative scores and visibility as its bias."""
    copies = case.document_BX.shape[1] // case.length
    geometry = batch_geometry(case.length, MAX_POSITIONS, BUCKET_SIZE, None, None, None, like=inputs[0])
    mask = torch.zeros(case.visible().shape, device=DEVICE).masked_fill(~case.visible(), -math.inf)[:, None]
    one_hot_XX = (geometry.bucket_XX.repeat(copies, copies)[..., None] == torch.arange(NUM_BUCKETS, device=DEVICE)).to(
        inputs[0].dtype
    )
    query, key, value, query_pos, key_pos = inputs
    bias = torch.einsum("bhqr,qkr->bhqk", query @ key_pos.mT, one_hot_XX)
    bias = bias + torch.einsum("bhkr,qkr->bhqk", key @ query_pos.mT, one_hot_XX) + mask.to(bias.dtype)
    return F.scaled_dot_product_attention(query, key, value, bias, scale=SCALE)


@pytest.mark.parametrize("pattern", [bidirectional, blocks])
def test_bfloat16_is_as_exact_as_the_library_kernel(pattern):
    case = pattern(45)
    inputs = operands(case, 32, dtype=torch.bfloat16)
    expected = with_gradients(formula(inputs, case), inputs)
    ours = errors(with_gradients(fused(inputs, case), inputs), expected)
    theirs = errors(with_gradients(library(inputs, case), inputs), expected)
    assert all(x < 1.5 * y for x, y in zip(ours, theirs, strict=True)), (ours, theirs)


def test_rows_do_not_depend_on_other_rows_and_documents_not_on_their_neighbours():
    """Documents of their own row and offset give the same context: packing, skipped tiles and padding are exact."""
    length = 100
    case = Case(length, torch.stack([documents(length, 30, 31, 90), documents(length, pad=length)]))
    inputs = [x.detach() for x in operands(case)]
    packed = fused(inputs, case)
    for start, end in ((0, 30), (30, 31), (31, 90), (90, 100)):
        alone = Case(end - start, documents(end - start)[None])
        part = [x[:1, :, start:end] for x in inputs[:3]]
        context = fused([*part, *inputs[3:]], alone)
        torch.testing.assert_close(packed[:1, :, start:end], context, rtol=1e-5, atol=1e-6)


def test_tiles_whose_documents_or_blocks_cannot_meet_are_not_listed(monkeypatch):
    monkeypatch.setattr(kernels, "_capability", lambda device: (9, 0))  # which decides the size of tiles
    length = 256
    case = Case(length, documents(length, 64, 200)[None])
    rules = case.rules(64, torch.bfloat16)
    assert rules.key_tiles_BN.tolist() == [[1, 3, 3, 3]]
    assert rules.key_tiles_BNN[0, 0, :1].tolist() == [0]
    assert rules.key_tiles_BNN[0, 1, :3].tolist() == [1, 2, 3]
    causal_rules = Case(
        length, documents(length)[None], causal_visibility(torch.tensor([True], device=DEVICE), length)
    ).rules(64, torch.bfloat16)
    assert causal_rules.key_tiles_BN.tolist() == [[1, 2, 3, 4]]
    assert causal_rules.query_tiles_BN.tolist() == [[4, 3, 2, 1]]
    assert causal_rules.query_tiles_BNN[0, 2, :2].tolist() == [2, 3]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length", [64, 130, 300])
def test_every_tile_with_a_visible_pair_is_listed(pattern, length):
    case = pattern(length)
    rules = case.rules()
    tiles = rules.key_tiles_BN.shape[1]
    size = -(-length // rules.tile)
    column = torch.arange(case.document_BX.shape[1], device=DEVICE)
    tile_X = column // length * size + column % length // rules.tile
    b, q, k = case.visible().nonzero(as_tuple=True)
    needed = torch.zeros(len(case.document_BX), tiles, tiles, dtype=torch.bool, device=DEVICE)
    needed[b, tile_X[q], tile_X[k]] = True
    for lists, counts, wanted in (
        (rules.key_tiles_BNN, rules.key_tiles_BN, needed),
        (rules.query_tiles_BNN, rules.query_tiles_BN, needed.mT),
    ):
        listed = torch.zeros(*lists.shape[:2], tiles + 1, dtype=torch.bool, device=DEVICE)
        listed.scatter_(2, lists.long(), True)
        assert not (wanted & ~listed[..., :tiles]).any()
        assert torch.equal(listed[..., :tiles].sum(-1), counts)


def test_compiled_graphs_contain_the_operation_as_a_whole():
    case, seed = causal(10), torch.tensor([3], device=DEVICE)
    inputs, rules = operands(case), case.rules()
    eager = with_gradients(2 * fused_attend(*inputs, rules, SCALE, 0.1, seed), inputs)
    compiled = torch.compile(
        lambda *inputs: 2 * fused_attend(*inputs, rules, SCALE, 0.1, seed), fullgraph=True, backend="aot_eager"
    )
    assert all(torch.equal(x, y) for x, y in zip(with_gradients(compiled(*inputs), inputs), eager, strict=True))


def test_wrong_operands_are_errors_that_name_what_is_wrong():
    case = bidirectional(8)
    inputs = [x.detach() for x in operands(case)]
    with pytest.raises(ValueError, match="heads of width 16, 32, 64 or 128, not 12"):
        fused([x[..., :12] for x in inputs], case)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        fused([x.double() for x in inputs], case)
    with pytest.raises(ValueError, match="made for another width or dtype"):
        fused_attend(*inputs, case.rules(16, torch.bfloat16), SCALE, 0.0)
    with pytest.raises(ValueError, match=r"rules of \[2, 8\]"):
        fused([x[:1] for x in inputs[:3]] + inputs[3:], case)
    with pytest.raises(ValueError, match="position tables must be"):
        fused([*inputs[:4], inputs[4][:, 1:]], case)
    with pytest.raises(ValueError, match="whole copies of 5 places"):
        case._replace(length=5).rules()
    with pytest.raises(ValueError, match="all be None or all have the shape"):
        attention_rules(
            8, MAX_POSITIONS, BUCKET_SIZE, case.document_BX, case.document_BX, width=16, dtype=torch.float32
        )


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_long_rows_agree_with_the_library_on_a_gpu(width, dtype):
    case = blocks(1000)
    inputs = operands(case, width, heads=3, dtype=dtype)
    expected = with_gradients(library([x.double() for x in inputs], case), inputs)
    ours = errors(with_gradients(fused(inputs, case), inputs), expected)
    theirs = errors(with_gradients(library(inputs, case), inputs), expected)
    assert all(x < max(1.5 * y, 1e-5) for x, y in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.gpu
@needs_gpu
def test_runs_are_equal_bit_for_bit_on_a_gpu():
    case, seed = any_order(500), torch.tensor([1], device=DEVICE)
    inputs = operands(case, 64, heads=8, dtype=torch.bfloat16)
    runs = [with_gradients(fused(inputs, case, 0.1, seed), inputs) for _ in range(3)]
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
def test_forward_and_backward_passes_do_not_wait_for_the_gpu_and_compile_to_one_graph():
    case = causal(200)
    inputs = operands(case, 64, dtype=torch.bfloat16)
    rules = case.rules(64, torch.bfloat16)
    compiled = torch.compile(lambda *inputs: fused_attend(*inputs, rules, SCALE, 0.1), fullgraph=True)
    for attend in (lambda *inputs: fused_attend(*inputs, rules, SCALE, 0.1), compiled):
        with_gradients(attend(*inputs), inputs)  # compiles the kernels
        with cuda_waits_are_errors():
            torch.autograd.grad(attend(*inputs).sum(), inputs)
