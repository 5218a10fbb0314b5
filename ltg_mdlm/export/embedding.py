"""A plugin's own time embedding travels with an exported model as one file, or the reason why it cannot is given.

The file is the plugin's, with its imports of `ltg_mdlm.model.transformer` made relative, which is what they are in the
exported folder, and a last line that says which class is meant.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ltg_mdlm.errors import UserError

EMBEDDING_FILE = "time_embedding.py"
_PACKAGE = "_ltg_mdlm_export"
_TRANSFORMER = "ltg_mdlm.model.transformer"
_RELATIVE = re.compile(rf"^(\s*from\s+){re.escape(_TRANSFORMER)}(\s+import\b)")


def write_embedding(embedding: nn.Module, cond_dim: int, folder: Path) -> None:
    """Write the file of the embedding's class to `folder`, where transformer.py lies already, and try it out there.

    Raises UserError if it imports more than torch, the standard library and the transformer, or if what it builds from
    `cond_dim` and the weights alone, without memory for them at first as `transformers` does, computes anything else.
    """
    source = _source_of(type(embedding))
    (folder / EMBEDDING_FILE).write_text(source, encoding="utf-8")
    try:
        with _loaded(folder) as module:
            same = _computes_the_same(module.EMBEDDING, embedding, cond_dim)
    except Exception as error:  # whatever the plugin's code raises
        raise _cannot_travel(type(embedding), f"built on its own, it fails: {type(error).__name__}: {error}") from error
    if not same:
        raise _cannot_travel(
            type(embedding),
            f"built from cond_dim={cond_dim} and its weights alone, it computes something else"
            "\n  keep what it needs in parameters or persistent buffers, not in attributes or other arguments",
        )


def _source_of(cls: type[nn.Module]) -> str:
    """The text of EMBEDDING_FILE.  Raises UserError if the class's file needs what does not travel."""
    try:
        file = inspect.getsourcefile(cls)
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):
        raise _cannot_travel(cls, "its source is not to be found") from None
    if getattr(sys.modules[cls.__module__], cls.__qualname__, None) is not cls:
        raise _cannot_travel(cls, f"it is not a class at the top level of {file}")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and _RELATIVE.match(lines[node.lineno - 1]):
            lines[node.lineno - 1] = _RELATIVE.sub(r"\1.transformer\2", lines[node.lineno - 1])
        elif isinstance(node, ast.Import | ast.ImportFrom) and (foreign := _foreign(node)):
            raise _cannot_travel(
                cls,
                f"{file}:{node.lineno} imports {foreign}, and only torch, the standard library and names"
                f" `from {_TRANSFORMER} import ...` travel\n  put the class into a file of its own",
            )
    return "\n".join([*lines, "", f"EMBEDDING = {cls.__qualname__}", ""])


def _foreign(node: ast.Import | ast.ImportFrom) -> str | None:
    """The first module of an import that is neither torch nor the standard library."""
    if isinstance(node, ast.ImportFrom):
        names = ["." * node.level + (node.module or "")]
    else:
        names = [alias.name for alias in node.names]
    at_home = {"torch", *sys.stdlib_module_names}
    return next((name for name in names if name.partition(".")[0] not in at_home), None)


@contextmanager
def _loaded(folder: Path) -> Iterator[ModuleType]:
    """EMBEDDING_FILE as a module of a package that holds nothing but the folder's files."""
    spec = importlib.util.spec_from_loader(_PACKAGE, loader=None, is_package=True)
    assert spec is not None
    spec.submodule_search_locations = [str(folder)]
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        importlib.invalidate_caches()
        yield importlib.import_module(f"{_PACKAGE}.{Path(EMBEDDING_FILE).stem}")
    finally:
        sys.dont_write_bytecode = writes_bytecode
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            del sys.modules[name]


@torch.no_grad()
def _computes_the_same(cls: type[nn.Module], embedding: nn.Module, cond_dim: int) -> bool:
    with torch.device("meta"):
        rebuilt = cls(cond_dim)
    rebuilt.to_empty(device="cpu")
    for tensor in [*rebuilt.parameters(), *rebuilt.buffers()]:
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    rebuilt.load_state_dict(embedding.state_dict())
    value_B = torch.linspace(0, 8, 33)
    was_training = embedding.training
    expected, got = embedding.eval()(value_B), rebuilt.eval()(value_B)
    embedding.train(was_training)
    return torch.equal(expected, got)


def _cannot_travel(cls: type, reason: str) -> UserError:
    name = f"{cls.__module__}.{cls.__qualname__}"
    return UserError(f"the plugin's time embedding {name} cannot travel with an exported model: {reason}")
