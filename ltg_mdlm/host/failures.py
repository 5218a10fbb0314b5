"""Attribution of exceptions to plugins: messages name the plugin, its distribution, version and file.

`attributed_to` is for direct calls of a plugin: import, construction, hooks.  `failures_named` is for training, where
components call each other: the traceback shows whose method raised, so nothing has to wrap the components.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from ltg_mdlm.core.errors import PluginFailure, ResultError, UserError, is_out_of_memory, text_of
from ltg_mdlm.core.optimizer import Optimizer

if TYPE_CHECKING:
    from ltg_mdlm.host.discovery import Installed
    from ltg_mdlm.host.slots import Components

_HOST_PACKAGES = ("importlib", "ltg_mdlm", "pluggy", "pydantic")
"""Packages through which the host calls a plugin."""


class PluginError(UserError):
    """A plugin raised an exception that is not a UserError."""


@contextmanager
def attributed_to(plugin: Installed, action: str) -> Iterator[None]:
    """Turn an exception into a PluginError that names the plugin, the action, and the line that raised it.

    A UserError is passed on unchanged: the plugin wrote it for the user.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a module may call sys.exit when it is imported
        place = place_of(error, plugin.package)
        raise PluginError(
            f"{plugin.provider}: {action} raised {text_of(error)}"
            + (f"\n  at {place}" if place is not None else "")
            + "\n  set LTG_MDLM_DEBUG=1 to see the traceback"
        ) from error


def place_of(error: BaseException, package: str) -> str | None:
    """`file:line` of the innermost frame in `package`, else outside the host; None if there is no such frame."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [(frame, line) for frame, line in frames if _package(frame) == package]
    others = [(frame, line) for frame, line in frames if _package(frame) not in _HOST_PACKAGES]
    if not (own or others):
        return None
    frame, line = (own or others)[-1]
    return f"{frame.f_code.co_filename}:{line}"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


@contextmanager
def failures_named(components: Components, moment: Callable[[Exception], str]) -> Iterator[None]:
    """Turn an exception from a method of a component or of a plugin's optimiser into a PluginFailure.

    `moment` says when it happened, such as "in step 3".  A UserError, a lack of memory, and an exception that neither
    was involved in, are passed on unchanged.  A ResultError becomes a UserError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        slot_of = {id(component): slot for slot, _, component in components.named()}
        for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
            arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
            owner = frame.f_locals.get(arguments[0]) if arguments else None
            slot, provider = slot_of.get(id(owner)), None
            if slot is not None:
                provider = components.provenance[slot]
            elif isinstance(owner, Optimizer):
                slot, provider = "optimizer", owner.provider
            if provider is not None:
                if isinstance(error, ResultError):
                    raise UserError(f"{provider}: {type(owner).__name__}.{error}") from error
                method = f"{type(owner).__name__}.{frame.f_code.co_name}"
                raise PluginFailure(f"{provider}: {method} ({slot}) failed {moment(error)}") from error
        raise
