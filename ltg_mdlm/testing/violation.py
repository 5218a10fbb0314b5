"""What a check raises."""

from __future__ import annotations


class Violation(AssertionError):
    """A promise that the plugin breaks."""

    def __init__(self, where: str, expected: str, found: str) -> None:
        """`where` names plugin, hook, method and line, as `Part.where` does."""
        indented = found.replace("\n", "\n    ")
        super().__init__(f"{where}\n  expected: {expected}\n  found: {indented}")


class NotApplicable(Exception):
    """The plugin has nothing that the check is about, or the check cannot run here; the message says which."""
