"""Tiny third-party distributions, written to a folder and put on the import path with their metadata."""

import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltg_mdlm.host.discovery import installed_plugins

BLOCKS = """
from ltg_mdlm_plugins.uniform_mdlm import UniformMasking
from ltg_mdlm.api import Plugin, hookimpl

class BlockMasking(UniformMasking):
    block_length = 4

class P(Plugin):
    @hookimpl
    def ltg_mdlm_masking(self, ctx):
        return BlockMasking(ctx.mask_id)
"""
"""Source of a plugin whose models work in blocks of four tokens."""


def write_distribution(folder: Path, plugin: str, source: str, *, version: str = "1.0", name: str = "") -> Path:
    """A distribution `<plugin>-dist` (or `name`) with the module `<plugin>_module`, as pip would install it.

    The entry point names its class `P`.  Returns the module's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = name or f"{plugin}-dist"
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[ltg_mdlm]\n{plugin} = {plugin}_module:P\n")
    module = folder / f"{plugin}_module.py"
    module.write_text(textwrap.dedent(source))
    return module


@contextmanager
def installed(*folders: Path) -> Iterator[None]:
    """The distributions in these folders can be selected within; what is imported from there is forgotten after."""
    before = set(sys.modules)
    sys.path[:0] = map(str, folders)
    installed_plugins.cache_clear()
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(str(folder))
        installed_plugins.cache_clear()
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if any(file.startswith(str(folder)) for folder in folders):
                del sys.modules[name]
