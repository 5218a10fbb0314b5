"""From a batch to a loss: corruption, the model, and the objective, in the order of the paper.

A training step calls `Recipe.begin` (modes of the rows), `Recipe.corrupt` (noise, masks and conditioning of every
micro-batch), `Recipe.denominators`, `DenoisingLoss` (forward pass), `Recipe.observe` and `Recipe.step_end`.

Shapes: B rows, T tokens per row, N supervised positions, M = N rounded up (`POSITION_MULTIPLE`), V vocabulary, D width,
K loss groups, R rows of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltg_mdlm.core.batch import IGNORE, Batch, Corrupted, Noise, Observation, Step, StepEnd, Supervised
from ltg_mdlm.core.components import MaskingStrategy
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.host_memory import HostCopy
from ltg_mdlm.host.result_checks import ResultChecks, method_of, require_numbers, require_tensors
from ltg_mdlm.host.slots import Components
from ltg_mdlm.model.cross_entropy import chunked_loss, weighted_cross_entropy
from ltg_mdlm.model.transformer import Transformer
from ltg_mdlm.storage.named_tensors import copy_named
from ltg_mdlm.training.learned_parts import Views, modules_evaluating, own_losses

POSITION_MULTIPLE = 512
"""On GPUs, and on CPUs in bf16, head and vocabulary matrix run on the next multiple of this number of positions.

Every number of positions is another shape.  oneDNN, which computes the matrix products of CPUs in bf16, keeps compiled
code for each of them, up to more than a gigabyte.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A corrupted micro-batch: the input of `DenoisingLoss`."""

    batch: Batch
    corrupted: Corrupted
    noise: Noise
    conditioning_B: Tensor | None
    """float32: the conditioning value of each row; None if the model has no time conditioning."""
    supervised_count: HostCopy
    """N.  The copy starts here, one micro-batch before `gather_supervised` needs it."""
    views: Views = field(default_factory=lambda: Views(1))
    """The predictions for the views of the same rows; one object for all of them."""
    has_causal_rows: bool = True
    """False if no row of the run can be causal, which saves attention a rule."""

    @property
    def columns(self) -> int:
        """X, the columns of a row with its copies."""
        context_BS = self.corrupted.context_BS
        return self.batch.ids_BT.shape[1] + (0 if context_BS is None else context_BS.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """The loss of one micro-batch, and the predictions at its supervised positions."""

    loss: Tensor
    """Scalar with gradient: this micro-batch's share of the loss, the sum over groups of sum / global denominator."""
    terms_K: Tensor
    """The sums of the loss groups, before the division."""
    supervised: Supervised
    correct_N: Tensor
    """bool: the label has the largest logit."""
    nll_N: Tensor
    """float32: -log p of the label, in nats."""


class Recipe:
    """Applies the components of a run to batches."""

    def __init__(self, components: Components, *, uniform_epochs: bool = True) -> None:
        """`uniform_epochs`: every epoch has every document once, in random order.

        Otherwise the rows of a step are not a random sample of the corpus, so the bound is not logged in training.
        """
        self.components = components
        self.uniform_epochs = uniform_epochs
        self._distinct = [component for _, _, component in components.named()]
        self.checks = ResultChecks(components)
        self.is_bound = components.objective.bound_for(components.masking, components.noise_schedule)
        masking = components.masking
        is_verifiable = masking.kind != "other" or type(masking).transition is not MaskingStrategy.transition
        self.bound_name = "bound" if is_verifiable else "unverified_bound"
        self.own_visibility = False
        """Whether a row was trained with a visibility that the model is not evaluated with."""

    def begin(self, step: Step, device: torch.device) -> Step:
        """The step with `causal_R`, the modes of the rows of its global batch."""
        causal_R = self.components.row_mode.causal(step, device)
        self.checks.causal(causal_R, step)
        return replace(step, causal_R=causal_R)

    def corrupt(self, batch: Batch, step: Step) -> list[MicroBatch]:
        """Draw noise levels and masks: one micro-batch for every view of the rows.

        A function of (seed, step, row) and of the state of adaptive components.
        """
        parts = self.components
        if step.causal_R is None:
            causal_B = torch.zeros_like(batch.row_B, dtype=torch.bool)
        else:
            causal_B = step.causal_R[batch.row_B]
        # Learned parts learn from their own losses only: no gradient of the model's loss reaches them.
        with torch.no_grad(), modules_evaluating(parts):
            noise = parts.noise_schedule.sample(batch, step)
            self.checks.noise(noise, batch)
            corrupteds = parts.masking.corrupt_views(batch, causal_B, noise, step)
            self.checks.views(corrupteds, batch)
            views = Views(len(corrupteds))
            return [self._micro_batch(batch, noise, corrupted, views) for corrupted in corrupteds]

    def _micro_batch(self, batch: Batch, noise: Noise, corrupted: Corrupted, views: Views) -> MicroBatch:
        """A view with its noise and conditioning."""
        noise = corrupted.noise or noise
        if corrupted.visibility is not None and not self.components.masking.block_length:
            self.own_visibility = True
        conditioning_B = self.components.time_conditioning.value(corrupted, noise)
        self.checks.conditioning(conditioning_B, batch)
        return MicroBatch(
            batch=batch,
            corrupted=corrupted,
            noise=noise,
            conditioning_B=conditioning_B,
            supervised_count=HostCopy((corrupted.labels_BT != IGNORE).sum()),
            views=views,
            has_causal_rows="causal" in self.components.row_mode.modes,
        )

    def denominators(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """float32[K]: this rank's share of the denominators, summed over its micro-batches.

        The trainer sums them over ranks before the first forward pass.  A mean of the micro-batches' means would give
        another loss for every split of the global batch, since micro-batches differ in their masked tokens.
        """
        shares = [self.components.objective.denominators(m.batch, m.corrupted) for m in micro_batches]
        for share_K in shares:
            self.checks.groups("denominators", share_K)
        return torch.stack(shares).sum(0)

    def observe(self, step: Step, micro_batch: MicroBatch, output: LossOutput) -> None:
        """Show the predictions of a micro-batch to all components."""
        observation = observed(step, micro_batch, output)
        for component in self._distinct:
            component.observe(observation)

    def step_end(self, step: Step, refused: Tensor) -> None:
        """Let components update their state, identically on every rank; `refused` is True if the update was refused."""
        values = {f.name: getattr(step, f.name) for f in fields(step)}
        for component in self._distinct:
            component.step_end(StepEnd(**values, refused=refused))
        self.checks.finish()

    def metrics(self) -> dict[str, float]:
        """Metrics of all components, as `<plugin>/<key>`."""
        row: dict[str, float] = {}
        for slot, plugin, component in self.components.named():
            values = component.metrics()
            require_numbers(method_of(self.components, slot, component, "metrics"), values)
            row |= {f"{plugin}/{key}": float(value) for key, value in values.items()}
        return row

    def state_dict(self) -> dict[str, Tensor]:
        """State of all components, as `<slot>/<key>`."""
        states: dict[str, Tensor] = {}
        for slot, _, component in self.components.named():
            state = component.state_dict()
            require_tensors(method_of(self.components, slot, component, "state_dict"), state)
            states |= {f"{slot}/{key}": value for key, value in state.items()}
        if clash := states.keys() & (learned := self.learned_state()).keys():
            raise UserError(f"the state and the learned parts of a component have the same name: {min(clash)}")
        return states | learned

    def learned_state(self) -> dict[str, Tensor]:
        """Weights of the components' learned parts, as `<slot>/<name>.<parameter>`."""
        return nn.ModuleDict(self.components.modules).state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.  Raises UserError if learned parts differ."""
        learned = self.learned_state()
        copy_named(learned, {k: v for k, v in state.items() if k in learned}, "the learned parts of the components")
        state = {k: v for k, v in state.items() if k not in learned}
        for slot, _, component in self.components.named():
            prefix = f"{slot}/"
            component.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


class DenoisingLoss(nn.Module):
    """Model and objective in one module, which data parallelism wraps."""

    def __init__(self, model: Transformer, recipe: Recipe, *, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe
        self.learned_parts = nn.ModuleDict(recipe.components.modules)
        self.bf16 = bf16
        self.compiled = False
        self.full_rows: dict[int, int] = {}
        """By tokens per row: in training, the model sees at least this number of rows, so that shapes do not change."""

    def compile_layers(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the layers for training: for each shape of a micro-batch one attention and one feed-forward sublayer.

        All layers run the same code, so the time to compile does not grow with their number.  Head and loss are not
        compiled, since their time is spent in a few large matrix products.
        """
        # The code of a sublayer is compiled for every length of rows; after 8 of them torch would no longer compile.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        layers = self.model.transformer
        layers.residual = torch.compile(layers.residual, backend=backend, dynamic=False)  # type: ignore[method-assign]
        self.compiled = True

    def run_uncompiled(self) -> None:
        """Undo `compile_layers`."""
        if self.compiled:
            del self.model.transformer.residual
            self.compiled = False

    def autocast(self, device: torch.device) -> torch.autocast:
        """Context of forward passes: matrix products in bf16, or everything in float32."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def position_multiple(self, device: torch.device) -> int:
        """The number of positions that head and vocabulary matrix run on is a multiple of this."""
        return POSITION_MULTIPLE if device.type == "cuda" or self.bf16 else 1

    def rows_seen(self, micro_batch: MicroBatch, *, training: bool) -> int:
        """Rows that the model sees for a micro-batch."""
        rows, length = micro_batch.corrupted.input_BT.shape
        return max(rows, self.full_rows.get(length, 0)) if training else rows

    def hidden(self, micro_batch: MicroBatch, *, training: bool) -> Tensor:
        """Hidden states [B, T, D]; the last rows that the model sees are padding."""
        corrupted, visibility = micro_batch.corrupted, micro_batch.corrupted.visibility
        rows = len(corrupted.input_BT)
        further = self.rows_seen(micro_batch, training=training) - rows

        def full(of_rows: Tensor, padding: int = 0) -> Tensor:
            """The values of the rows, and those of `further` rows, which only the model sees."""
            return F.pad(of_rows, (0, 0) * (of_rows.dim() - 1) + (0, further), value=padding) if further else of_rows

        hidden_BTD: Tensor = self.model(
            full(corrupted.input_BT),
            full(micro_batch.batch.document_BT, -1),
            full(corrupted.causal_B) if micro_batch.has_causal_rows else None,
            None if micro_batch.conditioning_B is None else full(micro_batch.conditioning_B),
            None if visibility is None else visibility.map(full),
            context_BS=None if corrupted.context_BS is None else full(corrupted.context_BS),
        )
        return hidden_BTD[:rows]

    def forward(self, micro_batch: MicroBatch, denominators_K: Tensor, step: Step) -> LossOutput:
        """Predict the labels of a micro-batch; `denominators_K` are those of the global batch."""
        corrupted, batch = micro_batch.corrupted, micro_batch.batch
        parts = self._recipe.components
        with self.autocast(batch.ids_BT.device):
            hidden_BTD = self.hidden(micro_batch, training=step.training)
            supervised, index_M = gather_supervised(
                micro_batch,
                predicts_next=parts.masking.predicts == "next",
                multiple=self.position_multiple(batch.ids_BT.device),
                most=self.rows_seen(micro_batch, training=step.training) * batch.ids_BT.shape[1],
            )
            # Head and vocabulary matrix run at the supervised positions only, since logits are the largest tensor of a
            # step and the others have no label.
            features_MD = self.model.head(hidden_BTD.flatten(0, 1)[index_M])
            by_logits = parts.objective.needs_logits
            output = (self._loss_from_logits if by_logits else self._loss_from_weights)(
                features_MD, supervised, denominators_K, step
            )
        if self.learned_parts and step.training:
            views = micro_batch.views
            features_ND = features_MD.detach()[: len(supervised.label_N)]
            views.add(observed(step, micro_batch, output), corrupted, features_ND)
            own_loss = own_losses(parts, views, self.model, denominators_K, self._recipe.checks)
            # Data parallelism expects a gradient of every parameter in every forward pass.
            unused = sum(parameter.sum() for parameter in self.learned_parts.parameters())
            output = replace(output, loss=output.loss + own_loss + 0 * unused)
        return output

    def _loss_from_weights(
        self, features_MD: Tensor, supervised: Supervised, denominators_K: Tensor, step: Step
    ) -> LossOutput:
        """Sum of weighted cross-entropies and z-losses, for objectives that define `weights`."""
        objective, model = self._recipe.components.objective, self.model
        group_N = objective.group(supervised)
        weights = objective.weights(supervised, step)
        self._recipe.checks.weights(group_N, weights, supervised)
        nll_weight_N, z_weight_N = weights
        # The kernel computes gradients in its forward pass, so the division by the denominators is part of the weights.
        share_N = 1 / denominators_K[group_N]
        result = weighted_cross_entropy(
            features_MD,
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

    def _loss_from_logits(
        self, features_MD: Tensor, supervised: Supervised, denominators_K: Tensor, step: Step
    ) -> LossOutput:
        """Any differentiable function of the logits, for objectives that define `loss_terms`."""
        objective, model = self._recipe.components.objective, self.model
        label_N = supervised.label_N
        nll_N = torch.empty(len(label_N), dtype=torch.float32, device=label_N.device)
        correct_N = torch.empty_like(label_N, dtype=torch.bool)

        def loss_terms(logits_nV: Tensor, part: slice) -> Tensor:
            nll_N[part] = nn.functional.cross_entropy(logits_nV.detach(), label_N[part], reduction="none")
            correct_N[part] = logits_nV.detach().argmax(1) == label_N[part]
            terms_K = objective.loss_terms(logits_nV, supervised[part], step)
            self._recipe.checks.groups("loss_terms", terms_K)
            return terms_K

        result = chunked_loss(
            features_MD,
            model.output_weight_VD,
            model.output_bias_V,
            loss_terms,
            1 / denominators_K,
            positions=len(label_N),
        )
        return LossOutput(
            loss=result.loss, terms_K=result.terms_K, supervised=supervised, correct_N=correct_N, nll_N=nll_N
        )


def observed(step: Step, micro_batch: MicroBatch, output: LossOutput) -> Observation:
    """The predictions for a micro-batch, as components see them."""
    return Observation(
        step=step,
        batch=micro_batch.batch,
        supervised=output.supervised,
        correct_N=output.correct_N,
        nll_N=output.nll_N,
        noise=micro_batch.noise,
    )


def gather_supervised(
    micro_batch: MicroBatch, *, predicts_next: bool, multiple: int = 1, most: int | None = None
) -> tuple[Supervised, Tensor]:
    """The supervised positions of a micro-batch, and int64[M] their indices into its B*T positions.

    M is `padded_count` of N, at most `most` (by default B*T), and the indices from N on are 0.
    """
    corrupted, noise = micro_batch.corrupted, micro_batch.noise
    labels = corrupted.labels_BT.flatten()
    count = int(micro_batch.supervised_count.get())
    index_M = true_indices(labels != IGNORE, padded_count(count, multiple, most or len(labels)))
    index_N = index_M[:count]
    length = corrupted.labels_BT.shape[1]
    row_N, position_BT = index_N // length, micro_batch.batch.position_BT
    causal_N = corrupted.causal_B[row_N]
    # Position of the predicted token: for next-token prediction, one column to the right of its logits.
    token_N = index_N + (torch.ones_like(causal_N) if predicts_next else causal_N)
    rate_N, slope_N = (
        of_rows[row_N] if of_tokens is None else of_tokens.flatten()[token_N]
        for of_rows, of_tokens in ((noise.rate_B, noise.rate_BT), (noise.slope_B, noise.slope_BT))
    )
    supervised = Supervised(
        label_N=labels[index_N],
        row_N=row_N,
        column_N=index_N % length,
        causal_N=causal_N,
        masked_N=corrupted.masked_BT.flatten()[token_N],
        rate_N=rate_N,
        realised_rate_N=corrupted.realised_rate_B[row_N],
        slope_N=slope_N,
        # Uniform masking has p = gamma, hence d log p / d gamma = 1 / gamma.
        hazard_N=1 / rate_N if corrupted.hazard_BT is None else corrupted.hazard_BT.flatten()[token_N],
        hazard_by_type_BV=corrupted.hazard_by_type_BV,
        input_N=corrupted.input_BT.flatten()[token_N],
        position_N=position_BT.flatten()[token_N],
        global_row_N=micro_batch.batch.row_B[row_N],
        carry_N=None if corrupted.carry_BT is None else corrupted.carry_BT.flatten()[token_N],
    )
    return supervised, index_M


def padded_count(count: int, multiple: int, most: int) -> int:
    """The next multiple of `multiple` from `count` on, but not more than `most`."""
    return min(-(-count // multiple) * multiple, most)


def true_indices(mask_X: Tensor, count: int) -> Tensor:
    """int64[count]: the indices of the true values of a flat boolean tensor, not more than `count`, and then 0.

    `mask_X.nonzero()` would synchronise with the device to learn the size of its result.
    """
    size, end = mask_X.numel(), max(mask_X.numel(), count)
    # True values write their index to their place in the result; all others write to one element past the end.
    place_X = torch.where(mask_X, mask_X.cumsum(0) - 1, end)
    index = torch.zeros(end + 1, dtype=torch.int64, device=mask_X.device)
    return index.scatter_(0, place_X, torch.arange(size, device=mask_X.device))[:count]


class StepMetrics:
    """Accumulates the training metrics of one step on the device, over its micro-batches."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._objective = recipe.components.objective
        self._group_names, self._bound_name = (
            self._objective.group_names,
            (recipe.bound_name if recipe.is_bound and recipe.uniform_epochs else ""),
        )
        self._terms_K = torch.zeros(len(self._group_names), dtype=torch.float64, device=device)
        self._counts = torch.zeros(9, dtype=torch.float64, device=device)

    def update(self, micro_batch: MicroBatch, output: LossOutput) -> None:
        """Add one micro-batch, without synchronising with the device."""
        causal_N = output.supervised.causal_N
        masked_N = ~causal_N
        maskable_BT = micro_batch.batch.maskable_BT & ~micro_batch.corrupted.causal_B.unsqueeze(1)
        self._terms_K += output.terms_K
        self._counts += torch.stack(
            [
                maskable_BT.sum().double(),
                micro_batch.corrupted.masked_BT.sum().double(),
                masked_N.sum().double(),
                (output.correct_N & masked_N).sum().double(),
                (output.nll_N * masked_N).sum().double(),
                causal_N.sum().double(),
                (output.correct_N & causal_N).sum().double(),
                (output.nll_N * causal_N).sum().double(),
                self._objective.constant(micro_batch.batch, micro_batch.corrupted),
            ]
        )

    def compute(self, denominators_K: Tensor, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Metrics of the global batch, equal on every rank.  Synchronises with the device.

        `loss`; `loss_<group>` if there are several groups; `bound`, in nats per maskable token, if the objective is a
        bound, no row is causal and epochs are uniform; `mask_rate`, `accuracy` and `masked_nll`; `causal_accuracy` and
        `causal_nll`.
        """
        terms_K = sum_over_ranks(self._terms_K)
        maskable, masked, masked_n, masked_correct, masked_nll, causal_n, causal_correct, causal_nll, constant = (
            sum_over_ranks(self._counts).tolist()
        )
        loss_K = terms_K / denominators_K
        metrics = {"loss": float(loss_K.sum())}
        if self._bound_name and not causal_n:
            metrics[self._bound_name] = (float(terms_K.sum()) + constant) / max(maskable, 1)
        if maskable:
            metrics["mask_rate"] = masked / maskable
        if masked_n:
            metrics |= {"accuracy": masked_correct / masked_n, "masked_nll": masked_nll / masked_n}
        if causal_n:
            metrics |= {"causal_accuracy": causal_correct / causal_n, "causal_nll": causal_nll / causal_n}
        if len(self._group_names) > 1:
            metrics |= {f"loss_{name}": loss for name, loss in zip(self._group_names, loss_K.tolist(), strict=True)}
        return metrics
