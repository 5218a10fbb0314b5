"""`ltg-mdlm watch`: what it shows of runs from their files alone."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from rich.console import Console
from support.fabricated import fabricate_run

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.reporting.watch import LEAST_WIDTH, Watch, WatchedRun, characters, label, plot, watch
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


def test_a_character_holds_two_by_four_dots():
    dots = np.zeros((4, 4), dtype=bool)
    dots[0, 0] = dots[3, 1] = True
    assert characters(dots) == ["⢁ "]


def test_a_falling_curve_falls_from_one_corner_to_the_other():
    lines = plot(Curve(list(range(101)), [100.0 - i for i in range(101)]), 100, 40, 6)
    assert len(lines) == 6
    assert all(len(line) <= 40 for line in lines)
    places = [len(line) - 9 for line in lines[:-1]]
    assert places == sorted(places)
    top, bottom = (line.split("│")[0] for line in (lines[0], lines[4]))
    assert 90 < float(top.removesuffix("+")) < 100  # the highest twentieth lies above, as the sign says
    assert top.endswith("+")
    assert 0 <= float(bottom) < 2
    assert lines[-1].endswith("100")


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_a_curve_without_a_number_is_no_error(values):
    assert plot(Curve(list(range(len(values))), values), 10, 40, 6) == [f"{'no finite value yet'.center(40).rstrip()}"]


def test_a_constant_is_a_line():
    lines = plot(Curve([0, 10], [2.0, 2.0]), 10, 40, 6)
    assert sum("⠤" in line or "⠒" in line or "⣀" in line or "⠉" in line for line in lines) == 1


def test_the_screen_says_how_far_a_run_is_and_when_it_ends(tmp_path):
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


@pytest.mark.parametrize("width", [1, 5, LEAST_WIDTH - 1, LEAST_WIDTH, 40])
def test_no_terminal_is_too_narrow(tmp_path, width):
    lines = text_of(Watch([running(tmp_path / "run", steps=40, planned=100)]), width)
    assert max(map(len, lines)) <= width
    assert any("loss" in line for line in lines[2:]) == (width >= LEAST_WIDTH)


@pytest.mark.parametrize(
    ("value", "width", "text"), [(2.3456e-05, 8, "2.35e-05"), (-1.234e-05, 7, "-1e-05"), (4.5, 8, "4.5")]
)
def test_labels_have_as_many_digits_as_there_is_room_for(value, width, text):
    assert label(value, width) == text


def test_every_metric_that_is_asked_for_has_a_plot_or_a_word(tmp_path):
    run = running(tmp_path / "run", steps=40, planned=100, every_metric=True)
    asked = ["loss", "lr", "grad_norm", "tokens_per_second", "los"]
    text = "\n".join(text_of(Watch([run], asked)))
    assert all(re.search(rf"^ +.*{name}", text, re.MULTILINE) for name in asked[:4])
    assert "not logged: los; there are" in text
    assert len(text_of(Watch([run], asked), height=24)) <= 24


def test_a_run_that_is_deleted_meanwhile_stays_as_it_was_last_seen(tmp_path):
    run, other = (running(tmp_path / name, steps=40, planned=100) for name in "ab")
    watched = Watch([run, other])
    shutil.rmtree(run)
    watched.refresh()
    assert text_of(watched)[0].startswith("a  gone  step 40")
    shutil.rmtree(other)
    watched.refresh()
    assert watched.ended


def test_many_runs_are_lines_without_plots(tmp_path):
    for i in range(8):
        running(tmp_path / "runs" / f"run{i}", steps=10, planned=100)
    assert len(text_of(Watch([tmp_path / "runs"]), height=24)) == 16


def test_new_rows_and_new_runs_are_seen(tmp_path):
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


def test_it_ends_when_no_process_trains_any_more(tmp_path, monkeypatch):
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


def test_once_prints_and_ends_while_the_run_goes_on(tmp_path, run):
    folder = running(tmp_path / "run", steps=40, planned=100, every_metric=True)
    code, out, err = run("watch", str(folder), "--once", "--metric", "grad_norm")
    assert code == 0, err
    assert "run  running  step 40 of 100" in out
    assert "grad_norm" in out


def test_a_run_that_has_written_nothing_yet_is_shown(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("machine process 1")
    assert text_of(Watch([tmp_path / "run"]))[:2] == ["run  not started  step 0", "nothing logged yet"]


def test_a_path_without_runs_is_named(tmp_path):
    with pytest.raises(UserError, match="neither a run folder"):
        Watch([tmp_path])
