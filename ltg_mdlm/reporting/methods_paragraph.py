"""A paragraph on the methods of a group of runs, for a paper, from their settings, corpus and environment.json."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ltg_mdlm.core.config import BUILT_IN_OPTIMIZERS, OptimizerConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import import_plugin
from ltg_mdlm.host.run_context import build_model, epoch_sampling
from ltg_mdlm.reporting.html_report.run_groups import INIT_FROM, Group, RunRecord
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.training.check import Resolved, resolve
from ltg_mdlm.training.ema import tail_start

_SLOTS = {
    "row_mode": "the choice of masked and causal rows",
    "noise_schedule": "the noise schedule",
    "masking": "the masking",
    "objective": "the objective",
    "time_conditioning": "the time conditioning",
    "row_order": "the order of the rows",
}


def methods_paragraph(groups: Sequence[Group]) -> str:
    """Model, text, amount of training, components, optimiser, seeds and hardware, in plain sentences.

    The settings are resolved as `check` does, so the corpus and the plugins must be there. Raises `UserError` if they
    are not, if the corpus is not the one that the runs were trained on, or if there are several recipes.
    """
    if len(groups) > 1:
        names = "\n".join(f"  {group.name}" for group in groups)
        raise UserError(
            f"--methods describes one recipe, but these runs have {len(groups)}\n{names}\n  name runs of one"
        )
    runs, finished = groups[0].measured
    if not finished:
        raise UserError("--methods describes finished runs, and none of these is finished")
    if not any(run.words_seen is not None for run in runs):
        raise UserError(
            "--methods describes training, and the metrics of these runs do not describe it (were they imported?)"
        )
    starts = [start for run in runs for start in RunFolder(run.row.folder).read_environment()]
    resolved = resolve(load_settings([str(RunFolder(runs[0].row.folder).config_file)]))
    fingerprint = resolved.corpus.description.get("fingerprint")
    for start in starts:
        known = (start.get("corpus") or {}).get("fingerprint")
        if known not in (None, fingerprint):
            raise UserError(
                f"the corpus {resolved.corpus.path} is not the one that the runs were trained on: its fingerprint is"
                f" {str(fingerprint)[:12]}, and that of the runs {known[:12]}"
            )
    parts = [
        _model(resolved),
        _text(resolved),
        *_origin(runs),
        _amount(resolved, runs),
        _components(resolved),
        _optimizer(resolved.config.optimizer, resolved.schedule.max_steps),
        _hardware(runs, starts),
    ]
    return " ".join(parts)


def _model(resolved: Resolved) -> str:
    """Sizes of the model."""
    sizes, conditioning = resolved.config.model, resolved.components.time_conditioning
    with torch.device("meta"):
        model = build_model(resolved.config, resolved.corpus.vocab_size, conditioning)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    extras = []
    if conditioning.active:
        extras.append(f"adaptive layer norms that are conditioned on time (embeddings of {sizes.cond_dim} dimensions)")
    if sizes.depth_weighted_averaging:
        extras.append("depth-weighted averaging of the layers")
    return (
        f"The model is an LTG-BERT transformer with {parameters:,} trainable parameters: {sizes.num_hidden_layers}"
        f" layers of width {sizes.hidden_size}, {sizes.num_attention_heads} attention heads, gated MLPs of inner width"
        f" {sizes.intermediate_size}, relative positions in {sizes.position_bucket_size} buckets per direction, and"
        f" dropout {sizes.dropout:g}" + (f"; it has {' and '.join(extras)}." if extras else ".")
    )


def _text(resolved: Resolved) -> str:
    """Tokenizer, vocabulary and training split."""
    corpus, train = resolved.corpus, resolved.corpus.train
    kind = "a generated corpus" if resolved.config.data.corpus == "builtin" else f"the corpus {corpus.path.name}"
    if resolved.config.data.train is not None:
        kind = f"the tokenised corpus {corpus.path.name}"
    by_source = sorted(train.words_by_source().items(), key=lambda item: -item[1])
    shares = ", ".join(f"{name} {words / train.num_words:.1%}" for name, words in by_source)
    unit = "" if corpus.word_unit == "whitespace" else f" (counted by {corpus.word_unit})"
    return (
        f"The tokenizer has a vocabulary of {corpus.vocab_size:,} token types. The training text is {kind}, with"
        f" {train.num_words:,} words{unit} or {train.num_tokens:,} tokens in {train.num_documents:,} documents"
        + (f" of these sources, by words: {shares}." if len(by_source) > 1 else ".")
    )


def _origin(runs: Sequence[RunRecord]) -> list[str]:
    """The runs or checkpoints with the initial weights, if there are any."""
    origins = dict.fromkeys(str(start) for run in runs if (start := run.settings.get(INIT_FROM)))
    return [f"Training starts from the weights of {_listed(origins)}."] if origins else []


def _amount(resolved: Resolved, runs: Sequence[RunRecord]) -> str:
    """Steps, rows, epochs and words."""
    schedule, training, totals = resolved.schedule, resolved.config.training, resolved.schedule.totals()
    stages = []
    for stage in schedule.stages:
        rows = [schedule.rows(i) for i in range(stage.first_step, stage.first_step + stage.steps)]
        batch = f"{rows[0]:,}" if min(rows) == max(rows) else f"{rows[0]:,} to {rows[-1]:,}"
        stages.append(f"{stage.steps:,} steps of {batch} rows of {stage.seq_len} tokens")
    packed = (
        "several documents are packed into a row"
        if training.packing == "documents_packed"
        else "no document shares a row"
    )
    seen = [run.words_seen for run in runs if run.words_seen is not None]
    words = _range([f"{count:,}" for count in sorted(seen)])
    uniform = (
        epoch_sampling(resolved.config, resolved.corpus, schedule) is None and resolved.components.row_order is None
    )
    return (
        f"Training takes {', then '.join(stages)}; {packed}, and attention does not cross documents. In"
        f" {schedule.max_steps:,} steps, a run sees {words} words"
        + (
            f", which is {totals.epochs:.2f} epochs."
            if uniform
            else ", with sources or rows that are sampled unequally."
        )
    )


def _components(resolved: Resolved) -> str:
    """The component in every slot, and the options of the plugins that differ from their defaults."""
    components = resolved.components
    by_plugin: dict[str, list[str]] = {}
    for slot, plugin, component in components.named():
        if slot in _SLOTS:
            by_plugin.setdefault(plugin, []).append(f"{_SLOTS[slot]} ({type(component).__name__})")
        else:
            by_plugin.setdefault(plugin, []).append(f"an observer ({type(component).__name__})")
    sentences = []
    for plugin, parts in by_plugin.items():
        origin = next(provider for provider in components.provenance.values() if provider.plugin == plugin)
        model = import_plugin(find(plugin)).options_model
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        changed = {
            name: value
            for name, value in resolved.config.plugins.get(plugin, {}).items()
            if name in fields and value != fields[name].get_default(call_default_factory=True)
        }
        options = "all its options have their defaults"
        if changed:
            options = f"its options are {_listed(f'{name} = {value}' for name, value in changed.items())}"
            options += ", and otherwise the defaults" if len(changed) < len(fields) else ""
        sentences.append(
            f"The plugin {plugin} ({origin.distribution} {origin.version}) provides {_listed(parts)}; {options}."
        )
    return " ".join(sentences)


def _optimizer(settings: OptimizerConfig, steps: int) -> str:
    """Optimiser, learning rate and averages of the weights."""
    name = {"lamb": "LAMB", "adamw": "AdamW", "muon": "Muon"}.get(settings.name, settings.name)
    values = f"betas {settings.betas[0]:g} and {settings.betas[1]:g}, epsilon {settings.eps:g}"
    if settings.name == "muon":
        rates = {"the head": settings.muon_head_lr, "embeddings": settings.muon_embedding_lr}
        rates["biases and other vectors"] = settings.muon_vector_lr
        listed = _listed(f"{rate or settings.lr:g} for {part}" for part, rate in rates.items())
        values = f"momentum {settings.muon_momentum:g} for matrices; AdamW with {values} and learning rates of {listed}"
    elif settings.name not in BUILT_IN_OPTIMIZERS:
        values = "of a plugin"
    warmup, cooldown = int(settings.warmup * steps), int(settings.cooldown * steps)
    curve = [f"rises linearly to {settings.lr:g} in {warmup:,} steps" if warmup else f"starts at {settings.lr:g}"]
    curve.append(f"follows a cosine towards {settings.final_factor:g} of this value")
    curve += [f"falls linearly to zero in the last {cooldown:,} steps"] * (cooldown > 0)
    decay = f"Weight decay is {settings.weight_decay:g}, but 0 for biases and layer norms"
    clip = f"gradients are clipped to a norm of {settings.clip:g}"
    average = "the weights of the last step"
    if settings.ema_decay:
        ramp = ", limited to (1 + n) / (10 + n) after n updates" if settings.ema_ramp else ""
        average = f"an exponential moving average of the weights (decay {settings.ema_decay:g}{ramp})"
    if (first := tail_start(settings.tail_average, steps)) is not None:
        average = f"the mean of the weights after each of the last {steps - first:,} steps"
    return (
        f"The optimiser is {name} ({values}). The learning rate {_listed(curve)}."
        f" {decay if settings.weight_decay else 'There is no weight decay'},"
        f" and {clip if settings.clip < math.inf else 'gradients are not clipped'}. Results are those of {average}."
    )


def _hardware(runs: Sequence[RunRecord], starts: Sequence[Mapping[str, Any]]) -> str:
    """Seeds, precision, versions, machines, and times as far as they were recorded."""
    seeds = _listed(str(run.settings["seed"]) for run in runs)
    sentences = [f"There is one run, with the seed {seeds}."]
    if len(runs) > 1:
        sentences = [f"There are {len(runs)} runs, with the seeds {seeds}."]
    if starts:
        precisions = _listed(dict.fromkeys(start["precision"] for start in starts))
        programs = dict.fromkeys((start["versions"]["ltg_mdlm"], start["versions"]["torch"]) for start in starts)
        versions = _listed(f"ltg_mdlm {program} and torch {torch_version}" for program, torch_version in programs)
        devices = _listed(dict.fromkeys(_devices(start["machines"]) for start in starts))
        sentences.append(f"Training ran in {precisions} with {versions}: {devices}.")
    if starts and all("wall_seconds" in start for start in starts):
        wall, gpu, cpu = (
            sum(start[f"{kind}_seconds"] for start in starts) / 3600 for kind in ("wall", "device", "cpu")
        )
        subject = "It" if len(runs) == 1 else "All runs together"
        sentences.append(f"{subject} took {wall:.3g} hours and {f'{gpu:.3g} GPU' if gpu else f'{cpu:.3g} CPU'} hours.")
    if starts and all("energy_joules" in start for start in starts):
        kinds = dict.fromkeys(kind for start in starts for kind in start["energy_joules"])
        kwh = {kind: sum(start["energy_joules"].get(kind, 0) for start in starts) / 3.6e6 for kind in kinds}
        spent = _listed(f"{value:.3g} kWh by the {kind.upper()}s" for kind, value in kwh.items())
        sentences.append(f"The measured energy is {spent}.")
    return " ".join(sentences)


def _devices(machines: Sequence[Mapping[str, Any]]) -> str:
    """Processes of a start by device, over all machines."""
    processes: Counter[str] = Counter()
    for machine in machines:
        processes[machine.get("gpu") or machine["cpu"]] += machine["processes"]
    hosts = len({machine["host"] for machine in machines})
    listed = _listed(f"{count} process{'es' * (count > 1)} on {device}" for device, count in processes.items())
    return listed + (f" on {hosts} machines" if hosts > 1 else "")


def _range(values: Sequence[str]) -> str:
    """The value, or the first and the last one if they differ."""
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _listed(parts: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
