"""The parameters of a model in groups: what each does, whether it decays, and how many matrices it stacks."""

from __future__ import annotations

from itertools import groupby

from torch import nn

from ltg_mdlm.core.optimizer import MODEL, ParameterGroup, ParameterKind
from ltg_mdlm.model.transformer import Attention, Embedding, Encoder, FeedForward, Head

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameter_groups(
    module: nn.Module, weight_decay: float, *, prefix: str = "", clipped_with: str = MODEL
) -> list[ParameterGroup]:
    """Trainable parameters in groups: first those with weight decay, then biases and norms, which have none.

    Within each half, the parameters keep their order in the module, and so do gradient norms, which are sums.

    A learned part of a component has a `prefix` such as `masking/exponent`, no weight decay, and a gradient norm of its
    own: `parameter_groups(part, 0.0, prefix="masking/exponent", clipped_with="masking")`.
    """
    of_norms: set[int] = set()
    kinds: dict[int, ParameterKind] = {}
    parts: dict[int, int] = {}
    for part in module.modules():
        if isinstance(part, NORMS):
            of_norms.update(id(p) for p in part.parameters(recurse=False))
        elif isinstance(part, nn.Embedding | Embedding):
            kinds |= {id(p): "embedding" for p in part.parameters(recurse=False)}
        elif isinstance(part, Head):
            kinds |= {id(p): "head" for p in part.parameters() if p.dim() == 2}
        elif isinstance(part, Attention):
            parts |= {id(part.in_proj_qk.weight): 2, id(part.in_proj_vg.weight): 2}
        elif isinstance(part, FeedForward):
            parts[id(part.mlp["1"].weight)] = 2
        elif isinstance(part, Encoder):
            parts |= {id(linear.weight): 6 for linear in getattr(part, "adaLN_modulations", ())}

    decaying: dict[str, nn.Parameter] = {}
    constant: dict[str, nn.Parameter] = {}
    for name, p in module.named_parameters(prefix):
        if p.requires_grad:
            # As in the published code.
            is_exempt = id(p) in of_norms or name.rpartition(".")[2] == "bias"
            (constant if is_exempt else decaying)[name] = p

    def kind_of(item: tuple[str, nn.Parameter]) -> ParameterKind:
        return kinds.get(id(item[1]), "matrix" if item[1].dim() == 2 else "vector")

    return [
        ParameterGroup(
            named := dict(items),
            decay,
            kind,
            parts={name: parts[id(p)] for name, p in named.items() if id(p) in parts},
            clipped_with=clipped_with,
        )
        for half, decay in ((decaying, weight_decay), (constant, 0.0))
        for kind, items in groupby(half.items(), kind_of)
    ]
