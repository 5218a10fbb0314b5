"""From a batch to a loss: corruption, the model, and the objective, in the order of the paper.

Shapes: B rows, T tokens per row, N supervised positions, V vocabulary, K loss groups, R rows of the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ltg_mdlm.core.batch import IGNORE, Batch, Corrupted, Noise, Observation, Step, Supervised
from ltg_mdlm.core.host_memory import HostCopy
from ltg_mdlm.host.result_checks import method_of, require_numbers
from ltg_mdlm.host.slots import Components
from ltg_mdlm.model.cross_entropy import chunked_loss, weighted_cross_entropy
from ltg_mdlm.model.transformer import Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A corrupted micro-batch, ready for the model."""

    batch: Batch
    corrupted: Corrupted
    noise: Noise
    value_B: Tensor | None
    """Time conditioning; None when the model has none."""
    supervised_count: HostCopy


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """The loss of one micro-batch, and what the model made of its supervised positions."""

    loss: Tensor
    """Scalar with gradient: sum over groups of this micro-batch's sum / global denominator."""
    terms_K: Tensor
    """The sums, not yet divided."""
    supervised: Supervised
    correct_N: Tensor
    nll_N: Tensor


class Recipe:
    """The components of a run, applied to batches."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self._distinct = [component for _, _, component in components.named()]
        self.is_bound = components.objective.bound_for(components.masking, components.noise_schedule)

    def begin(self, step: Step, device: torch.device) -> Step:
        """Fix the modes of the global batch's rows."""
        return replace(step, causal_R=self.components.row_mode.causal(step, device))

    def corrupt(self, batch: Batch, step: Step) -> MicroBatch:
        """Draw modes, noise and masks for one micro-batch; a function of (seed, step, row) and of adaptive state."""
        parts = self.components
        causal_B = (
            torch.zeros_like(batch.row_B, dtype=torch.bool) if step.causal_R is None else step.causal_R[batch.row_B]
        )
        noise = parts.noise_schedule.sample(batch, step)
        corrupted = parts.masking.corrupt(batch, causal_B, noise, step)
        return MicroBatch(
            batch=batch,
            corrupted=corrupted,
            noise=noise,
            value_B=parts.time_conditioning.value(corrupted, noise),
            supervised_count=HostCopy((corrupted.labels_BT != IGNORE).sum()),
        )

    def denominators(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """float32[K]: this rank's share, summed over its micro-batches."""
        objective = self.components.objective
        return torch.stack([objective.denominators(m.batch, m.corrupted) for m in micro_batches]).sum(0)

    def observe(self, step: Step, micro_batch: MicroBatch, output: LossOutput) -> None:
        """Pass the model's answers on to adaptive components."""
        seen = Observation(
            step=step,
            batch=micro_batch.batch,
            supervised=output.supervised,
            correct_N=output.correct_N,
            nll_N=output.nll_N,
        )
        for component in self._distinct:
            component.observe(seen)

    def step_end(self, step: Step) -> None:
        """Let components update their state, on every rank alike."""
        for component in self._distinct:
            component.step_end(step)

    def metrics(self) -> dict[str, float]:
        """`<plugin>/<key>` of every component."""
        row: dict[str, float] = {}
        for slot, plugin, component in self.components.named():
            values = component.metrics()
            require_numbers(method_of(self.components, slot, component, "metrics"), values)
            row |= {f"{plugin}/{key}": float(value) for key, value in values.items()}
        return row

    def state_dict(self) -> dict[str, Tensor]:
        """State of every component, as `<slot>/<key>`."""
        return {
            f"{slot}/{key}": value
            for slot, _, component in self.components.named()
            for key, value in component.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for slot, _, component in self.components.named():
            prefix = f"{slot}/"
            component.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


class DenoisingLoss(nn.Module):
    """Model and objective in one module, which is what data parallelism wraps."""

    def __init__(self, model: Transformer, recipe: Recipe, *, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe
        self.bf16 = bf16
        self.compiled = False

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile the model's layers for training, once for every shape of a micro-batch.

        Head and loss stay as they are: their number of positions differs in every step, and they are a few large
        products.  After too many shapes torch says so and runs new ones uncompiled.
        """
        self.model.transformer.compile(backend=backend, dynamic=False)
        self.compiled = True

    def forward(self, micro_batch: MicroBatch, denominators_K: Tensor, step: Step) -> LossOutput:
        """The vocabulary is projected only at supervised positions, in chunks, with float32 cross-entropies."""
        corrupted, batch = micro_batch.corrupted, micro_batch.batch
        with self.autocast(batch.ids_BT.device):
            hidden_BTD = self.model(corrupted.input_BT, batch.document_BT, corrupted.causal_B, micro_batch.value_B)
            predicts_next = self._recipe.components.masking.predicts == "next"
            supervised, index_N = gather_supervised(micro_batch, predicts_next=predicts_next)
            features_ND = self.model.head(hidden_BTD.flatten(0, 1)[index_N])
            if self._recipe.components.objective.needs_logits:
                return self._from_logits(features_ND, supervised, denominators_K, step)
            return self._from_weights(features_ND, supervised, denominators_K, step)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The arithmetic of forward passes: bf16 matrix products, or plain float32."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def _from_weights(
        self, features_ND: Tensor, supervised: Supervised, denominators_K: Tensor, step: Step
    ) -> LossOutput:
        objective, model = self._recipe.components.objective, self.model
        group_N = objective.group(supervised)
        nll_weight_N, z_weight_N = objective.weights(supervised, step)
        share_N = 1 / denominators_K[group_N]
        result = weighted_cross_entropy(
            features_ND,
            model.output_weight_VD,
            model.output_bias_V,
            supervised.label_N,
            nll_weight_N * share_N,
            None if z_weight_N is None else z_weight_N * share_N,
        )
        term_N = nll_weight_N * result.nll_N
        if z_weight_N is not None:
            term_N = term_N + z_weight_N * result.log_normalizer_N.square()
        terms_K = torch.zeros_like(denominators_K).index_add_(0, group_N, term_N.to(denominators_K.dtype))
        return LossOutput(
            loss=result.loss, terms_K=terms_K, supervised=supervised, correct_N=result.correct_N, nll_N=result.nll_N
        )

    def _from_logits(
        self, features_ND: Tensor, supervised: Supervised, denominators_K: Tensor, step: Step
    ) -> LossOutput:
        objective, model = self._recipe.components.objective, self.model
        label_N = supervised.label_N
        nll_N = torch.empty(len(label_N), dtype=torch.float32, device=label_N.device)
        correct_N = torch.empty_like(label_N, dtype=torch.bool)

        def loss_terms(logits_nV: Tensor, part: slice) -> Tensor:
            nll_N[part] = nn.functional.cross_entropy(logits_nV.detach(), label_N[part], reduction="none")
            correct_N[part] = logits_nV.detach().argmax(1) == label_N[part]
            return objective.loss_terms(logits_nV, supervised[part], step)

        result = chunked_loss(features_ND, model.output_weight_VD, model.output_bias_V, loss_terms, 1 / denominators_K)
        return LossOutput(
            loss=result.loss, terms_K=result.terms_K, supervised=supervised, correct_N=correct_N, nll_N=nll_N
        )


def gather_supervised(micro_batch: MicroBatch, *, predicts_next: bool) -> tuple[Supervised, Tensor]:
    """The supervised positions of a micro-batch, and int64[N] their indices into its B*T positions."""
    corrupted, noise = micro_batch.corrupted, micro_batch.noise
    labels = corrupted.labels_BT.flatten()
    index_N = true_indices(labels != IGNORE, int(micro_batch.supervised_count.get()))
    length = corrupted.labels_BT.shape[1]
    row_N = index_N // length
    causal_N = corrupted.causal_B[row_N]
    # Where the predicted token itself stands: one column to the right of the logits for next-token prediction.
    own_N = index_N + (torch.ones_like(causal_N) if predicts_next else causal_N)
    rate_N = noise.rate_B[row_N]
    supervised = Supervised(
        label_N=labels[index_N],
        row_N=row_N,
        column_N=index_N % length,
        causal_N=causal_N,
        masked_N=corrupted.masked_BT.flatten()[own_N],
        rate_N=rate_N,
        realised_rate_N=corrupted.realised_rate_B[row_N],
        slope_N=noise.slope_B[row_N],
        hazard_N=1 / rate_N if corrupted.hazard_BT is None else corrupted.hazard_BT.flatten()[own_N],
        hazard_by_type_BV=corrupted.hazard_by_type_BV,
    )
    return supervised, index_N


def true_indices(mask_X: Tensor, count: int) -> Tensor:
    """int64[count]: where a flat boolean tensor of `count` true values is true, without waiting for the device."""
    size = mask_X.numel()
    place_X = torch.where(mask_X, mask_X.cumsum(0) - 1, size)
    index = torch.zeros(size + 1, dtype=torch.int64, device=mask_X.device)
    return index.scatter_(0, place_X, torch.arange(size, device=mask_X.device))[:count]
