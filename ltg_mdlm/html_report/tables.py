"""Tables of the page: never wider than paper, and the best of a line marked by a sign and by weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ltg_mdlm.html_report.groups import Group, Spread

WIDEST = 6
"""Columns beside the headings of the lines; what has more is cut into several tables."""
BEST = "★"
_NARROW = "\u202f"
"""A space at which no line breaks."""


@dataclass(frozen=True)
class Cell:
    """What stands in a place."""

    text: str
    best: bool = False
    detail: str = ""
    """smaller, behind the text"""


@dataclass(frozen=True)
class Table:
    """A table with headings on both sides; `lines` are (heading, cells)."""

    corner: str
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Figure:
    """A number of every group: how it is written, and which is the better one."""

    label: str
    values: Mapping[str, Spread | None]
    """by the group's code"""
    write: Callable[[float], str] = "{:.4f}".format
    lower_is_better: bool | None = None
    """None: no group is marked"""
    remarks: Mapping[str, str] | None = None
    """by the group's code; a group with a remark is not compared"""


def figure_tables(groups: Sequence[Group], figures: Sequence[Figure], corner: str = "figure") -> list[Table]:
    """The figures of all groups, the best of each marked."""
    codes = [group.code for group in groups]
    return grid(groups, [(figure.label, _cells(figure, codes)) for figure in figures], corner)


def grid(groups: Sequence[Group], lines: Sequence[tuple[str, Sequence[Cell]]], corner: str) -> list[Table]:
    """Lines with a cell per group: as they are if the groups fit beside each other, else with a line per group."""
    headings = [f"{group.code} {group.name}" for group in groups]
    if not lines:
        return []
    if len(groups) <= WIDEST:
        return [Table(corner, headings, lines)]
    turned = [(heading, [cells[i] for _, cells in lines]) for i, heading in enumerate(headings)]
    return list(_cut(Table("group", [label for label, _ in lines], turned)))


def _cut(table: Table) -> Iterator[Table]:
    """Into tables of at most `WIDEST` columns."""
    for start in range(0, len(table.columns), WIDEST):
        part = slice(start, start + WIDEST)
        yield Table(table.corner, table.columns[part], [(heading, cells[part]) for heading, cells in table.lines])


def _cells(figure: Figure, codes: Sequence[str]) -> list[Cell]:
    remarks = figure.remarks or {}
    comparable = {
        code: found.mean
        for code in codes
        if (found := figure.values.get(code)) and math.isfinite(found.mean) and not remarks.get(code)
    }
    best = _best(figure, comparable)
    return [_cell(figure, figure.values.get(code), remarks.get(code, ""), best=code in best) for code in codes]


def _best(figure: Figure, comparable: Mapping[str, float]) -> set[str]:
    """Nothing to mark among fewer than two; equals are all marked, unless all are equal."""
    if figure.lower_is_better is None or len(set(comparable.values())) < 2:
        return set()
    best = (min if figure.lower_is_better else max)(comparable.values())
    return {code for code, value in comparable.items() if value == best}


def _cell(figure: Figure, found: Spread | None, remark: str, *, best: bool) -> Cell:
    if found is None:
        return Cell("–")
    if not math.isfinite(found.mean):
        return Cell("not a number", detail=remark)
    text = figure.write(found.mean)
    if found.deviation is not None:
        text += f"{_NARROW}±{_NARROW}{figure.write(found.deviation)}"
    return Cell(text, best, ", ".join(part for part in (f"n = {found.n}" if found.n > 1 else "", remark) if part))
