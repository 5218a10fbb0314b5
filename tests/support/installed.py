"""Distributions of plugins for tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltg_mdlm.host.discovery import installed_plugins

BROKEN_PLUGINS = Path(__file__).parent / "broken_plugins"
"""A folder to put on the import path, in which plugins with one mistake each are installed."""


@contextmanager
def plugins_installed(folder: Path) -> Iterator[None]:
    """Context in which the plugins of the distribution in a folder can be selected."""
    sys.path.insert(0, str(folder))
    installed_plugins.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        installed_plugins.cache_clear()
        for name, module in list(sys.modules.items()):
            if folder in Path(getattr(module, "__file__", None) or "").parents:
                del sys.modules[name]
