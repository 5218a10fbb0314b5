"""`python -m ltg_mdlm.train`: one process, or as many as torchrun starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import torch
import typer
import yaml
from rich.console import Console

from ltg_mdlm import __version__
from ltg_mdlm.build import Run, build_run, open_corpus
from ltg_mdlm.checkpoint import Checkpoints, find_checkpoint, newest_checkpoint
from ltg_mdlm.cli import Configs, Out, Plugins, Resume, Sets, report_errors
from ltg_mdlm.config import RunConfig, Settings, differing_keys, load_settings
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.distributed import Ranks
from ltg_mdlm.errors import UserError
from ltg_mdlm.host import Host
from ltg_mdlm.metrics import ConsoleSink, JSONLines, Sink, WandbSink, wandb_mode
from ltg_mdlm.preemption import StopRequest
from ltg_mdlm.result import result_text
from ltg_mdlm.run_folder import RunFolder, Status, truncate_metrics
from ltg_mdlm.trainer import NonFiniteTraining, Trainer

T = TypeVar("T")
EXIT_DONE, EXIT_NON_FINITE, EXIT_PREEMPTED = 0, 3, 75


def launch(settings: Settings, resume: str = "auto") -> int:
    """Train until done, preempted or broken; returns the exit code.  Raises UserError before anything is written."""
    host = Host(settings.config, settings.sources)
    config = host.config
    with Ranks.setup(threads=config.training.threads) as ranks:
        console = Console(quiet=not ranks.is_main)
        for text in host.check_config():
            console.print(f"warning: {text}", style="yellow", markup=False)
        folder = RunFolder(config.run_folder())
        opening = on_main(ranks, lambda: inspect_folder(folder, config, resume))
        for text in opening.warnings:
            console.print(f"warning: {text}", style="yellow", markup=False)
        if opening.finished:
            console.print(f"{folder.path} is finished; choose another --out or seed to train again\n", highlight=False)
            on_main(ranks, lambda: console.print(result_text(folder.path), markup=False, highlight=False))
            return EXIT_DONE
        if config.training.deterministic:
            make_deterministic()
        run = build_run(host, prepared_corpus(config, ranks), ranks)
        lock = on_main(ranks, folder.claim, share=False)
        with lock or nullcontext():
            return train_in(folder, run, console, opening.checkpoint)


@dataclass(frozen=True)
class Opening:
    """What a run folder holds already."""

    finished: bool = False
    checkpoint: Path | None = None
    """Where to go on; None to start from the beginning."""
    warnings: tuple[str, ...] = ()


def inspect_folder(folder: RunFolder, config: RunConfig, resume: str) -> Opening:
    """Decide between a new run, going on, and nothing to do.  Raises UserError if the folder belongs to another run."""
    folder.require_usable()
    explicit = None if resume in ("auto", "never") else find_checkpoint(Path(resume))
    text = folder.read_config()
    if text is None:
        return Opening(checkpoint=explicit)
    old = RunConfig.model_validate(yaml.safe_load(text))
    if keys := differing_keys(old, config):
        raise UserError(
            f"{folder.path} belongs to a run with other settings: {', '.join(keys)}"
            "\n  choose another folder with --out, or repeat the settings in its config.yaml to go on"
        )
    if resume == "never":
        raise UserError(f"{folder.path} holds a run already, and --resume never forbids to go on; choose another --out")
    notes = tuple(
        f"this run began with {name} from {before}; now it is {config.plugin_versions[name]}"
        for name, before in old.plugin_versions.items()
        if config.plugin_versions.get(name, before) != before
    )
    status = folder.read_status()
    finished = status is not None and status.status == "finished" and explicit is None
    return Opening(finished, explicit or newest_checkpoint(folder.checkpoints), notes)


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


def train_in(folder: RunFolder, run: Run, console: Console, checkpoint: Path | None) -> int:
    """Restore what the folder holds, train, and report."""
    config, ranks = run.config, run.ranks
    settings = config.checkpoint
    checkpoints = Checkpoints(
        folder.checkpoints,
        every=settings.every,
        keep=settings.keep,
        by_words=settings.by_words,
        about=provenance(run),
        writes=ranks.is_main,
    )
    state = checkpoints.load(checkpoint) if checkpoint is not None else None
    console.print(describe(run), markup=False, highlight=False, soft_wrap=True)
    first_step = state.step if state is not None else 0
    if ranks.is_main:
        folder.write_config(config.to_yaml())
        folder.write_status(Status("running", first_step))
        truncate_metrics(folder.metrics_file, first_step if state is not None else -1)
    sinks = open_sinks(folder, run, console, first_step) if ranks.is_main else []
    with StopRequest() as stop:
        trainer = Trainer(run, checkpoints, sinks, stop)
        if state is not None:
            trainer.restore(state)
            console.print(f"going on from step {state.step} of {run.schedule.max_steps}", highlight=False)
        return run_trainer(trainer, folder, console, stop)


def run_trainer(trainer: Trainer, folder: RunFolder, console: Console, stop: StopRequest) -> int:
    """Train, and keep status.json true whatever happens."""

    def set_status(status: Literal["preempted", "finished", "failed"], reason: str = "") -> None:
        if trainer.ranks.is_main:
            folder.write_status(Status(status, trainer.next_step, reason))

    try:
        finished = trainer.train()
    except NonFiniteTraining as error:
        set_status("failed", str(error))
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return EXIT_NON_FINITE
    except BaseException as error:
        set_status("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        for sink in trainer.sinks:
            sink.close()
    if not finished:
        set_status("preempted", stop.signal_name or "another process was asked to stop")
        console.print(f"stopped at step {trainer.next_step}; everything is saved, run the same command to go on")
        # torchrun turns every other exit code into 1.
        return EXIT_DONE if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_PREEMPTED
    set_status("finished")
    if trainer.ranks.is_main:
        console.print("\n" + result_text(folder.path), markup=False, highlight=False, soft_wrap=True)
    return EXIT_DONE


def prepared_corpus(config: RunConfig, ranks: Ranks) -> Corpus:
    """Open the corpus; the first rank makes the generated one before the others look for it."""
    if ranks.is_main:
        open_corpus(config)
    ranks.barrier()
    return open_corpus(config)


def provenance(run: Run) -> dict[str, Any]:
    """What a checkpoint should tell about the run it comes from."""
    config = run.config
    return {
        "seed": config.seed,
        "world_size": run.ranks.world_size,
        "versions": {"ltg_mdlm": __version__, "torch": torch.__version__, **config.plugin_versions},
        "config": config.model_dump(mode="json", exclude={"run", "plugin_versions"}),
    }


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


command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
def main(
    plugin: Plugins = None,
    config: Configs = None,
    set_: Sets = None,
    out: Out = None,
    resume: Resume = "auto",
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of user errors, too.")] = False,
) -> None:
    """Train a model.  Without arguments: uniform MDLM at laptop size on the built-in corpus."""
    if debug:
        os.environ["LTG_MDLM_DEBUG"] = "1"
    raise typer.Exit(launch(load_settings(config or (), set_ or (), plugin or (), out), resume))


if __name__ == "__main__":
    report_errors(command)
