"""Tables in LaTeX: their figures, marks and captions, and whether pdflatex takes them."""

import re
import shutil
import subprocess
from statistics import mean, stdev

import pytest
from support.fabricated import fabricate_run
from support.results import write_result

from ltg_mdlm.reporting.latex_tables import escape
from ltg_mdlm.reporting.run_table import read_run

SPECIAL = r"""a_b%c&d#e$f{g}h~i^j\k<l>m|n"o"""


def compiled(tmp_path, *tables: str) -> None:
    """Compile the tables if pdflatex is installed."""
    if shutil.which("pdflatex"):
        head = r"\documentclass{article}\usepackage{booktabs}\usepackage[T1]{fontenc}\begin{document}"
        (tmp_path / "paper.tex").write_text("\n".join([head, *tables, r"\end{document}"]))
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def body(table: str) -> list[list[str]]:
    """Cells of the lines, headings first."""
    inner = table.partition("\\toprule\n")[2].partition("\\bottomrule")[0]
    return [line.removesuffix(r" \\").split(" & ") for line in inner.splitlines() if line != r"\midrule"]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for power, level in ((0.1, 5.0), (0.2, 6.0)):
        for seed in range(3):
            name = folder / f"power={power}-s{seed}"
            fabricate_run(
                name, "freq_mdlm", f"plugins.freq_mdlm.power={power}", seed=seed, level=level, every_metric=True
            )
    return folder


def test_runs_are_averaged_over_seeds_with_standard_errors(seeds, tmp_path, run):
    code, _, err = run("report", str(seeds), "--latex", str(tmp_path / "runs.tex"))
    assert code == 0, err
    table = (tmp_path / "runs.tex").read_text()
    heading, first, second = body(table)
    assert heading == ["Recipe", "Seeds", "Bound", r"Accuracy (\%)"]
    assert (first[:2], second[:2]) == (["power=0.1", "3"], ["power=0.2", "3"])
    bounds = [read_run(seeds / f"power=0.1-s{seed}").figures["bound"] for seed in range(3)]
    error = stdev(bounds) / 3**0.5
    assert first[2] == rf"\textbf{{{mean(bounds):.4f}}} $\pm$ {error:.4f}"
    assert "Bold: better than every other recipe" in table
    compiled(tmp_path, table)


def test_unfinished_runs_and_single_seeds_are_explained(seeds, tmp_path, run):
    fabricate_run(tmp_path / "runs" / "half", steps=50, planned=100, status="preempted")
    code, _, err = run("report", str(tmp_path / "runs"), str(seeds), "--latex", str(tmp_path / "runs.tex"))
    assert code == 0, err
    table = (tmp_path / "runs.tex").read_text()
    assert r"$^{\circ}$: not finished" in table
    assert "For a single seed" in table
    assert [line[0].endswith(r"$^{\circ}$") for line in body(table)[1:]] == [True, False, False]


def test_the_comparison_marks_what_is_significant_after_holm(tmp_path, run):
    for seed in range(3):
        write_result(tmp_path / "results", f"base_1-s{seed}", {"a": [1, 0] * 40, "b%": [0, 1] * 40})
        write_result(tmp_path / "results", f"better-s{seed}", {"a": [1, 1] * 40, "b%": [0, 1] * 39 + [seed % 2, 1]})
        write_result(tmp_path / "results", f"same-s{seed}", {"a": [0, 1] * 40, "b%": [1, 0] * 40})
    where = ("--baseline", "base_1", "--draws", "500", "--latex", str(tmp_path / "tasks.tex"))
    code, _, err = run("eval", "compare", str(tmp_path / "results"), *where)
    assert code == 0, err
    table = (tmp_path / "tasks.tex").read_text()
    heading, line = body(table)
    cells = dict(zip(heading, line, strict=True))
    assert cells["Task"] == r"blimp/blimp\_fast"
    assert cells[r"base\_1"] == r"50.00 $\pm$ 0.00"
    # 75, 75.625 and 75 per cent
    assert cells["better"].startswith(r"75.21 $\pm$ 0.21")
    assert "$^{*}$" in cells["better"]
    assert "$" not in cells["same"].replace(r"$\pm$", "")
    assert r"Differences from base\_1 with $p < 0.05$ after Holm's correction" in table
    compiled(tmp_path, table)


def test_single_paradigms_have_lines_of_their_own(tmp_path, run):
    for model in ("a", "b"):
        write_result(tmp_path / "results", model, {"first": [1, 0], "second_one": [0, 1]})
    run("eval", "compare", str(tmp_path / "results"), "--by-uid", "--draws", "500", "--latex", str(tmp_path / "t.tex"))
    table = (tmp_path / "t.tex").read_text()
    assert [line[0] for line in body(table)[1:]] == [
        r"blimp/blimp\_fast",
        *(rf"blimp/blimp\_fast: {uid}" for uid in ("first", r"second\_one")),
    ]
    assert "separately for whole tasks and for single paradigms: none." in table


def test_special_characters_are_printed_as_they_are(tmp_path):
    compiled(tmp_path, escape(SPECIAL + "é…→"))
    if shutil.which("pdflatex") and shutil.which("pdftotext"):
        found = subprocess.run(
            ["pdftotext", "paper.pdf", "-"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        # The glyphs of the two accents differ from the characters.
        assert found.stdout.translate(str.maketrans("˜ˆ", "~^")).startswith(SPECIAL + "é")
    assert not re.search(r"(?<!\\)[%&#_]", escape(SPECIAL))
