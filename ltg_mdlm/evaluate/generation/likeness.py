"""MAUVE, how close the distribution of some texts is to that of real ones (Pillutla et al. 2021, arXiv 2102.01454).

Both are quantised together, by clusters of a model's hidden states, and the divergences of the two histograms from
their mixtures become one number between 0 and 1, which is 1 for equal histograms.  Suffixes: S texts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.generation.judge import Judge

FEWEST_TEXTS = 100
"""There is a cluster for every tenth text: with fewer texts the histograms say next to nothing."""
_SEED = 25
"""Of the clusters: figures of several models should differ in their texts only."""


class Mauve:
    """Compares texts with real ones, by the features of a judge."""

    def __init__(self, judge: Judge, real: Sequence[str]) -> None:
        """The judge reads the real texts.

        Raises UserError without the library, for too few texts, and for one with too many tokens for the judge.
        """
        self._compute = _library()
        if len(real) < FEWEST_TEXTS:
            raise UserError(
                f"--mauve: {len(real)} real texts to compare samples with: at least {FEWEST_TEXTS} are needed, better"
                " thousands\n  give a larger --count, or a --corpus with more held-out documents"
            )
        self._judge = judge
        self._real_SD = judge.features(real)

    def __call__(self, texts: Sequence[str]) -> float:
        """MAUVE of some texts; compare it at equal numbers of texts only."""
        found = self._compute(p_features=self._real_SD, q_features=self._judge.features(texts), seed=_SEED)
        return float(found.mauve)


def _library() -> Callable[..., Any]:
    try:
        from mauve import compute_mauve
    except ImportError:
        raise UserError("--mauve needs the package mauve-text: pip install 'ltg-mdlm[mauve]'") from None
    compute: Callable[..., Any] = compute_mauve
    return compute
