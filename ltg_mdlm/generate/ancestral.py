"""Ancestral sampling: the reverse process of masked diffusion (MDLM, arXiv 2406.07524, eq. 7)."""

from __future__ import annotations

from torch import Tensor

from ltg_mdlm.generate.canvas import Canvas
from ltg_mdlm.generate.visits import ancestral_visits, remasking_visits


def sample_ancestral(canvas: Canvas, rates_K: Tensor | None) -> None:
    """Reveal every token at the step that chance gives it, drawn from what the model says then.

    `rates_K`: mask rates at the ends of the steps, None for one token per step.
    """
    rule, gap_T = canvas.setting.rule, canvas.gap_BT[0]
    if rule.remasks:
        assert rates_K is not None
        visits = remasking_visits(gap_T, canvas.sample_B, rates_K, rule)
    else:
        visits = ancestral_visits(gap_T, canvas.sample_B, rates_K, rule.seed)
    for visit in range(len(visits.rate_JB)):
        if rule.remasks:
            canvas.hide(visits.hidden_JBT[visit])
        chosen_BT = visits.reveal_JBT[visit] & canvas.hidden_BT  # less the end of a text, and what lies behind it
        row_R = chosen_BT.any(1).nonzero().squeeze(1)
        if len(row_R):
            look = canvas.look(row_R, visits.rate_JB[visit] * canvas.share_drawn_B)
            look.fill(chosen_BT, visit)
