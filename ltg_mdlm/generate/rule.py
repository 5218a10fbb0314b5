"""How a text is sampled."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ltg_mdlm.errors import UserError

Sampler = Literal["ancestral", "confidence", "entropy", "block", "autoregressive"]
Schedule = Literal["linear", "trained"]


@dataclass(frozen=True, kw_only=True)
class SamplingRule:
    """Which tokens are drawn when, and from what; docs/generation.md has the formulas."""

    sampler: Sampler = "ancestral"
    steps: int | None = None
    """Steps from all masked to nothing masked; None: one token per step."""
    schedule: Schedule | None = None
    """Mask rates at the ends of the steps: at equal distances (None, linear), or those of the run's noise schedule."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    block_length: int | None = None
    """Tokens per block of the sampler `block`; None: 32."""
    eta_cap: float | None = None
    """Remask a token with at most this probability per step (ReMDM-cap)."""
    eta_rescale: float | None = None
    """Remask with this share of the largest probability that keeps the mask rates (ReMDM-rescale)."""

    def __post_init__(self) -> None:
        """Raises UserError for values out of range, and for settings that would have no effect."""
        self._refuse_out_of_range()
        self._refuse_idle()

    def _refuse_out_of_range(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature {self.temperature}: give 0 (the likeliest token) or more, but a number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p}: give a probability above 0, at most 1")
        for name, number in (("--steps", self.steps), ("--block-length", self.block_length)):
            if number is not None and number < 1:
                raise UserError(f"{name} {number}: give 1 or more")
        for name, eta in (("--eta-cap", self.eta_cap), ("--eta-rescale", self.eta_rescale)):
            if eta is not None and not 0 < eta <= 1:
                raise UserError(f"{name} {eta}: give a probability above 0, at most 1")

    def _refuse_idle(self) -> None:
        if self.temperature == 0 and self.top_p < 1:
            raise UserError("--temperature 0 takes the likeliest token, so that --top-p has no effect")
        if self.sampler == "autoregressive" and self.steps is not None:
            raise UserError("--sampler autoregressive draws one token per step, so that --steps has no effect")
        if self.schedule is not None and self.steps is None:
            raise UserError("--schedule says how tokens are dealt to steps: it goes with --steps")
        if self.block_length is not None and self.sampler != "block":
            raise UserError(f"--sampler {self.sampler}: --block-length goes with --sampler block only")
        if self.eta_cap is None and self.eta_rescale is None:
            return
        if self.eta_cap is not None and self.eta_rescale is not None:
            raise UserError("--eta-cap and --eta-rescale are two ways to remask: give one of them")
        if self.sampler != "ancestral" or self.steps is None:
            raise UserError("--eta-cap and --eta-rescale remask between the steps of --sampler ancestral: give --steps")

    @property
    def remasks(self) -> bool:
        """Whether a token that was drawn may be hidden again."""
        return self.eta_cap is not None or self.eta_rescale is not None

    @property
    def is_deterministic(self) -> bool:
        """Whether the seed changes nothing."""
        return self.temperature == 0 and self.sampler != "ancestral"

    def to_json(self) -> dict[str, Any]:
        """Its settings, as they were given."""
        return asdict(self)
