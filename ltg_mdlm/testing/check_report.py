"""`ltg-mdlm plugins check`: run all checks of an installed plugin, and print the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import indent
from typing import Any

from rich.markup import escape
from rich.table import Table

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import count_progress
from ltg_mdlm.host.discovery import find
from ltg_mdlm.testing.plugin_under_test import Examination, Outcome, PluginUnderTest, Verdict
from ltg_mdlm.testing.training_checks import CHECKS

STYLES: dict[Outcome, str] = {"passed": "green", "failed": "bold red", "not applicable": "dim"}


def examine(name: str, sets: Sequence[str] = ()) -> list[Verdict]:
    """Run all checks. Raises `UserError` for an unknown plugin, and for settings other than plugins.* and slots.*."""
    find(name)
    for text in sets:
        if not text.startswith(("plugins.", "slots.")):
            raise UserError(
                f"--set {text}: the checks use their own settings for training; set only plugins.* and slots.*"
            )
    examination = Examination(PluginUnderTest(name, sets=sets))
    verdicts = []
    with count_progress(f"checking {name}", len(CHECKS)) as advance:
        for check in CHECKS:
            verdicts.append(examination.verdict(check))
            advance(1)
    return verdicts


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A table with one line per check, with a reason if it does not apply."""
    table = Table("verdict", "check", "", box=None, pad_edge=False)
    for verdict in verdicts:
        style = STYLES[verdict.outcome]
        reason = "see below" if verdict.outcome == "failed" else escape(verdict.reason)
        table.add_row(f"[{style}]{verdict.outcome}[/]", verdict.check.title, reason)
    return table


def failures(verdicts: Sequence[Verdict]) -> str:
    """A paragraph per failed check: where it failed, what was expected, and what was found."""
    failed = [verdict for verdict in verdicts if verdict.outcome == "failed"]
    return "".join(f"\nfailed: {verdict.check.title}\n{indent(verdict.reason, '  ')}\n" for verdict in failed)


def summary(name: str, verdicts: Sequence[Verdict]) -> str:
    """For example `freq_mdlm of ltg-mdlm 0.1: 24 passed, 0 failed, 9 not applicable`."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    return f"{name} of {find(name).origin}: " + ", ".join(f"{counts[outcome]} {outcome}" for outcome in STYLES)


def to_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The verdicts as JSON values."""
    return [{"check": v.check.name, "outcome": v.outcome, "reason": v.reason} for v in verdicts]
