"""Results of `ltg-mdlm eval generation`: a folder per model, and the table.

results/<model>/<revision>/generation/
    samples.jsonl   one sample per line: text, ids, unmasked_at, sampler, steps, what the grammar rejects
    summary.json    figures of every rule and of real text, and how they were made
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from ltg_mdlm.durable import publish_folder, temporary_name, write_file
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.generation.examination import Examination
from ltg_mdlm.evaluate.generation.measure import Quality
from ltg_mdlm.evaluate.results import as_json
from ltg_mdlm.trained_model import TrainedModel

FOLDER = "generation"
_COLUMNS = {
    "perplexity_per_word": ("ppl/word", "{:.1f}"),
    "perplexity_per_token": ("ppl/token", "{:.1f}"),
    "mauve": ("MAUVE", "{:.3f}"),
    "entropy": ("entropy", "{:.2f}"),
    "distinct_1": ("distinct-1", "{:.3f}"),
    "distinct_2": ("distinct-2", "{:.3f}"),
    "distinct_3": ("distinct-3", "{:.3f}"),
    "distinct_4": ("distinct-4", "{:.3f}"),
    "rep_4": ("rep-4", "{:.3f}"),
    "zipf": ("Zipf", "{:.2f}"),
    "js_distance": ("JS", "{:.3f}"),
    "grammatical_sentences": ("grammatical", "{:.1%}"),
    "grammatical_samples": ("samples", "{:.1%}"),
}
_SPREAD = ("mauve", "entropy", "js_distance")


def result_folder(out: Path, trained: TrainedModel) -> Path:
    """Where the results of a model belong."""
    return out / trained.name / trained.revision / FOLDER


def write_results(folder: Path, examined: Examination) -> None:
    """Write a result folder, in place of an older one, complete or not at all.

    Raises UserError if it cannot be written.
    """
    aside = temporary_name(folder)
    rows = (row for quality in examined.sampled for row in _sample_rows(quality))
    try:
        aside.mkdir(parents=True)
        write_file(aside / "samples.jsonl", "".join(map(as_json, rows)))
        write_file(aside / "summary.json", as_json(examined.summary(), indent=2))
        publish_folder(aside, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; choose another folder with --out") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def quality_table(examined: Examination) -> Table:
    """A line per rule, and one of real text; figures that were not asked for have no column."""
    columns = {name: layout for name, layout in _COLUMNS.items() if name in examined.real.figures}
    table = Table("sampler", "steps", box=None, pad_edge=False)
    for heading, _ in columns.values():
        table.add_column(heading, justify="right")
    for quality in (*examined.sampled, examined.real):
        table.add_row(*_names(quality), *(_cell(quality, name, form) for name, (_, form) in columns.items()))
    return table


def _names(quality: Quality) -> tuple[str, str]:
    if quality.rule is None:
        return "real text", ""
    return quality.rule.sampler, "one per token" if quality.rule.steps is None else str(quality.rule.steps)


def _cell(quality: Quality, name: str, form: str) -> str:
    value = quality.figures[name]
    if math.isnan(value):
        return "-"
    spread = f" ± {form.format(quality.spread[name])}" if name in _SPREAD and name in quality.spread else ""
    return form.format(value) + spread


def _sample_rows(quality: Quality) -> Iterator[dict[str, Any]]:
    assert quality.rule is not None
    for number, sample in enumerate(quality.samples):
        row = {
            "sampler": quality.rule.sampler,
            "steps": quality.rule.steps,
            "sample": number,
            "text": sample.text,
            "ids": sample.ids,
            "unmasked_at": sample.unmasked_at,
            "ended": sample.ended,
        }
        yield row | (quality.verdicts[number].to_json() if quality.verdicts else {})
