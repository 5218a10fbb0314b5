"""The runs of docs/results.md, and every table and picture of it.

    python benchmarks/results.py plan                                 # runs and core hours of every sweep
    python benchmarks/results.py run power frequency                  # low priority; the same command resumes
    python benchmarks/results.py run text --corpus CORPUS --blimp DIR
    python benchmarks/results.py likelihood                           # question d, with the models of `methods`
    python benchmarks/results.py tables --write docs/results.md

`run` trains the pilot of a sweep `results_NAME` (seed 100), chooses the learning rate of every arm by the lowest
bound, and trains the other seeds at that rate.  All runs are in one folder, which `ltg-mdlm report` shows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from markdown import add_write_option, publish, table
from results_claims import LIKELIHOOD, MEASURES, QUESTIONS, Claim, Question
from scipy import stats
from trained_run import load_run

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.settings import flatten, load_settings
from ltg_mdlm.data.records import read_minimal_pairs
from ltg_mdlm.data.synthetic.builtin import MINIMAL_PAIRS
from ltg_mdlm.evaluation.statistics import holm
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.inference.choices import answer, pair_questions
from ltg_mdlm.inference.scoring import LikelihoodScorer, Score, ScoringRule, Time
from ltg_mdlm.inference.trained_model import open_model
from ltg_mdlm.reporting.run_table import read_run
from ltg_mdlm.storage.metrics_file import parse_row
from ltg_mdlm.training.assembly import first_of_each
from ltg_mdlm.training.launch import EXIT_NON_FINITE, launch
from ltg_mdlm.training.sweep import Point, Sweep, open_sweep, short_names

PILOT = 100
"""Seeds from here on only tune the learning rate."""

LR = "optimizer.lr"

ACCURACIES = ("accuracy_frequent", "accuracy_rare")

SAME_MASKS = "accuracies.json"
"""File in a run folder with its accuracies under `Question.same_masks`."""

ESTIMATORS: tuple[tuple[Score, Time, int | None], ...] = (
    *((score, time, None) for score in ("pll", "bound") for time in ("fraction", "zero", "constant")),
    *(("bound", "fraction", draws) for draws in (2, 4, 16, 32)),
)
"""Score, time and masks per sentence; None: as many as pll needs."""

MASK_SEEDS = 8

Arm = tuple[tuple[str, str], ...]
"""Short name and value, as JSON, of what varies besides the learning rate and the seed."""

Figures = dict[Arm, dict[int, dict[str, float]]]
"""The measures of finished runs by arm and seed."""


class Plan:
    """The points of a question: what is trained, and what is finished."""

    def __init__(self, name: str, runs: Path, sets: Sequence[str] = ()) -> None:
        """`runs` is the folder of all questions."""
        self.name, self.runs, self.sets = name, runs, sets
        self.question = QUESTIONS[name]
        self.sweep = self._open()
        self._short = short_names(self.sweep.content.varying)
        self.pilot = sorted((p for p in self.sweep.points if p.values["seed"] >= PILOT), key=_seed_first)
        self.main = sorted((p for p in self.sweep.points if p.values["seed"] < PILOT), key=_seed_first)

    def _open(self, *sets: str) -> Sweep:
        sweep = f"results_{self.name}"
        return open_sweep(sweep, (*self.sets, *sets), self.runs / sweep)

    def arm(self, point: Point) -> Arm:
        """The arm that a point belongs to."""
        values = ((self._short[key], point.values[key]) for key in self._short if key != LR)
        return tuple((name, json.dumps(value)) for name, value in values)

    def rates(self) -> dict[Arm, float]:
        """The learning rate of every arm whose pilot is finished: with the lowest bound (mean of seeds)."""
        if self.question.rates_of:
            return Plan(self.question.rates_of, self.runs).rates()
        found: dict[Arm, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for point in self.pilot:
            figures = finished(self.sweep.folder(point))
            found[self.arm(point)][point.values[LR]].append(figures.get("bound", math.nan))
        mean = {arm: {lr: fmean(bounds) for lr, bounds in by_rate.items()} for arm, by_rate in found.items()}
        complete = {arm: by_rate for arm, by_rate in mean.items() if not any(map(math.isnan, by_rate.values()))}
        return {arm: min(by_rate, key=by_rate.__getitem__) for arm, by_rate in complete.items()}

    def steps(self, point: Point) -> list[str]:
        """For equal time: the `--set` that gives this arm as many steps as uniform_mdlm trains in the same time."""
        if self.question.rates_of is None:
            return []
        reference = Plan(self.question.rates_of, self.runs)
        speeds: dict[str, list[float]] = defaultdict(list)
        for other in reference.pilot:
            speeds[other.values["plugin"]] += tokens_per_second(reference.sweep.folder(other))
        # The 90th percentile: other work on the machine can only slow a run down.
        own, uniform = (float(np.quantile(speeds[p], 0.9)) for p in (point.values["plugin"], "uniform_mdlm"))
        of_uniform = reference.sweep.settings(reference.pilot[0]).config.training.max_steps
        assert of_uniform is not None
        return [f"training.max_steps={round(of_uniform * own / uniform, -1)}"]

    def train(self) -> int:
        """Train what is missing, the pilot first; all arms with one seed, then the next seed.  Returns an exit code."""
        for point in self.pilot:
            if code := self._train(self.sweep, point):
                return code
        rates = self.rates()
        for point in self.main:
            if rates[self.arm(point)] == point.values[LR] and (
                code := self._train(self._open(*self.steps(point)), point)
            ):
                return code
        return 0

    def _train(self, sweep: Sweep, point: Point) -> int:
        folder = sweep.folder(point)
        if finished(folder):
            return 0
        start = time.process_time()
        try:
            code = launch(sweep.settings(point))
            return 0 if code == EXIT_NON_FINITE else code
        finally:
            row = {"run": str(folder.relative_to(self.runs)), "core_seconds": time.process_time() - start}
            with (self.runs / "costs.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def figures(self) -> Figures:
        """The measures of the finished runs at the chosen rates; for equal time, those of `uniform_mdlm` are added."""
        rates, found = self.rates(), defaultdict[Arm, dict[int, dict[str, float]]](dict)
        for point in self.main:
            arm, folder = self.arm(point), self.sweep.folder(point)
            if rates.get(arm) == point.values[LR] and (run := finished(folder)):
                if self.question.same_masks:
                    file = folder / SAME_MASKS
                    run = {name: value for name, value in run.items() if name not in ACCURACIES}
                    run |= json.loads(file.read_text("utf-8")) if file.exists() else {}
                found[arm][point.values["seed"]] = run
        if self.question.rates_of:
            reference = Plan(self.question.rates_of, self.runs).figures()
            found |= {arm: runs for arm, runs in reference.items() if dict(arm)["plugin"] == '"uniform_mdlm"'}
        return dict(found)


def _seed_first(point: Point) -> tuple[bool, int, int]:
    return (point.values["seed"] < PILOT, point.values["seed"], point.index)


def finished(folder: Path) -> dict[str, float]:
    """The measures of a run, with its accuracy on blimp_fast if it has one; empty if it is not finished.

    A run that diverged has those of its last validation, which is the one before training.
    """
    if not folder.is_dir():
        return {}
    run = read_run(folder)
    if run.status != "finished" and not (run.status == "failed" and "not finite" in run.reason):
        return {}
    figures = {name: run.figures.get(name) for name in MEASURES}
    for summary in (folder.parent / "blimp").glob(f"{folder.name}/*/zero_shot/*/blimp/*/summary.json"):
        figures["blimp_fast"] = json.loads(summary.read_text("utf-8"))["accuracy"]
    return {name: value for name, value in figures.items() if value is not None}


def tokens_per_second(folder: Path) -> list[float]:
    """The throughput in every logged step of a run."""
    rows = map(parse_row, (folder / "metrics.jsonl").read_bytes().splitlines())
    return [row["tokens_per_second"] for row in rows if row and "tokens_per_second" in row]


class Difference(NamedTuple):
    """A mean over seeds, of arm minus baseline with the same seed, or of an arm alone."""

    mean: float
    low: float
    """Lower end of the 95 % t interval"""
    high: float
    p: float
    """Two-sided paired t test"""
    seeds: int


def mean_over_seeds(values: Sequence[float]) -> Difference:
    """Mean, t interval and t test; without an interval for a single seed."""
    mean, seeds = fmean(values), len(values)
    if seeds < 2 or np.ptp(values) == 0:
        certain = seeds > 1
        return Difference(mean, *((mean, mean, float(mean == 0)) if certain else (-math.inf, math.inf, 1.0)), seeds)
    test = stats.ttest_1samp(values, 0)
    interval = test.confidence_interval()
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue), seeds)


def verdict(difference: Difference, corrected_p: float, sign: int, least: float) -> str:
    """yes: significant, as predicted, and large enough to matter.  no: the interval has no such difference."""
    mean, low, high = difference[:3]
    if sign < 0:
        mean, low, high = -mean, -high, -low
    if corrected_p < 0.05 and (mean if sign else abs(mean)) >= least:
        return "yes"
    return "no" if high < least and (sign or low > -least) else "undecided"


def tests(question: Question, figures: Figures) -> Iterator[tuple[str, Claim, Difference]]:
    """Every comparison that the claims make, with the label of the arm."""
    for claim in question.claims:
        for arm, runs in figures.items():
            values = dict(arm)
            if any(values.get(name) != json.dumps(value) for name, value in claim.arm.items()):
                continue
            other = tuple((values | {n: json.dumps(v) for n, v in claim.baseline.items() if n in values}).items())
            seeds = [seed for seed in runs if other != arm and seed in figures.get(other, {})]
            scale = MEASURES[claim.measure].scale
            pairs = [(runs[seed].get(claim.measure), figures[other][seed].get(claim.measure)) for seed in seeds]
            differences = [scale * (x - y) for x, y in pairs if x is not None and y is not None]
            if differences:
                yield label(arm), claim, mean_over_seeds(differences)


def label(arm: Arm) -> str:
    """The values of an arm in words."""
    values = flatten({name: json.loads(value) for name, value in arm})
    return ", ".join(f"{name.rpartition('.')[2].replace('_', ' ')} {value}" for name, value in values.items())


def comparison_table(question: Question, figures: Figures) -> str:
    """The tests of a question, corrected for their number (Holm)."""
    found = list(tests(question, figures))
    corrected = holm([difference.p for _, _, difference in found])
    rows = []
    for (name, claim, difference), p in zip(found, corrected, strict=True):
        assert p is not None
        measure = MEASURES[claim.measure]
        least = measure.least if claim.least is None else claim.least
        against = label(tuple((n, json.dumps(v)) for n, v in claim.baseline.items()))
        predicted = {1: f"> {least:g}", -1: f"< -{least:g}", 0: f"beyond ± {least:g}"}[claim.sign]
        rows.append(
            [
                f"{name}; against {against}",
                measure.label,
                predicted,
                f"{difference.mean:+.3f} ({difference.low:+.3f} .. {difference.high:+.3f})",
                str(difference.seeds),
                f"{difference.p:.2g}",
                f"{p:.2g}",
                verdict(difference, p, claim.sign, least),
            ]
        )
    return table(["comparison", "measure", "claim", "difference (95 %)", "seeds", "p", "p Holm", "verdict"], rows)


def mean_table(figures: Figures, rates: Mapping[Arm, float]) -> str:
    """Means of all measures by arm, with 95 % intervals over seeds."""
    names = [name for name in MEASURES if any(name in run for runs in figures.values() for run in runs.values())]
    rows = []
    for arm, runs in figures.items():
        cells = [label(arm), f"{rates[arm]:g}" if arm in rates else "", str(len(runs))]
        for name in names:
            values = [MEASURES[name].scale * run[name] for run in runs.values() if name in run]
            found = mean_over_seeds(values) if values else None
            half = f" ± {(found.high - found.low) / 2:.2f}" if found and found.seeds > 1 else ""
            cells.append(f"{found.mean:.2f}{half}" if found else "")
        rows.append(cells)
    return table(["arm", "lr", "seeds", *(MEASURES[name].label for name in names)], rows)


def draw(figures: Figures, file: Path) -> None:
    """One panel per measure: every seed as a point, by arm."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = [name for name in MEASURES if any(name in run for runs in figures.values() for run in runs.values())]
    height = 1.2 + 0.3 * len(figures)
    figure, axes = pyplot.subplots(1, len(names), sharey=True, squeeze=False, figsize=(3 + 2.2 * len(names), height))
    for axis, name in zip(axes[0], names, strict=True):
        for row, runs in enumerate(figures.values()):
            values = [MEASURES[name].scale * run[name] for run in runs.values() if name in run]
            axis.plot(values, [row] * len(values), "o", alpha=0.5, color="C0")
            axis.plot(fmean(values or [math.nan]), row, "|", markersize=14, color="black")
        axis.set_xlabel(MEASURES[name].label)
    axes[0][0].set_yticks(range(len(figures)), [label(arm) for arm in figures])
    axes[0][0].invert_yaxis()
    figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def measure_likelihood(plan: Plan) -> None:
    """Question d: score minimal pairs with every estimator, in the runs of uniform_mdlm and freq_mdlm of `methods`."""
    (plan.runs / "likelihood").mkdir(exist_ok=True)
    rates = plan.rates()
    for point in plan.main:
        plugin, seed = point.values["plugin"], point.values["seed"]
        out = plan.runs / "likelihood" / f"{plugin}-s{seed}.json"
        chosen = rates.get(plan.arm(point)) == point.values[LR] and plugin in ("uniform_mdlm", "freq_mdlm")
        if chosen and finished(plan.sweep.folder(point)) and not out.exists():
            records = [
                {"arm": {"plugin": plugin, **estimator}, "seed": seed, "figures": figures}
                for estimator, figures in estimates(plan.sweep.folder(point))
            ]
            out.write_text(json.dumps(records, indent=1), "utf-8")


def estimates(folder: Path, pairs: int = 20) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Every estimator, and its accuracy, cost and variance on `pairs` pairs of each phenomenon, in one run."""
    torch.set_num_threads(1)
    ranks = Ranks.alone()
    model = open_model(folder, ranks)
    corpus = open_corpus(load_settings([str(folder / "config.yaml")]).config)
    questions = pair_questions(first_of_each(read_minimal_pairs(corpus.path / MINIMAL_PAIRS), pairs))
    texts = [question.candidates for question in questions]
    for score, time_, draws in ESTIMATORS:
        margins, correct, passes = [], [], 0.0
        for seed in range(MASK_SEEDS if score == "bound" else 1):
            rate = 0.3 if time_ == "constant" else None
            rule = ScoringRule(score=score, time=time_, rate=rate, draws=draws, seed=seed)
            scores = LikelihoodScorer(model, rule, ranks)(texts)
            answers = [answer(question, of_texts) for question, of_texts in zip(questions, scores, strict=True)]
            margins.append([found.margin for found in answers])
            correct.append(fmean(found.correct for found in answers))
            passes = draws or fmean(text.tokens for of_texts in scores for text in of_texts)
        figures = {"minimal_pairs": fmean(correct), "passes": passes}
        if score == "bound":
            figures["variance"] = float(np.var(margins, axis=0, ddof=1).mean())
        yield {"score": score, "time": time_, "masks": draws or "as pll"}, figures


def likelihood_figures(runs: Path) -> Figures:
    """What `measure_likelihood` wrote."""
    found = defaultdict[Arm, dict[int, dict[str, float]]](dict)
    for file in sorted((runs / "likelihood").glob("*.json")):
        for record in json.loads(file.read_text("utf-8")):
            arm = tuple((name, json.dumps(value)) for name, value in record["arm"].items())
            found[arm][record["seed"]] = record["figures"]
    return dict(found)


def measure_accuracies(plan: Plan) -> None:
    """Accuracies of frequent and rare types under masks that all arms share, in all finished runs but the pilot.

    Those of the training's own validation depend on which tokens the method masks, and how many.
    """
    for folder in map(plan.sweep.folder, plan.main):
        if plan.question.same_masks and finished(folder) and not (folder / SAME_MASKS).exists():
            run = load_run(folder, *plan.question.same_masks)
            assert run.validator is not None
            metrics = run.validator(1.0, run.schedule.epoch(run.schedule.max_steps))
            figures = {name: metrics[f"valid/{name}"] for name in ACCURACIES}
            (folder / SAME_MASKS).write_text(json.dumps(figures), "utf-8")


def score_blimp(plan: Plan, data: Path) -> int:
    """`ltg-mdlm eval pairs` for the finished runs that have no accuracy on blimp_fast.  Returns an exit code."""
    for folder in map(plan.sweep.folder, plan.main):
        if (run := finished(folder)) and "blimp_fast" not in run:
            command = ["eval", "pairs", str(folder), "--data", str(data), "--out", str(folder.parent / "blimp")]
            if code := subprocess.run([sys.executable, "-m", "ltg_mdlm", *command]).returncode:
                return code
    return 0


def plan_table(runs: Path, sets: Sequence[str] = ()) -> str:
    """Runs and core hours of every question, planned and used."""
    used: dict[str, float] = defaultdict(float)
    if (costs := runs / "costs.jsonl").exists():
        for line in costs.read_text("utf-8").splitlines():
            row = json.loads(line)
            used[Path(row["run"]).parts[0]] += row["core_seconds"] / 3600
    rows, total = [], 0.0
    for name, question in QUESTIONS.items():
        plan = Plan(name, runs, sets)
        main = len({(plan.arm(point), point.values["seed"]) for point in plan.main})
        hours = (len(plan.pilot) * question.minutes + main * (question.minutes + question.scoring_minutes)) / 60
        total += hours
        cells = [question.title, f"`results_{name}`", str(len(plan.pilot)), str(main), f"{question.minutes:g}"]
        rows.append([*cells, f"{hours:.1f}", f"{used[plan.sweep.out_root.name]:.1f}"])
    rows.append([LIKELIHOOD.title, "", "", "10", f"{LIKELIHOOD.minutes:g}", f"{10 * LIKELIHOOD.minutes / 60:.1f}", ""])
    total += 10 * LIKELIHOOD.minutes / 60
    rows.append(["total", "", "", "", "", f"{total:.1f}", f"{sum(used.values()):.1f}"])
    head = ["question", "sweep", "pilot runs", "runs", "core minutes per run", "core hours planned", "used"]
    return table(head, rows)


def write_tables(runs: Path, page: Path | None, pictures: Path) -> None:
    """All tables and pictures of which there are runs."""
    publish("results plan", plan_table(runs), page)
    plans = {name: Plan(name, runs) for name in QUESTIONS}
    found = {name: (question, plans[name].figures(), plans[name].rates()) for name, question in QUESTIONS.items()}
    for name, (question, figures, rates) in (
        found | {"likelihood": (LIKELIHOOD, likelihood_figures(runs), {})}
    ).items():
        if not any(tests(question, figures)):
            continue
        draw(figures, pictures / f"results_{name}.png")
        parts = [mean_table(figures, rates), comparison_table(question, figures)]
        parts.append(f"![Every run, by arm; the bars are means](results_{name}.png)")
        publish(f"results {name}", "\n\n".join(parts), page)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["plan", "run", "likelihood", "tables"])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"for run: {', '.join(QUESTIONS)}")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="folder of all runs")
    parser.add_argument("--corpus", type=Path, help="for text: folder made by `ltg-mdlm prepare`")
    parser.add_argument("--blimp", type=Path, help="for text: folder with blimp_fast")
    parser.add_argument("--pictures", type=Path, default=Path("docs"), help="folder of the pictures")
    add_write_option(parser)
    arguments = parser.parse_args()
    runs: Path = arguments.runs
    if unknown := set(arguments.questions) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    if "text" in arguments.questions and not (arguments.corpus and arguments.blimp):
        parser.error("text needs --corpus and --blimp")
    if arguments.command == "plan":
        print(plan_table(runs))
    elif arguments.command == "tables":
        write_tables(runs, arguments.write, arguments.pictures)
    else:
        os.nice(19)
        runs.mkdir(parents=True, exist_ok=True)
        for name in arguments.questions:
            sets = [f"data.corpus={arguments.corpus.absolute()}"] if name == "text" else []
            plan = Plan(name, runs, sets)
            code = plan.train() or (score_blimp(plan, arguments.blimp) if name == "text" else 0)
            if code:
                return code
            measure_accuracies(plan)
        if arguments.command == "likelihood":
            measure_likelihood(Plan("methods", runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
