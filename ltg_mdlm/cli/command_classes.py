"""Classes of commands: flags without a type in the help, a fixed order, options that take several values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

F = TypeVar("F", bound=Callable[..., Any])

ORDER = (
    "train",
    "prepare",
    "corpus",
    "check",
    "bench",
    "watch",
    "report",
    "reproduce",
    "sweep",
    "generate",
    "eval",
    "finetune",
    "submit",
    "export",
    "push",
    "import",
    "plugins",
)
"""Commands of `ltg-mdlm` in the order of a user's work; others follow."""


class FlagsWithoutType:
    """For commands and groups: the help shows flags without the type `<bool>`."""

    def get_params(self, ctx: Any) -> Any:
        """Parameters, among them `--help`."""
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(FlagsWithoutType, TyperCommand):
    """A command; option `repeated`, if any, takes all values up to the next option."""

    repeated = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `--valid a b` as `--valid a --valid b`."""
        return super().parse_args(ctx, list(repeat_option(args, self.repeated)) if self.repeated else args)


class CommandGroup(FlagsWithoutType, TyperGroup):
    """A group of commands in the order of `ORDER`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands."""
        names = list(super().list_commands(ctx))
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


class CommandApp(typer.Typer):
    """A typer app of these classes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"cls": CommandGroup, "no_args_is_help": True, **options})

    def command(self, *name: Any, **options: Any) -> Callable[[F], F]:
        """Register the decorated function as a command."""
        return super().command(*name, **{"cls": Command, **options})


def repeat_option(args: Iterable[str], option: str) -> Iterator[str]:
    """Insert `option` before every further value that follows it."""
    belongs, bare = False, False
    for arg in args:
        if arg.startswith("-"):
            belongs = bare = arg == option
        elif belongs and not bare:
            yield option
        else:
            bare = False
        yield arg
