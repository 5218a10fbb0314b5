"""The plugin `complementary`: two views of every row, which mask complementary tokens (arXiv 2505.16839)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ltg_mdlm.api import Batch, Corrupted, MaskingStrategy, Noise, Plugin, PluginOptions, RunContext, Step, hookimpl


class ComplementaryMasking(MaskingStrategy):
    """The first view masks tokens with probability gamma; the second masks the others, at the mask rate 1 - gamma.

    Each view on its own is uniform masking.  If gamma has the density q, the second view's mask rate g has the density
    q(1 - g), and |d gamma / dt| is its reciprocal, as in the first view.  So both are unbiased estimates of the same
    bound, and so is their mean.
    """

    kind = "uniform"

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        return noise.rate_B.float().unsqueeze(1).expand(batch.ids_BT.shape)

    def corrupt_views(self, batch: Batch, causal_B: Tensor, noise: Noise, step: Step) -> list[Corrupted]:
        first = self.corrupt(batch, causal_B, noise, step)
        opposite = replace(noise, rate_B=1 - noise.rate_B)
        second = self.corrupt_chosen(batch, ~first.masked_BT, causal_B, opposite, step)
        return [first, replace(second, noise=opposite)]


BIBTEX = r"""@misc{li2025lavida,
  author = {Shufan Li and Konstantinos Kallidromitis and Hritik Bansal and Akash Gokul and Yusuke Kato and
            Kazuki Kozuka and Jason Kuen and Zhe Lin and Kai-Wei Chang and Aditya Grover},
  title = {{LaViDa}: A Large Diffusion Language Model for Multimodal Understanding},
  year = {2025},
  eprint = {2505.16839},
  archiveprefix = {arXiv}
}"""


class Complementary(Plugin[PluginOptions]):
    """Every token is predicted in one of two views; the other slots are those of `uniform_mdlm` or other plugins."""

    api_version = 2
    bibtex = BIBTEX

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy:
        return ComplementaryMasking(ctx.mask_id)
