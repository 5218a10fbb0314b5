"""`ltg-mdlm plugins show NAME --plot FILE`: a plugin's components, built as for a run, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltg_mdlm.api import Step
from ltg_mdlm.build import batch_schedule, components_of, corpus_statistics, open_corpus
from ltg_mdlm.config import RunConfig, load_settings
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.loader import validation_batches
from ltg_mdlm.data.schedule import BatchSchedule
from ltg_mdlm.distributed import Ranks
from ltg_mdlm.errors import UserError
from ltg_mdlm.host import Components, Host, describe_plugin
from ltg_mdlm.plots.figure import Panel, check_writable, save_panels
from ltg_mdlm.plots.masking import frequency_rank, masking_by_rank, masking_panels
from ltg_mdlm.plots.schedules import schedule_panels

MEASURED_ROWS = 1024
ROWS_AT_A_TIME = 128


def plot_plugin(name: str, path: Path, *, corpus: Path | None = None, sets: Sequence[str] = ()) -> None:
    """Draw the noise schedule and the masking that a plugin provides, in the default config with `sets` on top.

    Masking is measured on training rows of `corpus` (default: the built-in one).  Raises UserError for settings that
    make no run, a plugin that provides neither part, and a picture that cannot be written.
    """
    check_writable(path)
    of_corpus = [] if corpus is None else [f"data.corpus={corpus}"]
    settings = load_settings(plugins=[name], sets=[*of_corpus, *sets])
    host = Host(settings.config, settings.sources)
    opened = open_corpus(host.config)
    save_panels(plugin_panels(name, host, opened), path, title=title_of(name, host.config))


def last_step(config: RunConfig, schedule: BatchSchedule, rows: int) -> Step:
    """The last step of training, as if it had `rows` rows: where curricula have got to their end."""
    last = schedule.max_steps - 1
    progress = last / schedule.max_steps
    return Step(seed=config.seed, step=last, progress=progress, epoch=schedule.epoch(last), rows=rows)


def plugin_panels(name: str, host: Host, corpus: Corpus) -> list[Panel]:
    """The panels of the slots that a plugin fills.  Raises UserError if it fills neither schedule nor masking."""
    config = host.config
    schedule = batch_schedule(config, corpus)
    components = components_of(host, corpus, schedule, Ranks.alone())
    panels = []
    if components.providers["noise_schedule"] == name:
        panels += schedule_panels(components.noise_schedule)
    if components.providers["masking"] == name:
        panels += measured_masking(components, config, corpus, last_step(config, schedule, MEASURED_ROWS))
    if not panels:
        raise UserError(f"plugin {name!r} fills neither noise_schedule nor masking here: there is nothing to draw")
    return panels


def measured_masking(components: Components, config: RunConfig, corpus: Corpus, step: Step) -> list[Panel]:
    """Panels of the masking, on rows of the training split."""
    rows = validation_batches(
        corpus.train,
        seq_len=config.training.stages[-1][1],
        micro_batch_rows=ROWS_AT_A_TIME,
        rows=step.rows,
        packing=config.training.packing,
        end_of_document=config.data.end_of_document,
    )
    rank_V = frequency_rank(corpus_statistics(config, corpus).token_count_V)
    measured = masking_by_rank(components.masking, rows.batches, rank_V, step)
    return masking_panels(measured, ", end of training")


def title_of(name: str, config: RunConfig) -> str:
    """The plugin's name, and the options that differ from their defaults."""
    options = config.plugins[name]
    changed = [
        f"{option.name} = {options[option.name]}"
        for option in describe_plugin(name).options
        if options[option.name] != option.default
    ]
    return "   ".join([name, *changed])
