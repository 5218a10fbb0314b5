"""Tables for papers, in LaTeX with booktabs: runs averaged over seeds, and the comparison of evaluated models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.comparison import ComparisonRow
from ltg_mdlm.reporting.html_report.run_groups import Group

COLUMNS = {
    "bound on -log p, nats per token": (
        "Bound",
        "Bound: upper bound of the negative log-likelihood of held-out text under uniform masking, in nats per token.",
    ),
    "causal -log p, nats per token": (
        "Causal",
        "Causal: negative log-likelihood of held-out text from left to right, in nats per token.",
    ),
    "accuracy of masked tokens": (r"Accuracy (\%)", "Accuracy: of masked tokens of held-out text."),
    "minimal pairs": (r"Minimal pairs (\%)", "Minimal pairs: accuracy on the pairs of the validation."),
}
"""Validation metrics of the table of runs, by their label in the summary of a run: heading, and its explanation."""

LEVEL = 0.05
"""Corrected p-values below it are marked."""

_UNFINISHED = r"$^{\circ}$"

_MARKS = {
    "p": (r"$^{*}$", "paired permutation test over the questions"),
    "p_seeds": (r"$^{\dagger}$", r"$\min F'$ over seeds and questions"),
}
"""Marks of the tests of a comparison, and their names."""

_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "…": r"\dots{}",
}


def escape(text: str) -> str:
    """The text with the special characters of LaTeX escaped; other characters than Latin letters become `?`."""
    latin = "".join(c if c.isascii() or c in _SPECIAL or (c.isalpha() and c < "\u0180") else "?" for c in text)
    return "".join(_SPECIAL.get(c, c) for c in latin)


def booktabs(heading: Sequence[str], lines: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """A table. Headings, cells and the caption are LaTeX."""
    rows = [" & ".join(cells) + r" \\" for cells in (heading, *lines)]
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(heading) - 1)}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def runs_latex(groups: Sequence[Group]) -> str:
    """A line per group of runs that differ only in their seed: number of runs, and means of the last validation.

    Raises `UserError` if the extra `plots`, which has pandas, is missing.
    """
    try:
        from ltg_mdlm.reporting.html_report.tables import held_out_values
    except ImportError as error:
        message = f'the LaTeX table needs the package {error.name}\n  pip install "ltg-mdlm[plots]"'
        raise UserError(message) from None

    found = held_out_values(groups)
    values = {(row.figure, row.group): row for row in found.itertuples()}
    shown = [figure for figure in COLUMNS if figure in set(found["figure"])]
    lines, seeds = [], [len(group.measured[0]) for group in groups]
    for group, count in zip(groups, seeds, strict=True):
        name = escape(group.name) + _UNFINISHED * (not group.measured[1])
        lines.append([name, str(count), *(_run_cell(values.get((figure, group.code)), count) for figure in shown)])

    sentences = [COLUMNS[figure][1] for figure in shown]
    if max(seeds) > 1:
        sentences.append(r"Means over the seeds $\pm$ the standard error of the mean.")
    if min(seeds) == 1:
        sentences.append(r"For a single seed, $\pm$ is the standard error over the held-out rows or pairs.")
    if found[found["figure"].isin(shown)]["best"].any():
        same = " with the same corpus" * (found["corpus"].nunique() > 1)
        sentences.append(f"Bold: better than every other recipe{same} (Welch's t test, $p < 0.05$, not corrected).")
    if not all(group.measured[1] for group in groups):
        sentences.append(f"{_UNFINISHED}: not finished; values of the last validation.")
    heading = ["Recipe", "Seeds", *(COLUMNS[figure][0] for figure in shown)]
    return booktabs(heading, lines, " ".join(sentences), "tab:runs")


def _run_cell(row: Any, expected: int) -> str:
    """Mean and error, bold if the group is significantly the best; a dash without a value."""
    if row is None:
        return "--"
    mean, error = (row.format.format(value).removesuffix("%") for value in (row.mean, row.error))
    cell = rf"\textbf{{{mean}}}" if row.best else mean
    cell += rf" $\pm$ {error}" if np.isfinite(row.error) else ""
    return cell + (f" ($n = {row.runs}$)" if row.runs < expected else "")


def comparison_latex(rows: Sequence[ComparisonRow]) -> str:
    """Tasks x models: accuracies with standard errors over the seeds, and marks of significant differences."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        accuracies = 100 * np.asarray(row.accuracies)
        cell = f"{accuracies.mean():.2f}"
        if len(accuracies) > 1:
            cell += rf" $\pm$ {accuracies.std(ddof=1) / np.sqrt(len(accuracies)):.2f}"
        for test, (mark, _) in _MARKS.items():
            p = row.holm.get(test)
            cell += mark * (p is not None and p < LEVEL)
        cells.setdefault((str(row.task), row.uid), []).append(cell)

    groups = list({row.group.name: row for row in rows}.values())
    seeds = ", ".join(f"{escape(row.group.name)} {len(row.accuracies)}" for row in groups)
    tests = "; ".join(
        f"{mark} {name}" for mark, name in _MARKS.values() if any(mark in c for line in cells.values() for c in line)
    )
    separately = ", separately for whole tasks and for single paradigms" * any(uid for _, uid in cells)
    caption = (
        rf"Accuracy in \%, macro average over the paradigms of a task. Seeds: {seeds}."
        + r" $\pm$: standard error over the seeds." * any(len(row.accuracies) > 1 for row in groups)
        + f" Differences from {escape(groups[0].group.name)} with $p < {LEVEL}$ after Holm's correction for the number"
        f" of comparisons{separately}: {tests or 'none'}."
    )
    lines = [[escape(f"{task}: {uid}" if uid else task), *line] for (task, uid), line in cells.items()]
    return booktabs(["Task", *(escape(row.group.name) for row in groups)], lines, caption, "tab:comparison")
