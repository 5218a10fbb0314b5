"""A training run from its settings to an exit code: check, claim the folder, restore, train, report."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
from rich.console import Console

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import PluginFailure, UserError, text_of
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.settings import Settings, parse_yaml, stored_config
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.host.failures import failures_named
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.storage.checkpoint import Checkpoints, find_checkpoint, newest_checkpoint, read_about, require_undamaged
from ltg_mdlm.storage.metrics_file import result_text, truncate_metrics
from ltg_mdlm.storage.run_folder import RunFolder, Status
from ltg_mdlm.training.agreement import (
    differing_keys,
    require_same_distributions,
    require_same_program,
    require_same_slots,
    resume_notes,
)
from ltg_mdlm.training.assembly import Run, build_run, provenance
from ltg_mdlm.training.metric_sinks import ConsoleSink, JSONLines, Sink, WandbSink, wandb_mode
from ltg_mdlm.training.precision import resolve_precision, stored_precision
from ltg_mdlm.training.trainer import NonFiniteTraining, Trainer

T = TypeVar("T")


EXIT_DONE, EXIT_NON_FINITE, EXIT_PREEMPTED = 0, 3, 75


CHOICES = ("auto", "never")
"""Values of `--resume` other than a path."""


def launch(settings: Settings, resume: str = "auto") -> int:
    """Train until done, preempted or broken; returns the exit code.  Raises UserError before anything is written."""
    host = Host(settings.config, settings.sources)
    config = host.config
    with Ranks.setup(threads=config.training.threads) as ranks, StopRequest() as stop:
        require_same_program(host, ranks)
        console = Console(quiet=not ranks.is_main)
        for text in host.check_config():
            console.print(f"warning: {text}", style="yellow", markup=False)
        folder = RunFolder(config.run_folder())
        if on_main(ranks, lambda: is_finished(folder, config, resume)):
            text = f"{folder.path} is finished; choose another --out or seed to train again\n"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            on_main(
                ranks, lambda: console.print(result_text(folder.path), markup=False, highlight=False, soft_wrap=True)
            )
            return EXIT_DONE
        if resume not in CHOICES:
            on_main(ranks, lambda: find_checkpoint(Path(resume)))
        if config.training.deterministic:
            make_deterministic()
        run = build_run(host, prepared_corpus(config, ranks), ranks)
        lock = on_main(ranks, folder.claim, share=False)
        with lock or nullcontext():
            # Looked for under the lock: a process that trained here until now may have written one more.
            checkpoint = on_main(ranks, lambda: find_beginning(folder, resume))
            run, note = resolve_precision(run, on_main(ranks, lambda: stored_precision(folder, checkpoint)))
            if note is not None:
                console.print(note, markup=False, highlight=False, soft_wrap=True)
            return train_in(folder, run, console, checkpoint, stop)


def is_finished(folder: RunFolder, config: RunConfig, resume: str) -> bool:
    """Whether nothing is left to do.  Raises UserError if the folder is no run's, or belongs to another run."""
    folder.require_usable()
    text = folder.read_config()
    if text is None:
        return False
    old = stored_config(parse_yaml(text), folder.config_file)
    if keys := differing_keys(old, config):
        raise UserError(
            f"{folder.path} belongs to a run with other settings: {', '.join(keys)}"
            "\n  choose another folder with --out, or repeat the settings in its config.yaml to go on"
        )
    require_same_distributions(old.plugin_versions, config.plugin_versions, folder.path)
    if resume == "never":
        raise UserError(f"{folder.path} holds a run already, and --resume never forbids to go on; choose another --out")
    status = folder.read_status()
    return status is not None and status.status == "finished" and resume == "auto"


def find_beginning(folder: RunFolder, resume: str) -> Path | None:
    """The newest undamaged checkpoint; None to start from the beginning.  Raises UserError if all are damaged."""
    if resume in CHOICES:
        return newest_checkpoint(folder.checkpoints)
    checkpoint = find_checkpoint(Path(resume))
    require_undamaged(checkpoint)
    return checkpoint


def on_main(ranks: Ranks, action: Callable[[], T], *, share: bool = True) -> T:
    """Do something on the first rank and share its result, or its UserError, with the others."""
    value, problem = None, None
    if ranks.is_main:
        try:
            value = action()
        except UserError as error:
            problem = str(error)
    value_everywhere, problem = ranks.broadcast_object((value if share else None, problem))
    if problem is not None:
        raise UserError(problem)
    return cast(T, value_everywhere if share else value)


def train_in(folder: RunFolder, run: Run, console: Console, checkpoint: Path | None, stop: StopRequest) -> int:
    """Restore what the folder holds, train, and report."""
    notes = notes_on(checkpoint, run) if checkpoint is not None else []
    checkpoints = open_checkpoints(folder, run)
    state = checkpoints.load(checkpoint, verify=False) if checkpoint is not None else None
    console.print(describe(run), markup=False, highlight=False, soft_wrap=True)
    for text in notes:
        console.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)
    first_step = state.step if state is not None else 0
    if run.ranks.is_main:
        folder.write_config(run.config.to_yaml())
        folder.write_tokenizer(run.corpus.tokenizer)
        truncate_metrics(folder.metrics_file, first_step if state is not None else -1)
    sinks = open_sinks(folder, run, console, first_step) if run.ranks.is_main else []
    trainer = Trainer(run, checkpoints, sinks, stop)
    if state is not None:
        with failures_named(run.recipe.components, lambda _: f"while it was restored from {checkpoint}"):
            trainer.restore(state)
        console.print(f"going on from step {first_step} of {run.schedule.max_steps}", highlight=False)
    return run_trainer(trainer, folder, console)


def notes_on(checkpoint: Path, run: Run) -> list[str]:
    """What may change the curve from a checkpoint on.  Raises UserError if it was written with other plugins."""
    before, now = read_about(checkpoint), provenance(run.config, run.recipe.components, run.ranks)
    old = {name: origin for name, origin in before.get("versions", {}).items() if name in run.config.plugin_versions}
    require_same_distributions(old, run.config.plugin_versions, checkpoint)
    require_same_slots(before, now, checkpoint)
    return resume_notes(before, now)


def run_trainer(trainer: Trainer, folder: RunFolder, console: Console) -> int:
    """Train, and keep status.json true whatever happens."""

    def set_status(status: Literal["running", "preempted", "finished", "failed"], reason: str = "") -> None:
        if trainer.ranks.is_main:
            folder.write_status(Status(status, trainer.next_step, reason))

    try:
        set_status("running")
        # Closed before its last status is written: until then its checkpoints report theirs.
        with closing(trainer), failures_named(trainer.recipe.components, moments_of(trainer)):
            finished = trainer.train()
    except NonFiniteTraining as error:
        set_status("failed", str(error))
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return EXIT_NON_FINITE
    except BaseException as error:
        with suppress(OSError):  # a full disk may be why
            set_status("failed", error.reason if isinstance(error, PluginFailure) else text_of(error))
        raise
    if not finished:
        set_status("preempted", trainer.stop.signal_name or "another process was asked to stop")
        console.print(f"stopped at step {trainer.next_step}; everything is saved, run the same command to go on")
        # torchrun turns every other exit code into 1.
        return EXIT_DONE if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_PREEMPTED
    set_status("finished")
    if trainer.ranks.is_main:
        console.print("\n" + result_text(folder.path), markup=False, highlight=False, soft_wrap=True)
    return EXIT_DONE


def moments_of(trainer: Trainer) -> Callable[[Exception], str]:
    """Finds the training step that an exception was raised in, or the number of steps done before."""

    def moment_of(error: Exception) -> str:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is Trainer.train_step.__code__:
                return f"in step {frame.f_locals['step'].step + 1}"
        return f"after {trainer.next_step} steps"

    return moment_of


def open_checkpoints(folder: RunFolder, run: Run) -> Checkpoints:
    """The run's checkpoints, which the first rank writes."""
    settings = run.config.checkpoint
    return Checkpoints(
        folder.checkpoints,
        every=settings.every,
        keep=settings.keep,
        by_words=settings.by_words,
        about=provenance(run.config, run.recipe.components, run.ranks),
        writes=run.ranks.is_main,
        journal=folder.metrics_file,
        saved=lambda step: folder.write_status(Status("running", step)),
    )


def prepared_corpus(config: RunConfig, ranks: Ranks) -> Corpus:
    """Open the corpus; the first rank makes the generated one before the others look for it."""
    return on_main(ranks, lambda: open_corpus(config), share=False) or open_corpus(config)


def make_deterministic() -> None:
    """Ask for deterministic kernels, where CUDA has a choice."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def describe(run: Run) -> str:
    """The arithmetic of the run, before it starts."""
    config, ranks = run.config, run.ranks
    lines = [
        run.corpus.describe(),
        f"model: {run.parameters:,} parameters, {'bf16' if run.loss.bf16 else 'fp32'} on {ranks.device},"
        f" {ranks.world_size} process(es) with {torch.get_num_threads()} thread(s) each",
        "plugins: " + ", ".join(f"{slot} {plugin}" for slot, plugin in run.recipe.components.providers.items()),
        *run.schedule.describe(),
        f"run folder: {config.run_folder()}",
    ]
    if run.validator is None:
        lines.append("no validation text: nothing will be measured on held-out data (prepare with --valid FILES)")
    return "\n".join(lines)


def open_sinks(folder: RunFolder, run: Run, console: Console, first_step: int) -> list[Sink]:
    """Destinations of the metrics; on the first rank only."""
    settings = run.config.logging
    sinks: list[Sink] = [JSONLines(folder.metrics_file), ConsoleSink(first_step, run.schedule.max_steps, console)]
    if (mode := wandb_mode(settings)) is not None:
        sinks.append(WandbSink(folder.path, settings, mode, run.config.model_dump(mode="json")))
    return sinks
