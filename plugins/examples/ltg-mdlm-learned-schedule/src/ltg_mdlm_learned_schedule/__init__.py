"""The plugin `learned_schedule`: a masking schedule for every token type, learned with the model.

At diffusion time t, a token of type v is masked with probability gamma^w(v), where gamma is the mask rate of the row
and w(v) a learned exponent: types with a large exponent are masked late and unmasked early.  Model and exponents
minimise the same bound (GenMD4, Shi et al. 2024, arXiv 2406.04329).

Shapes: B rows, T tokens per row, N supervised positions, V token types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ltg_mdlm.api import (
    Batch,
    CorpusStatistics,
    Corrupted,
    LogitsOf,
    MaskingStrategy,
    Noise,
    NoiseSchedule,
    Objective,
    Observation,
    Plugin,
    PluginOptions,
    RunContext,
    Step,
    Supervised,
    TimeConditioning,
    hookimpl,
)

POSITIONS = 512
"""Positions whose logits are computed together: a float32 value for every position and token type."""


class Exponents(nn.Module):
    """w(v) > 0 of every token type, initially 1.

    A common factor of all exponents only stretches time, and leaves the bound as it is.  The mean of log w over the
    tokens of the corpus is therefore kept at 0.
    """

    share_V: Tensor
    """float32[V]: share of every type among the tokens of the corpus"""

    def __init__(self, statistics: CorpusStatistics | None, vocab_size: int) -> None:
        super().__init__()
        self.log_exponent_V = nn.Parameter(torch.zeros(vocab_size))
        count_V = torch.ones(vocab_size) if statistics is None else statistics.token_count_V.float()
        self.register_buffer("share_V", count_V / count_V.sum(), persistent=False)

    def forward(self) -> Tensor:
        """float32[V]."""
        exponent_V: Tensor = (self.log_exponent_V - (self.share_V * self.log_exponent_V).sum()).exp()
        return exponent_V


def bound_terms(log_probability_NV: Tensor, supervised: Supervised, exponent_V: Tensor) -> Tensor:
    """float32[N]: |d gamma / dt| / gamma (w(x) (-log p(x)) + sum_v w(v) p(v) - w(x)), in nats.

    The rate at which a masked token is unmasked depends on its type, so a position that is still masked tells something
    about its type.  The last two terms are what the model's prediction costs for that reason; with equal exponents,
    they are 0.
    """
    label_N1 = supervised.label_N.unsqueeze(1)
    nll_N = -log_probability_NV.gather(1, label_N1).squeeze(1)
    own_N = exponent_V[supervised.label_N]
    compensator_N = (log_probability_NV.exp() * (exponent_V - own_N.unsqueeze(1))).sum(1)
    return (supervised.slope_N / supervised.rate_N).float() * (own_N * nll_N + compensator_N)


class LearnedMasking(MaskingStrategy):
    """Masks with probability gamma^w(v), in two independent views of every row, from which the exponents learn."""

    kind = "by_type"
    keeps_rate = False

    def __init__(self, ctx: RunContext) -> None:
        super().__init__(ctx.mask_id)
        self.exponents = Exponents(ctx.statistics, ctx.vocab_size)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"exponents": self.exponents}

    def log_probability(self, batch: Batch, noise: Noise) -> Tensor:
        """float32[B, T]: log of the probability that a token is masked, w(v) log gamma."""
        exponent_V: Tensor = self.exponents()
        return exponent_V[batch.ids_BT] * noise.rate_B.log().float().unsqueeze(1)

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        return self.log_probability(batch, noise).exp()

    def hazard(self, batch: Batch, noise: Noise, step: Step) -> tuple[Tensor, Tensor]:
        hazard_BV = self.exponents() / noise.rate_B.float().unsqueeze(1)
        return hazard_BV.gather(1, batch.ids_BT), hazard_BV

    def corrupt_views(self, batch: Batch, causal_B: Tensor, noise: Noise, step: Step) -> list[Corrupted]:
        if not step.training:
            return [self.corrupt(batch, causal_B, noise, step)]
        return [self.corrupt(batch, causal_B, noise, step.branched(view)) for view in ("first", "second")]

    def own_loss(
        self, observations: Sequence[Observation], corrupteds: Sequence[Corrupted], logits: LogitsOf
    ) -> Tensor:
        """float32[1]: its gradient is an unbiased estimate of the gradient of the bound, summed over views and rows.

        The bound depends on the exponents through its weights, and through the masks that are drawn.  The second part
        is estimated by REINFORCE: each view's bound, less that of the other view, times the gradient of the masks'
        log-probability.
        """
        exponent_V = self.exponents()
        first, second = (
            (self.bound(view, seen.supervised, exponent_V, corrupted, logits), self.log_likelihood(seen, corrupted))
            for view, (seen, corrupted) in enumerate(zip(observations, corrupteds, strict=True))
        )
        advantage_B = (first[0] - second[0]).detach()
        total_B = first[0] + second[0] + advantage_B * (first[1] - second[1])
        return total_B.sum().unsqueeze(0)

    def bound(
        self, view: int, supervised: Supervised, exponent_V: Tensor, corrupted: Corrupted, logits: LogitsOf
    ) -> Tensor:
        """float32[B]: the bound's terms of each row."""
        bound_B = torch.zeros_like(corrupted.realised_rate_B)
        for start in range(0, len(supervised.label_N), POSITIONS):
            part = slice(start, start + POSITIONS)
            term_N = bound_terms(logits(view, part).log_softmax(1), supervised[part], exponent_V)
            term_N = term_N.masked_fill(supervised.causal_N[part], 0)  # causal rows have no masks, and no mask rate
            bound_B = bound_B.index_add(0, supervised.row_N[part], term_N)
        return bound_B

    def log_likelihood(self, observation: Observation, corrupted: Corrupted) -> Tensor:
        """float32[B]: log-probability of the masks of each row."""
        assert observation.noise is not None
        log_p_BT = self.log_probability(observation.batch, observation.noise)
        log_q_BT = (-torch.expm1(log_p_BT)).clamp(min=torch.finfo(torch.float32).tiny).log()
        log_BT = torch.where(corrupted.masked_BT, log_p_BT, log_q_BT)
        return (log_BT * observation.batch.maskable_BT).sum(1)

    def metrics(self) -> Mapping[str, Tensor]:
        exponent_V = self.exponents().detach()
        return {"smallest_exponent": exponent_V.min(), "largest_exponent": exponent_V.max()}


class LearnedBound(Objective):
    """The negative ELBO for masking probabilities that depend on the token type, in nats per token."""

    needs_logits = True

    def __init__(self, exponents: Exponents) -> None:
        self.exponents = exponents

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        return batch.maskable_BT.sum().float().unsqueeze(0)

    def loss_terms(self, logits_NV: Tensor, supervised: Supervised, step: Step) -> Tensor:
        log_NV = logits_NV.log_softmax(1)
        terms_N = bound_terms(log_NV, supervised, self.exponents().detach())
        nll_N = -log_NV.gather(1, supervised.label_N.unsqueeze(1)).squeeze(1)
        return torch.where(supervised.causal_N, nll_N, terms_N).sum().unsqueeze(0)

    def bound_for(self, strategy: MaskingStrategy, schedule: NoiseSchedule) -> bool:
        return isinstance(strategy, LearnedMasking) and schedule.full_support


class Unconditioned(TimeConditioning):
    """No conditioning: the share of `<mask>` in the input tells the noise level."""

    active = False

    def value(self, corrupted: Corrupted, noise: Noise) -> None:
        return None

    def value_for_rate(self, rate_B: Tensor) -> None:
        return None


BIBTEX = r"""@misc{shi2024simplified,
  author = {Jiaxin Shi and Kehang Han and Zhe Wang and Arnaud Doucet and Michalis K. Titsias},
  title = {Simplified and Generalized Masked Diffusion for Discrete Data},
  year = {2024},
  eprint = {2406.04329},
  archiveprefix = {arXiv}
}"""


class LearnedSchedule(Plugin[PluginOptions]):
    """Masked diffusion whose masking schedule is learned for every token type (arXiv 2406.04329)."""

    api_version = 2
    bibtex = BIBTEX

    def strategy(self, ctx: RunContext) -> LearnedMasking:
        """The masking strategy, which the objective shares."""
        if not hasattr(self, "_strategy"):
            self._strategy = LearnedMasking(ctx)
        return self._strategy

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy:
        return self.strategy(ctx)

    @hookimpl
    def ltg_mdlm_objective(self, ctx: RunContext) -> Objective:
        return LearnedBound(self.strategy(ctx).exponents)

    @hookimpl
    def ltg_mdlm_time_conditioning(self) -> TimeConditioning:
        return Unconditioned()
