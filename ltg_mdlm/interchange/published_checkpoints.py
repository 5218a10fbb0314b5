"""Checkpoints of the published code bases (frequency-informed MDLM, GPT-BERT), and exports: whose tensor is whose.

Their names are those of `model.transformer`, with differences that are undone here: prefixes of wrappers, the module
tree of Hugging Face releases, tensors that are stored under several names, and buffers.

Checkpoint files of other code bases, read without running anything that is in them.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.storage.named_tensors import folded
from ltg_mdlm.storage.tensor_files import load_tensors

CodeBase = Literal["frequency-informed MDLM", "GPT-BERT", "ltg-mdlm"]


_PREFIXES = (
    ("model.embedding.", "embedding."),
    ("model.", "transformer."),
    ("lm_head.", "classifier."),
    ("denoiser.", ""),
)
"""How names begin in the releases of GPT-BERT on Hugging Face, and in this package's exports; and here."""


_SHARED = (
    (re.compile(r"(transformer\.mlp_layers\.\d+)\.linear1\.weight"), r"\1.mlp.1.weight"),
    (re.compile(r"(transformer\.mlp_layers\.\d+)\.linear2\.weight"), r"\1.mlp.4.weight"),
    (re.compile(r"classifier\.nonlinearity\.5\.weight"), "embedding.word_embedding.weight"),
)
"""Second names of tensors."""


_POSITIONS = ".position_indices"


_RATE_TABLE = "rate_table.value_at_node"


@dataclass(frozen=True, kw_only=True)
class NamedWeights:
    """A state dict under the names of `model.transformer`, in the order of the file."""

    weights: Mapping[str, Tensor]
    positions: Mapping[str, Tensor]
    """Buffers with the row of the relative table for every pair of places."""
    rate_table: Tensor | None = None
    """Conditioning values at equidistant mask rates from 0 to 1, where an export has such a table."""

    @classmethod
    def of(cls, state: Mapping[Any, Any], origin: str) -> NamedWeights:
        """Raises UserError, beginning with `origin`, for anything but tensors, and for tensors that should be one."""
        others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
        if others or not state:
            found = f"it holds {folded(others)}" if others else "it is empty"
            raise UserError(f"{origin}: not a model's state dict: {found}")
        names: dict[str, str] = {}
        weights: dict[str, Tensor] = {}
        differing = []
        for name, tensor in state.items():
            ours = canonical_name(str(name))
            if ours not in weights:
                names[ours], weights[ours] = str(name), tensor.detach()
            elif weights[ours].dtype != tensor.dtype or not torch.equal(weights[ours], tensor):
                differing.append(f"{names[ours]} and {name}")
        if differing:
            raise UserError(
                "\n  ".join([f"{origin}: tensors that are one in the model, but differ in the file:", *differing])
            )
        positions = {name: weights.pop(name) for name in list(weights) if name.endswith(_POSITIONS)}
        return cls(rate_table=weights.pop(_RATE_TABLE, None), weights=weights, positions=positions)


@dataclass(frozen=True, kw_only=True)
class PublishedCheckpoint:
    """What a file holds."""

    path: Path
    model: NamedWeights
    averages: NamedWeights | Sequence[Tensor] | None
    """The average of every weight, by name or in the order of the parameters; None if the file has none."""
    updates: int
    """How often the averages were updated."""
    step: int
    """Steps done; 0 where the file does not say."""
    code_base: CodeBase | None
    """Which one wrote the file, where more than the model's own layout tells."""
    left_out: tuple[str, ...]
    """Entries that are not read, such as the optimiser's state."""

    @property
    def is_conditioned(self) -> bool:
        """The model has AdaLN."""
        return any(name.startswith("transformer.adaLN_modulations.") for name in self.model.weights)

    @property
    def averages_depth(self) -> bool:
        """The model has depth-weighted averaging."""
        return any(name.startswith("transformer.dwa_modules.") for name in self.model.weights)

    def named_averages(self) -> NamedWeights | None:
        """The averages by name; the model's weights must be known to be complete.

        Raises UserError if those without names cannot be assigned without doubt.
        """
        if self.averages is None or isinstance(self.averages, NamedWeights):
            return self.averages
        names = list(self.model.weights)
        problem = self._doubt(names, self.averages)
        if problem is not None:
            raise UserError(
                f"{self.path}: the averages in `ema` have no names, and {problem}"
                "\n  import the averages from the file of their own that is saved beside this one"
                " (pytorch_model_ema.bin), or do without them: --weights raw"
            )
        return NamedWeights(weights=dict(zip(names, self.averages, strict=True)), positions={})

    def _doubt(self, names: Sequence[str], averages: Sequence[Tensor]) -> str | None:
        """Why the list may be in another order than `names`, those of the model's state dict; None if it is not.

        A state dict lists parameters in their order, each module's own before those of its children.  The published
        code is known to be in this order, too, so that three things have to agree.
        """
        if names != list(parameter_order(names)):
            return "the weights in `model` are not in the order of the published code"
        if len(averages) != len(names):
            return f"there are {len(averages)} of them for {len(names)} weights"
        shapes = [
            f"{name} {list(self.model.weights[name].shape)} against {list(average.shape)}"
            for name, average in zip(names, averages, strict=True)
            if average.shape != self.model.weights[name].shape
        ]
        return f"in the order of the weights they have other shapes: {folded(shapes)}" if shapes else None


def read_published(path: Path, *, averages: bool = True) -> PublishedCheckpoint:
    """Read a training checkpoint, with its averages if they are wanted, or a state dict.

    Raises UserError for anything else.
    """
    content = read_checkpoint_file(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: not a checkpoint: it holds a {type(content).__name__}, not named tensors")
    if not isinstance(content.get("model"), Mapping):
        return PublishedCheckpoint(
            path=path,
            model=NamedWeights.of(content, str(path)),
            averages=None,
            updates=0,
            step=0,
            code_base=_code_base({"model": content}),
            left_out=(),
        )
    used = ("model", "global_step", *(("ema", "ema_model") if averages else ()))
    found, updates = _averages(content, path) if averages else (None, 0)
    return PublishedCheckpoint(
        path=path,
        model=NamedWeights.of(content["model"], f"{path}: `model`"),
        averages=found,
        updates=updates,
        step=_count(content.get("global_step")),
        code_base=_code_base(content),
        left_out=tuple(str(key) for key in content if key not in used),
    )


def canonical_name(name: str) -> str:
    """The name in `model.transformer` of a tensor in a published checkpoint."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[:1] == ["module"]:
        del parts[0]
    name = ".".join(parts)
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    for pattern, replacement in _SHARED:
        if pattern.fullmatch(name):
            return pattern.sub(replacement, name)
    return name


def parameter_order(names: Iterable[str]) -> Iterator[str]:
    """Names in the order in which the parameters of the published frequency-informed MDLM come, shared ones once.

    `names` says how many layers there are, and whether the model is conditioned on time.
    """
    present = set(names)
    attention = "transformer.attention_layers"
    layers = range(sum(f"{attention}.{i}.out_proj.bias" in present for i in range(len(present))))
    yield from ("embedding.relative_embedding", "embedding.word_embedding.weight")
    yield from _affine("embedding.relative_layer_norm")
    for i in layers:
        yield from _affine(*(f"{attention}.{i}.{linear}" for linear in ("in_proj_qk", "in_proj_vg", "out_proj")))
    for i in layers:
        yield from (f"transformer.mlp_layers.{i}.mlp.{place}.weight" for place in (1, 4))
    is_conditioned = "sigma_map.mlp.0.weight" in present
    if is_conditioned:
        yield from _affine(*(f"transformer.adaLN_modulations.{i}" for i in layers))
    yield from (*_affine("classifier.nonlinearity.1"), "classifier.nonlinearity.5.bias")
    if is_conditioned:
        yield from _affine("sigma_map.mlp.0", "sigma_map.mlp.2")


def _affine(*modules: str) -> Iterator[str]:
    return (f"{module}.{part}" for module in modules for part in ("weight", "bias"))


def _averages(content: Mapping[Any, Any], path: Path) -> tuple[NamedWeights | Sequence[Tensor] | None, int]:
    """The averages of a training checkpoint, and how often they were updated."""
    if isinstance(named := content.get("ema_model"), Mapping):
        return NamedWeights.of(named, f"{path}: `ema_model`"), _count(content.get("global_step"))
    if (listed := content.get("ema")) is None:
        return None, 0
    shadows = listed.get("shadow_params") if isinstance(listed, Mapping) else None
    if not isinstance(shadows, list) or not all(isinstance(average, Tensor) for average in shadows):
        raise UserError(
            f"{path}: `ema` has no list of tensors `shadow_params`, as the published code saves it"
            "\n  to import the weights of the last step alone: --weights raw"
        )
    return [average.detach() for average in shadows], _count(listed.get("num_updates"))


def _count(value: object) -> int:
    """A number of steps; 0 where a file has something else."""
    return value if isinstance(value, int) and value >= 0 else 0


def _code_base(content: Mapping[Any, Any]) -> CodeBase | None:
    names = [str(name) for name in content["model"]]
    if any(name.startswith("denoiser.") for name in names):
        return "ltg-mdlm"
    # Only one of the published two stores the matrices of the MLP twice.
    if "ema" in content or any(name.endswith(".linear1.weight") for name in names):
        return "frequency-informed MDLM"
    return "GPT-BERT" if "ema_model" in content else None


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
