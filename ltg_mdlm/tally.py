"""Sums of one training step, kept on the device and read only when the step is logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ltg_mdlm.recipe import LossOutput, MicroBatch


class StepTally:
    """Adds up a step's micro-batches; `read` reduces over ranks and waits for the device."""

    def __init__(self, group_names: Sequence[str], device: torch.device, *, is_bound: bool) -> None:
        self._names, self._is_bound = tuple(group_names), is_bound
        self._terms_K = torch.zeros(len(group_names), dtype=torch.float64, device=device)
        self._counts = torch.zeros(8, dtype=torch.float64, device=device)

    def add(self, micro_batch: MicroBatch, output: LossOutput) -> None:
        """Add one micro-batch; launches a handful of small kernels and does not wait for them."""
        causal_N = output.supervised.causal_N
        masked_N = ~causal_N
        maskable_BT = micro_batch.batch.maskable_BT & ~micro_batch.corrupted.causal_B.unsqueeze(1)
        self._terms_K += output.terms_K
        self._counts += torch.stack(
            [
                maskable_BT.sum().double(),
                micro_batch.corrupted.masked_BT.sum().double(),
                masked_N.sum().double(),
                (output.correct_N & masked_N).sum().double(),
                (output.nll_N * masked_N).sum().double(),
                causal_N.sum().double(),
                (output.correct_N & causal_N).sum().double(),
                (output.nll_N * causal_N).sum().double(),
            ]
        )

    def read(self, denominators_K: Tensor, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """loss, bound (only where the objective is one), mask_rate, and accuracy and nll per mode."""
        terms_K = sum_over_ranks(self._terms_K)
        maskable, masked, masked_n, masked_ok, masked_nll, causal_n, causal_ok, causal_nll = sum_over_ranks(
            self._counts
        ).tolist()
        row = {"loss": float((terms_K / denominators_K).sum())}
        if self._is_bound and not causal_n:
            row["bound"] = float(terms_K.sum()) / max(maskable, 1)
        if maskable:
            row |= {"mask_rate": masked / maskable}
        if masked_n:
            row |= {"accuracy": masked_ok / masked_n, "masked_nll": masked_nll / masked_n}
        if causal_n:
            row |= {"causal_accuracy": causal_ok / causal_n, "causal_nll": causal_nll / causal_n}
        if len(self._names) > 1:
            row |= {
                f"loss_{n}": float(v) for n, v in zip(self._names, (terms_K / denominators_K).tolist(), strict=True)
            }
        return row
