"""benchmarks/results.py: what it trains, and its tables, on runs that nobody had to train."""

import dataclasses
import importlib
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.fabricated import fabricate_run
from support.runs import TINY

from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.reporting.run_table import read_run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MUON_RATES = (0.003, 0.006, 0.012)


@pytest.fixture
def results(monkeypatch):
    """The module; its neighbour `markdown` has the name of a package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("markdown", "trained_run", "results"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("results")
    yield module
    for name in ("markdown", "trained_run", "results"):
        del sys.modules[name]


@pytest.fixture
def fabricated(results, monkeypatch, tmp_path):
    """Fabricates runs instead of training them: the folders that were launched, and their settings."""
    launched = {}

    def launch(settings):
        config = settings.config
        (plugin,) = config.plugins.keys() - {"uniform_mdlm"} or {"uniform_mdlm"}
        # `amlm` is better by 0.5 nats, and its best rate is the highest; that of the others is the middle one.
        off = abs(MUON_RATES.index(config.optimizer.lr) - (2 if plugin == "amlm" else 1))
        level = (4.5 if plugin == "amlm" else 5.0) + off
        folder = config.run_folder()
        fabricate_run(folder, plugin, f"optimizer.lr={config.optimizer.lr}", seed=config.seed, steps=5, level=level)
        launched[folder.relative_to(tmp_path).as_posix()] = config
        return 0

    monkeypatch.setattr(results, "launch", launch)
    return launched


@pytest.fixture
def records(results, tmp_path):
    return results.Records(tmp_path / "results.jsonl")


def test_only_the_pilot_and_the_points_at_the_best_rate_of_each_arm_are_trained(results, fabricated, records, tmp_path):
    plan = results.Plan("methods", tmp_path, records)
    assert plan.train() == 0
    pilot = [config for config in fabricated.values() if config.seed >= 100]
    main = [config for config in fabricated.values() if config.seed < 100]
    assert (len(pilot), len(main)) == (6 * 3, 6 * 5)
    assert {config.seed for config in main} == {0, 1, 2, 3, 4}
    for config in main:
        assert config.optimizer.lr == (0.012 if "amlm" in config.plugins else 0.006)


def test_for_exploration_an_arm_and_its_baseline_are_trained_at_each_others_rates(
    results, fabricated, records, tmp_path
):
    plan = results.Plan("methods", tmp_path, records)
    plan.question = dataclasses.replace(plan.question, same_rates=True)
    assert plan.train() == 0
    rates = [config.optimizer.lr for config in fabricated.values() if config.seed < 100]
    assert (rates.count(0.006), rates.count(0.012)) == (6 * 5, 2 * 5)  # `amlm` at both, and `uniform_mdlm`
    assert all(len(runs) == 5 for runs in plan.figures().values())
    assert set(plan.figures()) == {plan.arm(point) for point in plan.main}
    rows = [line.split(" | ") for line in results.same_rates_tables(plan.question, plan.figures_by_rate()).splitlines()]
    differences = {
        row[0].removeprefix("| "): float(row[2].split()[0]) for row in rows if row[1:2] == ["bound, nats per token"]
    }
    assert differences["plugin amlm, lr 0.006"] == pytest.approx(5.5 - 5.0, abs=0.1)
    assert differences["plugin amlm, lr 0.012"] == pytest.approx(4.5 - 6.0, abs=0.1)
    assert len(differences) == 5 + 1


def test_training_resumes_with_what_is_missing(results, fabricated, monkeypatch, records, tmp_path):
    plan = results.Plan("methods", tmp_path, records)
    fabricate = results.launch
    monkeypatch.setattr(results, "launch", lambda settings: 75 if len(fabricated) == 40 else fabricate(settings))
    assert plan.train() == 75
    monkeypatch.setattr(results, "launch", fabricate)
    assert plan.train() == 0
    assert len(fabricated) == 48
    fabricated.clear()
    assert plan.train() == 0
    assert not fabricated


def test_equal_time_means_fewer_steps_for_a_slower_method(results, fabricated, monkeypatch, records, tmp_path):
    monkeypatch.setattr(results, "throughput", lambda folder: 100.0 if "block_diffusion" in folder.name else 200.0)
    assert results.Plan("methods", tmp_path, records).train() == 0
    fabricated.clear()
    plan = results.Plan("methods_time", tmp_path, records)
    assert plan.train() == 0
    steps = {name: config.training.max_steps for name, config in fabricated.items()}
    assert len(steps) == 5 * 5
    assert all(n == (380 if "block_diffusion" in name else 750) for name, n in steps.items())
    assert (("plugin", '"uniform_mdlm"'),) in plan.figures()


def test_differences_and_intervals_are_those_of_the_paired_t_test_of_scipy(results, fabricated, records, tmp_path):
    plan = results.Plan("methods", tmp_path, records)
    plan.train()
    found = {name: difference for name, claim, difference in results.tests(plan.question, plan.figures())}
    assert len(found) == 5  # fabricated runs have no minimal pairs
    folder = tmp_path / "results_methods"
    amlm = [read_run(folder / f"plugin=amlm-lr=0.012-s{seed}").figures["bound"] for seed in range(5)]
    uniform = [read_run(folder / f"plugin=uniform_mdlm-lr=0.006-s{seed}").figures["bound"] for seed in range(5)]
    expected = stats.ttest_rel(amlm, uniform)
    difference = found["plugin amlm"]
    assert difference.mean == pytest.approx(statistics.fmean(amlm) - statistics.fmean(uniform))
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference[1:3] == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize(
    ("mean", "half", "p", "sign", "expected"),
    [
        (0.20, 0.05, 0.01, +1, "yes"),
        (0.20, 0.05, 0.01, -1, "no"),
        (-0.20, 0.05, 0.01, -1, "yes"),
        (0.20, 0.05, 0.20, +1, "undecided"),
        (0.02, 0.01, 0.01, +1, "no"),  # significant, but too small to matter
        (0.05, 0.20, 0.50, 0, "undecided"),
        (0.01, 0.02, 0.50, 0, "no"),
        (-0.20, 0.05, 0.01, 0, "yes"),
        (-0.20, 0.05, 0.20, 0, "undecided"),
    ],
)
def test_a_verdict_needs_significance_the_predicted_sign_and_a_difference_that_matters(
    results, mean, half, p, sign, expected
):
    difference = results.Difference(mean, mean - half, mean + half, p, 5)
    assert results.verdict(difference, p, sign, 0.1) == expected


def test_every_claim_has_its_arms_and_its_baseline(results, records, tmp_path):
    for name, question in results.QUESTIONS.items():
        plan = results.Plan(name, tmp_path, records)
        run = dict.fromkeys(results.MEASURES, 0.5)
        figures = {plan.arm(point): dict.fromkeys(range(3), run) for point in plan.main}
        if question.rates_of:
            figures[(("plugin", '"uniform_mdlm"'),)] = dict.fromkeys(range(3), run)
        count = {"power": 4, "frequency": 26, "optimizers": 8, "distortions": 18, "text": 4}.get(name, 10)
        assert len(list(results.tests(question, figures))) == count
        tested = {claim for _, claim, _ in ((n, id(c), d) for n, c, d in results.tests(question, figures))}
        assert tested == {id(claim) for claim in question.claims}


def test_the_plan_stays_within_its_budget(results, records, tmp_path):
    total = results.plan_table(tmp_path, records).splitlines()[-1].split("|")
    assert float(total[-3]) < 40


def test_a_run_that_diverged_is_not_trained_again_and_counts_as_untrained(results, monkeypatch, records, tmp_path):
    plan = results.Plan("methods", tmp_path, records)
    fabricate_run(plan.sweep.folder(plan.pilot[0]), status="failed", steps=5, level=7.0)
    monkeypatch.setattr(results, "launch", lambda settings: pytest.fail("trained again"))
    assert plan._train(plan.pilot[0], lambda folder: {}) == 0
    assert plan.record(plan.pilot[0])["figures"]["bound"] == pytest.approx(7, abs=0.3)


def test_what_another_process_trains_is_left_to_it(results, monkeypatch, records, tmp_path):
    plan = results.Plan("methods", tmp_path, records)
    monkeypatch.setattr(results, "launch", lambda settings: pytest.fail("trained twice"))
    name = plan.sweep.folder(plan.pilot[0]).relative_to(tmp_path).as_posix().replace("/", "-")
    with results.claimed(tmp_path / "claims" / name) as mine:
        assert mine
        assert plan._train(plan.pilot[0], lambda folder: {}) == 0
    assert plan.record(plan.pilot[0]) is None


def test_tables_and_pictures_are_rebuilt_from_the_file_of_records(results, fabricated, monkeypatch, records, tmp_path):
    results.Plan("methods", tmp_path / "runs", records).train()
    shutil.rmtree(tmp_path / "runs")
    for seed in range(5):
        for plugin, lr, accuracy in (("amlm", 0.012, 0.6), ("uniform_mdlm", 0.006, 0.5)):
            record = records.by_run()[f"results_methods/plugin={plugin}-lr={lr}-s{seed}"]
            records.add(**record | {"figures": record["figures"] | {"blimp_fast": accuracy + seed / 100}})
        scores = {
            "pll": {"minimal_pairs": 0.9, "passes": 8.0},
            "bound": {"minimal_pairs": 0.8 + seed / 100, "passes": 8.0, "variance": 2.0},
        }
        arm = {"plugin": "p", "time": "fraction", "masks": "as pll"}
        estimates = [{"arm": arm | {"score": s}, "seed": seed, "figures": figures} for s, figures in scores.items()]
        records.add(f"likelihood/p-s{seed}", estimates=estimates, core_seconds=36.0)
    page = tmp_path / "results.md"
    names = ("results plan", *(f"results {name}" for name in (*results.QUESTIONS, "likelihood")))
    page.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in names))
    paths = {"--runs": tmp_path / "runs", "--records": records.file, "--write": page, "--pictures": tmp_path}
    arguments = [str(part) for option in paths.items() for part in option]
    monkeypatch.setattr(sys, "argv", ["results.py", "tables", *arguments])
    assert results.main() == 0
    text = page.read_text()
    assert "| plugin amlm | 0.012 | 5 | 4." in text
    assert "| 62.00 ± 1.96 |" in text  # blimp_fast: t interval of 60 .. 64
    dual, amlm = (
        line.split(" | ") for line in text.splitlines() if line.startswith(("| plugin amlm;", "| plugin dual;"))
    )
    assert amlm[-1] == "yes |"
    assert dual[-1] != "yes |"
    assert "| plugin p, time fraction, masks as pll, score bound; against score pll | minimal pairs, % |" in text
    assert next(row for row in text.splitlines() if row.startswith("| d. ")).endswith("| 0.1 |")  # 5 x 36 s, rounded
    assert {p.name for p in tmp_path.glob("*.png")} == {"results_methods.png", "results_likelihood.png"}


def test_averages_over_an_arm_are_paired_by_seed(results):
    generator = np.random.default_rng(0)
    bound_EPS = generator.normal(size=(2, 2, 6))
    exponents, powers, seeds = ("0", "1"), ("0", "0.2"), range(6)
    figures = {
        (("builtin_zipf_exponent", exponents[e]), ("power", powers[p])): {
            seed: {"bound": bound_EPS[e, p, seed]} for seed in seeds if (e, seed) != (1, 5)
        }
        for e in range(2)
        for p in range(2)
    }
    lines = results.averaged_table(results.QUESTIONS["frequency"], figures).splitlines()
    with_PS = bound_EPS[..., :5].mean(0)  # not all arms have the last seed
    test = stats.ttest_rel(with_PS[1], with_PS[0])
    low, high = test.confidence_interval()
    mean = (with_PS[1] - with_PS[0]).mean()
    assert lines[0] == "| against power 0 | measure | difference (95 %) | seeds | p |"
    assert lines[2:] == [
        f"| power 0.2 | bound, nats per token | {mean:+.3f} ({low:+.3f} .. {high:+.3f}) | 5 | {test.pvalue:.2g} |"
    ]


def test_the_variance_of_the_bound_falls_with_its_cost_and_pll_has_none(results, monkeypatch, tmp_path):
    assert results.launch(load_settings([], TINY, ["uniform_mdlm"], tmp_path / "run")) == 0
    monkeypatch.setattr(results, "ESTIMATORS", (("pll", "zero", None), ("bound", "zero", 2), ("bound", "zero", 16)))
    pll, few, many = (figures for _, figures in results.estimates(tmp_path / "run", pairs=2))
    assert "variance" not in pll
    assert (few["passes"], many["passes"]) == (2, 16)
    assert many["variance"] < few["variance"] / 3  # one eighth, for independent pairs of masks


def test_the_page_has_a_place_for_every_table(results, tmp_path):
    text = (BENCHMARKS.parent / "docs" / "results.md").read_text()
    for name in ("plan", "likelihood", *results.QUESTIONS):
        assert text.count(f"<!-- results {name} -->") == text.count(f"<!-- /results {name} -->") == 1
