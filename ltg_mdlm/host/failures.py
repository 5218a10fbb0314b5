"""Whose code an exception comes from: a plugin's failure names the plugin, its distribution, version and file."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from ltg_mdlm.core.errors import PluginFailure, UserError, text_of

if TYPE_CHECKING:
    from ltg_mdlm.host.discovery import Installed
    from ltg_mdlm.host.slots import Components


_BETWEEN = ("importlib", "ltg_mdlm", "pluggy", "pydantic")
"""Packages that are always on the way from the host to a plugin."""


class PluginError(UserError):
    """A plugin's code raised what was not meant for the user."""


@contextmanager
def blamed_on(plugin: Installed, action: str) -> Iterator[None]:
    """Whatever a plugin's code raises within becomes a PluginError that says who raised it, during what, and where.

    A UserError of the plugin's own is meant for the user as it is.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a module may call sys.exit where it is imported
        place = place_of(error, plugin.package)
        raise PluginError(
            f"{plugin.provider}: {action} raised {text_of(error)}"
            + (f"\n  at {place}" if place is not None else "")
            + "\n  set LTG_MDLM_DEBUG=1 to see the traceback"
        ) from error


def place_of(error: BaseException, package: str) -> str | None:
    """`file:line` that an exception comes from: the last one in the package, if that was involved.

    None where no code outside the host was.
    """
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [(frame, line) for frame, line in frames if _package(frame) == package]
    others = [(frame, line) for frame, line in frames if _package(frame) not in _BETWEEN]
    if not (own or others):
        return None
    frame, line = (own or others)[-1]
    return f"{frame.f_code.co_filename}:{line}"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


@contextmanager
def failures_named(components: Components, moment: Callable[[Exception], str]) -> Iterator[None]:
    """Say which plugin's component raised what is raised within.  Raises PluginFailure."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        failure = failure_of_component(error, components, moment(error))
        if failure is None:
            raise
        raise failure from error


def failure_of_component(error: Exception, components: Components, moment: str) -> PluginFailure | None:
    """The failure to report if a component's method raised `error`, or something that it called; else None.

    Found in the traceback, so that nothing has to watch over the components while all goes well.
    """
    slot_of = {id(component): slot for slot, _, component in components.named()}
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        owner = frame.f_locals.get(arguments[0]) if arguments else None
        if (slot := slot_of.get(id(owner))) is not None:
            method = f"{type(owner).__name__}.{frame.f_code.co_name}"
            return PluginFailure(f"{components.provenance[slot]}: {method} ({slot}) failed {moment}")
    return None
