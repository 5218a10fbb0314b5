"""The commands of a typer app."""

from typing import Any


def all_commands(command: Any, name: str) -> dict[str, Any]:
    """The command, its groups and their commands, by full name."""
    found = {name: command}
    for part, child in getattr(command, "commands", {}).items():
        found |= all_commands(child, f"{name} {part}")
    return found
