"""Named tensors in safetensors files, written from a thread without holding up the others, and hashed on the way.

The library's own writer keeps the interpreter's lock until the last byte is written (before its version 0.8), which
would stop training for seconds.  The format: the length of the header (8 bytes, little-endian), the header (JSON: type,
shape and place of every tensor), the tensors' bytes.

Flat dicts of named tensors: what every part of a run saves, and how it is compared and put back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ltg_mdlm.core.errors import UserError

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


_ALIGNMENT = 8


_BLOCK_BYTES = 1 << 24


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, int | str]:
    """Write CPU tensors through to the disk; returns the file's `bytes` and `sha256`.  Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for block in _blocks(tensors, metadata):
            digest.update(block)
            _write_all(file.fileno(), block)
            size += len(block)
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.  Raises UserError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def sha256(path: Path) -> str:
    """Hash of a file's content.  Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _blocks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Iterator[memoryview]:
    """The file's content, without a copy of it."""
    # Large types first, so that every tensor lies at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        yield from (content[start : start + _BLOCK_BYTES] for start in range(0, len(content), _BLOCK_BYTES))


def _write_all(descriptor: int, block: memoryview) -> None:
    while block:
        block = block[os.write(descriptor, block) :]


_SHOWN = 8


_NUMBER = re.compile(r"\.(\d+)(?=\.|\s|$)")
"""A layer's place in the name of a tensor."""


def copy_named(target: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    """Copy `source` into the tensors of `target`, in place.

    Raises UserError, before anything is copied, if the names or shapes differ; `what` says what was being restored.
    """
    _require_match(target, source, what)
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix/` before their names."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def folded(names: Iterable[str]) -> str:
    """All of the names, those that differ in their first number alone as one: `layers.{0-11}.weight (12)`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        number = _NUMBER.search(name)
        group = groups.setdefault(_NUMBER.sub(".{}", name, count=1), [])
        group += [int(number[1])] if number else []
    return ", ".join(_unfolded(pattern, sorted(numbers)) for pattern, numbers in groups.items())


def _unfolded(pattern: str, numbers: Sequence[int]) -> str:
    if len(numbers) < 2:
        return pattern.replace("{}", "".join(map(str, numbers)), 1)
    is_range = numbers[-1] - numbers[0] + 1 == len(numbers)
    listing = f"{numbers[0]}-{numbers[-1]}" if is_range else ",".join(map(str, numbers))
    return f"{pattern.replace('{}', f'{{{listing}}}', 1)} ({len(numbers)})"


def _require_match(target: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    shapes = [
        f"{name} {list(source[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]
    complaints = [
        _listed("missing", target.keys() - source.keys()),
        _listed("not expected", source.keys() - target.keys()),
        _listed("of another shape", shapes),
    ]
    if any(complaints):
        raise UserError(
            "\n  ".join([f"cannot restore {what}: it was made with other settings", *filter(None, complaints)])
        )


def _listed(label: str, names: Iterable[str]) -> str:
    """`label (count): names`, cut where nobody reads on; empty without names."""
    ordered = sorted(names)
    more = f", and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"{label} ({len(ordered)}): {', '.join(ordered[:_SHOWN])}{more}" if ordered else ""
