"""Whether the tensors of a foreign checkpoint are those of a model: all of them, in their shapes, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ltg_mdlm.api import TimeConditioning
from ltg_mdlm.errors import UserError
from ltg_mdlm.importing.published import NamedWeights
from ltg_mdlm.model.transformer import ModelConfig, Transformer, distance_buckets
from ltg_mdlm.named_tensors import folded

_LOSSLESS = (torch.float32, torch.bfloat16, torch.float16)
"""What float32 holds exactly."""


def weights_for(
    model: Transformer, found: NamedWeights, conditioning: TimeConditioning, origin: str
) -> dict[str, Tensor]:
    """The weights of `model` in float32.

    Raises UserError, beginning with `origin` and listing all that is wrong, unless every tensor is accounted for.
    """
    expected, weights = model.state_dict(), found.weights
    shapes = [
        f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    dtypes = [f"{name} {str(tensor.dtype)[6:]}" for name, tensor in weights.items() if tensor.dtype not in _LOSSLESS]
    complaints = {
        "missing": [name for name in expected if name not in weights],
        "not in the model": [name for name in weights if name not in expected],
        "of another shape": shapes,
        "not of a floating type up to 32 bits": dtypes,
        "not the buckets of these sizes": list(_wrong_positions(found.positions, model.config)),
        "not the time conditioning of these settings": list(_wrong_table(found.rate_table, conditioning)),
    }
    if any(complaints.values()):
        listing = [f"{label}: {folded(names)}" for label, names in complaints.items() if names]
        raise UserError(
            "\n  ".join([f"{origin}: the tensors are not those of the model that the settings describe", *listing])
        )
    return {name: weights[name].float().contiguous() for name in expected}


def _wrong_positions(positions: Mapping[str, Tensor], sizes: ModelConfig) -> Iterator[str]:
    """Buffers that send a distance to another row of the relative table than this model would.

    Rounding has made some published buffers point behind the table, at distances that were therefore never used.
    """
    limit, bucket_size = sizes.max_position_embeddings, sizes.position_bucket_size
    bucket_P = torch.tensor(distance_buckets(limit, bucket_size))
    distance_PP = torch.arange(limit)[:, None] - torch.arange(limit)
    expected_PP = bucket_P[distance_PP.abs()] * distance_PP.sign() + bucket_size - 1
    for name, found_PP in positions.items():
        if found_PP.shape != expected_PP.shape:
            yield f"{name} {list(found_PP.shape)} instead of {list(expected_PP.shape)}"
        elif bool(((found_PP != expected_PP) & (found_PP >= 0) & (found_PP < sizes.num_buckets)).any()):
            yield name


def _wrong_table(table_N: Tensor | None, conditioning: TimeConditioning) -> Iterator[str]:
    """The table of conditioning values, where the settings give others."""
    if table_N is None:
        return
    value_N = conditioning.value_for_rate(torch.linspace(0, 1, len(table_N))) if conditioning.active else None
    if value_N is None or not torch.allclose(value_N, table_N.float(), rtol=1e-4, atol=1e-6):
        yield "rate_table.value_at_node"
