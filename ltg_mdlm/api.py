"""Everything a plugin may import: the hook markers, the data that passes between components, and their base classes.

Shapes are suffixes: B rows, T tokens per row, N supervised positions, V vocabulary, R rows of the global batch,
D width, K loss groups.  `gamma` is a row's mask rate; t runs from 0 (clean, gamma = 0) to 1 (all masked, gamma = 1).

Hooks register components once, at start-up; the training loop then calls only methods of the components.  Methods take
dataclasses, so that a new field never breaks a plugin.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import pluggy
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ltg_mdlm.config import RunConfig
from ltg_mdlm.errors import UserError
from ltg_mdlm.random import permutation, stream_key, uniform, uniform_open

__all__ = [
    "API_VERSION",
    "IGNORE",
    "Batch",
    "Component",
    "CorpusStatistics",
    "Corrupted",
    "Field",
    "MaskingStrategy",
    "Mode",
    "Noise",
    "NoiseSchedule",
    "Objective",
    "Observation",
    "Plugin",
    "PluginOptions",
    "RowMode",
    "RunConfig",
    "RunContext",
    "Step",
    "Supervised",
    "TimeConditioning",
    "UserError",
    "hookimpl",
    "hookspec",
    "labels_for",
    "realised_rate",
]

API_VERSION = 1
"""Rises only when an existing plugin would break; this version and the one before it are supported."""

IGNORE = -100
"""Label of a position without loss."""

PROJECT = "ltg_mdlm"
hookspec = pluggy.HookspecMarker(PROJECT)
"""Marks a hook of the host; plugins need `hookimpl` only."""
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method of a plugin as the implementation of the hook of its name."""


class PluginOptions(BaseModel):
    """Base of a plugin's options: the fields' types, defaults and descriptions become checks and help texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)


O = TypeVar("O", bound=PluginOptions)  # noqa: E741 - the conventional letter for options in this API


class Plugin(Generic[O]):
    """What an entry point of the group `ltg_mdlm` names.  Its hook methods connect options to components."""

    api_version: ClassVar[int] = 1
    """The API that the plugin is written for.  One that states none is taken to be written for the first."""
    options_model: ClassVar[type[PluginOptions]] = PluginOptions
    """Validates what is set under `plugins.<name>`."""

    def __init__(self, options: O) -> None:
        self.options = options


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a component may know of the run when it is built."""

    seed: int
    """The run's `seed`."""
    max_steps: int
    """Steps of the whole training; 0 where a trained model is opened."""
    seq_len: int
    """Tokens of the longest rows."""
    vocab_size: int
    """V, control tokens included."""
    hidden_size: int
    """D, the width of the model."""
    mask_id: int
    """Id of `<mask>`."""
    special_V: Tensor
    """bool[V]: control tokens such as `<s>`, `<pad>`, `<mask>`."""
    tokens_V: tuple[str, ...]
    """Text of every token type."""
    word_start_V: Tensor
    """bool[V]: token types that begin a whitespace-separated word."""
    num_positions: int
    """Tokens of the training split: the range of `Batch.position_BT`; 0 where a trained model is opened."""
    device: torch.device
    """Where batches are, and where components keep their tensors."""
    rank: int
    """Number of this process, from 0."""
    world_size: int
    """Number of processes."""
    sum_over_ranks: Callable[[Tensor], Tensor]
    """Sum of a tensor over all ranks; every rank must call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusStatistics:
    """Counts over the training split, special tokens left out."""

    token_count_V: Tensor
    """int64[V]"""
    num_tokens: int
    """Sum of the counts."""
    num_words: int
    """Words of the source text, separated by whitespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Packed rows: one micro-batch of this rank."""

    ids_BT: Tensor
    """int64"""
    document_BT: Tensor
    """int32: document within the row, -1 for padding"""
    position_BT: Tensor
    """int64: place of the token in the corpus, -1 for `<s>` and padding"""
    maskable_BT: Tensor
    """bool: neither padding nor a control token"""
    row_B: Tensor
    """int64: index of the row in the global batch"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimiser step: where training stands, and the source of its random numbers."""

    seed: int
    """The run's `seed`."""
    step: int
    """From 0."""
    progress: float
    """step / max_steps, in [0, 1)"""
    epoch: float
    """Passes over the training split before this step."""
    rows: int
    """Rows of the global batch."""
    first_row: int = 0
    """Rows of all steps before this one."""
    causal_R: Tensor | None = None
    """bool[R]: rows of the global batch that are trained causally; None when there are none."""

    def uniform(self, batch: Batch, stream: str, cols: int = 1) -> Tensor:
        """float32[B, cols] in (0, 1): a hash of (seed, step, stream, global row, column); see `ltg_mdlm.random`."""
        return uniform(stream_key(self.seed, self.step, stream), batch.row_B, cols)

    def permutation(self, stream: str, device: torch.device) -> Tensor:
        """int64[R]: the place of every row of the global batch in a random order of (seed, step, stream)."""
        return permutation(stream_key(self.seed, self.step, stream, "places"), self.rows, device)

    def stratified(self, batch: Batch, stream: str) -> Tensor:
        """float64[B] in (0, 1): one draw in each of n equal cells, n the masked rows of the *global* batch.

        A permutation of (seed, step, stream) deals the cells to the rows.  Causal rows, which have no mask rate, get an
        unstratified draw that nothing uses.
        """
        cell_R, count = self._cells(stream, batch.row_B.device)
        offset_B = uniform_open(stream_key(self.seed, self.step, stream, "offset"), batch.row_B)
        cell_B = cell_R[batch.row_B]
        return torch.where(cell_B < count, (cell_B + offset_B) / count, offset_B)

    def _cells(self, stream: str, device: torch.device) -> tuple[Tensor, Tensor | int]:
        """int64[R] cell of every row (causal rows are dealt the cells behind the last one), and the number of cells."""
        place_R = self.permutation(stream, device)
        if self.causal_R is None:
            return place_R, self.rows
        key_R = place_R + self.causal_R * self.rows
        cell_R = torch.empty_like(place_R)
        cell_R[torch.argsort(key_R)] = torch.arange(self.rows, device=device)
        return cell_R, self.rows - self.causal_R.sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise level of every row."""

    t_B: Tensor
    """float64 in (0, 1)"""
    rate_B: Tensor
    """float64: gamma, the share of maskable tokens to mask"""
    slope_B: Tensor
    """float64: |d gamma / dt|"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupted:
    """A micro-batch as the model sees it, and what it shall predict."""

    input_BT: Tensor
    """int64: what the model reads"""
    labels_BT: Tensor
    """int64: aligned with the logits; IGNORE where there is no loss"""
    masked_BT: Tensor
    """bool: chosen for prediction, whatever its input now shows (`<mask>`, a random token or itself)"""
    realised_rate_B: Tensor
    """float32: masked / maskable tokens of the row"""
    causal_B: Tensor
    """bool: rows that are trained causally, as they were given to `corrupt`"""
    hazard_BT: Tensor | None = None
    """d log p_i / d gamma of every token; None stands for 1 / rate_B, the hazard of uniform masking"""
    hazard_by_type_BV: Tensor | None = None
    """The hazard every token type would have; only for strategies whose probability depends on the type alone"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """The positions with a loss, gathered from a micro-batch."""

    label_N: Tensor
    """int64: the token to predict."""
    row_N: Tensor
    """Row within the micro-batch."""
    column_N: Tensor
    """Column of the logits; the predicted token stands there, or one further right for next-token prediction."""
    causal_N: Tensor
    """bool: in a causal row."""
    masked_N: Tensor
    """bool: the predicted token itself was chosen for masking."""
    rate_N: Tensor
    """float64: gamma of the row."""
    realised_rate_N: Tensor
    """float32: masked / maskable tokens of the row."""
    slope_N: Tensor
    """float64: |d gamma / dt| of the row."""
    hazard_N: Tensor
    """d log p / d gamma of the predicted token; 1 / rate where the strategy gives none."""
    hazard_by_type_BV: Tensor | None = None
    """As in `Corrupted`; indexed by `row_N`."""

    def __getitem__(self, part: slice) -> Supervised:
        """The positions of `part`; the per-row table stays whole."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Supervised(**{name: v[part] if name.endswith("_N") else v for name, v in values.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the model made of a micro-batch: feedback for adaptive strategies."""

    step: Step
    """The step it was part of."""
    batch: Batch
    """The clean rows."""
    supervised: Supervised
    """The positions the model was asked for."""
    correct_N: Tensor
    """bool: the label was the likeliest token"""
    nll_N: Tensor
    """float32: -log p of the label, in nats; not finite where training is not"""


class Component:
    """A part of the recipe.  All methods here are optional.

    State must be the same on every rank: reduce in `step_end`, with `RunContext.sum_over_ranks`, before using it.
    """

    def observe(self, observation: Observation) -> None:
        """Called after each training micro-batch; must not wait for the device."""

    def step_end(self, step: Step) -> None:
        """Called on every rank after the optimiser's step."""

    def metrics(self) -> Mapping[str, float | Tensor]:
        """Scalars to log as `<plugin>/<key>`; called on logging steps only."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        assert not state, f"{type(self).__name__} has state in the checkpoint but no load_state_dict"


Mode = Literal["masked", "causal"]
"""How a row is trained: some of its tokens are hidden, or it is read from left to right."""


class RowMode(Component, ABC):
    """Decides which rows are trained causally instead of being masked."""

    modes: frozenset[Mode] = frozenset({"masked", "causal"})
    """The modes that rows are trained in: what a trained model may be asked for."""

    @abstractmethod
    def causal(self, step: Step, device: torch.device) -> Tensor | None:
        """bool[R] over the global batch, or None for no causal rows.

        A function of the step alone: every rank must know the modes of all rows to stratify the masked ones.
        """


class NoiseSchedule(Component, ABC):
    """The distribution of mask rates, as an increasing map of t in (0, 1) to gamma in (0, 1]."""

    full_support: bool = True
    """Every mask rate in (0, 1) is drawn, often enough for training averages to see it; only then is p = 1 a bound."""

    @abstractmethod
    def rate(self, t: Tensor, progress: float) -> Tensor:
        """float64 gamma(t), increasing in t."""

    @abstractmethod
    def slope(self, t: Tensor, progress: float) -> Tensor:
        """float64 |d gamma / dt|, in a form that does not cancel at the ends."""

    def density(self, rate: Tensor, progress: float) -> Tensor | None:
        """float64 density of mask rates q(gamma) = 1 / slope, or None when it has no closed form."""
        return None

    def log_importance(self, rate: Tensor, power: float, progress: float) -> Tensor | None:
        """float64 log of q(gamma) E[slope^power | gamma]: what rows of that rate count for, weighted by slope^power.

        A schedule whose densities underflow, or whose slope is not 1 / q, overrides this.
        """
        density = self.density(rate, progress)
        return None if density is None else (1 - power) * density.log()

    def sample(self, batch: Batch, step: Step) -> Noise:
        """Draw t stratified over the masked rows of the global batch."""
        t_B = step.stratified(batch, "noise")
        return Noise(t_B=t_B, rate_B=self.rate(t_B, step.progress), slope_B=self.slope(t_B, step.progress))


class MaskingStrategy(Component, ABC):
    """Decides which tokens of a masked row are hidden, and how."""

    kind: str = "other"
    """"uniform": every maskable token with probability gamma; "by_type": the probability depends on the token type and
    gamma alone; "other": neither, so no likelihood bound is known."""
    keeps_rate: bool = True
    """The expected share of masked tokens in a row is its gamma."""
    predicts: Literal["same", "next"] = "same"
    """Masked tokens are predicted at their own position, or one position earlier (MNTP)."""
    mask_id: int
    """Id of `<mask>`, what hidden tokens show."""

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id

    @abstractmethod
    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        """float32[B, T]: the probability that a token is masked; values at unmaskable positions are not used."""

    def hazard(self, batch: Batch, noise: Noise, step: Step) -> tuple[Tensor | None, Tensor | None]:
        """(hazard_BT, hazard_by_type_BV) of `Corrupted`."""
        return None, None

    def corrupt(self, batch: Batch, causal_B: Tensor, noise: Noise, step: Step) -> Corrupted:
        """Mask every maskable token of the masked rows independently with `mask_probability`."""
        probability_BT = self.mask_probability(batch, noise, step)
        drawn_BT = step.uniform(batch, "mask", batch.ids_BT.shape[1]) < probability_BT
        masked_BT = drawn_BT & batch.maskable_BT & ~causal_B.unsqueeze(1)
        hazard_BT, hazard_by_type_BV = self.hazard(batch, noise, step)
        return Corrupted(
            input_BT=batch.ids_BT.masked_fill(masked_BT, self.mask_id),
            labels_BT=labels_for(batch, masked_BT, causal_B, self.predicts),
            masked_BT=masked_BT,
            realised_rate_B=realised_rate(batch, masked_BT),
            causal_B=causal_B,
            hazard_BT=hazard_BT,
            hazard_by_type_BV=hazard_by_type_BV,
        )


def realised_rate(batch: Batch, masked_BT: Tensor) -> Tensor:
    """float32[B]: masked / maskable tokens; 0 for a row without maskable tokens."""
    return masked_BT.sum(1) / batch.maskable_BT.sum(1).clamp(min=1)


def labels_for(batch: Batch, masked_BT: Tensor, causal_B: Tensor, predicts: Literal["same", "next"]) -> Tensor:
    """int64[B, T]: the original ids where there is a loss, aligned with the logits, IGNORE elsewhere.

    Causal rows predict every maskable token one position earlier; masked rows predict the masked tokens at their own
    position ("same") or one position earlier ("next").  A target never lies in another document.
    """
    target_BT = torch.where(causal_B.unsqueeze(1), batch.maskable_BT, masked_BT)
    own_BT = batch.ids_BT.masked_fill(~target_BT, IGNORE)
    within_BT = batch.document_BT[:, 1:] == batch.document_BT[:, :-1]
    next_BT = torch.full_like(own_BT, IGNORE)
    next_BT[:, :-1] = own_BT[:, 1:].masked_fill(~within_BT, IGNORE)
    if predicts == "next":
        return next_BT
    return torch.where(causal_B.unsqueeze(1), next_BT, own_BT)


class Objective(Component, ABC):
    """Weighs the cross-entropies: loss = sum over groups of (global sum / global denominator).

    Define either `weights` (fused with the vocabulary projection, the fast way) or, with `needs_logits`, `loss_terms`.
    """

    group_names: tuple[str, ...] = ("masked",)
    """Names of the K loss groups; with more than one, each is logged as `loss_<name>`."""
    needs_logits: bool = False
    """The objective defines `loss_terms`, which sees whole rows of logits, instead of `weights`."""

    def group(self, supervised: Supervised) -> Tensor:
        """int64[N]: the loss group of every position."""
        return torch.zeros_like(supervised.label_N)

    @abstractmethod
    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        """float32[K]: this micro-batch's share of what each group's sum is divided by."""

    def weights(self, supervised: Supervised, step: Step) -> tuple[Tensor, Tensor | None]:
        """float32[N] weight of the negative log-likelihood, and of logsumexp^2 (z-loss) or None."""
        raise NotImplementedError(f"{type(self).__name__} must define weights, or needs_logits and loss_terms")

    def loss_terms(self, logits_NV: Tensor, supervised: Supervised, step: Step) -> Tensor:
        """float32[K]: sums over the given positions; called on slices of them, whose results are added."""
        raise NotImplementedError(f"{type(self).__name__} sets needs_logits and must define loss_terms")

    def bound_for(self, strategy: MaskingStrategy, schedule: NoiseSchedule) -> bool:
        """Whether the expected sum of the terms is an upper bound of -log p(x) (the NELBO)."""
        return False


class TimeConditioning(Component, ABC):
    """What the model is told about the noise level of a row."""

    active: ClassVar[bool] = True
    """False: the model has no conditioning parameters at all."""

    @abstractmethod
    def value(self, corrupted: Corrupted, noise: Noise) -> Tensor | None:
        """float32[B]; 0 for causal rows.  None when inactive."""

    @abstractmethod
    def value_for_rate(self, rate_B: Tensor) -> Tensor | None:
        """float32[B]: the value that stands for a given mask rate, for evaluation.  None when inactive."""

    def embedding(self, cond_dim: int) -> nn.Module:
        """Maps float[B] to [B, cond_dim]; by default sinusoidal features and a two-layer MLP."""
        from ltg_mdlm.model.transformer import TimeEmbedding

        return TimeEmbedding(cond_dim)
