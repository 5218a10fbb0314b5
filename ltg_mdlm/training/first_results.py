"""A check of every component's results before the first step, so that errors of shape and type name the plugin.

Broadcasting hides some wrong shapes, and others fail far from the method that returned them.  The check calls the
components once more than training does, as validation does too.  Nothing of it runs in the steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ltg_mdlm.core.batch import IGNORE, Batch, Corrupted, Noise, Step
from ltg_mdlm.core.components import MaskingStrategy
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.host_memory import HostCopy
from ltg_mdlm.host.result_checks import Kind, method_of, require_tensor, require_tensors, require_type
from ltg_mdlm.host.slots import Components
from ltg_mdlm.training.recipe import MicroBatch, gather_supervised

CORRUPTED: dict[str, Kind] = {
    "input_BT": "int64",
    "labels_BT": "int64",
    "masked_BT": "bool",
    "realised_rate_B": "float",
    "causal_B": "bool",
    "hazard_BT": "float",
}
"""Element types of the fields of `Corrupted`."""


def check_first_results(components: Components, batch: Batch, step: Step, vocab_size: int) -> None:
    """Call every component on a micro-batch, in the order of a step, and check the types and shapes of the results.

    Raises UserError that names the plugin, class and method of the first wrong result.
    """

    def where(slot: str, method: str) -> str:
        return method_of(components, slot, getattr(components, slot), method)

    for slot, _, component in components.named():
        require_tensors(method_of(components, slot, component, "state_dict"), component.state_dict())

    causal_R = components.row_mode.causal(step, batch.ids_BT.device)
    if causal_R is not None:
        require_tensor(where("row_mode", "causal"), causal_R, "bool", (step.rows,))
    step = replace(step, causal_R=causal_R)
    causal_B = torch.zeros_like(batch.row_B, dtype=torch.bool) if causal_R is None else causal_R[batch.row_B]

    noise = components.noise_schedule.sample(batch, step)
    require_type(where("noise_schedule", "sample"), noise, Noise)
    for name in ("t_B", "rate_B", "slope_B"):
        require_tensor(where("noise_schedule", "sample"), getattr(noise, name), "float", batch.row_B.shape, name)

    masking = components.masking
    if type(masking).corrupt is MaskingStrategy.corrupt:  # other implementations may not use probabilities
        probability_BT = masking.mask_probability(batch, noise, step)
        require_tensor(where("masking", "mask_probability"), probability_BT, "float", batch.ids_BT.shape)
    corrupted = masking.corrupt(batch, causal_B, noise, step)
    require_type(where("masking", "corrupt"), corrupted, Corrupted)
    for name, kind in CORRUPTED.items():
        shape = batch.ids_BT.shape if name.endswith("_BT") else batch.row_B.shape
        if not (name == "hazard_BT" and corrupted.hazard_BT is None):
            require_tensor(where("masking", "corrupt"), getattr(corrupted, name), kind, shape, name)

    value_B = components.time_conditioning.value(corrupted, noise)
    if components.time_conditioning.active:
        require_tensor(where("time_conditioning", "value"), value_B, "float", batch.row_B.shape)
    elif value_B is not None:
        raise UserError(f"{where('time_conditioning', 'value')} returned {type(value_B).__name__}, not None")

    objective, groups = components.objective, (len(components.objective.group_names),)
    require_tensor(where("objective", "denominators"), objective.denominators(batch, corrupted), "float", groups)
    count = HostCopy((corrupted.labels_BT != IGNORE).sum())
    micro_batch = MicroBatch(batch=batch, corrupted=corrupted, noise=noise, value_B=value_B, supervised_count=count)
    supervised, _ = gather_supervised(micro_batch, predicts_next=masking.predicts == "next")
    if objective.needs_logits:
        if len(supervised.label_N):
            logits_1V = torch.zeros(1, vocab_size, device=batch.ids_BT.device)
            terms_K = objective.loss_terms(logits_1V, supervised[:1], step)
            require_tensor(where("objective", "loss_terms"), terms_K, "float", groups)
        return
    require_tensor(where("objective", "group"), objective.group(supervised), "int64", supervised.label_N.shape)
    weights = objective.weights(supervised, step)
    if not (isinstance(weights, tuple) and len(weights) == 2):
        given = type(weights).__name__
        raise UserError(
            f"{where('objective', 'weights')} returned {given}, not a pair (nll_weight_N, z_weight_N or None)"
        )
    for name, weight_N in zip(("nll_weight_N", "z_weight_N"), weights, strict=True):
        if not (name == "z_weight_N" and weight_N is None):
            require_tensor(where("objective", "weights"), weight_N, "float", supervised.label_N.shape, name)
