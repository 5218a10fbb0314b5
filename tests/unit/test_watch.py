"""`ltg-mdlm watch`: what it shows of runs from their files alone."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from support.fabricated import fabricate_run

from ltg_mdlm.errors import UserError
from ltg_mdlm.metrics_file import Curve
from ltg_mdlm.run_folder import RunFolder, Status
from ltg_mdlm.watch.braille import characters, plot
from ltg_mdlm.watch.progress import WatchedRun
from ltg_mdlm.watch.screen import Watch, watch


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

    monkeypatch.setattr("ltg_mdlm.watch.screen.time.sleep", meanwhile)
    monkeypatch.setattr("ltg_mdlm.watch.screen.Console", lambda: Console(force_terminal=True, width=80, height=24))
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
