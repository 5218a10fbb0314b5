"""LAMB and AdamW against literal formulas, bit-exact refusal and resume, and the published learning-rate curve."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ltg_mdlm.core.config import BUILT_IN_OPTIMIZERS, OptimizerConfig
from ltg_mdlm.core.errors import ResultError, UserError
from ltg_mdlm.core.optimizer import Optimizer
from ltg_mdlm.model.transformer import ModelConfig, TimeEmbedding, Transformer
from ltg_mdlm.storage.named_tensors import copy_named
from ltg_mdlm.testing.host_reads import NoHostReads
from ltg_mdlm.training.optimizers import AdamW, Lamb, Muon, build_optimizer, learning_rate_factor, orthogonalised
from ltg_mdlm.training.parameter_groups import parameter_groups

BETAS, EPS, DECAY = (0.9, 0.98), 1e-8, 0.1
LOOSE = 1e9
"""A clipping threshold that no gradient norm reaches."""


def small_model(seed=0, dtype=torch.float64):
    """Weights, biases, a layer norm, and a weight that starts at zero, as the time conditioning's projections do."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 4), nn.Linear(4, 3, bias=False)).to(dtype)
    nn.init.zeros_(model[2].weight)
    return model


def optimizer_for(model, name="lamb", max_norm=LOOSE, **settings):
    settings = OptimizerConfig(name=name, betas=BETAS, eps=EPS, weight_decay=DECAY, clip=max_norm, **settings)
    return build_optimizer(parameter_groups(model, DECAY), settings)


def set_gradients(model, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (scale * noise).to(parameter.dtype)


def bits(tensors):
    """Bit patterns by name, so that -0.0 differs from 0.0 and NaN equals itself."""
    return {name: t.detach().contiguous().view(torch.uint8).clone() for name, t in tensors.items() if t.dim()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def literal_lamb(parameters, gradients, moments, step, lr, decays):
    """One step of LAMB as the paper writes it, in NumPy's float64, parameter by parameter."""
    for i, (p, g, (m, v), decay) in enumerate(zip(parameters, gradients, moments, decays, strict=True)):
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g * g
        moments[i] = (m, v)
        update = (m / (1 - BETAS[0] ** step)) / ((v / (1 - BETAS[1] ** step)) ** 0.5 + EPS) + decay * p
        p_norm, update_norm = math.sqrt((p * p).sum()), math.sqrt((update * update).sum())
        ratio = p_norm / update_norm if decay > 0 and p_norm > 0 and update_norm > 0 else 1.0
        parameters[i] = p - lr * ratio * update


@pytest.mark.parametrize("max_norm", [LOOSE, 0.7])
def test_lamb_follows_its_formula(max_norm):
    model = small_model()
    optimizer = optimizer_for(model, "lamb", max_norm)
    names = [name for name, _ in model.named_parameters()]
    decays = [0.0 if name.endswith("bias") or name.startswith("1.") else DECAY for name in names]
    parameters = [p.detach().clone().numpy() for p in model.parameters()]
    moments = [(0 * p, 0 * p) for p in parameters]
    for step in range(1, 31):
        lr = 0.01 * step
        set_gradients(model, step)
        gradients = [p.grad.clone().numpy() for p in model.parameters()]
        norm = math.sqrt(sum((g * g).sum() for g in gradients))
        literal_lamb(parameters, [g * min(1, max_norm / norm) for g in gradients], moments, step, lr, decays)
        assert float(optimizer.step(lr).grad_norm) == pytest.approx(norm, rel=1e-6)
    # The clipping coefficient is a float32, and its divisor has 1e-6 added as in torch.
    tolerance = 1e-12 if max_norm == LOOSE else 1e-5
    for name, expected, p in zip(names, parameters, model.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), torch.from_numpy(expected), rtol=tolerance, atol=tolerance, msg=name)


def test_adamw_equals_that_of_torch():
    model, reference = small_model(), small_model()
    optimizer = optimizer_for(model, "adamw", max_norm=0.7)
    groups = [
        {"params": list(g.parameters.values()), "weight_decay": g.weight_decay}
        for g in parameter_groups(reference, DECAY)
    ]
    torch_optimizer = torch.optim.AdamW(groups, lr=0.01, betas=BETAS, eps=EPS, foreach=False)
    for step in range(30):
        set_gradients(model, step)
        set_gradients(reference, step)
        nn.utils.clip_grad_norm_(reference.parameters(), 0.7)
        optimizer.step(0.01)
        torch_optimizer.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@given(st.floats(1e-4, 0.5), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_lamb_moves_a_decaying_weight_by_lr_times_its_norm(lr, scale, seed):
    """For any size of weights and gradients, which is the purpose of the trust ratio."""
    torch.manual_seed(seed)
    weight = nn.Linear(6, 5, bias=False).double()
    with torch.no_grad():
        weight.weight.mul_(scale)
    before = weight.weight.detach().clone()
    set_gradients(weight, seed, scale=1 / scale)
    optimizer_for(weight, "lamb").step(lr)
    moved = (weight.weight.detach() - before).norm()
    assert float(moved) == pytest.approx(lr * float(before.norm()), rel=1e-9)


def test_a_zero_weight_takes_adams_first_step():
    """The trust ratio is 1 while the weight is 0, and Adam's first step is the sign of the gradient."""
    model = small_model()
    set_gradients(model, 0)
    gradient = model[2].weight.grad.clone()
    optimizer_for(model, "lamb").step(0.01)
    torch.testing.assert_close(model[2].weight.detach(), -0.01 * gradient.sign(), rtol=1e-5, atol=0)


def tiny_transformer():
    config = ModelConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
        max_position_embeddings=16,
        position_bucket_size=4,
        cond_dim=8,
        depth_weighted_averaging=True,
    )
    return Transformer(config, TimeEmbedding(8))


def test_all_parameters_except_biases_and_layer_norms_decay():
    model = tiny_transformer()
    groups = parameter_groups(model, DECAY)
    decays = {name: group.weight_decay for group in groups for name in group.parameters}
    assert decays.keys() == {name for name, _ in model.named_parameters()}
    assert set(decays.values()) == {0, DECAY}
    # The published rule, which goes by names.
    constant = {name for name, decay in decays.items() if decay == 0}
    assert constant == {n for n, _ in model.named_parameters() if "bias" in n or "layer_norm" in n}
    # Gradient norms are sums in this order, which must not change.
    order = [name for name, _ in model.named_parameters()]
    assert list(decays) == sorted(decays, key=lambda name: (name in constant, order.index(name)))


def test_every_parameter_has_the_kind_and_the_parts_of_its_module():
    groups = parameter_groups(tiny_transformer(), DECAY)
    kinds = {name: group.kind for group in groups for name in group.parameters}
    assert {name for name, kind in kinds.items() if kind == "embedding"} == {
        "embedding.word_embedding.weight",
        "embedding.relative_embedding",
    }
    assert {name for name, kind in kinds.items() if kind == "head"} == {"classifier.nonlinearity.1.weight"}
    assert kinds["transformer.dwa_modules.alphas.0"] == kinds["classifier.nonlinearity.5.bias"] == "vector"
    assert {
        name.removeprefix("transformer.") for name, kind in kinds.items() if kind == "matrix" and "1" not in name
    } == {
        "attention_layers.0.in_proj_qk.weight",
        "attention_layers.0.in_proj_vg.weight",
        "attention_layers.0.out_proj.weight",
        "mlp_layers.0.mlp.4.weight",
        "adaLN_modulations.0.weight",
        "sigma_map.mlp.0.weight",
        "sigma_map.mlp.2.weight",
    }
    parts = {name: number for group in groups for name, number in group.parts.items()}
    assert {name.removeprefix("transformer."): number for name, number in parts.items() if ".0." in name} == {
        "attention_layers.0.in_proj_qk.weight": 2,
        "attention_layers.0.in_proj_vg.weight": 2,
        "mlp_layers.0.mlp.1.weight": 2,
        "adaLN_modulations.0.weight": 6,
    }


def test_frozen_parameters_are_not_optimised():
    model = small_model()
    model[0].weight.requires_grad_(False)
    assert not any("0.weight" in group.parameters for group in parameter_groups(model, DECAY))


def spoil_with_nan(model):
    model[0].weight.grad[1, 2] = math.nan


def spoil_with_infinity(model):
    model[1].bias.grad[0] = -math.inf


def spoil_with_overflow(model):
    """Every element is finite, but the square of the norm is not."""
    model[3].weight.grad[:] = 1e38


@pytest.mark.parametrize("name", BUILT_IN_OPTIMIZERS)
@pytest.mark.parametrize("spoil", [spoil_with_nan, spoil_with_infinity, spoil_with_overflow])
def test_a_non_finite_step_changes_no_bit(name, spoil):
    model = small_model(dtype=torch.float32)
    optimizer = optimizer_for(model, name, max_norm=1.0)
    set_gradients(model, 0)
    assert not optimizer.step(0.01).refused
    before = bits(model.state_dict()) | bits(optimizer.state_dict())
    count = optimizer.state_dict()["count"].clone()
    set_gradients(model, 1)
    spoil(model)
    result = optimizer.step(0.01)
    assert result.refused
    assert not result.grad_norm.isfinite()
    assert same_bits(before, bits(model.state_dict()) | bits(optimizer.state_dict()))
    assert optimizer.state_dict()["count"] == count


@pytest.mark.parametrize("name", BUILT_IN_OPTIMIZERS)
def test_a_refused_step_leaves_no_trace_in_later_steps(name):
    ends = []
    for bad_steps in ((), (0, 3, 4)):
        model = small_model(dtype=torch.float32)
        optimizer = optimizer_for(model, name, max_norm=1.0)
        for step in range(6):
            if step in bad_steps:
                set_gradients(model, 100 + step)
                optimizer.step(0.01, ok=torch.tensor(False))
            set_gradients(model, step)
            optimizer.step(0.01)
        ends.append(bits(model.state_dict()))
    assert same_bits(*ends)


def test_refusals_are_counted_in_total_and_in_a_row():
    model = small_model()
    optimizer = optimizer_for(model)
    seen = []
    for ok in (True, False, False, True, False):
        set_gradients(model, 0)
        optimizer.step(0.01, ok=torch.tensor(ok))
        seen.append((int(optimizer.refused_total), int(optimizer.refused_in_a_row)))
    assert seen == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1)]


@pytest.mark.parametrize("name", BUILT_IN_OPTIMIZERS)
def test_a_step_never_waits_for_the_device(name):
    model = small_model()
    optimizer = optimizer_for(model, name, max_norm=1.0)
    set_gradients(model, 0)
    with NoHostReads():
        optimizer.step(0.01, ok=torch.tensor(True))
    with pytest.raises(AssertionError, match="waits for the device"), NoHostReads():
        float(torch.ones(()))


@pytest.mark.parametrize("name", BUILT_IN_OPTIMIZERS)
def test_a_resumed_optimiser_continues_bit_exactly(name):
    model = small_model(dtype=torch.float32)
    optimizer = optimizer_for(model, name, max_norm=1.0)
    for step in range(8):
        if step == 4:
            other = copy.deepcopy(model)
            resumed = optimizer_for(other, name, max_norm=1.0)
            copy_named(resumed.state_dict(), {k: v.clone() for k, v in optimizer.state_dict().items()}, "the state")
        for m, o in [(model, optimizer)] + ([(other, resumed)] if step >= 4 else []):
            set_gradients(m, step)
            o.step(0.02 / (step + 1), ok=torch.tensor(step != 6))
    assert same_bits(bits(model.state_dict()), bits(other.state_dict()))
    assert same_bits(bits(optimizer.state_dict()), bits(resumed.state_dict()))
    assert resumed.refused_total == optimizer.refused_total == 1


def test_state_of_another_model_is_refused_with_the_names_that_differ():
    state = optimizer_for(nn.Linear(3, 2)).state_dict()
    with pytest.raises(UserError) as error:
        copy_named(optimizer_for(nn.Linear(4, 2)).state_dict(), state, "the state")
    assert "first_moment/weight [2, 3] instead of [2, 4]" in str(error.value)
    with pytest.raises(UserError) as error:
        copy_named(optimizer_for(nn.Sequential(nn.Linear(3, 2))).state_dict(), state, "the state")
    assert "missing (4): first_moment/0.bias, first_moment/0.weight" in str(error.value)
    assert "not expected (4): first_moment/bias" in str(error.value)


def test_parameters_without_a_gradient_stay_where_they_are():
    model = small_model()
    optimizer = optimizer_for(model)
    set_gradients(model, 0)
    model[0].weight.grad = None
    before = model[0].weight.detach().clone()
    optimizer.step(0.1)
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[3].weight, small_model()[3].weight)


def test_zero_grad_forgets_the_gradients():
    model = small_model()
    optimizer = optimizer_for(model)
    set_gradients(model, 0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 16),
        (7, 0.5),
        (15, 1.0),
        (16, 1.0),
        (508, 0.55),  # the middle of the cosine: (508 - 16) / (1000 - 16) = 1/2
        (262, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),  # a quarter
        (984, 0.1),
        (992, 0.05),
        (999, 0.1 / 16),
    ],
)
def test_the_learning_rate_follows_the_published_curve(step, expected):
    """1000 steps: 16 of warm-up, a cosine to 0.1, 16 of cool-down; the first step is not 0 as in the published code."""
    assert learning_rate_factor(step, 1000, warmup=0.016, cooldown=0.016, final=0.1) == pytest.approx(expected)


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_the_learning_rate_is_positive_and_never_above_the_peak(max_steps, warmup, cooldown, final):
    curve = [
        learning_rate_factor(s, max_steps, warmup=warmup, cooldown=cooldown, final=final)
        for s in {0, max_steps // 3, max_steps // 2, max_steps - 1}
    ]
    assert all(0 < factor <= 1 for factor in curve)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", BUILT_IN_OPTIMIZERS)
def test_cuda_takes_the_steps_of_the_cpu_and_refuses_bit_exactly(name):
    on_cpu, on_cuda = small_model(dtype=torch.float32), small_model(dtype=torch.float32).cuda()
    optimizers = [optimizer_for(m, name, max_norm=1.0) for m in (on_cpu, on_cuda)]
    for step in range(10):
        for model, optimizer in zip((on_cpu, on_cuda), optimizers, strict=True):
            set_gradients(on_cpu, step)
            for p, q in zip(model.parameters(), on_cpu.parameters(), strict=True):
                p.grad = q.grad.to(p.device)
            optimizer.step(0.01)
    for p, q in zip(on_cuda.parameters(), on_cpu.parameters(), strict=True):
        # The products of Newton-Schulz are rounded to bf16.
        torch.testing.assert_close(p.cpu(), q, rtol=1e-4, atol=2e-3 if name == "muon" else 1e-6)
    before = bits(on_cuda.state_dict()) | bits(optimizers[1].state_dict())
    on_cuda[0].weight.grad.fill_(math.nan)
    assert optimizers[1].step(0.01).refused
    assert same_bits(before, bits(on_cuda.state_dict()) | bits(optimizers[1].state_dict()))


def test_the_name_selects_the_algorithm():
    assert type(optimizer_for(small_model(), "lamb")) is Lamb
    assert type(optimizer_for(small_model(), "adamw")) is AdamW
    assert type(optimizer_for(small_model(), "muon")) is Muon


def with_polynomial_singular_values(matrix):
    """The literal Newton-Schulz result in float64: the polynomial, five times, of every singular value."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


@given(st.integers(1, 24), st.integers(1, 24), st.floats(1e-15, 1e15), st.integers(0, 99))
def test_newton_schulz_keeps_singular_vectors_and_maps_singular_values_by_its_polynomial(rows, columns, scale, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    (found,) = orthogonalised([matrix[None] * scale])
    expected = with_polynomial_singular_values(matrix)
    # bfloat16 has 8 significant bits, and rounds ten products.
    assert float((found[0].double() - expected).norm()) <= 0.06 * math.sqrt(min(rows, columns))


def test_singular_values_of_well_conditioned_matrices_end_near_one():
    values = torch.logspace(-2, 0, 500, dtype=torch.float64)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert 0.68 < float(values.min()) < float(values.max()) < 1.21


def test_matrices_of_several_sizes_are_orthogonalised_as_each_alone():
    generator = torch.Generator().manual_seed(0)
    stacks = [torch.randn(shape, generator=generator) for shape in ((2, 4, 6), (1, 6, 4), (3, 4, 6), (1, 4, 6))]
    for together, stack in zip(orthogonalised(stacks), stacks, strict=True):
        for one, matrix in zip(together, stack, strict=True):
            torch.testing.assert_close(one, orthogonalised([matrix[None]])[0][0], atol=0.02, rtol=0)


def test_a_zero_matrix_stays_zero():
    assert not orthogonalised([torch.zeros(2, 3, 5)])[0].any()


def test_muon_follows_its_formula():
    model = nn.Linear(6, 4, bias=False)
    optimizer = optimizer_for(model, "muon", muon_momentum=0.9)
    weight, average = model.weight.detach().double().clone(), torch.zeros(4, 6, dtype=torch.float64)
    for step in range(1, 5):
        set_gradients(model, step)
        gradient = model.weight.grad.double().clone()
        average = 0.9 * average + 0.1 * gradient
        direction = with_polynomial_singular_values(0.9 * average + 0.1 * gradient)
        weight = weight - 0.1 * (0.2 * math.sqrt(6) * direction + DECAY * weight)
        optimizer.step(0.1)
    torch.testing.assert_close(model.weight.detach().double(), weight, rtol=0, atol=0.01)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_muon_moves_a_matrix_of_any_size_by_a_fifth_of_the_learning_rate(rows, columns, seed):
    """Root mean square over the elements; singular values end between 0.68 and 1.21 unless they are tiny."""
    torch.manual_seed(seed)
    model = nn.Linear(columns, rows, bias=False)
    left, _, right = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    before = model.weight.detach().clone()
    model.weight.grad = left @ right
    build_optimizer(parameter_groups(model, 0.0), OptimizerConfig(name="muon")).step(0.1)
    moved = (model.weight.detach() - before).square().mean().sqrt()
    assert 0.66 * 0.02 < float(moved) < 1.25 * 0.02


def test_muon_updates_stacked_matrices_as_if_they_were_parameters_of_their_own():
    stacked = nn.Linear(5, 8, bias=False)
    first, second = (nn.Linear(5, 4, bias=False) for _ in range(2))
    with torch.no_grad():
        first.weight.copy_(stacked.weight[:4])
        second.weight.copy_(stacked.weight[4:])
    (group,) = parameter_groups(stacked, DECAY)
    settings = OptimizerConfig(name="muon", clip=math.inf)
    together = build_optimizer([dataclasses.replace(group, parts={"weight": 2})], settings)
    apart = [build_optimizer(parameter_groups(part, DECAY), settings) for part in (first, second)]
    for step in range(3):
        set_gradients(stacked, step)
        first.weight.grad, second.weight.grad = (part.clone() for part in stacked.weight.grad.chunk(2))
        for optimizer in (together, *apart):
            optimizer.step(0.01)
    torch.testing.assert_close(stacked.weight, torch.cat([first.weight, second.weight]), rtol=0, atol=1e-3)


def test_muon_gives_all_but_matrices_the_steps_of_adamw_at_learning_rates_of_their_own():
    own = {"embedding": 0.03, "head": 0.002, "vector": 0.005}
    model, reference = tiny_transformer(), tiny_transformer()
    reference.load_state_dict(model.state_dict())
    rates = {f"muon_{kind}_lr": lr for kind, lr in own.items()}
    muon = build_optimizer(
        parameter_groups(model, DECAY), OptimizerConfig(name="muon", lr=0.01, clip=math.inf, **rates)
    )
    groups = parameter_groups(reference, DECAY)
    settings = OptimizerConfig(name="adamw", clip=math.inf)
    adamw = {kind: build_optimizer([g for g in groups if g.kind == kind], settings) for kind in own}
    for step in range(3):
        set_gradients(model, step)
        set_gradients(reference, step)
        muon.step(0.01 / (step + 1))
        for kind, lr in own.items():
            adamw[kind].step(lr / (step + 1))
    for group in groups:
        for name, parameter in group.parameters.items():
            same = torch.allclose(model.get_parameter(name), parameter, rtol=1e-6, atol=1e-7)
            assert same == (group.kind != "matrix"), name


class SignDescent(Optimizer):
    """The sign of the gradient, and how often each element was updated."""

    def initial_state(self, parameter):
        return {"updates": torch.zeros_like(parameter.value, dtype=torch.int64)}

    def new_state(self, parameter, gradient):
        return {"updates": parameter.state["updates"] + 1}

    def update(self, parameter, gradient, state, lr):
        return -lr * gradient.sign()


def test_an_optimiser_that_says_how_state_and_parameter_change_is_refused_and_counted_like_the_built_in_ones():
    model = small_model()
    optimizer = SignDescent(parameter_groups(model, DECAY), max_norm=1.0)
    expected = model[0].weight.detach().clone()
    for ok in (True, False, True):
        set_gradients(model, 0)
        expected -= 0.1 * ok * model[0].weight.grad.sign()
        optimizer.step(0.1, ok=torch.tensor(ok))
        set_gradients(model, 0)
        spoil_with_nan(model)
        assert optimizer.step(0.1).refused
    torch.testing.assert_close(model[0].weight.detach(), expected)
    state = optimizer.state_dict()
    assert (int(state["count"]), int(state["refused_total"]), int(state["refused_in_a_row"])) == (2, 4, 1)
    assert (state["updates/0.weight"] == 2).all()


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("update", torch.zeros(2, 2), r"update returned float32\[2, 2\] on cpu for weight, not float32\[2, 3\]"),
        (
            "update",
            torch.zeros(2, 3).double(),
            r"update returned float64\[2, 3\] on cpu for weight, not float32\[2, 3\]",
        ),
        ("update", None, r"update returned NoneType for weight, not float32\[2, 3\] on cpu"),
        (
            "new_state",
            {"updates": torch.zeros(2, 3)},
            r"new_state returned updates = float32\[2, 3\] on cpu for weight",
        ),
        ("new_state", {}, "new_state returned nothing for weight, not updates"),
    ],
)
def test_results_of_another_shape_type_or_name_are_errors_that_change_nothing(method, result, message):
    model = nn.Linear(3, 2, bias=False)
    optimizer = type("Wrong", (SignDescent,), {method: lambda self, *_: result})(
        parameter_groups(model, DECAY), max_norm=1.0
    )
    set_gradients(model, 0)
    before = model.weight.detach().clone()
    with pytest.raises(ResultError, match=message):
        optimizer.step(0.1)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("name", BUILT_IN_OPTIMIZERS)
def test_learned_parts_of_components_are_clipped_by_their_own_norm_and_refused_jointly(name):
    def groups():
        model, part = small_model(), nn.Linear(2, 2).double()
        own = parameter_groups(part, 0.0, prefix="masking/exponent", clipped_with="masking")
        return model, part, [*parameter_groups(model, DECAY), *own]

    def take(model, part, optimizer, scale):
        set_gradients(model, 0)
        set_gradients(part, 1, scale)
        return optimizer.step(0.01)

    settings = OptimizerConfig(name=name, clip=0.5)
    ends = []
    for scale in (1e3, 1e6):
        torch.manual_seed(0)
        model, part, all_groups = groups()
        optimizer = build_optimizer(all_groups, settings)
        norm = math.sqrt(sum(float(n.square()) for n in small_norms(model)))
        assert float(take(model, part, optimizer, scale).grad_norm) == pytest.approx(norm, rel=1e-6)
        ends.append(bits(model.state_dict()))
    # The size of a component's gradients does not change the clipping of the model.
    assert same_bits(*ends)
    state = optimizer.state_dict()
    assert {name for name in state if name.startswith("first_moment/masking/")} >= {
        "first_moment/masking/exponent.bias"
    }
    before = bits(model.state_dict()) | bits(part.state_dict()) | bits(state)
    assert take(model, part, optimizer, math.nan).refused
    assert same_bits(before, bits(model.state_dict()) | bits(part.state_dict()) | bits(optimizer.state_dict()))


def small_norms(model):
    set_gradients(model, 0)
    return [p.grad.norm() for p in model.parameters()]
