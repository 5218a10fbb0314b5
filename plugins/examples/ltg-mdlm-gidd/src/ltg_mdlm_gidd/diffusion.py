"""The diffusion process: mask and uniform noise, its bound, and the components that train with it.

At noise level s, a token x becomes z with the probability

    q(z | x) = ((1 - s) [z = x] + s [z = mask] + c u(z)) / (1 + c),      c = b (s (1 - s))^(e / 2)

where u is uniform over the ordinary token types.  s runs over the mask rates of the noise schedule.

Shapes: B rows, T tokens per row, N supervised positions, V token types.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltg_mdlm.api import (
    Batch,
    Corrupted,
    MaskingStrategy,
    Noise,
    NoiseSchedule,
    Objective,
    RunContext,
    Step,
    Supervised,
    TimeConditioning,
)


@dataclass(frozen=True, kw_only=True)
class Process:
    """q(z | x) at every noise level."""

    uniform_share: float
    """share of random tokens at s = 1/2"""
    exponent: float
    """e, between 0 and 2: a small one keeps random tokens near s = 0 and s = 1"""
    last: float
    """largest noise level; at 1 every token is a mask"""
    noise_V: Tensor
    """float32[V]: u"""
    mask_id: int

    def random(self, s: Tensor) -> Tensor:
        """c, like `s`."""
        b = 2**self.exponent * self.uniform_share / (1 - self.uniform_share)
        return b * (s * (1 - s)) ** (self.exponent / 2)

    def noise(self, s_N: Tensor) -> Tensor:
        """float32[N, V]: what q(z | x) is without its first term."""
        c_N = self.random(s_N)
        noise_NV = (c_N / (1 + c_N)).float().unsqueeze(1) * self.noise_V
        noise_NV[:, self.mask_id] += (s_N / (1 + c_N)).float()
        return noise_NV

    def kept(self, s: Tensor) -> Tensor:
        """float32, like `s`: (1 - s) / (1 + c), the factor of [z = x]."""
        return ((1 - s) / (1 + self.random(s))).float()

    def rate(self, z_N: Tensor, s_N: Tensor) -> Tensor:
        """float32[N]: the rate per unit of s at which other tokens become z, d noise/ds - noise d log kept/ds."""
        c_N = self.random(s_N)
        growth_N = self.exponent / 2 / s_N + (1 - self.exponent / 2) / (1 - s_N)
        to_mask_N, to_random_N = 1 / (1 - s_N), c_N * growth_N * self.noise_V[z_N]
        return (torch.where(z_N == self.mask_id, to_mask_N, to_random_N) / (1 + c_N)).float()

    def bound_terms(self, probability_NV: Tensor, label_N: Tensor, z_N: Tensor, s_N: Tensor) -> Tensor:
        """float32[N]: nats per unit of s of the negative ELBO, rate(z) / q(z | x) (KL + IS).

        With p = q(. | model) and q = q(. | x), KL is sum q log(q / p), and IS is q/p - 1 - log(q/p) at z.  Both are of
        second order in p - q, which is computed without cancellation as kept (model - [x]).
        """
        s_N = s_N.clamp(1e-9, self.last)
        dtype = probability_NV.dtype
        q_NV, kept_N1 = self.noise(s_N).to(dtype), self.kept(s_N).to(dtype).unsqueeze(1)
        difference_NV = kept_N1 * probability_NV
        column_N1 = label_N.unsqueeze(1)
        q_NV = q_NV.scatter_add(1, column_N1, kept_N1)
        difference_NV = difference_NV.scatter_add(1, column_N1, -kept_N1)
        # Control tokens have q = 0 and no logarithm; their part of the sum is p - q, and the sum of p - q is 0.
        has_q_NV = q_NV > 0
        ratio_NV = difference_NV / torch.where(has_q_NV, q_NV, 1.0)
        log_NV = torch.log1p(torch.where(has_q_NV, ratio_NV, 0.0).clamp(min=-1 + 1e-7))
        kl_N = (difference_NV - q_NV * log_NV).sum(1)
        z_N1 = z_N.unsqueeze(1)
        ratio_N, log_N = ratio_NV.gather(1, z_N1).squeeze(1), log_NV.gather(1, z_N1).squeeze(1)
        is_N = log_N - ratio_N / (1 + ratio_N).clamp(min=1e-7)
        return self.rate(z_N, s_N) / q_NV.gather(1, z_N1).squeeze(1) * (kl_N + is_N)

    def end(self, prior_V: Tensor) -> Tensor:
        """float64[V]: KL(q(. | x) || prior) at the largest noise level, for a clean token of every type.

        The prior is q with the token frequencies `prior_V` in place of the token.
        """
        s = torch.full((1,), self.last, dtype=torch.float64, device=self.noise_V.device)
        noise_V, kept = self.noise(s)[0].double(), self.kept(s).double()
        p_V = (noise_V + kept * prior_V).clamp(min=1e-300)  # 0 for control tokens, which never occur
        others_V = torch.xlogy(noise_V, noise_V / p_V)
        own_V = torch.xlogy(noise_V + kept, (noise_V + kept) / p_V)
        return others_V.sum() - others_V + own_V


class Levels(NoiseSchedule):
    """Noise levels uniform between 0 and the largest one."""

    def __init__(self, last: float) -> None:
        self.last = last

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return self.last * t

    def slope(self, t: Tensor, progress: float) -> Tensor:
        return torch.full_like(t, self.last)

    def density(self, rate: Tensor, progress: float) -> Tensor:
        return torch.full_like(rate, 1 / self.last)


class Interpolating(MaskingStrategy):
    """Shows masks, random tokens and the tokens themselves, and predicts all of them."""

    keeps_rate = False

    def __init__(self, ctx: RunContext, process: Process) -> None:
        super().__init__(ctx.mask_id)
        self.process = process
        self.ordinary = (~ctx.special_V).nonzero().flatten()

    def choose(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        return batch.maskable_BT

    def show(self, batch: Batch, masked_BT: Tensor, noise: Noise, step: Step) -> Tensor:
        columns = batch.ids_BT.shape[1]
        draw_BT = step.uniform(batch, "noise", columns)
        random_BT = self.ordinary[step.integers(batch, "random", columns, len(self.ordinary))]
        c_B1 = self.process.random(noise.rate_B).unsqueeze(1)
        to_mask_B1, to_random_B1 = noise.rate_B.unsqueeze(1) / (1 + c_B1), c_B1 / (1 + c_B1)
        shown_BT = torch.where(draw_BT < to_mask_B1 + to_random_B1, random_BT, batch.ids_BT)
        shown_BT = shown_BT.masked_fill(draw_BT < to_mask_B1, self.mask_id)
        return torch.where(masked_BT, shown_BT, batch.ids_BT)

    def transition(self, ids_BT: Tensor, noise: Noise) -> Tensor:
        noise_BV, kept_B = self.process.noise(noise.rate_B), self.process.kept(noise.rate_B)
        q_BTV = noise_BV.unsqueeze(1).expand(-1, ids_BT.shape[1], -1).double()
        kept_BT1 = kept_B.double()[:, None, None].expand(*ids_BT.shape, 1)
        return q_BTV.scatter_add(2, ids_BT.unsqueeze(2), kept_BT1)


class InterpolatingBound(Objective):
    """The negative ELBO of the process, in nats per token."""

    needs_logits = True

    def __init__(self, process: Process, end_V: Tensor) -> None:
        self.process, self.end_V = process, end_V

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        return batch.maskable_BT.sum().float().unsqueeze(0)

    def loss_terms(self, logits_NV: Tensor, supervised: Supervised, step: Step) -> Tensor:
        terms_N = self.process.bound_terms(
            logits_NV.softmax(1), supervised.label_N, supervised.input_N, supervised.rate_N
        )
        nll_N = -logits_NV.log_softmax(1).gather(1, supervised.label_N.unsqueeze(1)).squeeze(1)
        # Causal rows are not noised.
        return torch.where(supervised.causal_N, nll_N, supervised.slope_N.float() * terms_N).sum().unsqueeze(0)

    def constant(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        return (self.end_V[batch.ids_BT] * batch.maskable_BT).sum()

    def bound_for(self, strategy: MaskingStrategy, schedule: NoiseSchedule) -> bool:
        return isinstance(strategy, Interpolating) and isinstance(schedule, Levels)


class Unconditioned(TimeConditioning):
    """No conditioning: the input tells the noise level."""

    active = False

    def value(self, corrupted: Corrupted, noise: Noise) -> None:
        return None

    def value_for_rate(self, rate_B: Tensor) -> None:
        return None
