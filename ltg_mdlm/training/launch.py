"""A training run from its settings to its exit code: check, claim the folder, restore, train, report."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from rich.console import Console

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import STEP_TIMEOUT, Ranks
from ltg_mdlm.core.errors import PluginFailure, UserError, is_out_of_memory, text_of
from ltg_mdlm.core.files import write_errors
from ltg_mdlm.core.machine import keep_freed_memory, native_bf16
from ltg_mdlm.core.peer_watch import PeerWatch
from ltg_mdlm.core.preemption import Stopped, StopRequest
from ltg_mdlm.core.settings import Settings
from ltg_mdlm.core.terminal import busy, losable_output
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.host.failures import failures_named
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.storage.checkpoint import (
    Checkpoints,
    continue_from,
    find_checkpoint,
    newest_checkpoint,
    read_about,
    run_settings,
)
from ltg_mdlm.storage.metrics_file import damage, missing_at_end, result_text, truncate_metrics
from ltg_mdlm.storage.run_folder import RunFolder, Status, run_of_checkpoint
from ltg_mdlm.training.assembly import Run, build_run, divide_batches, provenance
from ltg_mdlm.training.attention_choice import resolve_attention
from ltg_mdlm.training.compilation import resolve_compile
from ltg_mdlm.training.consistency import (
    differences_of_origin,
    differing_keys,
    require_same_distributions,
    require_same_program,
    require_same_slots,
    require_same_text,
    require_same_tokenizer,
    resume_notes,
)
from ltg_mdlm.training.cpu_kernel_choice import resolve_cpu_kernels
from ltg_mdlm.training.environment import previous_start, start_facts
from ltg_mdlm.training.metric_sinks import (
    ConsoleSink,
    JSONLines,
    TensorBoardSink,
    WandbSink,
    require_tensorboard,
    wandb_mode,
)
from ltg_mdlm.training.precision import resolve_precision, stored_training
from ltg_mdlm.training.resource_use import ResourceMeter
from ltg_mdlm.training.run_ending import ending_text
from ltg_mdlm.training.trainer import NonFiniteTraining, Trainer

T = TypeVar("T")

EXIT_DONE, EXIT_NON_FINITE, EXIT_PREEMPTED = 0, 3, 75

RESUME_MODES = ("auto", "never")
"""Values of `--resume` other than a path."""

LESS_MEMORY = (
    "set training.micro_batch_rows to fewer rows per forward pass, or training.activation_checkpointing=true; neither"
    " changes the batch, and both may change when a run is resumed"
)
"""Advice for a run that does not fit the memory of the GPU or machine."""

RESTART_COUNTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
"""Environment variables with the number of times that Slurm or torchrun have started a command before."""


def launch(settings: Settings, resume: str = "auto", stop: StopRequest | None = None) -> int:
    """Train until the run is finished, preempted or failed.  Returns the exit code.

    Args:
        settings: of the run
        resume: "auto", "never", or the path of a checkpoint or run folder; see `resume_of_this_start`
        stop: receives the stop signals; if it already has one, training ends before its first step

    Raises UserError.  Wrong settings, a wrong corpus and a wrong `resume` are found before anything is written.
    """
    host = Host(settings.config, settings.sources)
    config = host.config
    stop = stop or StopRequest()
    stop.can_save = False
    with (
        losable_output(),  # the files of a run are its record
        Ranks.setup(threads=config.training.threads, gpu_timeout=STEP_TIMEOUT) as ranks,
        # Left first, so that SIGTERM ends a process that hangs while it leaves the process group after an error.
        stop,
        ResourceMeter(ranks) as meter,
    ):
        require_same_program(host, ranks)
        if config.logging.tensorboard:
            require_tensorboard()
        console = Console(quiet=not ranks.is_main, markup=False, highlight=False)
        for text in host.check_config():
            console.print(f"warning: {text}", style="yellow", soft_wrap=True)

        folder = RunFolder(config.run_folder())
        given, resume = resume, on_main(ranks, lambda: resume_of_this_start(folder, resume))
        if given != resume and given not in RESUME_MODES:
            text = f"note: --resume {given} was for the first start; {folder.path} has checkpoints of its own"
            console.print(text, style="yellow", soft_wrap=True)

        def print_if_finished() -> bool:
            finished = on_main(ranks, lambda: is_finished(folder, config, resume))
            if finished:
                result = on_main(ranks, lambda: result_text(folder.path))
                text = f"{folder.path} is finished; choose another --out or seed to train again\n\n{result}"
                console.print(text, soft_wrap=True)
            return finished

        if print_if_finished():
            return EXIT_DONE
        if resume not in RESUME_MODES:
            # A wrong path is reported now, not after the corpus and the model were built.
            on_main(ranks, lambda: find_checkpoint(Path(resume)))

        if ranks.device.type == "cpu":
            keep_freed_memory()
        if config.training.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            # By default torch then also fills new tensors with NaN, which finds errors and costs time.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # The first rank generates the built-in corpus, if it is used, before the others open it.
        with busy("opening the corpus", show=ranks.is_main):
            corpus = on_main(ranks, lambda: open_corpus(config), share=False) or open_corpus(config)
        # Opening has checked sizes and ranges; the first start, before config.yaml is written, reads the whole content.
        with busy("verifying the corpus", show=ranks.is_main):
            on_main(ranks, lambda: folder.config_file.exists() or corpus.verify())
        with busy("building the model and the order of the rows", show=ranks.is_main):
            resumes = on_main(ranks, lambda: resume not in RESUME_MODES or has_checkpoint(folder))
            run = build_run(host, corpus, ranks, resumes=resumes)
        for text in host.component_warnings(run.recipe.components):
            console.print(f"warning: {text}", style="yellow", soft_wrap=True)

        with on_main(ranks, folder.claim, share=False) or nullcontext():
            # Now under the lock: a process that held it until now may have started a run here, or continued this one.
            if print_if_finished():
                return EXIT_DONE
            checkpoint = on_main(ranks, lambda: checkpoint_to_resume(folder, resume))
            if checkpoint is None and resumes:
                raise UserError(
                    f"the checkpoints in {folder.checkpoints} were deleted while the run started; run again"
                )
            if checkpoint is not None:
                # Checkpoints of old versions do not say.
                divide_batches(run, on_main(ranks, lambda: read_about(checkpoint).get("full_micro_batches")))
            before = on_main(ranks, lambda: previous_start(folder, checkpoint, ranks.device))
            stored = on_main(ranks, lambda: stored_training(folder, checkpoint))
            with busy("measuring fp32 and bf16", show=ranks.is_main):
                run, note = resolve_precision(run, stored)
            if note is not None:
                console.print(note, soft_wrap=True)
            try:
                run = resolve_cpu_kernels(run, stored, say=lambda line: console.print(line, soft_wrap=True), stop=stop)
                with busy("measuring attention kernels", show=ranks.is_main):
                    attention = resolve_attention(run, before, stop)
            except Stopped:
                console.print("stopped before training; run the same command to start it")
                return EXIT_PREEMPTED
            if ranks.device.type != "cpu":
                console.print(attention.reason, soft_wrap=True)
                if run.loss.bf16 and not native_bf16(ranks.device):
                    text = "training.precision is bf16, for which this GPU has no instructions; fp32 is faster"
                    console.print(f"warning: {text}", style="yellow", soft_wrap=True)
            run = resolve_compile(run, stored, before)
            trainer = prepare_trainer(folder, run, checkpoint, stop, meter, console)
            facts = start_facts(run, attention, trainer.next_step) | {"resume": resume}
            on_main(ranks, lambda: folder.add_to_environment(facts, new_start=True))
            stop.can_save = True
            return train_and_report(trainer, folder, console)


def exit_code(outcome: int) -> int:
    """The exit code of a process for what `launch` returned: torchrun would report a preempted run as failed."""
    return EXIT_DONE if outcome == EXIT_PREEMPTED and "TORCHELASTIC_RUN_ID" in os.environ else outcome


def has_checkpoint(folder: RunFolder) -> bool:
    """Whether a run has saved a checkpoint in the folder, undamaged or not."""
    return any(folder.checkpoints.glob("step_*"))


def resume_of_this_start(folder: RunFolder, resume: str) -> str:
    """What `--resume` means now: the value that was given is for the first start of the command.

    When Slurm or torchrun start the command again, and when it is repeated with a PATH outside the run folder, the run
    continues from its own checkpoints.  A PATH inside the folder goes back to an older checkpoint; that is repeated
    only if nothing has been saved since.
    """
    starts_again = any(os.environ.get(name, "0") not in ("", "0") for name in RESTART_COUNTS)
    if resume == "never":
        return "auto" if starts_again else resume
    if resume == "auto":
        return resume
    if not folder.holds(Path(resume)):
        return "auto" if has_checkpoint(folder) else resume
    if starts_again and (newest := newest_checkpoint(folder.checkpoints)) is not None:
        # By another object: this process may not own the folder yet, and what `folder` has read is kept.
        starts = RunFolder(folder.path).read_environment()
        went_back = [number for number, start in enumerate(starts) if start.get("resume") == resume]
        if went_back and read_about(newest).get("start", -1) >= went_back[-1]:
            return "auto"
    return resume


def is_finished(folder: RunFolder, config: RunConfig, resume: str) -> bool:
    """Whether the folder holds a finished run with these settings.

    Raises UserError if the folder is not a run folder, belongs to a run with other settings or plugins, or holds a run
    that must not be resumed.
    """
    folder.require_usable()
    old = run_settings(folder)
    if old is None:
        return False
    recorded = old.plugin_versions
    with suppress(UserError):  # options that exist no more are listed as differences
        old = Host(old).config  # options that later versions of the plugins have added get their defaults
    if keys := differing_keys(old, config):
        raise UserError(
            f"{folder.path} belongs to a run with other settings: {', '.join(keys)}"
            "\n  choose another folder with --out, or repeat the settings in its config.yaml to resume it"
        )
    require_same_distributions(recorded, config.plugin_versions, folder.path)
    if resume == "never":
        raise UserError(f"{folder.path} already holds a run, and --resume never is set; choose another --out")
    status = folder.read_status()
    return status is not None and status.status == "finished" and resume == "auto"


def checkpoint_to_resume(folder: RunFolder, resume: str) -> Path | None:
    """The checkpoint of `--resume PATH`, else the newest undamaged one of the folder; None to start from step 0.

    Raises UserError if the former is damaged, or all of the latter are.
    """
    if resume in RESUME_MODES:
        return newest_checkpoint(folder.checkpoints)
    return find_checkpoint(Path(resume))


def compare_with_checkpoint(
    folder: RunFolder, about: Mapping[str, Any], checkpoint: Path
) -> tuple[list[str], list[str]]:
    """Differences from the run of the checkpoint if that is another run, and further changes to report.

    Raises UserError for other plugins, another tokenizer, or another text of the same run.
    """
    before = read_about(checkpoint)
    kept = run_of_checkpoint(checkpoint).tokenizer_file
    if "tokenizer" not in before and kept.is_file():  # checkpoints of old versions do not name it
        before |= {"tokenizer": Tokenizer.read(kept).fingerprint}
    require_same_distributions(before.get("versions", {}), about["versions"], checkpoint)
    require_same_slots(before, about, checkpoint)
    require_same_tokenizer(before, about, checkpoint)
    differences: list[str] = []
    if folder.holds(checkpoint):
        require_same_text(before, about, checkpoint)
    else:
        differences = differences_of_origin(before, about, checkpoint)
    return differences, resume_notes(before, about)


def prepare_trainer(
    folder: RunFolder,
    run: Run,
    checkpoint: Path | None,
    stop: StopRequest,
    meter: ResourceMeter,
    console: Console,
) -> Trainer:
    """A trainer restored from the checkpoint, with the files of the run folder written and metrics cut to its step.

    Raises UserError if the checkpoint was written with other plugins or cannot be read.
    """
    config, about = run.config, provenance(run.config, run.recipe.components, run.ranks)
    about |= {
        "tokenizer": run.corpus.tokenizer.fingerprint,
        "training_text": run.corpus.training_text,
        "averages": run.ema.describe(),
        "micro_batch_rows": run.loader.micro_batch_rows,
        "full_micro_batches": run.loader.full_micro_batches,
        "start": len(folder.read_environment()) if run.ranks.is_main else None,
    }
    differences, notes = ([], []) if checkpoint is None else compare_with_checkpoint(folder, about, checkpoint)
    checkpoints = Checkpoints(
        folder.checkpoints,
        every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        by_words=config.checkpoint.by_words,
        about=about,
        writes=run.ranks.is_main,
        journal=folder.metrics_file,
        saved=lambda step: folder.write_status(Status("running", step)),
        require_folder=folder.require_claimed,
    )
    state = checkpoints.load(checkpoint, verify=False) if checkpoint is not None else None
    first_step = state.step if state is not None else 0
    if first_step > run.schedule.max_steps:
        raise UserError(
            f"{checkpoint} is of step {first_step}, but this run has only {run.schedule.max_steps} steps"
            "\n  resume from an earlier checkpoint, or train longer (training.max_steps, training.epochs)"
        )

    console.print(describe(run), soft_wrap=True)
    for text in [*differences, *notes]:
        console.print(f"note: {text}", style="yellow", soft_wrap=True)

    def start_files() -> JSONLines:
        folder.write_config(config.to_yaml())
        folder.write_tokenizer(run.corpus.tokenizer)
        with write_errors(folder.metrics_file, "\n  nothing saved is lost; correct this, then run the same command"):
            if checkpoint is not None:
                # Metrics end here now; if this process dies before it saves, the next one continues here as well.
                folder.write_status(Status("running", first_step))
                continue_from(checkpoint, folder.checkpoints)
            # A run that starts again has no metrics, not even those of step 0.
            damaged = truncate_metrics(folder.metrics_file, first_step if state is not None else -1)
        if damaged:
            console.print(f"note: {damage(damaged)}", style="yellow", soft_wrap=True)
        if checkpoint is not None and folder.holds(checkpoint):
            saved, starts = read_about(checkpoint), folder.read_environment()
            # Checkpoints of old versions name neither the settings nor the start that saved them.
            every = saved.get("config", {}).get("logging", {}).get("every", config.logging.every)
            since = starts[number].get("step", 0) if (number := saved.get("start", 0)) < len(starts) else 0
            if lost := missing_at_end(folder.metrics_file, first_step, every, since):
                console.print(f"warning: {lost}", style="yellow", soft_wrap=True)
        return JSONLines(folder.metrics_file, folder.require_claimed)

    def record(facts: Mapping[str, Any]) -> None:
        try:
            if run.ranks.is_main:
                folder.add_to_environment(facts)
        except UserError as error:  # they do not matter for training
            text = f"{str(error).splitlines()[0]}\n  training continues; the facts are written with those that follow"
            warnings.warn(text, stacklevel=2)

    def report(text: str, facts: Mapping[str, Any]) -> None:
        console.print(text, soft_wrap=True)
        record(facts)

    def record_use() -> None:
        record(meter.facts())

    trainer = Trainer(run, checkpoints, [], stop, report, record_use)
    if state is not None:
        with failures_named(run.recipe.components, lambda _: f"while it was restored from {checkpoint}"):
            trainer.restore(state, same_epochs=not differences)
    # Only now: a checkpoint that cannot be restored changes nothing.
    if (metrics := on_main(run.ranks, start_files, share=False)) is not None:
        trainer.console = ConsoleSink(first_step, run.schedule.max_steps, console)
        trainer.sinks = [metrics, trainer.console]
        if (mode := wandb_mode(config.logging)) is not None:
            trainer.sinks.append(WandbSink(folder.path, config.logging, mode, config.model_dump(mode="json")))
        if config.logging.tensorboard:
            purge_step = first_step + 1 if state is not None else 0
            trainer.sinks.append(TensorBoardSink(folder.path, purge_step=purge_step))
    if state is not None:
        console.print(f"resuming from step {first_step} of {run.schedule.max_steps}", soft_wrap=True)
    return trainer


def train_and_report(trainer: Trainer, folder: RunFolder, console: Console) -> int:
    """Train, and record the outcome in status.json.  Returns the exit code.

    Exceptions other than NonFiniteTraining are recorded as well, and raised again.
    """

    def set_status(status: Literal["running", "preempted", "finished", "failed"], reason: str = "") -> None:
        if trainer.ranks.is_main:
            folder.write_status(Status(status, trainer.next_step, reason))

    def record_failure(reason: str) -> None:
        with suppress(UserError):  # the disk may be full, or the folder lost
            set_status("failed", reason)

    def moment_of(error: Exception) -> str:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is Trainer.train_step.__code__:
                return f"in step {frame.f_locals['step'].step + 1}"
        return f"after {trainer.next_step} steps"

    try:
        set_status("running")
        watch = PeerWatch(trainer.ranks, record_failure) if trainer.ranks.world_size > 1 else nullcontext()
        # Closed before the final status is written, since every completed checkpoint sets the status to running.
        with watch, closing(trainer), failures_named(trainer.recipe.components, moment_of):
            finished = trainer.train()
    except NonFiniteTraining as error:
        set_status("failed", str(error))
        console.print(f"error: {error}", soft_wrap=True)
        return EXIT_NON_FINITE
    except BaseException as error:
        # If another process failed first, the error here is only a lost connection.
        own_reason = error.reason if isinstance(error, PluginFailure) else text_of(error)
        record_failure(trainer.ranks.announced_failure() or own_reason)
        if is_out_of_memory(error):
            raise UserError(f"{text_of(error)}\n  {LESS_MEMORY}") from error
        raise
    if not finished:
        set_status("preempted", trainer.stop.signal_name or "another process was asked to stop")
        console.print(
            f"stopped at step {trainer.next_step}; the state is saved, run the same command to resume", soft_wrap=True
        )
        return EXIT_PREEMPTED
    set_status("finished")
    if trainer.ranks.is_main:
        console.print(f"\n{result_text(folder.path)}", soft_wrap=True)
        with busy("sampling"):
            ending = ending_text(folder.path, trainer.run.corpus)
        console.print(f"\n{ending}", soft_wrap=True)
    return EXIT_DONE


def describe(run: Run) -> str:
    """Corpus, model, plugins and batch arithmetic of a run, printed before training."""
    ranks = run.ranks
    lines = [
        run.corpus.describe(),
        f"model: {run.parameters:,} parameters, {'bf16' if run.loss.bf16 else 'fp32'} on {ranks.device},"
        f" {ranks.world_size} process(es) with {torch.get_num_threads()} thread(s) each",
        "plugins: " + ", ".join(f"{slot} {plugin}" for slot, plugin in run.recipe.components.providers.items()),
        f"optimiser: {run.config.optimizer.name}; weights for validation and export: {run.ema.describe()}",
        *run.schedule.describe(uniform=run.loader.is_uniform),
        "micro-batches per process: at most "
        + ", ".join(
            f"{rows:,} rows of {stage.seq_len}"
            for rows, stage in zip(run.loader.micro_batch_rows, run.schedule.stages, strict=True)
        ),
        f"run folder: {run.config.run_folder()}",
    ]
    if run.validator is None:
        lines.append("no validation text, so nothing is measured on held-out data (prepare with --valid FILES)")
    return "\n".join(lines)


def on_main(ranks: Ranks, action: Callable[[], T], *, share: bool = True) -> T:
    """Run `action` on the first rank, and return its result, or raise its UserError, on every rank.

    Without `share`, other ranks return None: for results that cannot be pickled.
    """
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
