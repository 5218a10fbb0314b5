"""The transformer compared with the literal oracle, and the properties that its documentation states."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import VOCAB, disturbed_model, packed, packed_rows, small_config
from support.oracle import Oracle, visible
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltg_mdlm.model import attention as attention_module
from ltg_mdlm.model.attention import attend_by_library
from ltg_mdlm.model.transformer import ModelConfig, Transformer

MDLM = {"cond_dim": 16}
GPT_BERT = {"cond_dim": None, "depth_weighted_averaging": True}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def without_parameters(module: nn.Module) -> nn.Module:
    """A replica as DataParallel makes it: weights are tensors, and `parameters()` is empty."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter.detach())
    for name, child in module._modules.items():
        if child is not None:
            replica._modules[name] = without_parameters(child)
    return replica


def test_replicas_of_data_parallel_compute_the_same():
    model = disturbed_model(small_config(**MDLM))
    document_BT, causal_B = rows_of(12)
    ids_BT = torch.arange(36).view(3, 12) % VOCAB
    replica = without_parameters(model)
    assert not list(replica.parameters())
    inputs = (ids_BT, document_BT, causal_B, conditioning(model.config, 3))
    assert torch.equal(replica(*inputs), model(*inputs))


def rows_of(length: int) -> tuple[Tensor, Tensor]:
    """Three rows: one document; causal documents; bidirectional documents and padding (as far as the length allows)."""
    half, third = length // 2, length // 3
    documents = [packed(length), packed(half, length - half), packed(third, third, pad=length - 2 * third)]
    return torch.stack(documents), torch.tensor([False, True, False])


def conditioning(config: ModelConfig, rows: int) -> Tensor | None:
    return None if config.cond_dim is None else torch.linspace(0, 1, rows, dtype=torch.float64)


def outputs_and_gradients(model: Transformer, document_BT: Tensor, causal_B: Tensor, oracle: bool) -> dict[str, Tensor]:
    """Hidden states, logits, and the gradient of a random functional of both by every parameter."""
    torch.manual_seed(1)
    ids_BT = torch.randint(VOCAB, document_BT.shape)
    conditioning_B = conditioning(model.config, len(ids_BT))
    state = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    if oracle:
        reference = Oracle(model.config, state)
        hidden_BTD = reference.hidden(ids_BT, visible(document_BT, causal_B), conditioning_B)
        logits_BTV = reference.logits(hidden_BTD)
    else:
        state = dict(model.named_parameters())
        hidden_BTD = model(ids_BT, document_BT, causal_B, conditioning_B)
        logits_BTV = model.logits(model.head(hidden_BTD))
    torch.manual_seed(2)
    outputs = {"hidden": hidden_BTD, "logits": logits_BTV}
    functional = sum((x * torch.randn(x.shape, dtype=x.dtype)).sum() for x in outputs.values())
    return outputs | dict(zip(state, torch.autograd.grad(functional, list(state.values())), strict=True))


def assert_equal_to_oracle(config: ModelConfig, document_BT: Tensor, causal_B: Tensor) -> None:
    model = disturbed_model(config)
    ours = outputs_and_gradients(model, document_BT, causal_B, oracle=False)
    theirs = outputs_and_gradients(model, document_BT, causal_B, oracle=True)
    for name, value in theirs.items():
        scale = value.detach().abs().max().clamp(min=1)
        assert (ours[name] - value).abs().max() < 1e-9 * scale, name


@pytest.mark.parametrize("variant", [MDLM, GPT_BERT], ids=["mdlm", "gpt_bert"])
@pytest.mark.parametrize("length", [1, 5, 33, 128])
def test_outputs_and_all_gradients_equal_the_oracle(variant, length):
    assert_equal_to_oracle(small_config(**variant), *rows_of(length))


@pytest.mark.parametrize(("max_positions", "buckets"), [(48, 4), (48, 8), (40, 16), (64, 64), (20, 32)])
def test_every_bucket_size_equals_the_oracle(max_positions, buckets):
    config = small_config(max_position_embeddings=max_positions, position_bucket_size=buckets)
    assert_equal_to_oracle(config, *rows_of(max_positions))


@settings(max_examples=15, deadline=None)
@given(packed_rows(), st.sampled_from([MDLM, GPT_BERT]))
def test_any_packing_equals_the_oracle(rows, variant):
    assert_equal_to_oracle(small_config(max_position_embeddings=32, position_bucket_size=8, **variant), *rows)


def test_without_documents_every_row_is_one_document():
    model = disturbed_model(small_config())
    ids_BT, conditioning_B = torch.randint(VOCAB, (2, 9)), torch.rand(2, dtype=torch.float64)
    one_document = torch.zeros(2, 9, dtype=torch.int32)
    torch.testing.assert_close(
        model(ids_BT, None, None, conditioning_B), model(ids_BT, one_document, None, conditioning_B)
    )


@given(packed_rows())
@settings(max_examples=25, deadline=None)
def test_a_document_does_not_depend_on_the_others(rows):
    """If all tokens of the other documents change, the hidden states of a document do not."""
    document_BT, causal_B = rows
    model = disturbed_model(small_config(cond_dim=None, max_position_embeddings=32, position_bucket_size=8))
    ids_BT = torch.randint(VOCAB, document_BT.shape)
    for document in document_BT.unique():
        own_BT = document_BT == document
        others_BT = torch.where(own_BT, ids_BT, (ids_BT + 1) % VOCAB)
        before, after = model(ids_BT, document_BT, causal_B), model(others_BT, document_BT, causal_B)
        assert (before - after).detach()[own_BT].abs().max() <= 1e-12


def test_causal_rows_ignore_the_future_and_other_rows_do_not():
    model = disturbed_model(small_config(cond_dim=None))
    ids_BT = torch.randint(VOCAB, (2, 20))
    changed_BT = ids_BT.clone()
    changed_BT[:, 12:] = (changed_BT[:, 12:] + 1) % VOCAB
    causal_B = torch.tensor([True, False])
    difference_BT = (model(ids_BT, None, causal_B) - model(changed_BT, None, causal_B)).detach().abs().amax(-1)
    assert difference_BT[0, :12].max() <= 1e-12
    assert difference_BT[1, :12].min() > 1e-6


def test_queries_attend_only_to_allowed_keys():
    """A lower triangle makes any row causal, and it combines with documents."""
    model = disturbed_model(small_config(cond_dim=None))
    ids_BT = torch.randint(VOCAB, (2, 7))
    document_BT = torch.stack([packed(7), packed(4, pad=3)])
    triangle_BTT = torch.ones(2, 7, 7, dtype=torch.bool).tril()
    causal_BTD = model(ids_BT, document_BT, torch.tensor([True, True]))
    torch.testing.assert_close(model(ids_BT, document_BT, visibility=triangle_BTT), causal_BTD)
    assert not torch.allclose(model(ids_BT, document_BT), causal_BTD)


def test_rows_of_padding_alone_are_finite_with_finite_gradients():
    model = disturbed_model(small_config(cond_dim=None))
    hidden_BTD = model(torch.full((2, 7), 3), torch.full((2, 7), -1), torch.tensor([True, False]))
    hidden_BTD.square().sum().backward()
    assert hidden_BTD.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_at_initialisation_time_conditioned_blocks_are_the_identity():
    model = Transformer(small_config()).double()
    ids_BT = torch.randint(VOCAB, (2, 11))
    hidden_BTD = model(ids_BT, None, None, torch.tensor([0.2, 0.9], dtype=torch.float64))
    words_BTD = model.embedding.word_embedding(ids_BT)
    expected_BTD = torch.nn.functional.layer_norm(words_BTD, words_BTD.shape[-1:])
    torch.testing.assert_close(hidden_BTD, expected_BTD)


def test_hidden_states_depend_on_the_conditioning_value():
    model = disturbed_model(small_config())
    ids_BT = torch.randint(VOCAB, (1, 6)).expand(2, -1)
    hidden_BTD = model(ids_BT, None, None, torch.tensor([0.2, 0.9], dtype=torch.float64))
    assert (hidden_BTD[0] - hidden_BTD[1]).abs().max() > 1e-3


def test_a_custom_time_embedding_replaces_the_default():
    config = small_config(cond_dim=4)
    model = Transformer(
        config, time_embedding=torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 4))
    )
    assert "sigma_map.1.weight" in model.state_dict()
    assert model(torch.randint(VOCAB, (3, 5)), None, None, torch.rand(3)).shape == (3, 5, 24)


@pytest.mark.parametrize(
    ("variant", "count"),
    [({"cond_dim": 128}, 126_636_800), ({"cond_dim": None, "depth_weighted_averaging": True}, 119_454_532)],
    ids=["mdlm", "gpt_bert"],
)
def test_the_base_model_has_the_published_number_of_parameters(variant, count):
    with torch.device("meta"):
        model = Transformer(ModelConfig(**variant))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_state_dict_names_are_those_of_published_checkpoints():
    state = Transformer(small_config(num_hidden_layers=1, depth_weighted_averaging=True)).state_dict()
    layer = [
        f"attention_layers.0.{m}.{p}" for m in ("in_proj_qk", "in_proj_vg", "out_proj") for p in ("weight", "bias")
    ]
    layer += ["mlp_layers.0.mlp.1.weight", "mlp_layers.0.mlp.4.weight"]
    layer += ["adaLN_modulations.0.weight", "adaLN_modulations.0.bias", "dwa_modules.alphas.0", "dwa_modules.alphas.1"]
    embedding = [
        "word_embedding.weight",
        "relative_embedding",
        "relative_layer_norm.weight",
        "relative_layer_norm.bias",
    ]
    expected = {f"transformer.{name}" for name in layer} | {f"embedding.{name}" for name in embedding}
    expected |= {f"sigma_map.mlp.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}
    expected |= {f"classifier.nonlinearity.{name}" for name in ("1.weight", "1.bias", "5.bias")}
    assert set(state) == expected
    assert state["transformer.adaLN_modulations.0.weight"].shape == (6 * 24, 16)
    assert state["transformer.attention_layers.0.in_proj_vg.weight"].shape == (2 * 24, 24)


def test_initial_weights_are_truncated_normals_and_mlps_shrink_with_depth():
    model = Transformer(small_config(hidden_size=96, intermediate_size=256, num_hidden_layers=3))
    std = math.sqrt(2 / (5 * 96))
    truncated = 0.8796  # std of a standard normal cut at 2
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "sigma_map" not in name:
            assert parameter.abs().max() == 0, name
    for layer, mlp in enumerate(model.transformer.mlp_layers):
        weight = mlp.mlp["1"].weight.detach()
        factor = math.sqrt(1 / (2 * (1 + layer)))
        assert weight.abs().max() <= 2 * std * factor * (1 + 1e-6)
        assert weight.std().item() == pytest.approx(truncated * std * factor, rel=0.02)
    assert model.output_weight_VD.std().item() == pytest.approx(truncated * std, rel=0.05)
    assert model.sigma_map.mlp[0].bias.abs().max() > 0


def test_too_long_rows_are_refused_with_both_lengths():
    model = Transformer(small_config(cond_dim=None, max_position_embeddings=8))
    with pytest.raises(ValueError, match=r"9 tokens.*max_position_embeddings, 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))


@pytest.mark.parametrize(("cond_dim", "value"), [(16, None), (None, torch.rand(1))])
def test_a_missing_or_surplus_conditioning_value_is_refused(cond_dim, value):
    with pytest.raises(ValueError, match="conditioning_B"):
        Transformer(small_config(cond_dim=cond_dim))(torch.zeros(1, 3, dtype=torch.int64), conditioning_B=value)


@pytest.mark.parametrize("changes", [{"hidden_size": 25}, {"position_bucket_size": 7}, {"position_bucket_size": 2}])
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(ValueError, match=r"multiple|position_bucket_size"):
        small_config(**changes)


def test_bfloat16_autocast_stays_close_to_float32():
    model = disturbed_model(small_config(), dtype=torch.float32)
    document_BT, causal_B = rows_of(40)
    ids_BT, conditioning_B = torch.randint(VOCAB, (3, 40)), torch.rand(3)
    exact_BTD = model(ids_BT, document_BT, causal_B, conditioning_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded_BTD = model(ids_BT, document_BT, causal_B, conditioning_B)
    assert (rounded_BTD - exact_BTD).abs().max() < 0.05 * exact_BTD.abs().max()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_holds_a_vector_for_every_pair_of_positions():
    """The published model has tensors [T, T, 2D]; the largest here are the skewed scores, [H, 64, T + 63]."""
    model = disturbed_model(small_config(cond_dim=None))
    ids_BT = torch.randint(VOCAB, (1, 128))
    with LargestTensor() as largest:
        model(ids_BT).sum().backward()
    assert largest.elements <= max(3 * 128 * 128, 3 * 64 * 191)


def test_nothing_in_a_forward_and_backward_pass_reads_a_value_on_the_host():
    """Fake tensors hold no values: reading one (item, nonzero, a boolean index) raises."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        model = Transformer(small_config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1))
        ids_BT, document_BT = torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.int32)
        hidden_BTD = model(ids_BT, document_BT, torch.zeros(2, dtype=torch.bool), torch.rand(2))
        model.logits(model.head(hidden_BTD)).sum().backward()
    assert model.output_weight_VD.grad is not None


@pytest.mark.parametrize("kind", [MDLM, GPT_BERT])
def test_activation_checkpointing_keeps_less_and_changes_nothing(kind):
    """With dropout, whose draws must be repeated."""
    model = disturbed_model(small_config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, **kind))
    document_BT, causal_B = rows_of(24)
    found, kept_bytes = [], []
    for checkpointing in (False, True):
        model.transformer.activation_checkpointing = checkpointing
        kept: dict[int, int] = {}

        def keep(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            found.append(outputs_and_gradients(model, document_BT, causal_B, oracle=False))
        kept_bytes.append(sum(kept.values()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert kept_bytes[1] < kept_bytes[0] / 2


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
@pytest.mark.parametrize("kind", [MDLM, GPT_BERT])
def test_all_layers_run_the_same_two_graphs_of_the_compiler(kind, monkeypatch):
    """As on a GPU; no part falls back to Python, and the results are equal."""
    monkeypatch.setattr(attention_module, "attend", attend_by_library)
    model = disturbed_model(small_config(**kind))
    document_BT, causal_B = rows_of(24)
    plain = outputs_and_gradients(model, document_BT, causal_B, oracle=False)
    counted = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(
        model.transformer, "residual", torch.compile(model.transformer.residual, backend=counted, fullgraph=True)
    )
    compiled = outputs_and_gradients(model, document_BT, causal_B, oracle=False)
    assert counted.frame_count == 2
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-9, atol=1e-12, msg=name)


class _Adapted(torch.nn.Linear):
    """A linear layer with a low-rank change beside its weight, as adapters have it."""

    def __init__(self, base: torch.nn.Linear, rank: int = 2) -> None:
        super().__init__(base.in_features, base.out_features, dtype=base.weight.dtype)
        self.load_state_dict(base.state_dict())
        self.down = torch.randn(rank, base.in_features, dtype=base.weight.dtype)
        self.up = torch.randn(base.out_features, rank, dtype=base.weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("name", ["in_proj_qk", "in_proj_vg", "out_proj"])
def test_adapters_of_the_attention_act_as_if_they_were_merged_into_the_weights(name):
    model = disturbed_model(small_config(cond_dim=None)).eval()
    ids_BT = torch.randint(VOCAB, (2, 8))
    before = model(ids_BT)
    attention = model.transformer.attention_layers[0]
    plain, adapted = getattr(attention, name), _Adapted(getattr(attention, name))
    setattr(attention, name, adapted)
    beside = model(ids_BT)
    with torch.no_grad():
        plain.weight.add_(adapted.up @ adapted.down)
    setattr(attention, name, plain)
    torch.testing.assert_close(beside, model(ids_BT))
    assert not torch.allclose(beside, before, atol=1e-2)


class _AdaptedEmbedding(torch.nn.Embedding):
    """An embedding with a low-rank change beside its weight."""

    def __init__(self, base: torch.nn.Embedding, rank: int = 2) -> None:
        super().__init__(*base.weight.shape, dtype=base.weight.dtype)
        self.load_state_dict(base.state_dict())
        self.change = (torch.randn(base.num_embeddings, rank) @ torch.randn(rank, base.embedding_dim)).to(self.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) + self.change[ids]


def test_an_adapter_of_the_word_embedding_acts_as_if_it_were_merged_into_the_vocabulary_matrix_too():
    model = disturbed_model(small_config(cond_dim=None)).eval()
    plain = model.embedding.word_embedding
    model.embedding.word_embedding = adapted = _AdaptedEmbedding(plain)
    ids_BT = torch.randint(VOCAB, (2, 8))
    beside = model.logits(model.head(model(ids_BT)))
    with torch.no_grad():
        plain.weight.add_(adapted.change)
    model.embedding.word_embedding = plain
    torch.testing.assert_close(beside, model.logits(model.head(model(ids_BT))))


@pytest.mark.parametrize("sizes", [GPT_BERT, MDLM])
def test_a_traced_model_holds_for_other_batch_sizes_and_lengths(sizes):
    model = disturbed_model(small_config(**sizes)).eval().requires_grad_(False)
    causal_B, conditioning_B = torch.tensor([True]), None if sizes["cond_dim"] is None else torch.tensor([0.3])

    def states(ids_BT: Tensor) -> Tensor:
        return model(ids_BT, torch.where(ids_BT == 1, 1, 0), causal_B, conditioning_B)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of sizes that become constants, as the width
        traced = torch.jit.trace(states, torch.randint(VOCAB, (2, 8)))
    for shape in ((2, 8), (1, 3), (3, 21)):
        ids_BT = torch.randint(VOCAB, shape)
        torch.testing.assert_close(traced(ids_BT), states(ids_BT))
