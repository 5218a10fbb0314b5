"""The three files from which `transformers` makes a fast tokenizer.

A plugin's own time embedding travels with an exported model as one file, or the reason why it cannot is given.

The file is the plugin's, with its imports of `ltg_mdlm.model.transformer` made relative, which is what they are in the
exported folder, and a last line that says which class is meant.

A trained model as a folder that Hugging Face `transformers` loads; writing it needs no `transformers`.

DIR/
    config.json, configuration_ltg_mdlm.py, modeling_ltg_mdlm.py      what `Auto*` classes look for
    transformer.py, attention.py, rate_table.py, time_embedding.py    what the modelling file imports
    model.safetensors
    tokenizer.json, tokenizer_config.json, special_tokens_map.json
    training.json, README.md                                          where it comes from

With revisions, DIR holds such a folder for each: main, chck_1M, chck_2M, ..., and revisions.json, which lists them.
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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from ltg_mdlm.data.tokenizer import (
    BOS,
    EOS,
    MASK,
    NUM_SPECIAL,
    PAD,
    SPECIAL_TOKENS,
    UNK,
    Tokenizer,
    untrained_tokenizer,
)
from ltg_mdlm.inference.exported_folder import (
    CONFIG_FILE,
    MAIN,
    MODEL_PREFIX,
    MODEL_TYPE,
    REVISIONS_FILE,
    TABLE_NAME,
    TOKENIZER_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    write_json,
)
from ltg_mdlm.inference.trained_model import TrainedModel, Weights, open_model
from ltg_mdlm.interchange.model_card import model_card
from ltg_mdlm.model.rate_table import INTERVALS, RateTable
from ltg_mdlm.model.transformer import TimeEmbedding
from ltg_mdlm.storage.checkpoint import damage, find_checkpoint
from ltg_mdlm.storage.tensor_files import write_tensors

ROLES = {"bos": BOS, "cls": BOS, "eos": EOS, "sep": EOS, "pad": PAD, "mask": MASK, "unk": UNK}
"""Ids of the special tokens that `transformers` knows by name."""


def write_tokenizer(tokenizer: Tokenizer, longest: int, folder: Path) -> None:
    """Write a tokenizer that puts `<s>` before a text, and nothing behind it, for rows of up to `longest` tokens."""
    template = json.loads(untrained_tokenizer().to_str())["post_processor"]
    definition = tokenizer.definition | {"post_processor": template, "truncation": None, "padding": None}
    text = json.dumps(definition, ensure_ascii=False, indent=1)
    (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")
    special = {f"{role}_token": SPECIAL_TOKENS[token] for role, token in ROLES.items()}
    write_json(folder / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": longest,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": _added_tokens(definition["added_tokens"]),
    }
    write_json(folder / "tokenizer_config.json", settings | special)


def _added_tokens(tokens: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in tokens}


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


CODE_FILES = (
    "configuration_ltg_mdlm.py",
    "modeling_ltg_mdlm.py",
    "transformer.py",
    "attention.py",
    "rate_table.py",
    EMBEDDING_FILE,
)
"""Files of `ltg_mdlm.model` that travel as they are."""


CLASSES = {
    "AutoConfig": "configuration_ltg_mdlm.LtgMdlmConfig",
    "AutoModel": "modeling_ltg_mdlm.LtgMdlmModel",
    "AutoModelForMaskedLM": "modeling_ltg_mdlm.LtgMdlmForMaskedLM",
    "AutoModelForCausalLM": "modeling_ltg_mdlm.LtgMdlmForCausalLM",
    "AutoModelForSequenceClassification": "modeling_ltg_mdlm.LtgMdlmForSequenceClassification",
}


MaskRateChoice = Literal["fraction", "zero", "constant"]


ROUGH_TABLE = 1e-3
"""An error of a table's interpolation that is worth a warning: the map has a jump, or nearly so."""


@dataclass(frozen=True)
class ToldRate:
    """What an exported model with time conditioning tells itself where the caller gives no mask rate."""

    mask_rate: MaskRateChoice = "fraction"
    constant_rate: float | None = None

    @classmethod
    def of(cls, mask_rate: MaskRateChoice | None, constant_rate: float | None) -> ToldRate | None:
        """From two options; None where neither is given.  Raises UserError if they do not go together."""
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
    """Write a run's newest checkpoint, or a given one, to the folder `out`; returns the folders to load models from.

    Args:
        path: run folder or checkpoint
        out: must be new or empty
        weights: the averages, which training evaluates, or those of the last step
        revisions: also every `chck_*` checkpoint of the run, each in a subfolder
        mask_rate: fraction (default), zero or constant; for models with time conditioning only
        constant_rate: goes with constant

    Raises UserError, with nothing written, for a checkpoint that is damaged, an output folder that holds something, a
    time embedding that cannot travel, or options that do not fit.
    """
    told = ToldRate.of(mask_rate, constant_rate)
    _require_usable(out)
    checkpoints = find_revisions(path) if revisions else {MAIN: find_checkpoint(path)}
    for checkpoint in checkpoints.values():
        _require_undamaged(checkpoint)
    with write_errors(out), written_folder(out) as aside:
        sizes = {name: (checkpoint / "model.safetensors").stat().st_size for name, checkpoint in checkpoints.items()}
        total = sum(sizes.values())
        require_free_space(aside, total)
        with byte_progress("exporting", total, show=len(sizes) > 1 and sys.stderr.isatty()) as advance:
            for name, checkpoint in checkpoints.items():
                folder = aside / name if revisions else aside
                folder.mkdir(exist_ok=True)
                write_export(open_model(checkpoint, Ranks.alone(), weights=weights), told, folder)
                advance(sizes[name])
        if revisions:
            write_json(aside / REVISIONS_FILE, {"revisions": list(checkpoints)})
    return [out / name for name in checkpoints] if revisions else [out]


def find_revisions(run: Path) -> dict[str, Path]:
    """Checkpoints by the name of their revision: `main`, the newest, then those by words seen.

    Raises UserError if there are none by words seen.
    """
    newest = find_checkpoint(run)
    milestones = sorted((run / "checkpoints").glob("chck_*M"), key=lambda path: int(path.name[5:-1]))
    if not milestones:
        raise UserError(
            f"{run}: no checkpoints by words seen (checkpoints/chck_1M and so on), so there is nothing to make"
            " revisions of\n  export without --revisions"
        )
    return {MAIN: newest} | {path.name: path for path in milestones}


def write_export(trained: TrainedModel, told: ToldRate | None, folder: Path) -> None:
    """Fill an empty folder.  Raises UserError if the model's time embedding cannot travel, or there is none to tell."""
    if told is not None and not trained.is_conditioned:
        raise UserError(
            f"{trained.source}: this model has no time conditioning, so there is no mask rate to tell it"
            "\n  leave out --mask-rate and --constant-rate"
        )
    _write_code(trained, folder)
    table = _rate_table(trained) if trained.is_conditioned else None
    config = model_config(trained, (told or ToldRate()) if trained.is_conditioned else None, table)
    write_json(folder / CONFIG_FILE, config)
    _write_weights(trained, table, folder / WEIGHTS_FILE)
    write_tokenizer(trained.tokenizer, trained.model.config.max_position_embeddings, folder)
    write_json(folder / TRAINING_FILE, training_facts(trained))
    (folder / "README.md").write_text(model_card(trained, config), encoding="utf-8")


def backends(trained: TrainedModel) -> list[str]:
    """The scores of the BabyLM evaluation pipeline that fit what the model was trained to predict."""
    masked = {"same": "mlm", "next": "mntp"}[trained.predicts]
    return [name for name, mode in ((masked, "masked"), ("causal", "causal")) if mode in trained.modes]


def model_config(trained: TrainedModel, told: ToldRate | None, table: RateTable | None) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": [CLASSES["AutoModelForMaskedLM"].partition(".")[2]],
        "auto_map": CLASSES,
        **asdict(trained.model.config),
        "predicts": trained.predicts,
        "backends": backends(trained),
        **({} if told is None else asdict(told) | {"time_embedding": type(trained.model.sigma_map).__name__}),
        **({} if table is None else {"rate_intervals": INTERVALS}),
        "num_special_tokens": NUM_SPECIAL,
        **{f"{role}_token_id": token for role, token in ROLES.items()},
        "tie_word_embeddings": False,  # the tying is in the forward pass: there is no second matrix to be tied
        "torch_dtype": "float32",
    }


def training_facts(trained: TrainedModel) -> dict[str, Any]:
    """The content of training.json: what the checkpoint says of its training, without the places of files."""
    about = {key: value for key, value in trained.about.items() if key not in ("files", "format_version")}
    return {key: _names_for_paths(value) for key, value in about.items()} | {"weights": trained.weights}


def _names_for_paths(value: Any) -> Any:
    """The value with every path cut to its last part: folders of the machine concern nobody else."""
    if isinstance(value, Mapping):
        return {key: _names_for_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_names_for_paths(part) for part in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _require_usable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another folder with --out")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder with --out, or delete this one")
    if "." in out.resolve().name:
        raise UserError(
            f"{out}: transformers 4.51 loads no model from a folder with a dot in its name, and evaluation pipelines"
            " cut the name there\n  choose a name without dots with --out"
        )


def _require_undamaged(checkpoint: Path) -> None:
    if (problem := damage(checkpoint)) is not None:
        raise UserError(f"the checkpoint {checkpoint} is damaged: {problem}")


def _rate_table(trained: TrainedModel) -> RateTable | None:
    """The map from mask rates to conditioning values; None where the value is the rate.  Warns of a rough table."""

    def value_for_rate(rate_B: Tensor) -> Tensor:
        value_B = trained.value_for_rate(rate_B)
        assert value_B is not None
        return value_B

    try:
        table = RateTable.of(value_for_rate)
    except ValueError as error:
        raise UserError(f"{trained.source}: its time conditioning cannot be exported: {error}") from None
    largest_error = table.largest_error(value_for_rate)
    if largest_error > ROUGH_TABLE:
        warnings.warn(
            f"{trained.source}: the exported table of conditioning values is off by up to {largest_error:.2g} between"
            f" its {INTERVALS + 1} nodes",
            stacklevel=2,
        )
    nodes = torch.arange(INTERVALS + 1) / INTERVALS
    return None if largest_error == 0 and torch.equal(table.value_at_node, nodes) else table


def _write_code(trained: TrainedModel, folder: Path) -> None:
    package = Path(next(iter(ltg_mdlm.model.__path__)))
    for name in CODE_FILES:
        shutil.copyfile(package / name, folder / name)
    cond_dim = trained.model.config.cond_dim
    if cond_dim is not None and type(trained.model.sigma_map) is not TimeEmbedding:
        write_embedding(trained.model.sigma_map, cond_dim, folder)


def _write_weights(trained: TrainedModel, table: RateTable | None, file: Path) -> None:
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in trained.model.state_dict().items()}
    if table is not None:
        tensors[TABLE_NAME] = table.value_at_node
    write_tensors(file, tensors, metadata={"format": "pt"})
