"""Which attention kernel a run takes: the fused one only if it is right and faster, else that of the library."""

from __future__ import annotations

import math

import pytest
import torch
from support.models import disturbed_model, small_config
from support.triton_interpreter import require_triton
from torch._dynamo.testing import CompileCounterWithBackend

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.model.visibility import block_visibility
from ltg_mdlm.training import attention_choice
from ltg_mdlm.training.attention_choice import choose_attention, largest_excess, use_fused_attention

CPU = torch.device("cpu")
SIZES = {"cond_dim": None, "max_position_embeddings": 32, "position_bucket_size": 8}


def test_a_cpu_takes_the_library_and_refuses_what_it_cannot_do(monkeypatch):
    chosen = choose_attention("auto", small_config(**SIZES), CPU, torch.float32, rows=2, length=16)
    assert (chosen.kernel, chosen.milliseconds) == ("library", {})
    monkeypatch.setattr(attention_choice, "largest_excess", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"training.attention=fused does not work on cpu: ZeroDivisionError"):
        choose_attention("fused", small_config(**SIZES), CPU, torch.float32, rows=2, length=16)


@pytest.mark.parametrize(
    ("excess", "times", "kernel", "reason"),
    [
        (0.5, {"fused_geometry": 1.0, "batch_geometry": 3.0}, "fused", "fused 1.00 ms, library 3.00 ms"),
        (0.5, {"fused_geometry": 4.0, "batch_geometry": 3.0}, "library", "fused 4.00 ms, library 3.00 ms"),
        (1.5, {}, "library", "failed: RuntimeError: its error is 1.5 times the allowed one"),
        (None, {}, "library", "failed: ValueError: no compiler"),
    ],
    ids=["faster", "slower", "wrong", "broken"],
)
def test_auto_takes_the_fused_kernel_only_if_it_is_right_and_faster(monkeypatch, excess, times, kernel, reason):
    def compared(*_):
        if excess is None:
            raise ValueError("no compiler")
        return excess

    monkeypatch.setattr(attention_choice, "largest_excess", compared)
    monkeypatch.setattr(attention_choice, "measured", lambda make, *_, **__: times[make.__name__])
    chosen = choose_attention("auto", small_config(**SIZES), torch.device("cuda"), torch.bfloat16, rows=2, length=16)
    assert chosen.kernel == kernel
    assert reason in chosen.reason


def fused_model():
    require_triton()
    config = small_config(**SIZES, hidden_size=32, num_attention_heads=2)
    return [disturbed_model(config, dtype=torch.float32) for _ in range(2)]


def test_a_model_with_the_fused_kernel_computes_the_same(monkeypatch):
    """Hidden states and gradients, under the interpreter: documents, padding, causal rows, and blocks with a copy."""
    plain, fused = fused_model()
    use_fused_attention(fused)
    ids_BT = torch.randint(16, 40, (3, 20), generator=torch.Generator().manual_seed(0))
    document_BT = torch.zeros(3, 20, dtype=torch.int32)
    document_BT[0, 9:] = 1
    document_BT[1, 15:] = -1
    blocks = block_visibility(document_BT, 4).with_clean_copy()
    for kwargs in ({"causal_B": torch.tensor([False, True, False])}, {"context_BS": ids_BT, "visibility": blocks}):
        for model in (plain, fused):
            model.zero_grad()
            hidden_BTD = model(ids_BT, document_BT, **kwargs)
            hidden_BTD.square().sum().backward()
            model.seen = hidden_BTD.detach()
        torch.testing.assert_close(fused.seen, plain.seen, rtol=1e-4, atol=1e-5)
        for (name, a), b in zip(fused.named_parameters(), plain.parameters(), strict=True):
            if a.grad is not None:
                assert float((a.grad - b.grad).norm()) < 1e-4 * (float(b.grad.norm()) + 1e-3), name


def test_the_comparison_finds_the_kernel_right_and_a_wrong_one_wrong(monkeypatch):
    require_triton()
    sizes = small_config(**SIZES, hidden_size=32, num_attention_heads=2)
    assert largest_excess(sizes, CPU, torch.float32) < 1
    right = attention_choice.FusedGeometry.attend
    monkeypatch.setattr(attention_choice.FusedGeometry, "attend", lambda self, *args: 1.01 * right(self, *args))
    assert largest_excess(sizes, CPU, torch.float32) > 10
    monkeypatch.setattr(attention_choice.FusedGeometry, "attend", lambda self, *args: math.nan * right(self, *args))
    assert math.isnan(largest_excess(sizes, CPU, torch.float32))


def test_a_kernel_that_gives_nan_is_not_taken(monkeypatch):
    monkeypatch.setattr(attention_choice, "largest_excess", lambda *_: math.nan)
    choice = choose_attention("auto", small_config(**SIZES), torch.device("cuda"), torch.float32, rows=1, length=8)
    assert (choice.kernel, choice.failed) == ("library", True)


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
def test_compiled_layers_contain_the_fused_kernel_as_a_whole(monkeypatch):
    """Two graphs for all layers, without a break, and the numbers of the model that is not compiled."""
    fused, _ = fused_model()
    use_fused_attention(fused)
    ids_BT = torch.randint(16, 40, (2, 8), generator=torch.Generator().manual_seed(0))
    document_BT = torch.zeros(2, 8, dtype=torch.int32)

    def results() -> tuple[torch.Tensor, ...]:
        hidden_BTD = fused(ids_BT, document_BT)
        return hidden_BTD, *torch.autograd.grad(hidden_BTD.square().sum(), list(fused.transformer.parameters()))

    plain, counted = results(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused.transformer.residual, backend=counted, dynamic=False, fullgraph=True)
    monkeypatch.setattr(fused.transformer, "residual", compiled)
    torch.testing.assert_close(results(), plain)
    assert counted.frame_count == 2
