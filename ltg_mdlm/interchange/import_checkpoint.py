"""Converts checkpoints of the published code bases to run folders, which can be evaluated, exported and trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltg_mdlm.core.components import CorpusStatistics, TimeConditioning
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_errors, written_folder
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.core.settings import Layer, load_settings, merge, read_layers
from ltg_mdlm.data.sources import sha256_of
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import build_model, run_context
from ltg_mdlm.host.slots import Components
from ltg_mdlm.inference.exported_folder import CONFIG_FILE, TABLE_NAME, TOKENIZER_FILE, TRAINING_FILE, WEIGHTS_FILE
from ltg_mdlm.inference.trained_model import Weights
from ltg_mdlm.interchange.published_checkpoints import NamedWeights, PublishedCheckpoint, read_published
from ltg_mdlm.model.attention import distance_buckets
from ltg_mdlm.model.transformer import ModelConfig, Transformer
from ltg_mdlm.storage.checkpoint import COUNT, write_weights
from ltg_mdlm.storage.named_tensors import folded
from ltg_mdlm.storage.run_folder import RunFolder, Status
from ltg_mdlm.training.assembly import provenance

_WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
"""In a folder as on model hubs, in the order of preference."""

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)([._-].*)?")
"""Names of other files that training leaves in a folder."""

_AVERAGES = re.compile(r"(^|.*[._-])ema([._-].*|$)", re.IGNORECASE)
"""Names, without their suffix, of files with averaged weights."""

_UNCONDITIONED = {"plugins": {"uniform_mdlm": {"conditioning": "none"}}}

_LOSSLESS = (torch.float32, torch.bfloat16, torch.float16)
"""Types that float32 represents exactly."""

_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "position_bucket_size",
    "layer_norm_eps",
)
"""Sizes without a default: the weights do not reveal all of them, so a wrong value would go unnoticed."""

_OPTIONAL = ("cond_dim", "depth_weighted_averaging")

_DROPOUT, _ATTENTION_DROPOUT = "hidden_dropout_prob", "attention_probs_dropout_prob"


@dataclass(frozen=True)
class Files:
    """The files of a published model."""

    weights: Path
    model_config: Path
    tokenizer: Path
    others: tuple[str, ...] = ()
    """Names of other files of weights in the same folder."""

    @classmethod
    def of(cls, path: Path, model_config: Path | None, tokenizer: Path | None, weights: Weights) -> Files:
        """The files of a checkpoint; in a folder, those that are not given have their usual names.

        Of several files of weights in a folder, "ema" chooses the averages and "raw" the weights of the last step.

        Raises UserError if one of them is missing.
        """
        if not path.exists():
            raise UserError(f"{path}: no such file or folder (download models of the Hub first)")
        if path.is_dir():
            chosen, others = _weights_in(path, weights)
            return cls(chosen, model_config or path / CONFIG_FILE, tokenizer or path / TOKENIZER_FILE, others)
        if model_config is None or tokenizer is None:
            options = {"--model-config": model_config, "--tokenizer": tokenizer}
            missing = [option for option, file in options.items() if file is None]
            raise UserError(f"{path} is a file, so {' and '.join(missing)} must be given, too")
        return cls(path, model_config, tokenizer)


def _weights_in(folder: Path, weights: Weights) -> tuple[Path, tuple[str, ...]]:
    """The file of weights to import from a folder, and the names of the others.  Raises UserError if it is unclear."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    known = [file for file in files if not _NO_WEIGHTS.fullmatch(file.name)]
    if not known:
        raise UserError(f"{folder}: no weights in this folder: neither {' nor '.join(_WEIGHTS_FILES)}")
    if any(re.search(r"-\d+-of-\d+$", file.stem) for file in known):
        raise UserError(f"{folder}: the weights are split into several files; save them as one, {WEIGHTS_FILE}")
    averages = [file for file in known if _AVERAGES.fullmatch(file.stem)]
    last = [file for file in known if file not in averages]
    if weights == "raw" and not last:
        raise UserError(f"{folder}: only averages in this folder ({averages[0].name}); leave out --weights raw")
    wanted = averages if averages and weights == "ema" else last
    usual = [name for stem in ("{}", "{}_ema", "{}-ema", "{}.ema", "ema_{}") for name in _usual_names(stem)]
    chosen = sorted(wanted, key=lambda file: usual.index(file.name) if file.name in usual else len(usual))
    if len(chosen) > 1 and chosen[0].name not in usual:
        raise UserError(
            f"{folder}: several files of weights: {', '.join(file.name for file in chosen)}"
            "\n  give one of them instead of the folder, with --model-config and --tokenizer"
        )
    return chosen[0], tuple(file.name for file in known if file != chosen[0])


def _usual_names(stem: str) -> list[str]:
    return [stem.format(Path(name).stem) + Path(name).suffix for name in _WEIGHTS_FILES]


@dataclass(frozen=True)
class ModelFile:
    """The JSON file with the sizes of a published model."""

    path: Path
    fields: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Raises UserError for a file that is not JSON, or in which a size is missing."""
        try:
            fields = read_object(path)
            if missing := [name for name in _REQUIRED if name not in fields]:
                raise UserError(f"{path}: not a model config: missing {', '.join(missing)}")
        except UserError as error:
            advice = "give the JSON file that the checkpoint was trained with (--model-config)"
            raise UserError(f"{error}\n  {advice}") from None
        return cls(path, fields)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a run in the section `model`."""
        given = {name: self.fields[name] for name in (*_REQUIRED, *_OPTIONAL) if self.fields.get(name) is not None}
        if _DROPOUT in self.fields:
            given["dropout"] = self.fields[_DROPOUT]
        return given

    @property
    def vocab_size(self) -> int | None:
        """Size of the vocabulary; None if the file does not have it."""
        return self.fields.get("vocab_size")

    @property
    def unused(self) -> list[str]:
        """Fields that are ignored: unknown ones, and a dropout rate of attention that differs from the other one."""
        known = {*_REQUIRED, *_OPTIONAL, "vocab_size", _DROPOUT}
        if self.fields.get(_ATTENTION_DROPOUT) == self.fields.get(_DROPOUT):
            known.add(_ATTENTION_DROPOUT)
        return [name for name in self.fields if name not in known]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A published checkpoint as the only checkpoint of a run."""

    published: PublishedCheckpoint
    config: RunConfig
    tokenizer: Tokenizer
    step: int
    words_seen: int | None
    last: Mapping[str, Tensor]
    """Weights of the last step."""
    averages: Mapping[str, Tensor] | None
    about: Mapping[str, Any]
    """Further facts of the run, as in every checkpoint."""
    unused: Sequence[str]
    """Ignored fields of the model config."""
    others: Sequence[str] = ()
    """Other files of weights in the folder."""
    notes: Sequence[str] = ()
    """What was changed in the recipe."""

    def write(self, out: Path) -> None:
        """Write the run folder, completely or not at all.  Raises UserError if it cannot be written."""
        source = self.published.path
        average = self.last if self.averages is None else self.averages
        with write_errors(out), written_folder(out) as aside:
            folder = RunFolder(aside)
            folder.write_config(self.config.to_yaml())
            folder.write_tokenizer(self.tokenizer)
            folder.metrics_file.touch()
            write_weights(
                folder.checkpoints,
                step=self.step,
                words_seen=self.words_seen,
                model=self.last,
                ema={**average, COUNT: torch.tensor(self.published.updates)},
                about={**self.about, "imported_from": {"file": source.name, "sha256": sha256_of(source)}},
            )
            folder.write_status(Status("finished", self.step, f"imported from {source.name}"))

    def describe(self) -> str:
        """A summary for the user."""
        source, config = self.published, self.config
        parameters = sum(tensor.numel() for tensor in self.last.values())
        averages = "without averages" if self.averages is None else f"averaged {source.updates:,} times"
        lines = [
            f"imported {source.path}: {parameters:,} parameters after {self.step:,} steps, {averages}",
            f"settings: {config.name} with plugins {', '.join(config.plugins)} (others: --config, --set)",
        ]
        if self.others:
            is_average = _AVERAGES.fullmatch(source.path.stem)
            kind = "the averages; --weights raw takes those of the last step" if is_average else "not averages"
            lines.append(f"of the weights in the folder, {source.path.name} was taken ({kind})")
            lines.append(f"not imported: {', '.join(self.others)}")
        lines += self.notes
        if source.left_out:
            lines.append(f"not imported: {', '.join(source.left_out)}")
        if self.unused:
            lines.append(f"ignored fields of the model config: {', '.join(self.unused)}")
        return "\n".join([*lines, f"run folder: {config.run_folder()}"])


def import_checkpoint(
    path: Path,
    *,
    out: Path,
    model_config: Path | None = None,
    tokenizer: Path | None = None,
    weights: Weights = "ema",
    configs: Sequence[str] = (),
    sets: Sequence[str] = (),
) -> Imported:
    """Convert a published checkpoint to a run folder.

    Args:
        path: a training checkpoint or a state dict, from torch.save or as safetensors; or a folder as on model hubs.
        out: the run folder, which must not exist.
        model_config: JSON file with the sizes; by default config.json of the folder.
        tokenizer: tokenizer file; by default tokenizer.json of the folder.
        weights: "ema" also imports the averages if the file has any; "raw" does not.
        configs: the recipe of the training; by default it is read from an export, or derived from the weights' layout.
        sets: further settings.

    Raises UserError, with nothing written, for files of other types, and unless the tensors of the file are exactly
    those of the model, in names and shapes.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another folder with --out")
    files = Files.of(path, model_config, tokenizer, weights)
    # The weights first: whether they can be imported at all does not depend on the other files.
    published = read_published(files.weights, averages=weights == "ema")
    sizes, tokens = ModelFile.read(files.model_config), Tokenizer.read(files.tokenizer)
    _require_one_vocabulary(files, sizes, tokens, published)
    training = _training_facts(published)
    config, sources, notes = _settings(published, training, sizes, configs, sets, out)
    host = Host(config, sources)
    # The components are not used for training: any token counts will do.
    count_V = torch.ones(tokens.vocab_size, dtype=torch.int64)
    statistics = CorpusStatistics(token_count_V=count_V, num_tokens=len(count_V), num_words=len(count_V))
    components = host.build(run_context(host.config, tokens, Ranks.alone(), max_steps=1), statistics)
    if published.code_base == "ltg-mdlm":
        _require_compatible_recipe(sizes, components, host.config.name)
    conditioning = components.time_conditioning
    model = build_model(host.config, tokens.vocab_size, conditioning)
    last = weights_for(model, published.model, conditioning, str(files.weights))
    averages = published.named_averages()
    imported = Imported(
        published=published,
        config=host.config,
        tokenizer=tokens,
        step=training.get("step", published.step),
        words_seen=training.get("words_seen"),
        last=last,
        averages=weights_for(model, averages, conditioning, f"{files.weights}: the averages") if averages else None,
        about=provenance(host.config, components, Ranks.alone()),
        unused=sizes.unused if published.code_base != "ltg-mdlm" else (),
        others=files.others,
        notes=notes,
    )
    imported.write(out)
    return imported


def _require_one_vocabulary(files: Files, sizes: ModelFile, tokens: Tokenizer, published: PublishedCheckpoint) -> None:
    """Raises UserError unless tokenizer, weights and model config have vocabularies of the same size."""
    found = {f"the tokenizer {files.tokenizer}": tokens.vocab_size}
    if sizes.vocab_size is not None:
        found[f"vocab_size in {sizes.path}"] = sizes.vocab_size
    if (embedding := published.model.weights.get("embedding.word_embedding.weight")) is not None:
        found[f"the word embedding in {published.path}"] = embedding.shape[0] if embedding.dim() else 0
    if len(set(found.values())) > 1:
        listing = "".join(f"\n  {what}: {size}" for what, size in found.items())
        raise UserError(f"the sizes of the vocabulary differ:{listing}\n  they must come from the same model")


def _require_compatible_recipe(exported: ModelFile, components: Components, recipe: str) -> None:
    """Raises UserError if config.json contradicts the recipe in facts that the weights do not show."""
    expected = {
        "predicts": components.masking.predicts,
        "block_length": components.masking.block_length,
        "causal rows": "causal" in components.row_mode.modes,
    }
    fields = exported.fields
    found: dict[str, Any] = {"block_length": fields.get("block_length", 0)}  # left out if it is 0
    if "predicts" in fields:
        found["predicts"] = fields["predicts"]
    if "backends" in fields:
        found["causal rows"] = "causal" in fields["backends"]
    differing = [f"{name}: {value}, not {expected[name]}" for name, value in found.items() if value != expected[name]]
    if differing:
        raise UserError(
            f"{exported.path} is not of a model of the recipe {recipe}: {'; '.join(differing)}"
            "\n  name the recipe that it was trained with, by --config and --set"
        )


def _training_facts(published: PublishedCheckpoint) -> Mapping[str, Any]:
    """config, step and words_seen of an export's training.json; empty for other checkpoints."""
    file = published.path.with_name(TRAINING_FILE)
    if published.code_base != "ltg-mdlm" or not file.is_file():
        return {}
    try:
        found = read_object(file, finite=False)
        facts = {name: value for name, value in found.items() if name in ("config", "step", "words_seen")}
        config, step, words = facts["config"], facts["step"], facts["words_seen"]
        counts = [step] if words is None else [step, words]
        if isinstance(config, dict) and all(type(count) is int and count >= 0 for count in counts):
            return facts
        problem = "a value of the wrong type"
    except KeyError as error:
        problem = f"no {error}"
    except UserError as error:
        problem = str(error)
    raise UserError(
        f"{file}: not the training facts of an export ({problem})"
        "\n  delete it to derive the recipe from the layout of the weights"
    )


def _settings(
    published: PublishedCheckpoint,
    training: Mapping[str, Any],
    sizes: ModelFile,
    configs: Sequence[str],
    sets: Sequence[str],
    out: Path,
) -> tuple[RunConfig, Mapping[str, str], list[str]]:
    """The settings of the imported run, the source of each, and notes on what was changed in the recipe."""
    layers = [
        Layer(f"the layout of {published.path}", {"model": {"depth_weighted_averaging": published.averages_depth}}),
        Layer(str(sizes.path), {"model": sizes.settings}),
    ]
    if training and not configs:
        layers = [Layer(str(published.path.with_name(TRAINING_FILE)), training["config"]), *layers]
    elif not configs:
        recipe, changes = _recipe(published)
        configs, layers = [recipe], [Layer(f"the layout of {published.path}", changes), *layers]
    changes, notes = _fitting_rows(configs, layers, sizes.fields["max_position_embeddings"])
    if changes:
        layers.append(Layer(f"the positions in {sizes.path}", {"training": changes}))
    settings = load_settings(configs, sets, out=out, layers=layers)
    return settings.config, settings.sources, notes


def _fitting_rows(
    configs: Sequence[str], layers: Sequence[Layer], positions: object
) -> tuple[dict[str, Any], list[str]]:
    """Settings of `training` that cut the rows of a recipe to the positions of the model, and the note that says so."""
    merged: dict[str, Any] = {}
    for layer in [*(layer for name in configs for layer in read_layers(name)), *layers]:
        merge(merged, layer.values, layer.source, {})
    training = merged.get("training")
    if type(positions) is not int or positions < 8 or not isinstance(training, dict):
        return {}, []  # the validation of the settings says what is wrong
    changes: dict[str, Any] = {}
    if isinstance(length := training.get("seq_len"), int) and length > positions:
        changes["seq_len"] = positions
    if (stages := training.get("seq_len_schedule")) and any(length > positions for _, length in stages):
        cut = [[start, min(length, positions)] for start, length in stages]
        changes["seq_len_schedule"] = [stage for i, stage in enumerate(cut) if i == 0 or stage[1] != cut[i - 1][1]]
    given = ", ".join(f"training.{key}={value}" for key, value in changes.items())
    return changes, [f"rows cut to the {positions} positions of the model: {given}"] if changes else []


def _recipe(published: PublishedCheckpoint) -> tuple[str, dict[str, Any]]:
    """The config that matches the layout of a checkpoint, and the settings that differ from it.

    Raises UserError if the layout does not determine where masked tokens are predicted.
    """
    is_conditioned, averages_depth = published.is_conditioned, published.averages_depth
    if is_conditioned and not averages_depth:
        return "freq_cosine", {}
    if not is_conditioned and (averages_depth or published.code_base == "GPT-BERT"):
        return "gpt_bert_100m", {}
    if not is_conditioned and published.code_base == "frequency-informed MDLM":
        return "freq_cosine", _UNCONDITIONED
    raise UserError(
        f"{published.path}: its tensors do not determine how the model was trained: they have"
        f" {'both' if is_conditioned else 'neither'} time conditioning (adaLN_modulations)"
        f" {'and' if is_conditioned else 'nor'} depth-weighted averaging (dwa_modules)"
        "\n  name its recipe with --config; for masked diffusion without time conditioning:"
        " --config freq_cosine --set plugins.uniform_mdlm.conditioning=none"
    )


def weights_for(
    model: Transformer, found: NamedWeights, conditioning: TimeConditioning, origin: str
) -> dict[str, Tensor]:
    """The weights of `model` in float32.

    Raises UserError, with `origin` and a list of all mismatches, unless the tensors are exactly those of the model.
    """
    expected, weights = model.state_dict(), found.weights
    shapes = [
        f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    dtypes = [f"{name} {str(tensor.dtype)[6:]}" for name, tensor in weights.items() if tensor.dtype not in _LOSSLESS]
    complaints = {
        "missing": [name for name in expected if name not in weights],
        "not in the model": [name for name in weights if name not in expected],
        "of another shape": shapes,
        "not of a floating-point type of up to 32 bits": dtypes,
        "not the buckets of these sizes": list(_wrong_positions(found.positions, model.config)),
        "not the time conditioning of these settings": list(_wrong_table(found.rate_table, conditioning)),
    }
    if any(complaints.values()):
        listing = [f"{label}: {folded(names)}" for label, names in complaints.items() if names]
        raise UserError(
            "\n  ".join([f"{origin}: the tensors are not those of the model that the settings describe", *listing])
        )
    return {name: weights[name].float().contiguous() for name in expected}


def _wrong_positions(positions: Mapping[str, Tensor], sizes: ModelConfig) -> Iterator[str]:
    """Names of buffers that map a distance to another row of the table of relative embeddings than this model.

    Because of rounding, some published buffers have indices after the end of the table, for distances that were never
    used.  They are accepted.
    """
    if not positions:
        return
    limit, bucket_size = sizes.max_position_embeddings, sizes.position_bucket_size
    bucket_P = torch.tensor(distance_buckets(limit, bucket_size))
    distance_PP = torch.arange(limit)[:, None] - torch.arange(limit)
    expected_PP = bucket_P[distance_PP.abs()] * distance_PP.sign() + bucket_size - 1
    for name, found_PP in positions.items():
        if found_PP.shape != expected_PP.shape:
            yield f"{name} {list(found_PP.shape)} instead of {list(expected_PP.shape)}"
        elif bool(((found_PP != expected_PP) & (found_PP >= 0) & (found_PP < sizes.num_buckets)).any()):
            yield name


def _wrong_table(table_N: Tensor | None, conditioning: TimeConditioning) -> Iterator[str]:
    """The name of the table of conditioning values, if the settings give other values."""
    if table_N is None:
        return
    is_table = conditioning.active and table_N.dim() == 1
    value_N = conditioning.value_for_rate(torch.linspace(0, 1, len(table_N))) if is_table else None
    if value_N is None or not torch.allclose(value_N, table_N.float(), rtol=1e-4, atol=1e-6):
        yield TABLE_NAME
