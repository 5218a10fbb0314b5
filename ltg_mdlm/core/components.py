"""Everything a plugin may import: the hook markers, the data that passes between components, and their base classes.

Shapes are suffixes: B rows, T tokens per row, N supervised positions, V vocabulary, R rows of the global batch,
D width, K loss groups.  `gamma` is a row's mask rate; t runs from 0 (clean, gamma = 0) to 1 (all masked, gamma = 1).

Hooks register components once, at start-up; the training loop then calls only methods of the components.  Methods take
dataclasses, so that a new field never breaks a plugin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ltg_mdlm.core.batch import (
    Batch,
    Corrupted,
    Noise,
    Observation,
    Step,
    Supervised,
    labels_for,
    realised_rate,
)


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
