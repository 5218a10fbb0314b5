"""Sampling from left to right, by models with causal rows."""

from __future__ import annotations

import torch

from ltg_mdlm.generate.canvas import Canvas
from ltg_mdlm.generate.template import Template


def sample_from_left_to_right(canvas: Canvas, template: Template) -> None:
    """Draw every token given those before it; a text that has ended costs nothing more."""
    zero_B = torch.zeros(len(canvas.sample_B), dtype=torch.float64, device=canvas.sample_B.device)
    for column in template.gaps:
        row_R = canvas.hidden_BT[:, column].nonzero().squeeze(1)
        if len(row_R):
            chosen_BT = torch.zeros_like(canvas.hidden_BT)
            chosen_BT[row_R, column] = True
            canvas.look(row_R, zero_B, width=column).fill(chosen_BT, column)
