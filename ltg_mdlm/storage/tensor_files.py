"""Safetensors files: written through to the disk with a hash of their content, and read back."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import sync
from ltg_mdlm.data.sources import sha256_of


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> dict[str, int | str]:
    """Write CPU tensors to a new file and force it to disk; return the file's `bytes` and `sha256`.

    Other threads keep running meanwhile, and the tensors are not copied.  Raises OSError.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:
        # The library reports errors of the operating system only as text.
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error
    path.chmod(mode)  # the library makes files that only their owner can read
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.  Raises UserError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
