"""Old names of documented modules.  They keep working until version 0.3, with a FutureWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED: Mapping[str, str] = {
    "ltg_mdlm.generate": "ltg_mdlm.inference",
    "ltg_mdlm.html_report": "ltg_mdlm.reporting",
    "ltg_mdlm.html_report.page": "ltg_mdlm.reporting",
    "ltg_mdlm.random": "ltg_mdlm.core.random",
    "ltg_mdlm.report": "ltg_mdlm.reporting",
    "ltg_mdlm.trained_model": "ltg_mdlm.inference",
}


class MovedModules(MetaPathFinder, Loader):
    """Imports an old name as a module that passes attribute access on to the new module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a moved module; None for all others."""
        is_package = any(name.startswith(f"{fullname}.") for name in MOVED)
        return ModuleSpec(fullname, self, is_package=is_package) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Warn, and let the module look its attributes up in the new one."""
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} has moved to {new}", FutureWarning, stacklevel=2)
        module.__getattr__ = lambda name: getattr(importlib.import_module(new), name)  # type: ignore[method-assign]


def keep_moved_names() -> None:
    """Make the old names importable; called once, when the package is imported."""
    sys.meta_path.append(MovedModules())
