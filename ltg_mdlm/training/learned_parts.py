"""Losses of the components' own modules, such as a learned schedule or the probabilities of a masking strategy.

A component learns from the predictions of the model for all views of the same rows, after the last of them.  Only the
detached input of the vocabulary matrix is kept until then, so that views need no more memory for activations than
micro-batches do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ltg_mdlm.core.batch import Corrupted, Observation
from ltg_mdlm.host.result_checks import ResultChecks
from ltg_mdlm.host.slots import Components
from ltg_mdlm.model.transformer import Transformer


@dataclass(slots=True)
class Views:
    """Predictions for the views of the same rows; filled view by view."""

    count: int
    """Number of views."""
    observations: list[Observation] = field(default_factory=list)
    corrupteds: list[Corrupted] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    """[N, D] of each view, without gradient: the input of the vocabulary matrix."""

    def add(self, observation: Observation, corrupted: Corrupted, features_ND: Tensor) -> None:
        """Add the next view; after the last one, begin with the first view again."""
        if len(self.observations) == self.count:
            for values in (self.observations, self.corrupteds, self.features):
                values.clear()
        self.observations.append(observation)
        self.corrupteds.append(corrupted)
        self.features.append(features_ND)


def own_losses(
    components: Components, views: Views, model: Transformer, denominators_K: Tensor, checks: ResultChecks
) -> Tensor:
    """Scalar: the sum of the components' own losses; 0 before the last view.  Raises UserError for wrong results."""
    total = denominators_K.new_zeros(())
    if len(views.observations) < views.count:
        return total

    def logits(view: int, part: slice) -> Tensor:
        with torch.no_grad():
            features_nD = views.features[view][part].float()
            return F.linear(features_nD, model.output_weight_VD.float(), model.output_bias_V.float())

    with torch.autocast(denominators_K.device.type, enabled=False):
        for slot, _, component in components.named():
            own_K = component.own_loss(views.observations, views.corrupteds, logits)
            checks.own_loss(slot, component, own_K)
            if own_K is not None:
                # A single sum is over the positions of all groups.
                total = total + (own_K / (denominators_K if len(own_K) > 1 else denominators_K.sum())).sum()
    return total


@contextmanager
def modules_evaluating(components: Components) -> Iterator[None]:
    """Evaluation mode of the components' modules inside the block, such as for masks that must not have dropout."""
    modes = [(module, module.training) for module in components.modules.values()]
    for module, _ in modes:
        module.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.train(was_training)
