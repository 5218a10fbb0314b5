"""A comparison for reading: what stands in the table, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from ltg_mdlm.evaluate.comparison import Cell, Row

_HOLM = " Holm"
_EXPLANATIONS = {
    "accuracy": "in per cent, macro average over the uids",
    "sd": "over the seeds of a model",
    "difference": "to {baseline}, in percentage points; its interval: bootstrap of the questions within each uid",
    "p": "paired permutation over the questions: would these very models differ on other questions of these kinds?",
    "p seeds": "min F' over seeds and questions: would other seeds differ, too? (errs on the large side)",
    "McNemar": "exact, all questions counting alike; won:lost are those that this model or the first has right alone",
    f"p{_HOLM}": "corrected for the number of such tests, those of whole tasks and those of single uids apart",
}


def comparison_table(rows: Sequence[Row]) -> Table:
    """One line per row."""
    lines = [_line(row.record()) for row in rows]
    columns = _columns(lines)
    table = Table(*columns, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*(escape(line[name]) for name in columns))
    return table


def explanation(rows: Sequence[Row]) -> str:
    """What the columns of the table are."""
    shown = _columns([_line(row.record()) for row in rows])
    said = [f"{column}: {text}" for column, text in _EXPLANATIONS.items() if column in shown]
    return "\n".join(said).format(baseline=rows[0].group.name)


def _columns(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """Those that are not empty, and no correction that changes nothing."""
    return [name for name in lines[0] if any(line[name] != line.get(_uncorrected(name), "") for line in lines)]


def _uncorrected(column: str) -> str:
    """The column without its correction; nothing for one that is none."""
    return column.removesuffix(_HOLM) if column.endswith(_HOLM) else ""


def _line(record: Mapping[str, Cell]) -> dict[str, str]:
    """Empty where there is nothing to say."""
    return {
        "task": f"{record['task']}/{record['data']}",
        "uid": str(record["uid"]),
        "model": str(record["model"]),
        "seeds": str(record["seeds"]),
        "accuracy": _percent(record["accuracy"]),
        "sd": _percent(record["sd"]),
        "difference": _percent(record["difference"], sign="+"),
        "95 % interval": _interval(record),
        "p": _p(record["p"]),
        f"p{_HOLM}": _p(record["p_holm"]),
        "p seeds": _p(record["p_seeds"]),
        f"p seeds{_HOLM}": _p(record["p_seeds_holm"]),
        "won:lost": "" if record["won"] is None else f"{record['won']}:{record['lost']}",
        "McNemar": _p(record["p_mcnemar"]),
        f"McNemar{_HOLM}": _p(record["p_mcnemar_holm"]),
    }


def _percent(value: Cell, sign: str = "") -> str:
    return "" if value is None else f"{100 * float(value):{sign}.2f}"


def _interval(record: Mapping[str, Cell]) -> str:
    low, high = (_percent(record[name], sign="+") for name in ("low", "high"))
    return f"{low} .. {high}" if low else ""


def _p(value: Cell) -> str:
    return "" if value is None else f"{value:.2g}"
