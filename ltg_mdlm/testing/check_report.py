"""`ltg-mdlm plugins check`: run all checks of an installed plugin, and print the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import indent
from typing import Any

from rich.markup import escape
from rich.table import Table

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import did_you_mean
from ltg_mdlm.core.terminal import count_progress
from ltg_mdlm.host.discovery import find
from ltg_mdlm.testing.plugin_under_test import Check, Examination, Outcome, PluginUnderTest, Verdict
from ltg_mdlm.testing.training_checks import CHECKS

STYLES: dict[Outcome, str] = {"passed": "green", "failed": "bold red", "not applicable": "dim"}


def examine(name: str, sets: Sequence[str] = (), only: Sequence[str] = ()) -> list[Verdict]:
    """Run all checks, or those in `only` with the checks that they require.

    With `only`, the verdicts are those on the named checks, and on required checks that failed. Raises `UserError` for
    an unknown plugin or check, and for settings other than plugins.* and slots.*.
    """
    find(name)
    chosen = [check_named(text) for text in only] or list(CHECKS)
    for text in sets:
        if not text.startswith(("plugins.", "slots.")):
            raise UserError(
                f"--set {text}: the checks use their own settings for training; set only plugins.* and slots.*"
                "\n  a test class derived from PluginConformance can change others, by its attribute `sets`"
            )
    examination = Examination(PluginUnderTest(name, sets=sets))
    verdicts: dict[str, Verdict] = {}
    with count_progress(f"checking {name}", len(chosen)) as advance:
        for check in chosen:
            verdict = examination.verdict(check)
            if verdict.blocked_by is not None:
                verdicts[verdict.blocked_by.name] = examination.verdict(verdict.blocked_by)
            verdicts[check.name] = verdict
            advance(1)
    return list(verdicts.values())


def check_named(text: str) -> Check:
    """The check with this name, written with underscores or spaces. Raises `UserError`."""
    known = {check.name: check for check in CHECKS}
    name = text.strip().replace(" ", "_").removeprefix("test_")
    if name not in known:
        raise UserError(
            f"--only {text}: no such check{did_you_mean(name, known)}"
            "\n  `ltg-mdlm plugins check --help` lists the checks"
        )
    return known[name]


def check_table() -> Table:
    """The names of all checks, and what they require."""
    table = Table("check", "requirement", box=None, pad_edge=False)
    for check in CHECKS:
        table.add_row(check.title, escape((check.function.__doc__ or "").partition("\n\n")[0]))
    return table


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A table with one line per check that applies, then one line per reason why checks do not apply."""
    table = Table("verdict", "check", box=None, pad_edge=False)
    for verdict in verdicts:
        if verdict.outcome != "not applicable":
            table.add_row(f"[{STYLES[verdict.outcome]}]{verdict.outcome}[/]", verdict.check.title)
    skipped = Counter(verdict.reason for verdict in verdicts if verdict.outcome == "not applicable")
    for reason, count in skipped.items():
        checks = "1 check" if count == 1 else f"{count} checks"
        table.add_row(f"[{STYLES['not applicable']}]not applicable[/]", f"{checks}: {escape(reason)}")
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
