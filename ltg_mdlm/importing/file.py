"""Checkpoint files of other code bases, read without running anything that is in them."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ltg_mdlm.errors import UserError
from ltg_mdlm.tensor_file import load_tensors

_HARMLESS: list[Any] = [(PurePosixPath, "pathlib.PosixPath"), (PurePosixPath, "pathlib._local.PosixPath")]
"""What may stand in a pickle beside tensors and plain values: the paths among the arguments of a training run, read as
paths that cannot touch a disk.  Python 3.13 wrote the second name."""
_HEADER_OFFSET = 8
"""A safetensors file begins with the length of its header, a JSON object."""


def read_checkpoint_file(path: Path) -> Any:
    """The content of a safetensors file, or of one written by `torch.save`, on the CPU.

    Raises UserError for a file that cannot be read, is of another kind, or asks for code to be run.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_OFFSET + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return load_tensors(path) if start[_HEADER_OFFSET:] == b"{" else _unpickled(path)


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other protocols: they are read, or refused below
            # Mapped, so that the optimiser's state, two thirds of a training checkpoint, is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever the unpickler stumbles over in a file of another kind
        raise UserError(f"{path}: {_refusal(str(error))}") from None


def _refusal(message: str) -> str:
    """Why a file was not read, from what torch says at length."""
    if found := re.search(r"GLOBAL (\S+)", message):
        return (
            f"refused: unpickling it would call {found[1].rstrip('.,')}, which may run any code, and nothing was run"
            "\n  import a file that holds tensors and plain values only, such as its state dict"
        )
    return "not a checkpoint: neither a safetensors file nor one written by torch.save"
