"""A corpus in a table and in a picture, from the summaries of its sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from ltg_mdlm.data.corpus_summary import SourceSummary
from ltg_mdlm.reporting.figure import DISTINCT, ORDERED, Panel, save_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_SOURCES = 20
"""Sources that are drawn; the largest ones."""

_BINS = 40


def corpus_table(summaries: Sequence[SourceSummary]) -> Table:
    """One line per source, and one for all of them if there are several."""
    table = Table(box=None, pad_edge=False)
    for name in ("source", "documents", "words", "tokens", "MB", "tokens/word", "unknown", "repeated", "length"):
        table.add_column(name, justify="left" if name == "source" else "right")
    table.add_column("sample", overflow="ellipsis", no_wrap=True)
    for summary in summaries:
        low, middle, high = np.quantile(summary.length_D, (0.05, 0.5, 0.95))
        table.add_row(
            escape(summary.source),
            f"{summary.documents:,}",
            f"{summary.words:,}",
            f"{summary.tokens:,}",
            f"{summary.bytes / 1e6:,.2f}",
            f"{summary.fertility:.2f}",
            f"{summary.unknown / max(summary.tokens, 1):.2%}",
            f"{summary.duplicates / max(summary.documents, 1):.1%}",
            f"{low:.0f} {middle:.0f} {high:.0f}",
            escape(summary.sample),
        )
    if len(summaries) > 1:
        sums = [sum(getattr(s, name) for s in summaries) for name in ("documents", "words", "tokens", "bytes")]
        documents, words, tokens, size = sums
        table.add_row(
            "all",
            *(f"{count:,}" for count in (documents, words, tokens)),
            f"{size / 1e6:,.2f}",
            f"{tokens / max(words, 1):.2f}",
            f"{sum(s.unknown for s in summaries) / max(tokens, 1):.2%}",
            f"{sum(s.duplicates for s in summaries) / max(documents, 1):.1%}",
        )
    return table


def draw_corpus(summaries: Sequence[SourceSummary], path: Path, *, title: str) -> None:
    """Write a picture of the sources: their sizes, lengths of documents, and tokens per word.

    Raises `UserError` if matplotlib is missing or the file cannot be written.
    """
    shown = sorted(summaries, key=lambda summary: -summary.words)[:MAX_SOURCES]
    names = [summary.source for summary in shown]

    def sizes(axes: Axes) -> None:
        axes.barh(names, [summary.words for summary in shown], color=DISTINCT[2])
        axes.invert_yaxis()
        axes.set_xlabel("words")

    def lengths(axes: Axes) -> None:
        longest = max(int(summary.length_D.max()) for summary in shown)
        bins = np.geomspace(1, max(longest, 2), _BINS).tolist()
        for number, summary in enumerate(shown[: len(DISTINCT)]):
            share = np.full(summary.documents, 1 / summary.documents)
            axes.hist(
                summary.length_D, bins, weights=share, histtype="step", color=DISTINCT[number], label=summary.source
            )
        axes.set_xscale("log")
        axes.set_xlabel("tokens of a document")
        axes.set_ylabel("share of documents")
        axes.legend()

    def fertility(axes: Axes) -> None:
        axes.barh(names, [summary.fertility for summary in shown], color=ORDERED[2])
        axes.invert_yaxis()
        axes.set_xlabel("tokens per word")

    panels = [Panel("Size", sizes), Panel("Lengths", lengths), Panel("Fertility", fertility)]
    save_panels(panels, path, title=title)
