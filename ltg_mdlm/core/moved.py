"""Documented module names of version 0.1 that moved: they keep working until version 0.3, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "ltg_mdlm.generate": "ltg_mdlm.inference",
    "ltg_mdlm.html_report": "ltg_mdlm.reporting",
    "ltg_mdlm.html_report.page": "ltg_mdlm.reporting",
    "ltg_mdlm.random": "ltg_mdlm.core.random",
    "ltg_mdlm.report": "ltg_mdlm.reporting",
    "ltg_mdlm.trained_model": "ltg_mdlm.inference",
}


class MovedModules(MetaPathFinder, Loader):
    """Imports an old name as a module whose attributes are those of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for the moved modules, None for all others."""
        is_package = any(name.startswith(f"{fullname}.") for name in MOVED)
        return ModuleSpec(fullname, self, is_package=is_package) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Give the module the attributes of the new one, and warn."""
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} has moved to {new}", DeprecationWarning, stacklevel=2)
        module.__getattr__ = lambda name: getattr(importlib.import_module(new), name)  # type: ignore[method-assign]


def keep_moved_names() -> None:
    """Make the old names importable."""
    sys.meta_path.append(MovedModules())
