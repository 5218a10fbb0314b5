"""Effect of a noise schedule and a derivative power on the loss: effective weights and second moments.

A row at mask rate gamma has the weight |d gamma / dt|^p / gamma, and its loss is about this weight times the
cross-entropy of its k masked tokens. In the average over rows, mask rate gamma has the effective weight
q(gamma)^(1-p) / gamma with the density q of mask rates: the schedule cancels at p = 1, and has its full effect at
p = 0. The variance of the average depends on the second moment of weight times k, which is extremely large for Gaussian
schedules at p = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from ltg_mdlm.core.components import NoiseSchedule

MIN_RATE = 2.0**-24
"""Resolution of `Step.uniform`: rows with a smaller mask rate have no masked token."""

POWERS = (0.0, 0.1, 0.5, 1.0)
"""Derivative powers that are compared."""


def effective_weight(schedule: NoiseSchedule, power: float, rate: Tensor, progress: float = 0.0) -> Tensor:
    """float64: weight of the cross-entropy at each mask rate in the expected loss, q^(1 - power) / gamma.

    Raises `ValueError` if the schedule has no density.
    """
    return torch.exp(_log_importance(schedule, power, rate, progress)) / rate


def log10_second_moment(
    schedule: NoiseSchedule, power: float, progress: float = 0.0, tokens: int | None = None
) -> float:
    """log10 of E[(w k / T)^2] for a row of T maskable tokens with k of them masked and weight w = slope^power / gamma.

    With `tokens=None`, T is large and k / T = gamma, so this is the second moment of slope^power. Otherwise k is
    binomial, which adds E[slope^2p (1 - gamma) / (gamma T)], the contribution of small mask rates, whose few masked
    tokens have large weights; rates below MIN_RATE mask nothing. Raises `ValueError` if the schedule has no density.
    """
    rate, log_weight = _rate_quadrature(0.0 if tokens is None else MIN_RATE)
    log_term = log_weight + _log_importance(schedule, 2 * power, rate, progress)
    if tokens is not None:
        log_term = log_term + torch.log1p((1 - rate) / (rate * tokens))
    return float(log_term.logsumexp(0)) / math.log(10)


def second_moment_table(
    schedules: Mapping[str, NoiseSchedule],
    powers: Sequence[float] = POWERS,
    progress: Sequence[float] = (0.0, 1.0),
    tokens: int = 128,
) -> Table:
    """Table of log10 second moments for every schedule and power, for long rows and for rows of `tokens` tokens."""
    table = Table(title=f"log10 E[(w k / T)^2]: long rows / rows of {tokens} tokens")
    table.add_column("schedule")
    table.add_column("progress", justify="right")
    for power in powers:
        table.add_column(f"p = {power:g}", justify="right")
    for name, schedule in schedules.items():
        previous: list[str] = []
        for at in progress:
            cells = [
                " / ".join(_decimal(log10_second_moment(schedule, power, at, length)) for length in (None, tokens))
                for power in powers
            ]
            # Most schedules do not change during training.
            if cells != previous:
                table.add_row(name, f"{at:g}", *cells)
            previous = cells
    return table


def _decimal(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # adding 0.0 turns -0.0 into 0.0


def _log_importance(schedule: NoiseSchedule, power: float, rate: Tensor, progress: float) -> Tensor:
    log_importance = schedule.log_importance(rate, power, progress)
    if log_importance is None:
        raise ValueError(f"{type(schedule).__name__} has no density of mask rates")
    return log_importance


def _rate_quadrature(lowest: float) -> tuple[Tensor, Tensor]:
    """Nodes in (lowest, 1) and the logs of their weights, for integrals over mask rates.

    The substitution gamma = sin^2(pi x / 2) removes the inverse-square-root poles of the densities of the cosine
    schedules at both ends. Geometric intervals resolve 1 / gamma.
    """
    start = max(2 / math.pi * math.asin(math.sqrt(lowest)), 1e-15)
    edges = np.concatenate([np.geomspace(start, 0.05, 65), np.linspace(0.05, 1, 401)[1:]])
    node, weight = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    x = torch.from_numpy((edges[:-1, None] + half * (1 + node)).ravel())
    jacobian = math.pi / 2 * torch.sin(math.pi * x)
    log_weight = torch.from_numpy((half * weight).ravel()).log() + jacobian.log()
    return torch.sin(math.pi / 2 * x).square(), log_weight
