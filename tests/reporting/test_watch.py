"""`ltg-mdlm watch`: what it shows of runs, read from their files."""

import io
import json
import math
import re
import shutil

import pytest
from rich.console import Console
from support.fabricated import fabricate_run

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.reporting.html_report.page import Extent, write_report
from ltg_mdlm.reporting.run_table import read_run, text_table
from ltg_mdlm.reporting.watch import MIN_WIDTH, Watch, WatchedRun, label, plot, watch
from ltg_mdlm.storage.metrics_file import Curve
from ltg_mdlm.storage.run_folder import RunFolder, Status


def text_of(watched: Watch, width: int = 80, height: int | None = None) -> list[str]:
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    console.print(watched.screen(width, height))
    return console.export_text().splitlines()


def running(path, **options):
    run = fabricate_run(path, status="running", **options)
    (run / "lock").write_text("machine process 1")
    return run


def drawn(values: list[float], last_step: int) -> list[str]:
    """The lines of a plot that is 40 characters wide and 7 lines high, without its title."""
    title, *lines = plot([("loss", Curve(list(range(len(values))), values))], last_step, 40, 7)
    assert title.strip() == "loss"
    assert len(lines) == 6
    assert all(len(line) <= 40 for line in lines)
    return lines


def test_a_falling_curve_reaches_from_the_upper_left_to_the_lower_right_corner():
    *canvas, axis, steps = drawn([100.0 - i for i in range(101)], 100)
    assert axis.strip().startswith("└")
    assert steps.split() == ["0", "100"]
    assert [len(line) for line in canvas] == sorted(len(line) for line in canvas)
    top, bottom = (line.split("┤")[0] for line in (canvas[0], canvas[-1]))
    assert top.endswith("+")  # the largest 5 % of the values lie above
    assert 90 < float(top.removesuffix("+")) < 100
    assert 0 <= float(bottom) < 2


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, math.nan]])
def test_a_curve_without_a_finite_value_says_so(values):
    assert "no finite value yet" in "".join(drawn(values, 10))


def test_a_value_that_is_not_finite_interrupts_the_line():
    whole, *broken = (drawn(values, 2) for values in ([2.0, 1.0, 2.0], [2.0, math.nan, 2.0], [2.0, math.inf, 2.0]))
    dots = [sum("⠀" < character <= "⣿" for character in "".join(lines)) for lines in (whole, *broken)]
    assert dots[0] > dots[1] == dots[2] == 2


@pytest.mark.parametrize("value", [2.0, 0.0, -5e-5, 1e308])
def test_a_constant_is_a_horizontal_line_with_one_label(value):
    (line,) = (line for line in drawn([value] * 11, 10) if "┤" in line)
    text, curve = line.split("┤")
    assert float(text) == pytest.approx(value)
    assert len(curve) > 25


def test_values_of_any_size_are_drawn():
    canvas = drawn([1e308, -1e308] * 20, 40)
    assert canvas[0].strip().startswith("1e+308")


def test_the_screen_shows_progress_and_remaining_time(tmp_path):
    run = running(tmp_path / "run", steps=40, planned=100)
    place, figures = WatchedRun(run).lines()
    assert place.startswith("run  running  step 40 of 100 (40%)  ETA 0:")
    # 1000 tokens a step and 2000 to 2100 tokens per second: 60 steps take 29 to 30 seconds.
    assert place.endswith(("0:28", "0:29"))
    assert "objective" in figures
    assert "held-out bound" in figures
    assert "tokens/s" in figures


def test_the_screen_fits_into_eighty_columns_and_needs_no_colour(tmp_path):
    running(tmp_path / "runs" / "a", steps=40, planned=100)
    running(tmp_path / "runs" / "b", steps=80, planned=100)
    lines = text_of(Watch([tmp_path / "runs"]))
    assert max(map(len, lines)) <= 80
    assert sum("running" in line for line in lines) == 2
    assert sum("loss" in line and "valid/bound" in line for line in lines) == 2


@pytest.mark.parametrize("width", [1, 5, MIN_WIDTH - 1, MIN_WIDTH, 40])
def test_no_terminal_is_too_narrow(tmp_path, width):
    lines = text_of(Watch([running(tmp_path / "run", steps=40, planned=100)]), width)
    assert max(map(len, lines)) <= width
    assert any("loss" in line for line in lines[2:]) == (width >= MIN_WIDTH)


@pytest.mark.parametrize(
    ("value", "width", "text"), [(2.3456e-05, 8, "2.35e-05"), (-1.234e-05, 7, "-1e-05"), (4.5, 8, "4.5")]
)
def test_labels_have_as_many_digits_as_fit(value, width, text):
    assert label(value, width) == text


def test_every_requested_metric_is_drawn_or_reported_as_missing(tmp_path):
    run = running(tmp_path / "run", steps=40, planned=100, every_metric=True)
    asked = ["loss", "lr", "grad_norm", "tokens_per_second", "los"]
    text = "\n".join(text_of(Watch([run], asked)))
    assert all(re.search(rf"^ +.*{name}", text, re.MULTILINE) for name in asked[:4])
    assert "not logged: los; logged metrics:" in text
    assert len(text_of(Watch([run], asked), height=24)) <= 24


def test_a_deleted_run_keeps_its_last_state(tmp_path):
    run, other = (running(tmp_path / name, steps=40, planned=100) for name in "ab")
    watched = Watch([run, other])
    shutil.rmtree(run)
    watched.refresh()
    assert text_of(watched)[0].startswith("a  gone  step 40")
    shutil.rmtree(other)
    watched.refresh()
    assert watched.ended


def test_many_runs_are_shown_without_plots(tmp_path):
    for i in range(8):
        running(tmp_path / "runs" / f"run{i}", steps=10, planned=100)
    assert len(text_of(Watch([tmp_path / "runs"]), height=24)) == 16


def test_new_rows_and_new_runs_are_shown(tmp_path):
    run = running(tmp_path / "runs" / "a", steps=40, planned=100)
    watched = Watch([tmp_path / "runs"])
    with RunFolder(run).metrics_file.open("a") as metrics:
        metrics.write(json.dumps({"step": 50, "loss": 1.25}) + '\n{"step": 60, "lo')
    running(tmp_path / "runs" / "b", steps=20, planned=100)
    watched.refresh()
    text = "\n".join(text_of(watched))
    assert "step 50 of 100" in text
    assert "objective 1.2500" in text
    assert "b  running  step 20" in text


def test_it_ends_when_no_process_trains(tmp_path, monkeypatch):
    run = running(tmp_path / "run", steps=40, planned=100)
    looks = []

    def meanwhile(seconds):
        looks.append(seconds)
        RunFolder(run).write_status(Status("finished", 100))
        (run / "lock").write_text("")

    monkeypatch.setattr("ltg_mdlm.reporting.watch.time.sleep", meanwhile)
    monkeypatch.setattr("ltg_mdlm.reporting.watch.Console", lambda: Console(force_terminal=True, width=80, height=24))
    watch([run], ["loss"], 0.5, once=False)
    assert looks == [0.5]


def test_once_prints_the_state_of_a_running_run_and_exits(tmp_path, run):
    folder = running(tmp_path / "run", steps=40, planned=100, every_metric=True)
    code, out, err = run("watch", str(folder), "--once", "--metric", "grad_norm")
    assert code == 0, err
    assert "run  running  step 40 of 100" in out
    assert "grad_norm" in out


def test_a_run_without_output_is_shown(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("machine process 1")
    assert text_of(Watch([tmp_path / "run"]))[:2] == ["run  not started  step 0", "nothing logged yet"]


def test_a_path_without_runs_is_named(tmp_path):
    with pytest.raises(UserError, match="neither a run folder"):
        Watch([tmp_path])


ODD_CONFIGS = [
    "training: 5",
    "training: {max_steps: abc}",
    "training: {max_steps: .inf}",
    "training: {max_steps: true}",
    "training: {max_steps: 99999999999999999999999999}",
    "training: {epochs: -1}",
    "training: {epochs: 1.0e-300}",
    "plugins: 5",
    "plugins: {1: 2}",
    "1: 2",
    "a: &a {x: *a}",
    "seed: 2001-99-99",
    "? [1, 2]\n: 3",
    "- 1",
]
ODD_METRICS = """\
{"step": 3, "epoch": 1e300, "loss": 1e308, "tokens_seen": 1e300, "tokens_per_second": 1e-300, "valid/loss": 1e308}
{"step": 9223372036854775807, "loss": -1e308, "valid/loss": 5, "valid/bound": 1e308}
{"step": 4, "epoch": null, "tokens_seen": null, "tokens_per_second": 0, "loss": 1}
"""


@pytest.mark.parametrize("lines", [1, 3])
@pytest.mark.parametrize("config", ODD_CONFIGS)
def test_odd_settings_and_numbers_do_not_end_watch_or_report(tmp_path, config, lines):
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "metrics.jsonl").write_text("".join(ODD_METRICS.splitlines(keepends=True)[:lines]))
    (tmp_path / "status.json").write_text('{"status": "running", "step": 3}')
    assert "step 3" in text_of(Watch([tmp_path]))[0] or lines == 3
    assert text_table([read_run(tmp_path)]).row_count == 1
    if config == ODD_CONFIGS[0]:
        write_report([tmp_path], tmp_path / "report.html", results=None, extent=Extent(recipes=0, samples=0))
        assert "not a number" not in (tmp_path / "report.html").read_text()
