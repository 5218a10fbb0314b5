"""The runs of docs/results.md, and every table and picture of it.

    python benchmarks/results.py plan                                 # runs and core hours of every sweep
    python benchmarks/results.py run power frequency                  # low priority; the same command resumes
    python benchmarks/results.py run text --corpus CORPUS --blimp DIR
    python benchmarks/results.py likelihood                           # question d, with the models of `methods`
    python benchmarks/results.py tables --write docs/results.md

`run` trains the pilot of a sweep `results_NAME` (seed 100), chooses the learning rate of every arm by the lowest
bound, and trains the other seeds at that rate.  All runs are in one folder, which `ltg-mdlm report` shows; what was
measured in them is in `results.jsonl` beside this script, from which `tables` rebuilds everything.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.training.assembly import first_of_each
from ltg_mdlm.training.launch import EXIT_NON_FINITE, launch
from ltg_mdlm.training.sweep import Point, Sweep, open_sweep, short_names

PILOT = 100
"""Seeds from here on only tune the learning rate."""

LR = "optimizer.lr"

ESTIMATORS: tuple[tuple[Score, Time, int | None], ...] = (
    *((score, time, None) for score in ("pll", "bound") for time in ("fraction", "zero", "constant")),
    *(("bound", "fraction", draws) for draws in (2, 4, 16, 32)),
)
"""Score, time and masks per sentence; None: as many as pll needs."""

MASK_SEEDS = 8

Arm = tuple[tuple[str, str], ...]
"""Short name and value, as JSON, of what varies besides the learning rate and the seed."""

BySeed = dict[int, dict[str, float]]
"""The measures of the finished runs of an arm, by seed."""

Figures = dict[Arm, BySeed]
"""The same by arm."""


class Records:
    """What was measured in the finished runs, by run folder: a file with one JSON object per line."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def by_run(self) -> dict[str, dict[str, Any]]:
        """All records; other processes may have added some."""
        lines = self.file.read_text("utf-8").splitlines() if self.file.exists() else []
        return {row["run"]: row for row in map(json.loads, lines)}

    def add(self, run: str, **measured: Any) -> None:
        """Append a run."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"run": run, **measured}) + "\n")


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Whether this process may do the work that the file stands for, or another one does it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


class Plan:
    """The points of a question: what is trained, and what is finished."""

    def __init__(self, name: str, runs: Path, records: Records, sets: Sequence[str] = ()) -> None:
        """`runs` is the folder of all questions."""
        self.name, self.runs, self.records, self.sets = name, runs, records, sets
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

    def record(self, point: Point) -> Mapping[str, Any] | None:
        """What was measured in the run of a point; None if it is not finished."""
        return self.records.by_run().get(self._name(point))

    def _name(self, point: Point) -> str:
        return self.sweep.folder(point).relative_to(self.runs).as_posix()

    def rates(self) -> dict[Arm, float]:
        """The learning rate of every arm whose pilot is finished: the one with the lowest bound."""
        if self.question.rates_of:
            return Plan(self.question.rates_of, self.runs, self.records).rates()
        bounds: dict[Arm, dict[float, float]] = defaultdict(dict)
        for point in self.pilot:
            record = self.record(point)
            bounds[self.arm(point)][point.values[LR]] = record["figures"]["bound"] if record else math.nan
        complete = {arm: of_rate for arm, of_rate in bounds.items() if not any(map(math.isnan, of_rate.values()))}
        return {arm: min(of_rate, key=of_rate.__getitem__) for arm, of_rate in complete.items()}

    def steps(self, point: Point) -> list[str]:
        """For equal time: the `--set` that gives this arm as many steps as uniform_mdlm trains in the same time."""
        if self.question.rates_of is None:
            return []
        reference = Plan(self.question.rates_of, self.runs, self.records)
        fastest: dict[str, float] = defaultdict(float)
        for other in reference.pilot:
            record = reference.record(other)
            assert record is not None
            plugin = other.values["plugin"]
            fastest[plugin] = max(fastest[plugin], record["tokens_per_second"])
        of_uniform = self.sweep.settings(point).config.training.max_steps
        assert of_uniform is not None
        own, uniform = fastest[point.values["plugin"]], fastest["uniform_mdlm"]
        return [f"training.max_steps={round(of_uniform * own / uniform, -1):.0f}"]

    def chosen(self) -> list[Point]:
        """The points to train after the pilot, at the best rates: all arms with one seed, then with the next."""
        rates = self.rates()
        return [point for point in self.main if rates[self.arm(point)] == point.values[LR]]

    def at_each_others_rates(self) -> list[Point]:
        """If `question.same_rates`: an arm at the rate of its baseline, and the baseline at that of the arm."""
        rates = self.rates() if self.question.same_rates else {}
        wanted = defaultdict[Arm, set[float]](set)
        for arm, rate in rates.items():
            baseline = baseline_of(arm, self.question.claims[0])
            wanted[arm].add(rates[baseline])
            wanted[baseline].add(rate)
        return [p for p in self.main if p.values[LR] in wanted[self.arm(p)] - {rates.get(self.arm(p))}]

    def train(self, blimp: Path | None = None) -> int:
        """Train and measure what is missing, the pilot first.  Several processes share the work.

        `blimp` is the folder of blimp_fast, if it is to be scored.  Returns an exit code.
        """

        def measure(folder: Path) -> dict[str, float]:
            scored = blimp_accuracy(folder, blimp) if blimp else {}
            return scored | (accuracies(folder, self.question.same_masks) if self.question.same_masks else {})

        return (
            self._train_all(self.pilot, lambda folder: {})
            or self._train_all(self.chosen(), measure)
            or self._train_all(self.at_each_others_rates(), lambda folder: {})
        )

    def _train_all(self, points: Sequence[Point], measure: Callable[[Path], dict[str, float]]) -> int:
        while missing := [point for point in points if not self.record(point)]:
            for point in missing:
                if code := self._train(point, measure):
                    return code
            time.sleep(1)  # the rest is trained by other processes
        return 0

    def _train(self, point: Point, measure: Callable[[Path], dict[str, float]]) -> int:
        name, folder = self._name(point), self.sweep.folder(point)
        with claimed(self.runs / "claims" / name.replace("/", "-")) as mine:
            if not mine or self.record(point):
                return 0
            settings = self._open(*self.steps(point)).settings(point)
            if not outcome(folder) and (code := launch(settings)) not in (0, EXIT_NON_FINITE):
                return code
            start = core_seconds()
            figures = outcome(folder) | measure(folder)
            starts = RunFolder(folder).read_environment()
            self.records.add(
                name,
                figures=figures,
                tokens_per_second=throughput(folder),
                core_seconds=round(sum(s.get("cpu_seconds", 0) for s in starts) + core_seconds() - start, 1),
                **{key: starts[-1].get(key) for key in ("git", "machines", "versions") if starts},
            )
            return 0

    def figures(self) -> Figures:
        """The measures of finished runs at the chosen rates; for equal time, those of `uniform_mdlm` are added."""
        rates, found = self.rates(), Figures()
        for (*values, (_, rate)), runs in self.figures_by_rate().items():
            if rates.get(arm := tuple(values)) == json.loads(rate):
                found[arm] = runs
        if self.question.rates_of:
            reference = Plan(self.question.rates_of, self.runs, self.records).figures()
            found |= {arm: runs for arm, runs in reference.items() if dict(arm)["plugin"] == '"uniform_mdlm"'}
        return found

    def figures_by_rate(self) -> Figures:
        """The measures of all finished runs; the learning rate is the last value of an arm."""
        found = defaultdict[Arm, dict[int, dict[str, float]]](dict)
        for point in self.main:
            if record := self.record(point):
                arm = (*self.arm(point), ("lr", json.dumps(point.values[LR])))
                found[arm][point.values["seed"]] = record["figures"]
        return dict(found)


def _seed_first(point: Point) -> tuple[bool, int, int]:
    return (point.values["seed"] < PILOT, point.values["seed"], point.index)


def outcome(folder: Path) -> dict[str, float]:
    """The measures of a run in its folder; empty if it is not finished.

    A run that diverged has those of its last validation, which is the one before training.
    """
    if not folder.is_dir():
        return {}
    run = read_run(folder)
    if run.status != "finished" and not (run.status == "failed" and "not finite" in run.reason):
        return {}
    return {name: value for name in MEASURES if (value := run.figures.get(name)) is not None}


def accuracies(folder: Path, masks: Sequence[str]) -> dict[str, float]:
    """Accuracies of frequent and rare types under these settings of masking.

    Those of the training's own validation depend on which tokens the method masks, and how many.
    """
    run = load_run(folder, *masks)
    assert run.validator is not None
    metrics = run.validator(1.0, run.schedule.epoch(run.schedule.max_steps))
    return {name: metrics[f"valid/{name}"] for name in ("accuracy_frequent", "accuracy_rare")}


def blimp_accuracy(folder: Path, data: Path) -> dict[str, float]:
    """Accuracy on all pairs of blimp_fast, by `ltg-mdlm eval pairs`, which resumes."""
    out = folder.parent / "blimp"
    command = ["eval", "pairs", str(folder), "--data", str(data), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "ltg_mdlm", *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (summary,) = out.glob(f"{folder.name}/*/zero_shot/*/blimp/*/summary.json")
    return {"blimp_fast": json.loads(summary.read_text("utf-8"))["accuracy"]}


def throughput(folder: Path) -> float:
    """90th percentile of tokens per second over the logged steps: other work can only slow a run down."""
    rows = map(parse_row, (folder / "metrics.jsonl").read_bytes().splitlines())
    logged = [row["tokens_per_second"] for row in rows if row and "tokens_per_second" in row]
    return round(float(np.quantile(logged, 0.9)), 1)


def core_seconds() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


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


def baseline_of(arm: Arm, claim: Claim) -> Arm:
    """The arm that this one is compared with."""
    values = dict(arm)
    return tuple((values | {n: json.dumps(v) for n, v in claim.baseline.items() if n in values}).items())


def tests(question: Question, figures: Figures) -> Iterator[tuple[str, Claim, Difference]]:
    """Every comparison that the claims make, with the label of the arm."""
    for claim in question.claims:
        for arm, runs in figures.items():
            values = dict(arm)
            if any(values.get(name) != json.dumps(value) for name, value in claim.arm.items()):
                continue
            other = baseline_of(arm, claim)
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


DIFFERENCE = ("difference (95 %)", "seeds", "p")
"""Header of `difference_cells`."""


def difference_cells(difference: Difference) -> list[str]:
    """A difference in a table."""
    shown = f"{difference.mean:+.3f}"
    if difference.seeds > 1:
        shown += f" ({difference.low:+.3f} .. {difference.high:+.3f})"
    return [shown, str(difference.seeds), f"{difference.p:.2g}"]


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
                *difference_cells(difference),
                f"{p:.2g}",
                verdict(difference, p, claim.sign, least),
            ]
        )
    return table(["comparison", "measure", "claim", *DIFFERENCE, "p Holm", "verdict"], rows)


def averaged_table(question: Question, figures: Figures) -> str:
    """Differences from the baseline of the first claim, averaged over the values of `question.averaged` in every seed.

    Only seeds that all arms have.  Without correction, and without a verdict.
    """
    (name, value), *_ = question.claims[0].baseline.items()
    seeds = sorted(set.intersection(*(set(runs) for runs in figures.values())))
    arms: dict[str, list[tuple[BySeed, BySeed]]] = defaultdict(list)
    for arm, runs in figures.items():
        baseline = baseline_of(arm, question.claims[0])
        if arm != baseline and baseline in figures:
            arms[label(tuple(pair for pair in arm if pair[0] != question.averaged))].append((runs, figures[baseline]))
    rows = []
    for text, pairs in arms.items():
        for key, measure in MEASURES.items():
            if not all(key in run for runs in figures.values() for run in runs.values()):
                continue
            by_seed = [
                measure.scale * fmean(runs[seed][key] - others[seed][key] for runs, others in pairs) for seed in seeds
            ]
            found = mean_over_seeds(by_seed)
            rows.append([text, measure.label, *difference_cells(found)])
    return table([f"against {name} {value}", "measure", *DIFFERENCE], rows)


def same_rates_tables(question: Question, figures: Figures) -> str:
    """Means of every arm at every rate, and the differences between arms with the same rate.

    Without correction, and without a verdict.
    """
    rows = [
        [name, MEASURES[claim.measure].label, *difference_cells(difference)]
        for name, claim, difference in tests(question, figures)
    ]
    (name, value), *_ = question.claims[0].baseline.items()
    differences = table([f"against {name} {value} at the same rate", "measure", *DIFFERENCE], rows)
    return f"{mean_table(figures, {})}\n\n{differences}"


def mean_table(figures: Figures, rates: Mapping[Arm, float]) -> str:
    """Means of all measures by arm, with 95 % intervals over seeds.

    The column of learning rates is left out if there are none.
    """
    names = [name for name in MEASURES if any(name in run for runs in figures.values() for run in runs.values())]
    rows = []
    for arm, runs in figures.items():
        cells = [label(arm), *([f"{rates[arm]:g}"] if rates else []), str(len(runs))]
        for name in names:
            values = [MEASURES[name].scale * run[name] for run in runs.values() if name in run]
            found = mean_over_seeds(values) if values else None
            half = f" ± {(found.high - found.low) / 2:.2f}" if found and found.seeds > 1 else ""
            cells.append(f"{found.mean:.2f}{half}" if found else "")
        rows.append(cells)
    return table(["arm", *(["lr"] if rates else []), "seeds", *(MEASURES[name].label for name in names)], rows)


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
        axis.set_xlabel(textwrap.fill(MEASURES[name].label, 24))
    axes[0][0].set_yticks(range(len(figures)), [label(arm) for arm in figures])
    axes[0][0].invert_yaxis()
    figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def measure_likelihood(plan: Plan) -> None:
    """Question d: score minimal pairs with every estimator, in the runs of uniform_mdlm and freq_mdlm of `methods`."""
    for point in plan.chosen():
        plugin, seed = point.values["plugin"], point.values["seed"]
        name = f"likelihood/{plugin}-s{seed}"
        if plugin in ("uniform_mdlm", "freq_mdlm") and name not in plan.records.by_run():
            start = core_seconds()
            found = [
                {"arm": {"plugin": plugin, **estimator}, "seed": seed, "figures": figures}
                for estimator, figures in estimates(plan.sweep.folder(point))
            ]
            plan.records.add(name, estimates=found, core_seconds=round(core_seconds() - start, 1))


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
            longest = [max(text.tokens for text in of_texts) for of_texts in scores]  # decides the number of masks
            as_pll = fmean(text.tokens for of_texts in scores for text in of_texts)
            passes = draws or (fmean(tokens + tokens % 2 for tokens in longest) if score == "bound" else as_pll)
        figures = {"minimal_pairs": fmean(correct), "passes": passes}
        if score == "bound":
            figures["variance"] = float(np.var(margins, axis=0, ddof=1).mean())
        yield {"score": score, "time": time_, "masks": draws or "as pll"}, figures


def likelihood_figures(records: Records) -> Figures:
    """What `measure_likelihood` recorded."""
    found = defaultdict[Arm, dict[int, dict[str, float]]](dict)
    for record in records.by_run().values():
        for estimate in record.get("estimates", ()):
            arm = tuple((name, json.dumps(value)) for name, value in estimate["arm"].items())
            found[arm][estimate["seed"]] = estimate["figures"]
    return dict(found)


def plan_table(runs: Path, records: Records) -> str:
    """Runs and core hours of every question, planned and used."""
    used: dict[str, float] = defaultdict(float)
    for run, record in records.by_run().items():
        used[run.partition("/")[0]] += record["core_seconds"] / 3600
    rows, total = [], 0.0
    for name, question in QUESTIONS.items():
        plan = Plan(name, runs, records)
        main = len({(plan.arm(point), point.values["seed"]) for point in plan.main})
        hours = (len(plan.pilot) * question.minutes + main * (question.minutes + question.scoring_minutes)) / 60
        total += hours
        cells = [question.title, f"`results_{name}`", str(len(plan.pilot)), str(main), f"{question.minutes:g}"]
        rows.append([*cells, f"{hours:.1f}", f"{used[plan.sweep.out_root.name]:.1f}"])
    hours = 10 * LIKELIHOOD.minutes / 60
    cells = [LIKELIHOOD.title, "", "", "10", f"{LIKELIHOOD.minutes:g}"]
    rows.append([*cells, f"{hours:.1f}", f"{used['likelihood']:.1f}"])
    rows.append(["total", "", "", "", "", f"{total + hours:.1f}", f"{sum(used.values()):.1f}"])
    head = ["question", "sweep", "pilot runs", "runs", "core minutes per run", "core hours planned", "used"]
    return table(head, rows)


def write_tables(runs: Path, records: Records, page: Path | None, pictures: Path) -> None:
    """All tables and pictures of which there are runs."""
    publish("results plan", plan_table(runs, records), page)
    plans = {name: Plan(name, runs, records) for name in QUESTIONS}
    found = {name: (question, plans[name].figures(), plans[name].rates()) for name, question in QUESTIONS.items()}
    for name, (question, figures, rates) in (
        found | {"likelihood": (LIKELIHOOD, likelihood_figures(records), {})}
    ).items():
        if not any(tests(question, figures)):
            continue
        draw(figures, pictures / f"results_{name}.png")
        parts = [mean_table(figures, rates), comparison_table(question, figures)]
        if question.averaged and len(set.intersection(*(set(runs) for runs in figures.values()))) > 1:
            names = question.averaged.replace("_", " ")
            parts.append(f"Averaged over the values of {names}, not corrected, and chosen after the runs:")
            parts.append(averaged_table(question, figures))
        if question.same_rates:
            parts.append("At the same learning rates (exploration, not corrected):")
            parts.append(same_rates_tables(question, plans[name].figures_by_rate()))
        parts.append(f"![Every run, by arm; the bars are means](results_{name}.png)")
        publish(f"results {name}", "\n\n".join(parts), page)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["plan", "run", "likelihood", "tables"])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"for run: {', '.join(QUESTIONS)}")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="folder of all runs")
    beside = Path(__file__).with_name("results.jsonl")
    parser.add_argument("--records", type=Path, default=beside, help="file of what was measured in finished runs")
    parser.add_argument("--corpus", type=Path, help="for text: folder made by `ltg-mdlm prepare`")
    parser.add_argument("--blimp", type=Path, help="for text: folder with blimp_fast")
    parser.add_argument("--pictures", type=Path, default=Path("docs"), help="folder of the pictures")
    add_write_option(parser)
    arguments = parser.parse_args()
    runs, records = arguments.runs.absolute(), Records(arguments.records)
    if unknown := set(arguments.questions) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    if "text" in arguments.questions and not (arguments.corpus and arguments.blimp):
        parser.error("text needs --corpus and --blimp")
    if arguments.command == "plan":
        print(plan_table(runs, records))
    elif arguments.command == "tables":
        write_tables(runs, records, arguments.write, arguments.pictures)
    elif arguments.command == "likelihood":
        measure_likelihood(Plan("methods", runs, records))
    else:
        os.nice(19)
        for name in arguments.questions:
            text = name == "text"
            plan = Plan(name, runs, records, [f"data.corpus={arguments.corpus.absolute()}"] if text else [])
            if code := plan.train(arguments.blimp if text else None):
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
