"""Reads checkpoints of the published code bases (frequency-informed MDLM, GPT-BERT), and exports, as named tensors.

Their tensors have the names of `model.transformer`, with differences that are removed here: prefixes of wrappers, the
module tree of Hugging Face releases, tensors that are stored under several names, and buffers.  No code in a file is
run.
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
from ltg_mdlm.inference.exported_folder import MODEL_PREFIX, TABLE_NAME
from ltg_mdlm.storage.named_tensors import folded
from ltg_mdlm.storage.tensor_files import load_tensors

CodeBase = Literal["frequency-informed MDLM", "GPT-BERT", "ltg-mdlm"]


_PREFIXES = (
    ("model.embedding.", "embedding."),
    ("model.", "transformer."),
    ("lm_head.", "classifier."),
    (MODEL_PREFIX, ""),
)
"""Prefixes of names in the Hugging Face releases of GPT-BERT and in exports of this package, and their replacements."""


_SHARED = (
    (re.compile(r"(transformer\.mlp_layers\.\d+)\.linear1\.weight"), r"\1.mlp.1.weight"),
    (re.compile(r"(transformer\.mlp_layers\.\d+)\.linear2\.weight"), r"\1.mlp.4.weight"),
    (re.compile(r"classifier\.nonlinearity\.5\.weight"), "embedding.word_embedding.weight"),
)
"""Second names of tensors, and their first names."""


_POSITIONS = ".position_indices"

_UNGATED = (".in_proj_v.weight", ".in_proj_v.bias")


class _Arguments:
    """Takes the place of the arguments of a training run, whose values are not needed."""

    def __setstate__(self, state: object) -> None:
        """Forget the values."""


_HARMLESS: list[Any] = [
    (PurePosixPath, "pathlib.PosixPath"),
    (PurePosixPath, "pathlib._local.PosixPath"),
    (_Arguments, "argparse.Namespace"),
]
"""Classes that a pickle may contain in addition to tensors and plain values, and what is made in place of them: the
arguments of a training run, and paths among them, without access to the disk.  Python 3.13 wrote the second name."""

_HEADER_OFFSET = 8
"""A safetensors file begins with the length of its header, which is a JSON object."""


@dataclass(frozen=True, kw_only=True)
class NamedWeights:
    """A state dict under the names of `model.transformer`, in the order of the file."""

    weights: Mapping[str, Tensor]
    positions: Mapping[str, Tensor]
    """Buffers with the row of the table of relative embeddings for every pair of positions."""
    rate_table: Tensor | None = None
    """Conditioning values at equidistant mask rates from 0 to 1, if an export has such a table."""

    @classmethod
    def of(cls, state: Mapping[Any, Any], origin: str) -> NamedWeights:
        """Raises UserError, with `origin`, for values that are not tensors and for unequal copies of one tensor."""
        others = [str(name) for name, value in state.items() if not _is_plain_tensor(value)]
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
                "\n  ".join([f"{origin}: tensors that are the same in the model, but differ in the file:", *differing])
            )
        positions = {name: weights.pop(name) for name in list(weights) if name.endswith(_POSITIONS)}
        return cls(rate_table=weights.pop(TABLE_NAME, None), weights=weights, positions=positions)


@dataclass(frozen=True, kw_only=True)
class PublishedCheckpoint:
    """The content of a checkpoint file."""

    path: Path
    model: NamedWeights
    averages: NamedWeights | Sequence[Tensor] | None
    """The average of every weight, by name or in the order of the parameters; None if there are no averages."""
    updates: int
    """Number of updates of the averages."""
    step: int
    """Number of steps; 0 if unknown."""
    code_base: CodeBase | None
    """The code base that wrote the file; None if only the layout of the model is known."""
    left_out: tuple[str, ...]
    """Entries that are not read, such as the optimiser's state."""

    @property
    def is_conditioned(self) -> bool:
        """Whether the model has AdaLN."""
        return any(name.startswith("transformer.adaLN_modulations.") for name in self.model.weights)

    @property
    def averages_depth(self) -> bool:
        """Whether the model has depth-weighted averaging."""
        return any(name.startswith("transformer.dwa_modules.") for name in self.model.weights)

    def named_averages(self) -> NamedWeights | None:
        """The averages by name; the weights of the model must be complete.

        Raises UserError if averages without names cannot be assigned to names reliably.
        """
        if self.averages is None or isinstance(self.averages, NamedWeights):
            return self.averages
        names = list(self.model.weights)
        problem = self._order_problem(names, self.averages)
        if problem is not None:
            raise UserError(
                f"{self.path}: the averages in `ema` have no names, and {problem}"
                "\n  import the averages from the separate file that was saved with this one"
                " (pytorch_model_ema.bin), or leave them out: --weights raw"
            )
        return NamedWeights(weights=dict(zip(names, self.averages, strict=True)), positions={})

    def _order_problem(self, names: Sequence[str], averages: Sequence[Tensor]) -> str | None:
        """Why the averages may be in another order than `names`, those of the model's state dict; None if they are not.

        A state dict lists the parameters in order, those of a module before those of its children.  The order in the
        published code is known.  Names, number and shapes must all agree with it.
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


def _is_plain_tensor(value: object) -> bool:
    """Whether a value is a dense tensor with numbers in it."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def read_published(path: Path, *, averages: bool = True) -> PublishedCheckpoint:
    """Read a state dict or a training checkpoint, the latter with its averages if `averages` is true.

    Raises UserError for other files.
    """
    content = read_checkpoint_file(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: not a checkpoint: it holds a {type(content).__name__}, not named tensors")
    state = content["model"] if isinstance(content.get("model"), Mapping) else content
    if any(str(name).endswith(_UNGATED) for name in state):
        raise UserError(
            f"{path}: attention without a gate (in_proj_v), as in pretraining/model.py of GPT-BERT and in LTG-BERT;"
            " this variant is not supported\n  models with a gate (in_proj_vg), as in model_extra.py, can be imported"
        )
    if state is content:
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
    """Names in the parameter order of the published frequency-informed MDLM, with shared parameters once.

    `names` determines the number of layers, and whether the model has time conditioning.
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
    """The averages of a training checkpoint, and the number of their updates."""
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
    """A number of steps; 0 for other values."""
    return value if isinstance(value, int) and 0 <= value < 2**63 else 0


def _code_base(content: Mapping[Any, Any]) -> CodeBase | None:
    names = [str(name) for name in content["model"]]
    if any(name.startswith(MODEL_PREFIX) for name in names):
        return "ltg-mdlm"
    # Of the published code bases, only one stores the matrices of the MLP twice.
    if "ema" in content or any(name.endswith(".linear1.weight") for name in names):
        return "frequency-informed MDLM"
    return "GPT-BERT" if "ema_model" in content else None


def read_checkpoint_file(path: Path) -> Any:
    """The content of a safetensors file or a file written by `torch.save`, on the CPU.

    Raises UserError for a file that cannot be read, is of another type, or would run code.
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
            warnings.simplefilter("ignore")  # about other pickle protocols: such files are read or refused below
            # Memory-mapped: the optimiser's state, two thirds of a training checkpoint, is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # anything that the unpickler raises for a file of another type
        raise UserError(f"{path}: {_refusal(str(error))}") from None


def _refusal(message: str) -> str:
    """Why a file was not read, from the long message of torch."""
    if found := re.search(r"GLOBAL (\S+)", message):
        return (
            f"refused: unpickling it would call {found[1].rstrip('.,')}, which may run any code; nothing was run"
            "\n  import a file that holds tensors and plain values only, such as its state dict"
        )
    return "not a checkpoint: neither a safetensors file nor one written by torch.save"
