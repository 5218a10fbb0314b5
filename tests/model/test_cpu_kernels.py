"""The compiled operations against those of torch: values, gradients, dropout masks and memory.

`test_attention.py` and `test_transformer.py` compare the operations of torch with the oracle.  Without a C++ compiler
and ninja, these tests are skipped.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import VOCAB, disturbed_model, packed_rows, small_config
from torch import Tensor
from torch.utils.cpp_extension import is_ninja_available

from ltg_mdlm.model import attention as attention_module
from ltg_mdlm.model import cpu_kernels
from ltg_mdlm.model.attention import Operations
from ltg_mdlm.model.cpu_kernels import CompiledOperations, keep_mask, use_compiled_operations
from ltg_mdlm.model.transformer import Transformer
from ltg_mdlm.model.visibility import block_visibility

pytestmark = pytest.mark.skipif(
    not (shutil.which("c++") and is_ninja_available()), reason="needs a C++ compiler and ninja"
)
SIZES = {"max_position_embeddings": 40, "position_bucket_size": 8, "hidden_dropout_prob": 0.1}
DROPOUT = {"attention_probs_dropout_prob": 0.2}


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


def test_a_process_that_was_killed_while_it_compiled_does_not_block_later_ones(tmp_path):
    """torch leaves a file named lock behind, for whose end it waits without a limit."""
    cpu_kernels.library()
    copied = shutil.copytree(cpu_kernels.build_folder(), tmp_path / cpu_kernels.build_folder().name)
    (copied / "lock").touch()
    code = "from ltg_mdlm.model.cpu_kernels import library; library()"
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}, check=True, timeout=300
    )


def models(**sizes) -> list[Transformer]:
    """Two equal models in float32, the second with the compiled operations."""
    made = [disturbed_model(small_config(**SIZES | sizes), dtype=torch.float32) for _ in range(2)]
    use_compiled_operations(made[1])
    return made


def results(model: Transformer, *arguments, bf16: bool = False, **keywords) -> dict[str, Tensor]:
    """Hidden states, and the gradients of a random weighted sum of them, by name; the same dropout in every call."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        hidden = model(*arguments, **keywords)
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    (hidden * weight).sum().backward()
    return {"hidden": hidden.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a tensor."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - x).norm() / x.norm().clamp(min=1e-3)) for name, x in expected.items())


@given(packed_rows(max_length=40), st.booleans(), st.sampled_from([None, 3]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_hidden_states_and_gradients_are_those_of_torchs_operations(rows, dropout, block, conditioned):
    """With the same dropout masks; for documents, padding, causal rows, blocks with a copy of the row, odd lengths."""
    document_BT, causal_B = rows
    plain, compiled = models(cond_dim=16 if conditioned else None, **(DROPOUT if dropout else {}))
    ids_BT = torch.randint(VOCAB, document_BT.shape, generator=torch.Generator().manual_seed(0))
    keywords = {"causal_B": causal_B}
    if block is not None:
        keywords = {"context_BS": ids_BT, "visibility": block_visibility(document_BT, block).with_clean_copy()}
    if conditioned:
        keywords["conditioning_B"] = torch.linspace(0.1, 0.9, len(document_BT))
    expected, found = (results(model, ids_BT, document_BT, **keywords) for model in (plain, compiled))
    assert error(found, expected) < 1e-4


@pytest.mark.parametrize("length", [7, 40])
def test_bfloat16_is_as_close_to_float32_as_with_torchs_operations(length):
    plain, compiled = models(**DROPOUT)
    ids_BT = torch.randint(VOCAB, (3, length))
    conditioning_B = torch.tensor([0.1, 0.5, 0.9])
    exact = results(plain, ids_BT, conditioning_B=conditioning_B)
    errors = [
        error(results(model, ids_BT, conditioning_B=conditioning_B, bf16=True), exact) for model in (plain, compiled)
    ]
    assert errors[1] < 1.5 * errors[0]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=4), st.floats(0.001, 0.99), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_dropout_masks_and_the_state_of_the_generator_are_torchs(counts, rate, seed):
    masks, states = [], []
    for function in (lambda count: attention_module.keep_mask(torch.empty(count), rate), lambda n: keep_mask(n, rate)):
        torch.manual_seed(seed)
        made = [function(count) for count in counts]
        masks.append([(mask.bool().tolist(), scale) for mask, scale in made])
        states.append(torch.get_rng_state())
    assert masks[0] == masks[1]
    assert torch.equal(*states)


@pytest.mark.parametrize("tanh", [False, True])
def test_gelu_and_its_slope_are_exact_to_float32_from_large_to_small_numbers(tanh):
    """Through the norm of one long row, whose scale is that of its largest values; against float64."""
    gate = torch.linspace(-9, 9, 4001)
    x = torch.ones_like(gate)
    double = gate.double().requires_grad_()
    activated = torch.nn.functional.gelu(double, approximate="tanh" if tanh else "none")
    expected = torch.nn.functional.layer_norm(activated, activated.shape)
    weight = torch.cos(torch.arange(len(gate)).double())
    (slope,) = torch.autograd.grad((expected * weight).sum(), double)
    out, grad_x, grad_gate = (torch.empty_like(gate)[None, None] for _ in range(3))
    four = [t[None, None, None] for t in (x, gate)]
    cpu_kernels.library().gated_norm(*four, 0.0, tanh, out)
    cpu_kernels.library().gated_norm_backward(
        weight.float()[None, None], *four, 0.0, tanh, grad_x[None], grad_gate[None]
    )
    torch.testing.assert_close(out[0, 0].double(), expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad_gate[0, 0].double(), slope, rtol=0, atol=2e-6)


def test_results_do_not_depend_on_the_number_of_threads():
    _, compiled = models(**DROPOUT)
    ids_BT = torch.randint(VOCAB, (3, 33))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        hidden = results(compiled, ids_BT, conditioning_B=torch.tensor([0.1, 0.5, 0.9]))["hidden"]
        found.append(hidden)
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_not_a_number_stays_not_a_number():
    """The trainer refuses updates whose loss is not finite, so it must see them."""
    operations = CompiledOperations()
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(1, 2, 32)
        x[0, 0, 5] = math.nan
        outs = [
            operations.modulated_norm(x, None, None, 1e-5, dtype),
            operations.gated_halves(x.to(dtype), 1e-5),
            operations.add_update(torch.zeros(1, 2, 32), x.to(dtype), None, 0.0),
        ]
        assert [bool(out[0, 0].isnan().any()) for out in outs] == [True] * 3
        assert not any(out[0, 1].isnan().any() for out in outs)


def test_tensors_that_the_compiled_functions_do_not_take_are_left_to_torch():
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    for name, arguments in {"gated_halves": (x, 1e-5), "modulated_norm": (x, None, None, 1e-5, x.dtype)}.items():
        assert torch.equal(getattr(CompiledOperations(), name)(*arguments), getattr(Operations(), name)(*arguments))
    update = CompiledOperations().add_update(x, x, None, 0.0)
    assert torch.equal(update, 2 * x)


def test_less_is_kept_for_the_backward_pass_than_by_torchs_operations():
    kept = []
    for model in models(**DROPOUT):
        sizes: dict[int, int] = {}

        def keep(x: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model(torch.randint(VOCAB, (4, 40)), conditioning_B=torch.rand(4))
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0]
