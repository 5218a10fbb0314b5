"""The plugin `block_diffusion`: blocks from left to right, masked diffusion within a block (arXiv 2503.09573).

The model gets every row twice: the corrupted row, and a clean copy.  A corrupted block sees itself and the clean copies
of the blocks before it, so all blocks of a row are trained in one forward pass.

Shapes: B rows, T tokens per row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ltg_mdlm.api import (
    Batch,
    Corrupted,
    Field,
    MaskingStrategy,
    Noise,
    NoiseSchedule,
    Plugin,
    PluginOptions,
    RunContext,
    Step,
    TimeConditioning,
    block_of,
    block_visibility,
    hookimpl,
)

GOLDEN_RATIO = 0.6180339887498949
"""(sqrt(5) - 1) / 2, whose multiples are spread evenly over the unit interval (modulo 1)."""


class Options(PluginOptions):
    """The size of a block."""

    block_length: int = Field(16, ge=1, description="tokens of a block; 1 is a left-to-right language model")


class BlockNoise(NoiseSchedule):
    """A mask rate for every block, uniform in (0, 1).

    Blocks do not see each other's masks, so their rates need not be independent.  The rates of a row are evenly spread,
    which has less variance.
    """

    def __init__(self, block_length: int) -> None:
        self.block_length = block_length

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return t

    def slope(self, t: Tensor, progress: float) -> Tensor:
        return torch.ones_like(t)

    def density(self, rate: Tensor, progress: float) -> Tensor:
        return torch.ones_like(rate)

    def sample(self, batch: Batch, step: Step) -> Noise:
        of_row = super().sample(batch, step)
        block_BT = block_of(batch.document_BT, self.block_length)
        rate_BT = (of_row.t_B.unsqueeze(1) + GOLDEN_RATIO * block_BT) % 1
        return replace(of_row, rate_BT=rate_BT.clamp(min=1e-9), slope_BT=torch.ones_like(rate_BT))


class BlockMasking(MaskingStrategy):
    """Masks the tokens of a block with the probability of the block, and adds a clean copy of the row."""

    kind = "uniform"
    reads_token_rates = True
    context_copies = 1

    def __init__(self, mask_id: int, block_length: int) -> None:
        super().__init__(mask_id)
        self.block_length = block_length

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        rate = noise.rate_B.unsqueeze(1) if noise.rate_BT is None else noise.rate_BT
        return rate.float().expand(batch.ids_BT.shape)

    def corrupt(self, batch: Batch, causal_B: Tensor, noise: Noise, step: Step) -> Corrupted:
        corrupted = super().corrupt(batch, causal_B, noise, step)
        visibility = block_visibility(batch.document_BT, self.block_length).with_clean_copy()
        return replace(corrupted, context_BS=batch.ids_BT, visibility=visibility.with_causal_rows(causal_B))


class Unconditioned(TimeConditioning):
    """No conditioning: the blocks of a row have different mask rates."""

    active = False

    def value(self, corrupted: Corrupted, noise: Noise) -> None:
        return None

    def value_for_rate(self, rate_B: Tensor) -> None:
        return None


BIBTEX = r"""@misc{arriola2025block,
  author = {Marianne Arriola and Aaron Gokaslan and Justin T. Chiu and Zhihan Yang and Zhixuan Qi and Jiaqi Han and
            Subham Sekhar Sahoo and Volodymyr Kuleshov},
  title = {Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models},
  year = {2025},
  eprint = {2503.09573},
  archiveprefix = {arXiv}
}"""


class BlockDiffusion(Plugin[Options]):
    """Block diffusion (BD3LM).  The objective is that of `uniform_mdlm`, whose derivative power 1 is the bound."""

    api_version = 2
    options_model = Options
    bibtex = BIBTEX

    @hookimpl
    def ltg_mdlm_noise_schedule(self) -> NoiseSchedule:
        return BlockNoise(self.options.block_length)

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy:
        return BlockMasking(ctx.mask_id, self.options.block_length)

    @hookimpl
    def ltg_mdlm_time_conditioning(self) -> TimeConditioning:
        return Unconditioned()
