"""Classes of commands: their help in plain words, a fixed order, options that take several values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from textwrap import fill
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

CHOICES_WIDTH = 17
"""Characters of a line of choices in the help."""


class PlainHelp:
    """For commands and groups: the help has no type names such as `<int range>`, and gives ranges in words."""

    def get_params(self, ctx: Any) -> Any:
        """Parameters, among them `--help`."""
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            describe_plainly(param, ctx)
        return params

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line after the name of the command: `[OPTIONS] MODEL`, with optional arguments in brackets."""
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        names = [param.metavar if param.required else f"[{param.metavar}]" for param in arguments]
        return [pieces[0], *names, *pieces[1 + len(arguments) :]]


def describe_plainly(param: Any, ctx: Any) -> None:
    """Name the value of a parameter and put its range into its help text; a second call changes nothing.

    Numbers are `N` if whole and `X` otherwise; choices are `a | b`, folded at `CHOICES_WIDTH` characters.
    Older versions of typer keep the range beside the name, `N [x>=1]`, and their own form of choices.
    """
    if param.param_type_name == "argument":
        param.metavar = param.metavar or param.name.upper()
        param.display_type_rich = lambda ctx: None
    elif getattr(param, "is_flag", False):
        param.metavar = ""
    else:
        kind = param.display_type(ctx).strip("<>") if hasattr(param, "display_type") else param.type.name
        numbers = "N" if "int" in kind else "X" if "float" in kind else None
        param.metavar = param.metavar or (kind if "|" in kind else numbers)
        if param.metavar and "|" in param.metavar:
            # A narrow column leaves more room for the help text. A line ends with "|", which a no-break space ensures.
            param.metavar = fill(
                re.sub(r"\s*\|\s*", "\xa0| ", param.metavar), CHOICES_WIDTH, break_on_hyphens=False
            ).replace("\xa0", " ")
    low, high = getattr(param, "min", None), getattr(param, "max", None)
    if low is not None or high is not None:
        param.min = param.max = None  # typer checks values with its own copy of them
        words = f"At least {low}" if high is None else f"At most {high}" if low is None else f"From {low} to {high}"
        param.help = f"{param.help} {words}."


class Command(PlainHelp, TyperCommand):
    """A command; option `repeated`, if any, takes all values up to the next option."""

    repeated = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `--valid a b` as `--valid a --valid b`."""
        return super().parse_args(ctx, list(repeat_option(args, self.repeated)) if self.repeated else args)


class CommandGroup(PlainHelp, TyperGroup):
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
