"""Tables of the HTML report, as data frames: summary, validation metrics, evaluation, quality of samples, settings.

Values of the runs of a group are averaged, with the standard error of their mean. The best one is marked if
it is significantly better than every other one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.special import stdtr

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import TEMPORARY
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.reporting.html_report.run_groups import (
    CORPUS,
    PLUGINS,
    Group,
    RunRecord,
    differing,
    setting_text,
    shown,
    shown_plugins,
)
from ltg_mdlm.storage.metrics_file import ROWS
from ltg_mdlm.training.sweep import short_names

WIDEST = 6
"""Maximum number of groups with one column each; more groups have one line each."""

BEST = "★"

NONE = "–"

HIGHER = ("accuracy", "accuracy_frequent", "accuracy_rare", "minimal_pairs")
"""Validation metrics of which higher values are better."""

SUMMARY_COLUMNS = 9
"""Maximum number of columns of the summary."""

IN_SUMMARY = ("valid/bound", "valid/causal_nll", "valid/accuracy", "valid/minimal_pairs")
"""Validation metrics of the summary, before results of evaluation."""

BOUND = next(label for key, label, _ in ROWS if key == "valid/bound")


class Value(NamedTuple):
    """A measured value of one run."""

    figure: str
    scoring: str
    """How it was measured, as far as results may differ in it."""
    group: str
    """Code of the group."""
    value: float
    standard_error: float | None
    format: str
    lower_is_better: bool | None
    """None: no group is marked."""
    remark: str
    """A group with a remark is not compared."""
    corpus: str = ""
    """Groups with different corpora are not compared."""


SIGNIFICANCE = 0.05
"""Error probability of the tests that decide whether the best value is marked."""

MAIN = "main"
"""Folder of the results of a run's last checkpoint."""


def html_table(table: pd.DataFrame, caption: str) -> Markup:
    """The table as HTML, in a region that scrolls; its first column has the headings of lines. Text is escaped."""
    with pd.option_context("display.max_colwidth", None):
        known = table.astype(object).where(table.notna(), NONE).rename_axis(columns=None)
        head, body = known.to_html(border=0, index=False).split("<tbody>")
    lines = [line.replace("<td>", '<th scope="row">', 1).replace("</td>", "</th>", 1) for line in body.split("<tr>")]
    cells = "<tbody>".join([head.replace("<th>", '<th scope="col">'), "<tr>".join(lines)])
    # Names of metrics and tasks may break after a slash and an underscore.
    cells = re.sub(r"([/_])(?=[^<>]*</th>)", r"\1<wbr>", cells)
    region = Markup('<div class="scroll" role="region" tabindex="0" aria-label="{}">').format(caption)
    return region + Markup(f"{cells}</div>")


def summarise(groups: Sequence[Group], values: Sequence[Value]) -> pd.DataFrame:
    """One row per figure, scoring and group: mean, error, runs, whether the group is the best, and the text of a cell.

    The error is the standard error of the mean over several runs. For a single run, it is that of its value, if known.
    """
    expected = {group.code: len(group.measured[0]) for group in groups}
    frame = pd.DataFrame(values, columns=Value._fields).astype({"value": float, "standard_error": float})
    frame = frame[np.isfinite(frame["value"])]
    by_group = frame.groupby(["figure", "scoring", "group"], sort=False)
    found = by_group[["format", "lower_is_better", "standard_error", "corpus"]].first()
    found["remark"] = by_group["remark"].max()  # "" sorts first, so a remark on any run is kept
    found["mean"], found["runs"] = by_group["value"].mean(), by_group["value"].size()
    found["error"] = by_group["value"].sem().where(found["runs"] > 1, found["standard_error"])
    # A property of the text, equal in all runs, has no error.
    found.loc[(found["runs"] > 1) & (by_group["value"].nunique() == 1), "error"] = math.nan
    found = found.reset_index()
    best: set[Any] = set()
    for _, compared in found[found["remark"] == ""].groupby(["figure", "scoring", "corpus"], sort=False):
        best |= set(compared.index[best_of(compared)])
    found["best"] = found.index.isin(best)
    found["text"] = [_text(row, expected[row.group]) for row in found.itertuples()]
    return found


def _text(row: Any, expected: int) -> str:
    """Text of a cell, which names the number of runs if there are fewer than expected."""
    text = str(row.format.format(row.mean))
    if math.isfinite(row.error):
        text += f"\u00a0±\u00a0{row.format.format(row.error)}"
    if row.best:
        text += f"\u00a0{BEST}"
    details = [f"n\u00a0=\u00a0{row.runs}"] * (row.runs < expected) + [row.remark] * bool(row.remark)
    return f"{text} ({', '.join(details)})" if details else text


def best_of(compared: pd.DataFrame) -> list[bool]:
    """Whether each row (mean, error, runs, lower_is_better) is significantly better than every other one.

    The best mean is compared with every other one by Welch's t test. The error of a single run's value counts like
    that of a large sample. Nothing is marked if an error is unknown, or if no direction is better.
    """
    lower_is_better = compared["lower_is_better"].iloc[0]
    if pd.isna(lower_is_better) or len(compared) < 2 or not (compared["error"] > 0).all():
        return [False] * len(compared)
    mean, error, runs = (compared[name].to_numpy(float) for name in ("mean", "error", "runs"))
    best = int(mean.argmin() if lower_is_better else mean.argmax())
    chance = welch_test(mean, error, np.where(runs > 1, runs, 1e9), best)
    chance[best] = 0.0
    return [place == best and bool((chance < SIGNIFICANCE).all()) for place in range(len(mean))]


def welch_test(
    mean: NDArray[np.float64], error: NDArray[np.float64], runs: NDArray[np.float64], other: int
) -> NDArray[np.float64]:
    """p-values of Welch's two-sided t test of means against the one at `other`, from standard errors of means.

    As `scipy.stats.ttest_ind_from_stats` (Welch 1947), whose import takes half a second.
    """
    variance, variance_of_other = error**2, error[other] ** 2
    total = variance + variance_of_other
    freedom = total**2 / (variance**2 / (runs - 1) + variance_of_other**2 / (runs[other] - 1))
    found: NDArray[np.float64] = 2 * stdtr(freedom, -np.abs(mean - mean[other]) / np.sqrt(total))
    return found


def figure_tables(groups: Sequence[Group], found: pd.DataFrame) -> list[pd.DataFrame]:
    """One line per figure and scoring if there are few groups, or else one line per group."""
    if found.empty:
        return []
    cells = found.pivot(index=["figure", "scoring"], columns="group", values="text")
    order = pd.MultiIndex.from_frame(found[["figure", "scoring"]].drop_duplicates())
    return _tables(groups, cells.reindex(index=order, columns=[group.code for group in groups]).reset_index())


def _tables(groups: Sequence[Group], table: pd.DataFrame) -> list[pd.DataFrame]:
    """Turn a table with a column per group, if there are many, and cut it into tables that fit on paper."""
    sizes = {group.code: len(group.measured[0]) for group in groups}
    headings = {g.code: g.label + f" (n\u00a0=\u00a0{sizes[g.code]})" * (sizes[g.code] > 1) for g in groups}
    if "scoring" in table and not table["scoring"].any():
        table = table.drop(columns="scoring")
    if len(groups) <= WIDEST:
        return [table.rename(columns=headings)]
    names = [column for column in table.columns if column not in headings]
    labels = [", ".join(filter(None, row)) for row in table[names].itertuples(index=False)]
    turned = table[list(headings)].T.set_axis(labels, axis=1)
    turned.insert(0, "group", [group.label for group in groups])
    counts = [len(group.measured[0]) for group in groups]
    if max(counts) > 1:
        turned.insert(1, "n", counts)
    fixed = turned.shape[1] - len(labels)
    return [
        turned.iloc[:, [*range(fixed), *range(start, min(start + WIDEST, turned.shape[1]))]]
        for start in range(fixed, turned.shape[1], WIDEST)
    ]


def summary_table(groups: Sequence[Group], held_out: pd.DataFrame, evaluation: pd.DataFrame) -> pd.DataFrame:
    """One line per group: its runs and words, its main validation metrics, and results of evaluation."""
    table = pd.DataFrame({"group": [group.label for group in groups]})
    states = [Counter(run.row.status for run in group.runs) for group in groups]
    table["runs"] = [", ".join(f"{times}\u00a0{state}" for state, times in some.items()) for some in states]
    words = [max((run.words_seen or 0 for run in group.measured[0]), default=0) for group in groups]
    table["words seen"] = [f"{seen:,}" if seen else NONE for seen in words]
    labels = [label for key, label, _ in ROWS if key in IN_SUMMARY]
    codes = [group.code for group in groups]
    for found in (held_out[held_out["figure"].isin(labels)], evaluation):
        for (figure, scoring), of_figure in found.groupby(["figure", "scoring"], sort=False):
            if len(table.columns) < SUMMARY_COLUMNS:
                heading = f"{figure}, {scoring}" if scoring else str(figure)
                table[heading] = of_figure.set_index("group")["text"].reindex(codes).to_numpy()
    return table


def leader_sentence(groups: Sequence[Group], held_out: pd.DataFrame) -> str:
    """Which group has the lowest bound on each corpus, if there are several, and whether that is significant."""
    bounds = held_out[(held_out["figure"] == BOUND) & (held_out["remark"] == "")].sort_values("mean")
    names = {group.code: group.label for group in groups}
    sentences = []
    for corpus, alike in bounds.groupby("corpus", sort=False):
        if len(alike) > 1:
            first, second = (row for row in alike.head(2).itertuples())
            lead = f"Among runs with {corpus}, " * bool(corpus) + names[first.group]
            lead += f" has the lowest bound, {second.mean - first.mean:.4f} nats per token below the next"
            if alike["error"].isna().any():
                sentences.append(f"{lead}; whether this is significant is unknown.")
            else:
                sentences.append(f"{lead}, which is {'' if first.best else 'not '}statistically significant.")
    return " ".join(sentences)


UNRANKED = ("unigram", "floor", "accuracy_rare_chance")
"""Properties of the text."""


def held_out_values(groups: Sequence[Group]) -> pd.DataFrame:
    """The metrics that `train` prints at the end. Objectives are ranked only among runs of the same plugins."""
    varying = differing([group.settings for group in groups])
    same_plugins, corpora = PLUGINS not in varying, short_names([key for key in CORPUS if key in varying])
    values, topic = [], ""
    for key, label, form in ROWS:
        name = key.removeprefix("valid/")
        topic = topic if label.startswith(" ") else label.split()[0]
        figure = f"{topic} {label.strip()}" if label.startswith(" ") else label
        ranked = name not in UNRANKED and (name != "loss" or same_plugins)
        lower_is_better = name not in HIGHER if ranked else None
        for group in groups:
            runs, finished = group.measured
            known = group.settings
            corpus = ", ".join(setting_text(key, known[key], corpora[key]) for key in corpora if key in known)
            for run in runs:
                value, error = run.row.figures.get(name), run.row.figures.get(f"{name}_standard_error")
                if value is not None:
                    remark = "" if finished else f"at step {run.row.figures['validated']:.0f}, {run.row.status}"
                    values.append(Value(figure, "", group.code, value, error, form, lower_is_better, remark, corpus))
    return summarise(groups, values)


def ambiguous(groups: Sequence[Group]) -> list[str]:
    """Names that several runs have. Results are found by the name of the run, so those of these runs are not shown."""
    names = Counter(run.name for group in groups for run in group.runs)
    return sorted(name for name, times in names.items() if times > 1)


def _result_folders(groups: Sequence[Group], results: Path | None) -> Iterator[tuple[Group, RunRecord, Path]]:
    """Runs whose name is unique, and the folders with the results of their last checkpoints."""
    if results is not None:
        unclear = set(ambiguous(groups))
        for group in groups:
            yield from ((group, run, results / run.name / MAIN) for run in group.runs if run.name not in unclear)


def _step_remark(summary: Mapping[str, Any], run: RunRecord) -> str:
    """The step of the evaluated checkpoint if it is not the last one of the run; otherwise empty."""
    step, last = summary.get("step"), run.row.step
    return f"at step {step}" if type(step) is int and last not in (None, step) else ""


def evaluation_values(groups: Sequence[Group], results: Path | None) -> pd.DataFrame:
    """The main metric of every task and scoring of the runs' last checkpoints; higher is better."""
    values = []
    for group, run, folder in _result_folders(groups, results):
        for file in folder.rglob("summary.json"):
            if not any(part.startswith(TEMPORARY) for part in file.parts) and (value := read_result(file)):
                values.append(value._replace(group=group.code, remark=_step_remark(read_object(file), run)))
    return summarise(groups, sorted(values, key=lambda value: (value.figure, value.scoring)))


def read_result(file: Path) -> Value | None:
    """The result of a task, of no group yet; None if the file cannot be read."""
    # These need torch, which takes a second.
    from ltg_mdlm.evaluation.answers import SETTINGS
    from ltg_mdlm.evaluation.multiple_choice import same_questions

    try:
        summary = read_object(file)
        metric = summary["metric"]
        # Fine-tuning writes the mean over its own seeds.
        value = float(summary[metric] if metric in summary else summary["mean"][metric])
        scale, error = (100 if metric in ("accuracy", "f1") else 1), summary.get("standard_error")
        label = f"{summary['task']}/{Path(summary['data']).name}, {metric.removesuffix('_percent').replace('_', ' ')}"
        label += ", %" * (scale == 100) + " — unvalidated" * (not summary.get("validated", True))
        usual = {None, "none", "ema", "fraction", summary.get("rate") if summary.get("time") != "constant" else None}
        # Pseudo-log-likelihoods of models that predict the next position are compared with the others.
        scoring = [str(summary[key]).replace("mntp", "pll") for key in SETTINGS if summary.get(key) not in usual]
        protocol = summary.get("protocol", "2025")  # older results do not name it
        # Fine-tuning has no questions in common between protocols.
        if protocol != "2026" and ("mean" in summary or not same_questions(summary["task"], protocol, "2026")):
            scoring.append(f"protocol {protocol}")
        form = "{:.1f}" if scale == 100 else "{:.3f}"
        return Value(label, ", ".join(scoring), "", scale * value, error and scale * error, form, False, "")
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return None


GENERATION = {
    "perplexity_per_word": ("Perplexity per word", "{:.1f}", None),
    "mauve": ("MAUVE", "{:.3f}", False),
    "entropy": ("Token entropy", "{:.2f}", None),
    "distinct_2": ("Distinct-2", "{:.3f}", None),
    "rep_4": ("Repetition of 4-grams", "{:.3f}", None),
    "js_distance": ("Distance to the frequencies of the corpus", "{:.3f}", None),
    "grammatical_sentences": ("Fraction of grammatical sentences", "{:.3f}", False),
}
"""Label, format, and whether lower is better. None: values near that of held-out text are best, and none is marked."""


def generation_values(groups: Sequence[Group], results: Path | None) -> pd.DataFrame:
    """Metrics of samples by sampling rule, those of held-out text last."""
    values = []
    for group, _, folder in _result_folders(groups, results):
        for name, way, value in _sample_metrics(folder / "generation" / "summary.json"):
            label, form, lower_is_better = GENERATION[name]
            ranked = None if way.startswith("real text") else lower_is_better
            values.append(Value(label, way, group.code, value, None, form, ranked, ""))
    labels = [label for label, _, _ in GENERATION.values()]
    return summarise(groups, sorted(values, key=lambda v: (labels.index(v.figure), v.scoring.startswith("real text"))))


def _sample_metrics(file: Path) -> list[tuple[str, str, float]]:
    """(metric, sampling rule, value); empty if the summary cannot be read. Settings that change metrics are named."""

    def told(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
        unusual = (name for name in usual if settings.get(name, usual[name]) != usual[name])
        return "".join(f", {name.replace('_', ' ')} {settings[name]}" for name in unusual)

    try:
        summary = read_object(file)
        ways = []
        for row in summary["results"]:
            rule, steps = row["rule"], row["rule"].get("steps")
            others = {name: value for name, value in rule.items() if name not in ("sampler", "steps", "seed")}
            unusual = told(others, dict.fromkeys(others) | {"temperature": 1, "top_p": 1})
            ways.append(
                (f"{rule['sampler']}, {'one token per step' if steps is None else f'{steps} steps'}{unusual}", row)
            )
        common = told(summary, {"count": 100, "length": 64, "weights": "ema"})
        judge = f", judge {Path(summary['judge']).name}" if summary.get("judge") else ""
        return [
            (name, way + common + (judge if name in ("perplexity_per_word", "mauve") else ""), float(row[name]))
            for way, row in [*ways, ("real text", summary["real_text"])]
            for name in GENERATION
            if row.get(name) is not None
        ]
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return []


def run_table(groups: Sequence[Group]) -> pd.DataFrame:
    """Every run, with its state."""
    return pd.DataFrame(
        {
            "run": run.name,
            "group": group.code,
            "seed": str(run.settings.get("seed", NONE)),
            "status": run.row.status,
            "step": NONE if run.row.step is None else str(run.row.step),
            "words seen": NONE if run.words_seen is None else f"{run.words_seen:,}",
            "remarks": "; ".join(run.remarks),
        }
        for group in groups
        for run in group.runs
    )


def differing_facts(groups: Sequence[Group], kind: str) -> list[pd.DataFrame]:
    """The `settings` or `versions` that differ, except the seed; a cell lists several if they differ in the group."""
    facts = [[(group.code, getattr(run, kind)) for run in group.runs] for group in groups]
    keys = differing([known for members in facts for _, known in members])
    lines = []
    for key in keys:
        line = {kind.removesuffix("s"): key}
        for members in facts:
            values = dict.fromkeys(_shown(key, known[key]) for _, known in members if key in known)
            line[members[0][0]] = ", ".join(values) or NONE
        lines.append(line)
    return _tables(groups, pd.DataFrame(lines)) if lines else []


def equal_facts(groups: Sequence[Group], kind: str) -> pd.DataFrame:
    """All other `settings` or `versions`, including options of plugins that only some runs select."""
    facts = [getattr(run, kind) for group in groups for run in group.runs]
    changing = {*differing(facts), "seed"}
    known = {key: _shown(key, value) for some in facts for key, value in some.items() if key not in changing}
    return pd.DataFrame(known.items(), columns=[kind.removesuffix("s"), "value"])


def _shown(key: str, value: Any) -> str:
    return shown_plugins(value) if key == PLUGINS else shown(value)
