"""Writes a trained model as a folder that Hugging Face `transformers` loads; writing it needs no `transformers`.

DIR/
    config.json, configuration_ltg_mdlm.py, modeling_ltg_mdlm.py      read by the `Auto*` classes
    transformer.py, attention.py, visibility.py,
    rate_table.py, time_embedding.py                                  imported by the modelling file
    model.safetensors
    tokenizer.json, tokenizer_config.json, special_tokens_map.json
    training.json, README.md                                          facts of the training, model card

With revisions, DIR has such a folder for each: main, chck_1M, chck_2M, ..., and a revisions.json, which lists them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

import ltg_mdlm.model
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import require_free_space, write_errors, written_folder
from ltg_mdlm.core.terminal import byte_progress
from ltg_mdlm.data.tokenizer import NUM_SPECIAL
from ltg_mdlm.inference.exported_folder import (
    CONFIG_FILE,
    MAIN,
    MODEL_PREFIX,
    MODEL_TYPE,
    REVISIONS_FILE,
    TABLE_NAME,
    TRAINING_FILE,
    WEIGHTS_FILE,
)
from ltg_mdlm.inference.exported_tokenizer import ROLES, write_tokenizer
from ltg_mdlm.inference.trained_model import TrainedModel, Weights, open_model
from ltg_mdlm.interchange.model_card import model_card
from ltg_mdlm.model.rate_table import INTERVALS, RateTable
from ltg_mdlm.model.transformer import TimeEmbedding
from ltg_mdlm.storage.checkpoint import damage, find_checkpoint
from ltg_mdlm.storage.tensor_files import write_tensors

EMBEDDING_FILE = "time_embedding.py"


CODE_FILES = (
    "configuration_ltg_mdlm.py",
    "modeling_ltg_mdlm.py",
    "transformer.py",
    "attention.py",
    "visibility.py",
    "rate_table.py",
    EMBEDDING_FILE,
)
"""Files of `ltg_mdlm.model` that are copied to every export."""


CLASSES = {
    "AutoConfig": "configuration_ltg_mdlm.LtgMdlmConfig",
    "AutoModel": "modeling_ltg_mdlm.LtgMdlmModel",
    "AutoModelForMaskedLM": "modeling_ltg_mdlm.LtgMdlmForMaskedLM",
    "AutoModelForCausalLM": "modeling_ltg_mdlm.LtgMdlmForCausalLM",
    "AutoModelForSequenceClassification": "modeling_ltg_mdlm.LtgMdlmForSequenceClassification",
}
"""`auto_map` in config.json; CAUSAL_CLASS is left out for models that were not trained on causal rows."""

CAUSAL_CLASS = "AutoModelForCausalLM"

ROUGH_TABLE = 1e-3
"""Interpolation error of a rate table that causes a warning: the map has a jump, or a very steep slope."""

_PACKAGE = "_ltg_mdlm_export"
"""Name of the temporary package in which a copied time embedding is tested."""

_TRANSFORMER = "ltg_mdlm.model.transformer"

_IMPORT_FROM_TRANSFORMER = re.compile(rf"^(\s*from\s+){re.escape(_TRANSFORMER)}(\s+import\b)")

MaskRateChoice = Literal["fraction", "zero", "constant"]


@dataclass(frozen=True)
class DefaultRate:
    """The mask rate that an exported model with time conditioning uses if the caller gives none."""

    mask_rate: MaskRateChoice = "fraction"
    constant_rate: float | None = None

    @classmethod
    def of(cls, mask_rate: MaskRateChoice | None, constant_rate: float | None) -> DefaultRate | None:
        """From two options; None if neither is given.  Raises UserError if they do not go together."""
        if mask_rate is None and constant_rate is None:
            return None
        mask_rate = mask_rate or "constant"
        if (mask_rate == "constant") != (constant_rate is not None):
            raise UserError(
                f"--mask-rate {mask_rate}: --constant-rate goes with --mask-rate constant, and only with it"
            )
        if constant_rate is not None and not 0 <= constant_rate <= 1:
            raise UserError(f"--constant-rate {constant_rate:g}: a mask rate is between 0 and 1")
        return cls(mask_rate, constant_rate)


def export_model(
    path: Path,
    out: Path,
    *,
    weights: Weights = "ema",
    revisions: bool = False,
    mask_rate: MaskRateChoice | None = None,
    constant_rate: float | None = None,
) -> list[Path]:
    """Export a checkpoint to the folder `out`, and return the folders from which models can be loaded.

    Args:
        path: a run folder (its newest checkpoint is exported) or a checkpoint.
        out: a new or empty folder.
        weights: "ema" for the averaged weights, which training evaluates, or "raw" for those of the last step.
        revisions: also export every `chck_*` checkpoint of the run, each to a subfolder.
        mask_rate: the default mask rate of the exported model: "fraction" (of masked tokens in the row; default),
            "zero" or "constant".  Only for models with time conditioning.
        constant_rate: the mask rate for "constant".

    Raises UserError, with nothing written, for a damaged checkpoint, an output folder that is not empty, a time
    embedding that cannot be exported, or options that do not fit.
    """
    default_rate = DefaultRate.of(mask_rate, constant_rate)
    _require_usable(out)
    checkpoints = find_revisions(path) if revisions else {MAIN: find_checkpoint(path)}
    for checkpoint in checkpoints.values():
        if (problem := damage(checkpoint)) is not None:
            raise UserError(f"the checkpoint {checkpoint} is damaged: {problem}")
    with write_errors(out), written_folder(out) as aside:
        sizes = {name: (checkpoint / "model.safetensors").stat().st_size for name, checkpoint in checkpoints.items()}
        total = sum(sizes.values())
        require_free_space(aside, total)
        with byte_progress("exporting", total, show=len(sizes) > 1) as advance:
            for name, checkpoint in checkpoints.items():
                folder = aside / name if revisions else aside
                folder.mkdir(exist_ok=True)
                write_export(open_model(checkpoint, Ranks.alone(), weights=weights), default_rate, folder)
                advance(sizes[name])
        if revisions:
            _write_json(aside / REVISIONS_FILE, {"revisions": list(checkpoints)})
    return [out / name for name in checkpoints] if revisions else [out]


def _require_usable(out: Path) -> None:
    """Raises UserError for an output folder that holds something, or from which no model could be loaded."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another folder with --out")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder with --out, or delete this one")
    if out.resolve() == Path.cwd():
        # The finished folder replaces an empty one, which would leave the user's shell in a deleted folder.
        raise UserError(f"{out} is the current folder; choose a folder inside it with --out")
    if "." in out.resolve().name:
        raise UserError(
            f"{out}: transformers 4.51 does not load a model from a folder with a dot in its name, and evaluation"
            " pipelines cut the name at the dot\n  choose a name without dots with --out"
        )


def find_revisions(run: Path) -> dict[str, Path]:
    """Checkpoints by revision: `main`, the newest one, then the checkpoints by words seen.

    Raises UserError if there are no checkpoints by words seen.
    """
    newest = find_checkpoint(run)
    named = [path for path in (run / "checkpoints").glob("chck_*M") if re.fullmatch("chck_[0-9]+M", path.name)]
    milestones = sorted(named, key=lambda path: int(path.name[5:-1]))
    if not milestones:
        raise UserError(
            f"{run}: no checkpoints by words seen (checkpoints/chck_1M and so on), so there are no revisions to export"
            "\n  export without --revisions"
        )
    return {MAIN: newest} | {path.name: path for path in milestones}


def write_export(trained: TrainedModel, default_rate: DefaultRate | None, folder: Path) -> None:
    """Write all files of an export to an empty folder.

    Raises UserError if the time embedding cannot be exported, and for a `default_rate` without time conditioning.
    """
    model, table = trained.model, None
    cond_dim = model.config.cond_dim
    if cond_dim is None and default_rate is not None:
        raise UserError(
            f"{trained.source}: this model has no time conditioning, so it takes no mask rate"
            "\n  leave out --mask-rate and --constant-rate"
        )
    package = Path(next(iter(ltg_mdlm.model.__path__)))
    for name in CODE_FILES:
        shutil.copyfile(package / name, folder / name)
    if cond_dim is not None:
        if type(model.sigma_map) is not TimeEmbedding:
            write_embedding(model.sigma_map, cond_dim, folder)
        default_rate = default_rate or DefaultRate()
        table = _rate_table(trained)
    config = model_config(trained, default_rate, table)
    _write_json(folder / CONFIG_FILE, config)
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    if table is not None:
        tensors[TABLE_NAME] = table.value_at_node
    write_tensors(folder / WEIGHTS_FILE, tensors, metadata={"format": "pt"})
    write_tokenizer(trained.tokenizer, model.config.max_position_embeddings, folder)
    about = {key: value for key, value in trained.about.items() if key not in ("files", "format_version")}
    _write_json(folder / TRAINING_FILE, _without_folders(about) | {"weights": trained.weights})
    card = model_card(replace(trained, about=_without_folders(trained.about)), config)
    (folder / "README.md").write_text(card, encoding="utf-8")


def model_config(trained: TrainedModel, default_rate: DefaultRate | None, table: RateTable | None) -> dict[str, Any]:
    """The content of config.json."""
    # The scores of the BabyLM evaluation pipeline that fit the training.
    masked_score = {"same": "mlm", "next": "mntp"}[trained.predicts]
    backends = [name for name, mode in ((masked_score, "masked"), ("causal", "causal")) if mode in trained.modes]
    main_class = CAUSAL_CLASS if backends == ["causal"] else "AutoModelForMaskedLM"
    # Programs such as lm-eval score whatever has a causal class from left to right, without a question.
    classes = {auto: name for auto, name in CLASSES.items() if auto != CAUSAL_CLASS or "causal" in backends}
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "architectures": [CLASSES[main_class].partition(".")[2]],
        "auto_map": classes,
        **asdict(trained.model.config),
        "predicts": trained.predicts,
        **({"mntp_shift": False} if trained.predicts == "next" else {}),
        **({"block_length": trained.block_length} if trained.block_length else {}),
        "backends": backends,
    }
    if default_rate is not None:
        config |= {**asdict(default_rate), "time_embedding": type(trained.model.sigma_map).__name__}
    if table is not None:
        config["rate_intervals"] = INTERVALS
    return config | {
        "num_special_tokens": NUM_SPECIAL,
        **{f"{role}_token_id": token for role, token in ROLES.items()},
        "tokenizer_class": "PreTrainedTokenizerFast",  # pipelines of transformers 4 load no tokenizer without it
        "tie_word_embeddings": False,  # the model ties them in its forward pass: there is no second matrix
        "torch_dtype": "float32",
    }


def _rate_table(trained: TrainedModel) -> RateTable | None:
    """The map from mask rates to conditioning values; None if it is the identity.  Warns if interpolation is rough."""

    def value_for_rate(rate_B: Tensor) -> Tensor:
        conditioning_B = trained.value_for_rate(rate_B)
        assert conditioning_B is not None
        return conditioning_B

    try:
        table = RateTable.of(value_for_rate)
    except ValueError as error:
        raise UserError(f"{trained.source}: its time conditioning cannot be exported: {error}") from None
    largest_error = table.largest_error(value_for_rate)
    if largest_error > ROUGH_TABLE:
        warnings.warn(
            f"{trained.source}: the exported table of conditioning values has errors of up to {largest_error:.2g}"
            f" between its {INTERVALS + 1} nodes",
            stacklevel=2,
        )
    nodes = torch.arange(INTERVALS + 1) / INTERVALS
    return None if largest_error == 0 and torch.equal(table.value_at_node, nodes) else table


def _without_folders(value: Any) -> Any:
    """The value with every path reduced to its last part, so that no folders of this machine are published."""
    if isinstance(value, Mapping):
        # Units of words, such as characters/2, and names of sources are no paths unless they begin as one.
        return {
            key: part if key in ("words", "order") and not str(part).startswith(("/", "~")) else _without_folders(part)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_embedding(embedding: nn.Module, cond_dim: int, folder: Path) -> None:
    """Write a plugin's time embedding as EMBEDDING_FILE to `folder`, which already has transformer.py, and test it.

    The file is the plugin's source with its imports of `ltg_mdlm.model.transformer` made relative, and a last line that
    names the class.

    Raises UserError if the file imports anything but torch, the standard library and the transformer, or if the class
    computes something else when it is built from `cond_dim` and the weights alone.
    """
    (folder / EMBEDDING_FILE).write_text(_embedding_source(type(embedding)), encoding="utf-8")
    try:
        with _imported_embedding(folder) as module:
            same = _computes_the_same(module.EMBEDDING, embedding, cond_dim)
    except Exception as error:  # anything that the plugin's code raises
        raise _cannot_export(type(embedding), f"built on its own, it fails: {type(error).__name__}: {error}") from error
    if not same:
        raise _cannot_export(
            type(embedding),
            f"built from cond_dim={cond_dim} and its weights alone, it computes something else"
            "\n  keep what it needs in parameters or persistent buffers, not in attributes or other arguments",
        )


def _embedding_source(cls: type[nn.Module]) -> str:
    """The text of EMBEDDING_FILE.  Raises UserError if the file of the class imports other modules."""
    try:
        file = inspect.getsourcefile(cls)
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):
        raise _cannot_export(cls, "its source cannot be found") from None
    if getattr(sys.modules[cls.__module__], cls.__qualname__, None) is not cls:
        raise _cannot_export(cls, f"it is not a class at the top level of {file}")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            line = lines[node.lineno - 1]
            if _IMPORT_FROM_TRANSFORMER.match(line):
                lines[node.lineno - 1] = _IMPORT_FROM_TRANSFORMER.sub(r"\1.transformer\2", line)
                continue
            names = ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        foreign = [name for name in names if name.partition(".")[0] not in {"torch", *sys.stdlib_module_names}]
        if foreign:
            raise _cannot_export(
                cls,
                f"{file}:{node.lineno} imports {foreign[0]}, and only torch, the standard library and names"
                f" `from {_TRANSFORMER} import ...` are available there\n  put the class into a file of its own",
            )
    return "\n".join([*lines, "", f"EMBEDDING = {cls.__qualname__}", ""])


@contextmanager
def _imported_embedding(folder: Path) -> Iterator[ModuleType]:
    """Import EMBEDDING_FILE as a module of a temporary package that has only the files of the folder."""
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
    """Whether the class, built on the meta device as in `transformers` and given the weights, is the same function."""
    with torch.device("meta"):
        rebuilt = cls(cond_dim)
    rebuilt.to_empty(device="cpu")
    for tensor in [*rebuilt.parameters(), *rebuilt.buffers()]:
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    rebuilt.load_state_dict(embedding.state_dict())
    conditioning_B = torch.linspace(0, 8, 33)
    was_training = embedding.training
    expected, got = embedding.eval()(conditioning_B), rebuilt.eval()(conditioning_B)
    embedding.train(was_training)
    return torch.equal(expected, got)


def _cannot_export(cls: type, reason: str) -> UserError:
    name = f"{cls.__module__}.{cls.__qualname__}"
    return UserError(f"the plugin's time embedding {name} cannot be exported: {reason}")
