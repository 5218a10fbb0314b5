"""Base classes of plugins and of the components that fill the slots of the training recipe.

The hooks of a plugin create components once, at start-up.  The training loop then calls only methods of the components.
`core.batch` has the data that they exchange and the letters of the shapes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ltg_mdlm.core.batch import (
    Batch,
    Corrupted,
    Noise,
    Observation,
    Step,
    StepEnd,
    Supervised,
    labels_for,
    realised_rate,
)
from ltg_mdlm.core.errors import ResultError


class PluginOptions(BaseModel):
    """Base class of a plugin's options, a pydantic model.

    Types and constraints of the fields are checked when a run starts; defaults and descriptions appear in the help of
    `ltg-mdlm plugins show`.  Unknown options are errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slot_of_option: ClassVar[Mapping[str, str]] = {}
    """slots of options; a changed option is a warning if another plugin fills its slot"""

    def changed_options(self) -> set[str]:
        """Names of the options that do not have their default value."""
        fields = type(self).model_fields.items()
        return {name for name, field in fields if getattr(self, name) != field.get_default(call_default_factory=True)}


O = TypeVar("O", bound=PluginOptions)  # noqa: E741 - the conventional letter for options in this API


class Plugin(Generic[O]):
    """Base class of plugins.  An entry point of the group `ltg_mdlm` names the subclass.

    Its hook methods, marked with `hookimpl`, create components from `self.options`.
    """

    api_version: ClassVar[int] = 1
    """version of the plugin API that the plugin is written for"""
    options_model: ClassVar[type[PluginOptions]] = PluginOptions
    """model of the settings under `plugins.<name>`"""
    bibtex: ClassVar[str] = ""
    """BibTeX entries of the publications that the plugin implements, for `ltg-mdlm report --bibtex`"""

    def __init__(self, options: O) -> None:
        self.options = options


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Properties of the run that are available to a component when it is created."""

    seed: int
    """`seed` of the run"""
    max_steps: int
    """steps of the whole training; 0 when a trained model is opened"""
    seq_len: int
    """tokens of the longest rows"""
    vocab_size: int
    """V, including control tokens"""
    hidden_size: int
    """D, width of the hidden states"""
    mask_id: int
    """id of `<mask>`"""
    special_V: Tensor
    """bool[V]: control tokens such as `<s>`, `<pad>`, `<mask>`"""
    tokens_V: tuple[str, ...]
    """text of every token type"""
    word_start_V: Tensor
    """bool[V]: token types that begin a whitespace-separated word"""
    num_positions: int
    """tokens of the training split: the range of `Batch.position_BT`; 0 when a trained model is opened"""
    device: torch.device
    """device of the batches and of the components' tensors"""
    rank: int
    """index of this process, from 0"""
    world_size: int
    """number of processes"""
    sum_over_ranks: Callable[[Tensor], Tensor]
    """returns the sum of a tensor over all ranks; every rank must call it"""
    tokenizer_fingerprint: str = ""
    """hash of the tokenizer, by which a plugin recognises files that were made with it"""
    statistics: CorpusStatistics | None = None
    """counts over the training split; None when a trained model is opened"""
    corpus: CorpusView | None = None
    """the training split itself; None when a trained model is opened"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusStatistics:
    """Counts over the training split, without control tokens."""

    token_count_V: Tensor
    """int64[V], on the CPU: occurrences of every token type"""
    num_tokens: int
    """sum of the counts"""
    num_words: int
    """words of the source text, in the unit of the corpus (`data.words`)"""


class CorpusView(ABC):
    """The training split, for components that need more than counts.  Control tokens are not part of it."""

    tokens: NDArray[np.integer[Any]]
    """ids of the tokens in the order of the corpus, the range of `Batch.position_BT`; mapped from disk, not loaded.
    uint16 for small vocabularies: convert a part to int64 before arithmetic, which would wrap."""
    offset_D1: NDArray[np.int64]
    """the tokens of document d are tokens[offset[d] : offset[d + 1]]"""
    source_D: NDArray[np.int16] | None
    """index of every document's source in `source_names`; None if the corpus does not say"""
    source_names: tuple[str, ...]
    """names of the sources, such as the names of the files; empty if unknown"""

    @abstractmethod
    def ngram_counts(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(ids[K, n], count[K]): the different n-grams within documents, sorted by their ids, and their occurrences.

        Computed once for a corpus and n, and then read from a file beside the corpus.
        """


LogitsOf = Callable[[int, slice], Tensor]
"""`logits(view, part)`: float32[n, V], the detached logits of a slice of the supervised positions of a view."""


class Component:
    """Base class of everything that a plugin adds to the training recipe.  All methods are optional.

    The state of a component must be equal on all ranks: an adaptive component accumulates locally in `observe`, and
    reduces with `RunContext.sum_over_ranks` in `step_end` before it uses the result.
    """

    def modules(self) -> Mapping[str, nn.Module]:
        """Learned parts of the component, by name; called once, before the optimiser is built.

        Their initial weights are a function of (seed, slot, name).  The trainer averages and checkpoints them with the
        model, and refuses their updates together with the model's.  Their gradients are clipped by their own norm, and
        they have no weight decay.  `corrupt` runs without gradients and with the modules in evaluation mode.
        """
        return {}

    def own_loss(
        self, observations: Sequence[Observation], corrupteds: Sequence[Corrupted], logits: LogitsOf
    ) -> Tensor | None:
        """A loss of the component's own modules: float32[K], divided group by group like the objective's terms, or
        float32[1], divided by the sum of the objective's denominators.

        The lists have one item for every view of the same rows.  `logits(view, part)` computes the logits of a slice of
        the view's supervised positions again, float32[n, V] without gradient.  The result is differentiable in the
        component's own modules only.  None: the component has no loss of its own.
        """
        return None

    def observe(self, observation: Observation) -> None:
        """Called after each training micro-batch; must not synchronise with the device."""

    def step_end(self, step: StepEnd) -> None:
        """Called on every rank after the optimiser update, or after its refusal."""

    def metrics(self) -> Mapping[str, float | Tensor]:
        """Scalars to log as `<plugin>/<key>`; called in logging steps only."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to save in checkpoints, equal on all ranks."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors that `state_dict` returned; called when a run resumes."""
        assert not state, f"{type(self).__name__} has state in the checkpoint but no load_state_dict"


Mode = Literal["masked", "causal"]
"""How a row is trained: with some of its tokens masked, or from left to right."""


class RowMode(Component, ABC):
    """Selects the rows that are trained causally instead of masked."""

    modes: frozenset[Mode] = frozenset({"masked", "causal"})
    """all modes that occur during training; scoring and sampling use only these"""

    @abstractmethod
    def causal(self, step: Step, device: torch.device) -> Tensor | None:
        """bool[R] on `device`: the causal rows of the global batch; None if there are none.

        Must depend only on the step: every rank needs the modes of all rows, because t is stratified over masked rows.
        """


class NoiseSchedule(Component, ABC):
    """The distribution of mask rates, given as an increasing map from t in (0, 1) to gamma in (0, 1].

    With t uniform, gamma has the density q(gamma) = 1 / |d gamma / dt|.  `progress` is the progress of training, in
    [0, 1], for schedules that change during training.
    """

    full_support: bool = True
    """True if no mask rate in (0, 1) is too rare to be seen in training; only then does power 1 give a bound"""

    @abstractmethod
    def rate(self, t: Tensor, progress: float) -> Tensor:
        """float64, like `t`: gamma(t), increasing in t."""

    @abstractmethod
    def slope(self, t: Tensor, progress: float) -> Tensor:
        """float64, like `t`: |d gamma / dt|, by a formula without cancellation near t = 0 and t = 1.

        It is a factor of the loss.  Where all rows have the same mask rate, there is no density: return 1, not 0.
        """

    def density(self, rate: Tensor, progress: float) -> Tensor | None:
        """float64, like `rate`: the density q(gamma) = 1 / slope; None if it has no closed form."""
        return None

    def log_importance(self, rate: Tensor, power: float, progress: float) -> Tensor | None:
        """float64, like `rate`: log of q(gamma) E[slope^power | gamma], the total weight of rows with that mask rate.

        `power` is the exponent of the slope in the row weights.  None if `density` has no closed form.  Override this
        if the density underflows or the slope is not 1 / q.
        """
        density = self.density(rate, progress)
        return None if density is None else (1 - power) * density.log()

    def sample(self, batch: Batch, step: Step) -> Noise:
        """Draw t, stratified over the masked rows of the global batch, and map it to mask rates."""
        t_B = step.stratified(batch, "noise")
        return Noise(t_B=t_B, rate_B=self.rate(t_B, step.progress), slope_B=self.slope(t_B, step.progress))


class MaskingStrategy(Component):
    """Selects the tokens of a masked row that are masked, and corrupts them."""

    kind: str = "other"
    """"uniform": every maskable token is masked with probability gamma; "by_type": the probability depends on gamma and
    the token type only; "other": neither, so that a likelihood bound needs `transition`"""
    keeps_rate: bool = True
    """True if the expected share of masked tokens in every row is its gamma"""
    predicts: Literal["same", "next"] = "same"
    """"same": masked tokens are predicted at their own position; "next": one position earlier (MNTP)"""
    reads_token_rates: bool = False
    """True if the strategy uses `Noise.rate_BT`; the host refuses schedules with rates per token otherwise"""
    block_length: int = 0
    """tokens of a block that is predicted from itself and the blocks before it (block diffusion); 0: the whole row.
    Blocks start anew with every document.  Scoring, validation, sampling and exported models use it"""
    context_copies: int = 0
    """number of further copies of the row in `Corrupted.context_BS`; the host plans micro-batches with it, and
    refuses an active time conditioning before the first step"""
    mask_id: int
    """id of `<mask>`, which replaces masked tokens"""

    def __init__(self, mask_id: int) -> None:
        ways = ("mask_probability", "choose", "corrupt", "corrupt_views")
        if all(getattr(type(self), name) is getattr(MaskingStrategy, name) for name in ways):
            raise TypeError(f"{type(self).__name__} must define one of {', '.join(ways)}")
        self.mask_id = mask_id

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        """float32[B, T] in [0, 1]: the probability that a token is masked; ignored where `maskable_BT` is False."""
        raise NotImplementedError(f"{type(self).__name__} states no mask_probability")

    def choose(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        """bool[B, T]: the tokens to predict; ignored in causal rows and where `maskable_BT` is False.

        By default every token is drawn independently, with `mask_probability`.  Override this for strategies whose
        draws depend on each other, such as spans, or whole words, or a fixed number of tokens.
        """
        probability_BT = self.mask_probability(batch, noise, step)
        if not (isinstance(probability_BT, Tensor) and probability_BT.shape == batch.ids_BT.shape):
            raise ResultError(
                f"mask_probability returned {described(probability_BT)}, not float{list(batch.ids_BT.shape)}"
            )
        return step.uniform(batch, "mask", batch.ids_BT.shape[1]) < probability_BT

    def show(self, batch: Batch, masked_BT: Tensor, noise: Noise, step: Step) -> Tensor:
        """int64[B, T]: the input of the model; by default `<mask>` in place of the chosen tokens.

        Override this to show some of them another way, such as random tokens and the tokens themselves (80/10/10).
        """
        return batch.ids_BT.masked_fill(masked_BT, self.mask_id)

    def hazard(self, batch: Batch, noise: Noise, step: Step) -> tuple[Tensor | None, Tensor | None]:
        """(hazard_BT, hazard_by_type_BV) of `Corrupted`; None means 1 / gamma and no hazards by type."""
        return None, None

    def transition(self, ids_BT: Tensor, noise: Noise) -> Tensor | None:
        """float64[B, T, V]: the probability of every token to be shown in place of each maskable token of `ids_BT`.

        Tokens are corrupted independently.  Strategies of kind "other" define this if their objective claims a bound:
        the kit then checks the claim by enumeration, and otherwise training logs it as `unverified_bound`.
        """
        return None

    def corrupt(self, batch: Batch, causal_B: Tensor, noise: Noise, step: Step) -> Corrupted:
        """Mask the tokens of the masked rows that `choose` selects, and replace them by what `show` shows.

        Override this only if the two are not sufficient, for example for a visibility or for copies of the row.
        """
        return self.corrupt_chosen(batch, self.choose(batch, noise, step), causal_B, noise, step)

    def corrupt_chosen(self, batch: Batch, chosen_BT: Tensor, causal_B: Tensor, noise: Noise, step: Step) -> Corrupted:
        """The corruption that predicts the tokens in bool[B, T] `chosen_BT`: input, labels and hazards."""
        if not (
            isinstance(chosen_BT, Tensor) and chosen_BT.dtype == torch.bool and chosen_BT.shape == batch.ids_BT.shape
        ):
            raise ResultError(f"choose returned {described(chosen_BT)}, not bool{list(batch.ids_BT.shape)}")
        masked_BT = chosen_BT & batch.maskable_BT & ~causal_B.unsqueeze(1)
        hazard_BT, hazard_by_type_BV = self.hazard(batch, noise, step)
        return Corrupted(
            input_BT=self.show(batch, masked_BT, noise, step),
            labels_BT=labels_for(batch, masked_BT, causal_B, self.predicts),
            masked_BT=masked_BT,
            realised_rate_B=realised_rate(batch, masked_BT),
            causal_B=causal_B,
            hazard_BT=hazard_BT,
            hazard_by_type_BV=hazard_by_type_BV,
        )

    def corrupt_views(self, batch: Batch, causal_B: Tensor, noise: Noise, step: Step) -> Sequence[Corrupted]:
        """One or more corruptions of the same rows, each a micro-batch of its own; by default one, that of `corrupt`.

        The loss is the sum over the views, with denominators that are summed over them too.  `step.branched` gives a
        view random numbers of its own.
        """
        return [self.corrupt(batch, causal_B, noise, step)]


class Objective(Component, ABC):
    """The loss: sum over K groups of (global sum of weighted terms / global denominator).

    Define `weights` if the terms are weighted cross-entropies; they are fused with the vocabulary projection, which is
    faster.  Otherwise set `needs_logits` and define `loss_terms`.
    """

    group_names: tuple[str, ...] = ("masked",)
    """names of the K loss groups; with more than one, each is logged as `loss_<name>`"""
    needs_logits: bool = False
    """True if the objective defines `loss_terms` instead of `weights`"""

    def group(self, supervised: Supervised) -> Tensor:
        """int64[N]: the loss group of every position."""
        return torch.zeros_like(supervised.label_N)

    @abstractmethod
    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        """float32[K]: the contribution of this micro-batch to the denominator of each group."""

    def weights(self, supervised: Supervised, step: Step) -> tuple[Tensor, Tensor | None]:
        """(float32[N], float32[N] or None): weights of the negative log-likelihood and of logsumexp^2 (z-loss)."""
        raise NotImplementedError(f"{type(self).__name__} must define weights, or needs_logits and loss_terms")

    def loss_terms(self, logits_NV: Tensor, supervised: Supervised, step: Step) -> Tensor:
        """float32[K]: sums over the given positions; called for slices of the positions, and the results are added."""
        raise NotImplementedError(f"{type(self).__name__} sets needs_logits and must define loss_terms")

    def constant(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        """float64 scalar: nats of this view that depend on no weight, such as the end term of a diffusion bound.

        Summed over the rows, like the terms; added to logged bounds only.
        """
        return torch.zeros((), dtype=torch.float64, device=batch.ids_BT.device)

    def bound_for(self, strategy: MaskingStrategy, schedule: NoiseSchedule) -> bool:
        """Whether the expected sum of the terms is an upper bound of -log p(x), in nats (the NELBO)."""
        return False


class TimeConditioning(Component, ABC):
    """Conditioning of the model on the noise level of a row."""

    active: ClassVar[bool] = True
    """False: the model has no conditioning parameters"""

    @abstractmethod
    def value(self, corrupted: Corrupted, noise: Noise) -> Tensor | None:
        """float32[B]: the conditioning value of every row, 0 for causal rows; None if not active."""

    @abstractmethod
    def value_for_rate(self, rate_B: Tensor) -> Tensor | None:
        """float32[B]: the conditioning value for a given mask rate, for evaluation; None if not active."""

    def embedding(self, cond_dim: int) -> nn.Module:
        """A module that maps float[B] to [B, cond_dim]; by default sinusoidal features and a two-layer MLP."""
        from ltg_mdlm.model.transformer import TimeEmbedding

        return TimeEmbedding(cond_dim)


def described(value: object) -> str:
    """Element type and shape of a tensor, such as float32[2, 8]; the type's name of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
