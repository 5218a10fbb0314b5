"""The FLOP formula compared with torch's count of executed operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ltg_mdlm.model.cross_entropy import weighted_cross_entropy
from ltg_mdlm.model.flops import flops_per_token
from ltg_mdlm.model.transformer import ModelConfig, Transformer
from ltg_mdlm.model.visibility import Visibility

SUPERVISED = 48


@pytest.mark.parametrize(("length", "copies"), [(64, 0), (256, 0), (128, 1), (64, 3)])
def test_the_formula_counts_a_training_pass_without_positions_and_time(length, copies):
    sizes = ModelConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4, vocab_size=2048,
        max_position_embeddings=256, position_bucket_size=4,
    )  # fmt: skip
    model = Transformer(sizes)
    ids_BT = torch.randint(16, sizes.vocab_size, (2, length))
    with FlopCounterMode(display=False) as counter:
        visibility = Visibility.of_rows(torch.tensor([False, False]), length * (1 + copies))
        context_BS = ids_BT.repeat(1, copies) if copies else None
        hidden_BTD = model(ids_BT, torch.zeros_like(ids_BT), None, torch.rand(2), visibility, context_BS=context_BS)
        features_ND = model.head(hidden_BTD.flatten(0, 1)[:SUPERVISED])
        label_N, weight_N = ids_BT.flatten()[:SUPERVISED], torch.ones(SUPERVISED)
        weighted_cross_entropy(
            features_ND, model.output_weight_VD, model.output_bias_V, label_N, weight_N
        ).loss.backward()
    share, columns = SUPERVISED / ids_BT.numel(), length * (1 + copies)
    formula = flops_per_token(sizes, length, share, columns).training * ids_BT.numel()
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.07)


def test_the_base_model_needs_the_known_number_of_operations():
    """212, 9.5 and 4.7 MFLOP per token at T = 128 with 36 % supervised positions, from an independent count."""
    flops = flops_per_token(ModelConfig(), 128, 0.36)
    assert flops.linear == pytest.approx(212e6, rel=0.005)
    assert flops.head == pytest.approx(9.5e6, rel=0.005)
    assert flops.attention == pytest.approx(4.7e6, rel=0.01)
    assert flops.training == 3 * flops.forward
