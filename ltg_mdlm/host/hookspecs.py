"""The hooks of the host.  A hook is called at start-up, and returns components; it does no work of a step.

A plugin implements the hooks that it needs as methods marked with `ltg_mdlm.api.hookimpl`.  A hook may take any subset
of the arguments.  A slot hook may return None to leave the slot to another plugin, or to the default `uniform_mdlm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import pluggy
from torch import Tensor

from ltg_mdlm.core.components import (
    Component,
    CorpusStatistics,
    MaskingStrategy,
    NoiseSchedule,
    Objective,
    RowMode,
    RunContext,
    TimeConditioning,
)
from ltg_mdlm.core.config import OptimizerConfig, RunConfig
from ltg_mdlm.core.optimizer import Optimizer, ParameterGroup
from ltg_mdlm.core.row_order import RowOrder

API_VERSION = 2
"""Increases if existing plugins would break, or if so much is added that plugins need a way to require it.

This version and the one before it are supported.
"""

PROJECT = "ltg_mdlm"
"""The entry-point group of plugins, and the prefix of the hooks."""

hookspec = pluggy.HookspecMarker(PROJECT)
"""Marks a hook of the host.  Plugins need only `hookimpl`."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method of a plugin as an implementation of the hook of the same name."""


@hookspec
def ltg_mdlm_check_config(config: RunConfig) -> Iterable[str] | None:
    """Check the settings of the run.  Return warnings, or raise UserError for settings that cannot work.

    >>> from ltg_mdlm.api import Plugin, UserError, hookimpl
    >>> class ShortRowsOnly(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_check_config(self, config):
    ...         if config.training.seq_len > 128:
    ...             raise UserError("short_rows was only tested up to 128 tokens per row")
    """


@hookspec
def ltg_mdlm_corpus_statistics(stats: CorpusStatistics, ctx: RunContext) -> None:
    """Receive the token counts of the training corpus, before the slots are filled.

    >>> from ltg_mdlm.api import Plugin, hookimpl
    >>> class Counting(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_corpus_statistics(self, stats):
    ...         self.share_V = stats.token_count_V / stats.num_tokens
    """


@hookspec
def ltg_mdlm_row_mode(ctx: RunContext) -> RowMode | None:
    """Return the component that selects the causal rows of the global batch.

    >>> import torch
    >>> from ltg_mdlm.api import Plugin, RowMode, hookimpl
    >>> class EveryOther(RowMode):
    ...     def causal(self, step, device):
    ...         return torch.arange(step.rows, device=device) % 2 == 1
    >>> class HalfCausal(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_row_mode(self):
    ...         return EveryOther()
    """


@hookspec
def ltg_mdlm_noise_schedule(ctx: RunContext) -> NoiseSchedule | None:
    """Return the component that defines the distribution of mask rates.

    >>> import torch
    >>> from ltg_mdlm.api import NoiseSchedule, Plugin, hookimpl
    >>> class Quadratic(NoiseSchedule):
    ...     def rate(self, t, progress):
    ...         return t**2
    ...     def slope(self, t, progress):
    ...         return 2 * t
    >>> class QuadraticSchedule(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_noise_schedule(self):
    ...         return Quadratic()
    """


@hookspec
def ltg_mdlm_masking(ctx: RunContext) -> MaskingStrategy | None:
    """Return the component that selects and masks tokens.

    >>> from ltg_mdlm.api import MaskingStrategy, Plugin, hookimpl
    >>> class WordStarts(MaskingStrategy):
    ...     keeps_rate = False
    ...     def __init__(self, ctx):
    ...         super().__init__(ctx.mask_id)
    ...         self.start_V = ctx.word_start_V
    ...     def mask_probability(self, batch, noise, step):
    ...         return self.start_V[batch.ids_BT] * noise.rate_B.float().unsqueeze(1)
    >>> class MaskWordStarts(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_masking(self, ctx):
    ...         return WordStarts(ctx)
    """


@hookspec
def ltg_mdlm_objective(ctx: RunContext) -> Objective | None:
    """Return the component that defines the loss: weights of the cross-entropies, and denominators of their sums.

    >>> import torch
    >>> from ltg_mdlm.api import Objective, Plugin, hookimpl
    >>> class MeanOverMasked(Objective):
    ...     def denominators(self, batch, corrupted):
    ...         return corrupted.masked_BT.sum().float().unsqueeze(0)
    ...     def weights(self, supervised, step):
    ...         return torch.ones_like(supervised.realised_rate_N), None
    >>> class PlainMLM(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_objective(self):
    ...         return MeanOverMasked()
    """


@hookspec
def ltg_mdlm_time_conditioning(ctx: RunContext) -> TimeConditioning | None:
    """Return the component that conditions the model on the noise level of a row.

    Called for training.  Called again, without corpus statistics, when a trained model is opened.

    >>> from ltg_mdlm.api import Plugin, TimeConditioning, hookimpl
    >>> class Time(TimeConditioning):
    ...     def value(self, corrupted, noise):
    ...         return self.value_for_rate(noise.rate_B) * ~corrupted.causal_B
    ...     def value_for_rate(self, rate_B):
    ...         return rate_B.float()
    >>> class ConditionOnTime(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_time_conditioning(self):
    ...         return Time()
    """


@hookspec
def ltg_mdlm_row_order(ctx: RunContext) -> RowOrder | None:
    """Return the component that chooses the rows of every epoch and their order.  The slot may stay empty.

    >>> import numpy as np
    >>> from ltg_mdlm.api import Plugin, RowOrder, hookimpl
    >>> class ShortWordsFirst(RowOrder):
    ...     def epoch(self, stage, number, rows, key):
    ...         tokens_per_word_R = rows.sum_by_row(rows.length_P) / rows.sum_by_row(rows.words_P).clip(min=1)
    ...         return np.argsort(tokens_per_word_R, kind="stable")
    >>> class FromShortToLongWords(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_row_order(self):
    ...         return ShortWordsFirst()
    """


@hookspec
def ltg_mdlm_observers(ctx: RunContext) -> Iterable[Component] | None:
    """Return components that fill no slot: they observe every step and may log.  All observers of all plugins are used.

    >>> import torch
    >>> from ltg_mdlm.api import Component, Plugin, hookimpl
    >>> class Errors(Component):
    ...     def __init__(self, ctx):
    ...         self.sum_over_ranks = ctx.sum_over_ranks
    ...         self.mine_2 = torch.zeros(2, dtype=torch.int64, device=ctx.device)  # predictions, wrong ones
    ...         self.step_2 = torch.zeros_like(self.mine_2)
    ...     def observe(self, observation):  # of one micro-batch
    ...         self.mine_2[:1] += observation.correct_N.numel()
    ...         self.mine_2[1:] += (~observation.correct_N).sum()
    ...     def step_end(self, step):
    ...         self.step_2 = self.sum_over_ranks(self.mine_2)
    ...         self.mine_2 = torch.zeros_like(self.mine_2)
    ...     def metrics(self):
    ...         return {"error_rate": self.step_2[1] / self.step_2[0]}
    >>> class LogErrors(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_observers(self, ctx):
    ...         return [Errors(ctx)]
    """


@hookspec
def ltg_mdlm_optimizer(
    groups: Sequence[ParameterGroup], settings: OptimizerConfig, ctx: RunContext
) -> Optimizer | None:
    """Return the optimiser of the run.  Called for training, and only if `optimizer.name` is the name of the plugin.

    >>> import torch
    >>> from ltg_mdlm.api import Optimizer, Plugin, hookimpl
    >>> class SignMomentum(Optimizer):
    ...     def initial_state(self, parameter):
    ...         return {"momentum": torch.zeros_like(parameter.value)}
    ...     def new_state(self, parameter, gradient):
    ...         return {"momentum": 0.9 * parameter.state["momentum"] + 0.1 * gradient}
    ...     def update(self, parameter, gradient, state, lr):
    ...         return -lr * (state["momentum"].sign() + parameter.weight_decay * parameter.value)
    >>> class Signum(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_optimizer(self, groups, settings):
    ...         return SignMomentum(groups, max_norm=settings.clip)
    """


@hookspec
def ltg_mdlm_unmasking_orders() -> Mapping[str, Callable[[Tensor], Tensor]] | None:
    """Return orders of unmasking by name, for `ltg-mdlm generate MODEL --plugin NAME --sampler ORDER`.

    An order takes the logits of N masked positions, float32[N, V] with -inf for special tokens, and returns float[N],
    the certainty of each position: the most certain ones are unmasked first.  It looks at every position on its own,
    and does not change the logits, from which the tokens are drawn afterwards.

    >>> from ltg_mdlm.api import Plugin, hookimpl
    >>> def margin(logits_NV):
    ...     first_N, second_N = logits_NV.softmax(1).topk(2).values.unbind(1)
    ...     return first_N - second_N
    >>> class LargestMarginFirst(Plugin):
    ...     @hookimpl
    ...     def ltg_mdlm_unmasking_orders(self):
    ...         return {"margin": margin}
    """
