"""The HTML report: its contents, for runs in any state."""

import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.fabricated import fabricate_large_sweep, fabricate_result, fabricate_run, fabricate_sweep
from support.trained import write_run

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.reporting import html_report
from ltg_mdlm.reporting.html_report import curve_charts
from ltg_mdlm.reporting.html_report import page as page_file
from ltg_mdlm.reporting.html_report.page import Extent, write_report
from ltg_mdlm.reporting.html_report.run_groups import group_names, group_runs, read_record
from ltg_mdlm.reporting.html_report.sample_gallery import shown_sample
from ltg_mdlm.storage.run_folder import RunFolder


class Outline(HTMLParser):
    """Headings, ids, tables and references of a page; fails on tags that are not closed."""

    VOID = frozenset({"meta", "link", "br", "wbr", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.cells: list[str] = []
        self.tables = self.images = 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.tables += tag == "table"
        self.images += "data-description" in about or (tag == "img" and bool(about["alt"]))
        self.ids += [about["id"]] if "id" in about else []
        self.references += [about[key] for key in ("href", "src", "xlink:href") if about.get(key)]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open) and self.cells:
            self.cells[-1] += data.replace("\u202f", " ").replace("\xa0", " ")


@pytest.fixture(scope="module", autouse=True)
def without_library():
    """Pages without Vega-Lite, which takes seconds; test_report_in_browser.py has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_file, "_BUNDLE", "print('// no library')")
        yield


def data_of(page: str) -> dict:
    """What the script of a page draws."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def page_of(runs: list[Path], folder: Path, *, results: Path | None = None, samples: int = 0, recipes: int = 0) -> str:
    write_report(runs, folder / "page.html", results=results, extent=Extent(recipes, samples))
    return (folder / "page.html").read_text()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[str, list[Path]]:
    """The page of two plugins with three seeds each, with results of evaluation."""
    folder = tmp_path_factory.mktemp("sweep")
    runs = fabricate_sweep(folder / "runs")
    for run, accuracy in zip(runs, (0.61, 0.63, 0.65, 0.71, 0.72, 0.76), strict=True):
        fabricate_result(folder / "results", run.name, accuracy)
    return page_of(runs, folder, results=folder / "results"), runs


def test_the_page_refers_to_no_other_file(sweep):
    page, _ = sweep
    outline = Outline(page)
    assert all(reference.startswith(("#", "data:")) for reference in outline.references)
    assert "http" not in page.replace("https://vega.github.io/schema/", "")
    assert "@import" not in page


def test_sections_are_in_order_and_every_chart_has_a_description_and_a_table(sweep):
    page, _ = sweep
    outline = Outline(page)
    assert outline.headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(outline.headings))
    assert page.index('id="summary"') < page.index('id="curves"') < page.index('id="evaluation"')
    assert len(outline.ids) == len(set(outline.ids))
    assert {reference[1:] for reference in outline.references if reference.startswith("#")} <= set(outline.ids)
    assert outline.images == page.count("<summary>Values") == len(data_of(page)["charts"])
    for title in ("Objective in training", "Accuracy of rare token types", "Throughput", "freq_mdlm/power"):
        assert f"<figcaption>{title}" in page


def test_seeds_are_averaged_and_the_better_group_is_marked(sweep):
    cells = Outline(sweep[0]).cells
    for values, mark in (([0.61, 0.63, 0.65], ""), ([0.71, 0.72, 0.76], " ★")):
        mean, error = 100 * np.mean(values), 100 * np.std(values, ddof=1) / np.sqrt(3)
        assert f"{mean:.1f} ± {error:.1f}{mark}" in cells


def test_the_held_out_figures_are_those_of_the_runs(sweep):
    page, runs = sweep
    last = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])["valid/bound"] for run in runs[3:]]
    assert f"{np.mean(last):.4f} ± {np.std(last, ddof=1) / np.sqrt(3):.4f} ★" in Outline(page).cells


def test_the_summary_says_which_group_is_the_best_and_whether_that_is_noise(sweep, tmp_path):
    assert "freq_mdlm has the lowest bound" in sweep[0]
    assert "below the next, which is statistically significant" in sweep[0]
    runs = [
        fabricate_run(tmp_path / f"{name}{seed}", name, seed=seed)
        for name in ("uniform_mdlm", "freq_mdlm")
        for seed in (0, 1)
    ]
    page = page_of(runs, tmp_path)
    assert "which is not statistically significant" in page
    assert "★" not in "".join(Outline(page).cells)


def test_the_data_of_a_chart_are_the_logged_values_at_steps_words_tokens_and_hours(sweep):
    page, runs = sweep
    data = data_of(page)
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    logged = [(row["step"], row["loss"], row["words_seen"], row["tokens_seen"]) for row in rows if "loss" in row]
    rate = np.array([row["tokens_per_second"] for row in rows if "loss" in row])
    number = next(i for i, run in enumerate(data["runs"]) if run["name"] == runs[0].name)
    (curve,) = [c for c in data["charts"][2]["curves"] if c["run"] == number]
    axis = data["axes"][curve["axis"]]
    step, loss, words, tokens = map(np.array, zip(*logged, strict=True))
    for found, expected in ((axis["step"], step), (curve["y"], loss), (axis["words"], words), (axis["tokens"], tokens)):
        assert found == pytest.approx(expected, rel=1e-4)
    assert axis["hours"] == pytest.approx(np.cumsum(1000 / rate) / 3600, rel=1e-4)


def test_reference_lines_are_chance_unigrams_the_grammar_and_the_untrained_model(tmp_path):
    run = fabricate_run(tmp_path / "a")
    always = {"valid/loss": 4.0, "valid/unigram": 6.9, "valid/floor": 2.5}
    rows = [
        {"step": step, **always, "valid/bound": 9.0 - step, "valid/minimal_pairs": 0.5 + step / 10} for step in range(3)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    bound, loss, pairs = (chart["references"] for chart in data_of(page_of([run], tmp_path))["charts"])
    assert {line["label"]: line["y"] for line in bound} == {
        "unigram cross-entropy": 6.9,
        "floor": 2.5,
        "untrained": 9.0,
    }
    assert {line["label"]: line["y"] for line in loss} == {"untrained": 4.0}
    assert [line["label"] for line in pairs] == ["chance", "untrained"]


def test_untrained_models_have_a_line_only_if_they_start_alike(tmp_path):
    runs = []
    for name, starts in (("a", (7.0, 7.1)), ("b", (7.02, 9.0))):
        runs.append(fabricate_run(tmp_path / name))
        rows = [
            {"step": step, "valid/bound": starts[0] - 3 * step, "valid/loss": starts[1] - step} for step in range(2)
        ]
        (runs[-1] / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    bound, loss = (chart["references"] for chart in data_of(page_of(runs, tmp_path))["charts"])
    assert bound == [{"label": "untrained", "y": 7.01}]
    assert loss == []


def test_settings_that_differ_are_shown_and_equal_ones_are_collapsed(sweep):
    page, _ = sweep
    differing = page[page.index('id="differences"') : page.index("that are equal in all runs")]
    assert "freq_mdlm" in differing
    assert "training.max_steps" not in differing
    cells = Outline(page).cells
    assert cells[cells.index("training.max_steps") + 1] == "100"


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path):
    runs = [*fabricate_sweep(tmp_path), fabricate_run(tmp_path / "wide", "freq_mdlm", "model.hidden_size=64")]
    groups = group_runs([read_record(run) for run in runs])
    assert [(group.code, len(group.runs)) for group in groups] == [("A", 3), ("B", 3), ("C", 1)]
    assert [group.name for group in groups[1:]] == ["freq_mdlm, hidden_size=128", "freq_mdlm, hidden_size=64"]


def test_runs_from_other_initial_weights_are_another_group(tmp_path):
    starts = {
        "new": None,
        "near": "runs/base-s{}",
        "common": "runs/one-s0",
        "far": "runs/other-s{}/checkpoints/step_10",
    }
    runs = [
        fabricate_run(tmp_path / f"{name}-s{seed}", "uniform_mdlm", *sets, seed=seed)
        for name, start in starts.items()
        for seed in range(2)
        for sets in [[f"run.init_from={start.format(seed)}"] if start else []]
    ]
    assert [len(group.runs) for group in group_runs([read_record(run) for run in runs])] == [2, 2, 2, 2]


def test_versions_that_differ_are_shown(tmp_path):
    runs = [fabricate_run(tmp_path / "a", seed=0), fabricate_run(tmp_path / "b", seed=1, torch="2.7.1")]
    assert "2.13.0, 2.7.1" in page_of(runs, tmp_path)


def test_names_of_groups_have_as_few_settings_as_tell_them_apart():
    recipes = [
        {"plugins": "freq_mdlm", "a.power": power, "b.copy": power, "data.corpus": "/long/path/to/corpus", "c.lr": lr}
        for power, lr in ((1, 0.1), (1, 0.2), (2, 0.1))
    ]
    assert group_names([*recipes, {}]) == ["power=1, lr=0.1", "power=1, lr=0.2", "power=2, lr=0.1", ""]


def broken_runs(folder: Path) -> list[Path]:
    """Runs in every state that a folder can be in."""
    fabricate_run(folder / "good", seed=1)
    fabricate_run(folder / "half", steps=40, planned=100, status="preempted", seed=2)
    fabricate_run(folder / "diverged", status="failed", diverges_at=60)
    for name in ("empty", "only_lock", "config_broken", "config_list", "metrics_broken", "binary"):
        (folder / name).mkdir()
    (folder / "empty" / "config.yaml").write_text("")
    (folder / "only_lock" / "lock").write_text("machine process 1")
    (folder / "config_broken" / "config.yaml").write_text("a: [")
    (folder / "config_list" / "config.yaml").write_text("- 1\n")
    (folder / "metrics_broken" / "config.yaml").write_text("plugins: null\nseed: 3\n")
    (folder / "metrics_broken" / "metrics.jsonl").write_text('{"step": 1, "loss": 3}\nrubbish\n[1]\n{"step": 2, "lo')
    (folder / "binary" / "config.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "binary" / "status.json").write_text('{"status"')
    RunFolder(folder / "binary").checkpoints.mkdir()
    return sorted(path for path in folder.iterdir() if path.is_dir())


def test_runs_in_every_state_are_shown(tmp_path):
    page = page_of(broken_runs(tmp_path / "runs"), tmp_path, samples=1)
    cells = " | ".join(Outline(page).cells)
    for told in (
        "the objective was not finite at step 60",
        "not finite",
        "preempted",
        "config.yaml is not valid YAML",
        "must contain settings, not list",
        "2 damaged lines of metrics.jsonl ignored",
        "no metrics were logged",
    ):
        assert told in cells, told
    assert "generated for this report" not in page  # none of them has a checkpoint


def test_the_codes_of_groups_follow_their_bound_and_missing_curves_are_reported(tmp_path):
    runs = [
        fabricate_run(tmp_path / f"{level}", plugin, level=level, every_metric=True)
        for plugin, level in (("uniform_mdlm", 6.0), ("freq_mdlm", 3.0), ("gpt_bert", 5.0))
    ]
    page = page_of(runs, tmp_path)
    names = [(group["code"], group["name"]) for group in data_of(page)["groups"]]
    assert names == [("A", "freq_mdlm"), ("B", "gpt_bert"), ("C", "uniform_mdlm")]
    assert re.search(r"<figcaption>freq_mdlm/power <small>as logged. Values of A only.</small>", page)


def test_groups_on_one_corpus_have_letters_in_a_row(tmp_path):
    """Bounds on different texts do not compare, not even if only the ends of documents are predicted too."""
    runs = [
        fabricate_run(tmp_path / f"{plugin}-{ends}", plugin, f"data.end_of_document={ends}", level=level)
        for plugin, ends, level in (
            ("uniform_mdlm", "false", 4.0),
            ("uniform_mdlm", "true", 3.0),
            ("freq_mdlm", "false", 2.0),
            ("freq_mdlm", "true", 1.0),
        )
    ]
    page = page_of(runs, tmp_path)
    ends = ["end_of_document=true" in group["name"] for group in data_of(page)["groups"]]
    assert ends in ([False, False, True, True], [True, True, False, False])
    assert page.count("has the lowest bound") == 2


def test_an_unfinished_group_is_not_called_the_best(tmp_path):
    good = fabricate_run(tmp_path / "a", level=6.0)
    half = fabricate_run(tmp_path / "b", "freq_mdlm", level=3.0, steps=50, planned=100, status="preempted")
    other = fabricate_run(tmp_path / "c", "gpt_bert", level=7.0)
    cells = Outline(page_of([good, half, other], tmp_path)).cells
    assert any("at step 50, preempted" in cell for cell in cells)
    assert not any("★" in cell and "preempted" in cell for cell in cells)


def test_groups_with_one_schedule_and_masking_share_their_pictures(tmp_path):
    wide = fabricate_run(tmp_path / "wide", "uniform_mdlm", "model.hidden_size=64")
    page = page_of([fabricate_run(tmp_path / "plain"), wide], tmp_path, recipes=2)
    part = page[page.index('id="recipes"') :]
    assert part.count("<h3>") == 1
    assert "hidden_size=64" in part
    assert "Density of mask rates" in part
    assert "Masking by frequency" in part


def test_recipes_that_are_not_drawn_are_reported(tmp_path):
    lost = fabricate_run(tmp_path / "lost", "uniform_mdlm", "data.corpus=/nowhere", level=3.0)
    other = fabricate_run(tmp_path / "other", "freq_mdlm")
    page = page_of([lost, other], tmp_path, recipes=1)
    assert "Not drawn: /nowhere" in page
    assert "1 more recipes are not drawn" in page


def test_a_single_run_is_not_compared(tmp_path):
    page = page_of([fabricate_run(tmp_path / "alone")], tmp_path)
    assert "<h1>Run alone</h1>" in page
    assert "All runs have the same settings" not in page
    assert "★" not in "".join(Outline(page).cells)


def test_text_from_files_is_escaped(tmp_path):
    run = fabricate_run(tmp_path / "a<b>&", status="failed")
    RunFolder(run).write_status(RunFolder(run).read_status().__class__("failed", 3, "<script>alert(1)</script>"))
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.writelines(json.dumps({"step": 101 + i, "<b>/metric": i}) + "\n" for i in range(3))
    page = page_of([run], tmp_path)
    Outline(page)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>/metric" not in page


def test_curves_have_fewer_points_if_there_are_many_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(curve_charts, "MAX_POINTS", 60 * 30)
    data = data_of(page_of(fabricate_large_sweep(tmp_path / "runs"), tmp_path))
    assert len(data["groups"]) == 20
    assert max(len(curve["y"]) for chart in data["charts"] for curve in chart["curves"]) == 30


def test_results_of_runs_with_one_name_are_not_shown(tmp_path):
    runs = [fabricate_run(tmp_path / folder / "same", seed=seed) for seed, folder in enumerate(("a", "b"))]
    fabricate_result(tmp_path / "results", "same", 0.7)
    page = page_of(runs, tmp_path, results=tmp_path / "results")
    assert "Several runs are called same" in page
    assert "blimp" not in page


def test_samples_are_drawn_with_the_pass_of_every_token(tmp_path, monkeypatch):
    """Also under torchrun, when the other processes have ended."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    page = page_of([write_run(tmp_path / "run")], tmp_path, samples=1)
    assert "generated for this report" in page
    assert re.search(r'<span class="token" style="--shade: 0\.\d\d">[^<]*<sub>\d+</sub></span>', page)


def test_samples_of_an_evaluation_are_shown_if_there_are_any(tmp_path):
    run = write_run(tmp_path / "run")
    folder = tmp_path / "results" / "run" / "main" / "generation"
    folder.mkdir(parents=True)
    row = {"ids": [20, 21, 22], "unmasked_at": [-1, 1, 0], "sampler": "confidence", "steps": 4}
    (folder / "samples.jsonl").write_text(f"{json.dumps(row)}\nrubbish\n")
    page = page_of([run], tmp_path, results=tmp_path / "results", samples=2)
    assert "generated for this report" not in page
    assert re.findall(r"<sub>(\d+)</sub>", page) == ["2", "1"]
    assert page.count('<span class="given">') == 1


def test_results_of_an_earlier_checkpoint_say_so_and_are_not_ranked(tmp_path):
    runs = [fabricate_run(tmp_path / name, name, steps=100) for name in ("uniform_mdlm", "freq_mdlm")]
    for run, step, accuracy in zip(runs, (50, 100), (0.9, 0.6), strict=True):
        folder = tmp_path / "results" / run.name / "main" / "zero_shot" / "mlm" / "blimp" / "fast"
        folder.mkdir(parents=True)
        row = {"task": "blimp", "data": "fast", "metric": "accuracy", "accuracy": accuracy, "standard_error": 0.01}
        (folder / "summary.json").write_text(json.dumps(row | {"step": step, "protocol": "2026"}))
    cells = Outline(page_of(runs, tmp_path, results=tmp_path / "results")).cells
    assert any("90.0" in cell and "at step 50" in cell and "★" not in cell for cell in cells)
    assert not any("60.0" in cell and "at step" in cell for cell in cells)


def test_metrics_of_samples_are_shown_beside_those_of_held_out_text(tmp_path):
    runs = [fabricate_run(tmp_path / "a"), fabricate_run(tmp_path / "b", "freq_mdlm")]
    for run, share in zip(runs, (0.25, 0.5), strict=True):
        folder = tmp_path / "results" / run.name / "main" / "generation"
        folder.mkdir(parents=True)
        row = {"rule": {"sampler": "block", "steps": 8}, "entropy": 5.0, "grammatical_sentences": share}
        (folder / "summary.json").write_text(json.dumps({"results": [row], "real_text": {"entropy": 6.0}}))
    cells = Outline(page_of(runs, tmp_path, results=tmp_path / "results")).cells
    entropy = cells.index("Token entropy")
    assert cells[entropy + 1 : entropy + 4] == ["block, 8 steps", "5.00", "5.00"]
    assert cells[entropy + 5 : entropy + 8] == ["real text", "6.00", "6.00"]
    share = cells.index("Fraction of grammatical sentences")
    assert cells[share + 1 : share + 4] == ["block, 8 steps", "0.250", "0.500"]  # of one run each: the error is unknown


def test_samples_of_other_settings_or_judges_are_not_compared(tmp_path):
    runs = [fabricate_run(tmp_path / "a"), fabricate_run(tmp_path / "b", "freq_mdlm")]
    rules = ({"temperature": 1.0, "top_p": 1.0, "eta_cap": None}, {"temperature": 0.5, "top_p": 1.0, "eta_cap": 0.1})
    for run, rule, judge in zip(runs, rules, ("judges/one", "judges/two"), strict=True):
        folder = tmp_path / "results" / run.name / "main" / "generation"
        folder.mkdir(parents=True)
        row = {"rule": {"sampler": "ancestral", "steps": 8, "seed": 3, **rule}, "perplexity_per_word": 9.0}
        about = {"judge": judge, "count": 100, "length": 64 if run is runs[0] else 32}
        (folder / "summary.json").write_text(json.dumps({**about, "results": [row], "real_text": {"entropy": 6.0}}))
    cells = Outline(page_of(runs, tmp_path, results=tmp_path / "results")).cells
    assert "ancestral, 8 steps, judge one" in cells
    assert "ancestral, 8 steps, temperature 0.5, eta cap 0.1, length 32, judge two" in cells
    assert {"real text", "real text, length 32"} <= set(cells)


@pytest.mark.parametrize("summary", ["[]", "{}", '{"results": [{"rule": null}], "real_text": null}', "rubbish"])
def test_a_damaged_summary_of_samples_is_ignored(tmp_path, summary):
    run = fabricate_run(tmp_path / "a")
    folder = tmp_path / "results" / "a" / "main" / "generation"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(summary)
    assert 'id="generation"' not in page_of([run], tmp_path, results=tmp_path / "results")


def test_metrics_with_similar_names_have_separate_charts(tmp_path):
    run = fabricate_run(tmp_path / "a")
    rows = [{"step": step, "p/a": 1.0, "p-a": 2.0, "ä": 3.0, "ö": 4.0} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    outline = Outline(page_of([run], tmp_path))
    assert outline.images == 4
    assert len(outline.ids) == len(set(outline.ids))


@pytest.mark.parametrize(("spike", "told"), [(-900.0, "-900"), (900.0, "900")])
def test_the_most_extreme_value_of_a_cut_axis_is_reported(tmp_path, spike, told):
    run = fabricate_run(tmp_path / "a")
    values = [float(step % 7) for step in range(300)]
    values[150] = spike
    rows = [{"step": step, "x": value} for step, value in enumerate(values)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert f"the most extreme value is {told}." in page_of([run], tmp_path)


def test_finished_groups_of_a_running_sweep_come_first(tmp_path):
    runs = [
        fabricate_run(tmp_path / f"{i}", "uniform_mdlm", f"training.seq_len={64 + i}", status=status)
        for i, status in enumerate(["running"] * 7 + ["finished"])
    ]
    assert data_of(page_of(runs, tmp_path))["groups"][0]["name"] == "seq_len=71"


def test_damaged_samples_are_reported(tmp_path):
    run = write_run(tmp_path / "run")
    folder = tmp_path / "results" / "run" / "main" / "generation"
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text('{"ids": [99999999], "unmasked_at": [0], "sampler": "block", "steps": 1}\n')
    page = page_of([run], tmp_path, results=tmp_path / "results", samples=1)
    assert "No samples of run: IndexError" in page


def test_the_page_is_refused_before_anything_is_read_when_it_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        write_report([tmp_path], tmp_path / "missing" / "page.html", results=None, extent=Extent())
    with pytest.raises(UserError, match="is a folder; name a file"):
        write_report([tmp_path], tmp_path, results=None, extent=Extent())


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_a_missing_package_is_named_with_the_extra_that_has_it(tmp_path, monkeypatch, run, package):
    folder = fabricate_run(tmp_path / "a")
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("content", "curve_charts"):
        monkeypatch.delitem(sys.modules, f"ltg_mdlm.reporting.html_report.{module}")
    monkeypatch.delattr(html_report, "content")
    code, _, err = run("report", str(folder), "--out", str(tmp_path / "p.html"))
    assert code == 2
    assert f"needs the package {package}" in err
    assert 'pip install "ltg-mdlm[plots]"' in err


@pytest.mark.parametrize("option", [("--samples", "1"), ("--results", "somewhere"), ("--recipes", "0")])
def test_options_of_the_page_are_refused_without_it(tmp_path, run, option):
    code, _, err = run("report", str(fabricate_run(tmp_path / "a")), *option)
    assert code == 2
    assert "add --out FILE.html" in err


def test_the_command_writes_the_page_beside_the_table(tmp_path, run):
    folder, page = fabricate_run(tmp_path / "a"), tmp_path / "p.html"
    code, out, err = run("report", str(folder), "--out", str(page), "--samples", "0", "--recipes", "0")
    assert code == 0, err
    assert "finished" in out
    assert f"report: {page}" in err
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_a_sample_is_shown_by_its_tokens():
    class Letters:
        tokens = tuple("abcd")

    shown = shown_sample({"ids": [1, 3], "unmasked_at": [4, -1], "sampler": "block", "steps": None}, Letters())
    assert [(token.text, token.place, token.share) for token in shown.tokens] == [("b", 5, 1.0), ("d", 0, 0.0)]


def test_the_example_of_the_documentation_writes_a_page(tmp_path):
    documentation = Path(__file__).parents[2] / "docs" / "report.md"
    (code,) = re.findall(r"```python\n(.*?)```", documentation.read_text(), re.DOTALL)
    fabricate_run(tmp_path / "run")
    namespace: dict = {}
    exec(code, namespace)
    namespace["report"](tmp_path)
    assert (tmp_path / "report.html").is_file()
