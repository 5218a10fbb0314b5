"""A trained model as a folder that Hugging Face `transformers` loads; writing it needs no `transformers`.

DIR/
    config.json, configuration_ltg_mdlm.py, modeling_ltg_mdlm.py      what `Auto*` classes look for
    transformer.py, rate_table.py, time_embedding.py                  what the modelling file imports
    model.safetensors
    tokenizer.json, tokenizer_config.json, special_tokens_map.json
    training.json, README.md                                          where it comes from

With revisions, DIR holds such a folder for each: main, chck_1M, chck_2M, ..., and revisions.json, which lists them.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import ltg_mdlm.model
from ltg_mdlm.checkpoint import damage, find_checkpoint
from ltg_mdlm.data.aside import check_free_space, written_aside
from ltg_mdlm.data.special_tokens import NUM_SPECIAL
from ltg_mdlm.distributed import Ranks
from ltg_mdlm.errors import UserError
from ltg_mdlm.export.card import model_card
from ltg_mdlm.export.embedding import EMBEDDING_FILE, write_embedding
from ltg_mdlm.export.folder import (
    CONFIG_FILE,
    MAIN,
    MODEL_PREFIX,
    MODEL_TYPE,
    REVISIONS_FILE,
    TABLE_NAME,
    TRAINING_FILE,
    WEIGHTS_FILE,
    write_json,
)
from ltg_mdlm.export.tokenizer import ROLES, write_tokenizer
from ltg_mdlm.model.rate_table import INTERVALS, RateTable
from ltg_mdlm.model.transformer import TimeEmbedding
from ltg_mdlm.progress import byte_progress
from ltg_mdlm.tensor_file import write_tensors
from ltg_mdlm.trained_model import TrainedModel, Weights, open_model

CODE_FILES = ("configuration_ltg_mdlm.py", "modeling_ltg_mdlm.py", "transformer.py", "rate_table.py", EMBEDDING_FILE)
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
    with written_aside(out) as aside:
        sizes = {name: (checkpoint / "model.safetensors").stat().st_size for name, checkpoint in checkpoints.items()}
        total = sum(sizes.values())
        check_free_space(aside, total)
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
