"""Progress in logs."""

import io
import sys
import threading

import pytest
from rich.console import Console

from ltg_mdlm.core import terminal
from ltg_mdlm.core.terminal import is_live


def test_a_log_has_a_line_of_progress_with_the_time_left_after_five_seconds_and_every_half_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.count_progress("scoring texts", 100) as advance:
        for _ in range(100):
            now[0] += 1.0
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "scoring texts: 5 %, about 1:35 left",
        "scoring texts: 35 %, about 1:05 left",
        "scoring texts: 65 %, about 0:35 left",
        "scoring texts: 95 %, about 0:05 left",
    ]


def test_the_time_left_leaves_out_the_first_part_which_warms_up(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.count_progress("drawing tokens", 10) as advance:
        for seconds in (60, 10, 20, 20):
            now[0] += seconds
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "drawing tokens: 10 %, 1:00 so far",
        "drawing tokens: 30 %, about 1:45 left",  # 15 s each
    ]


def test_progress_that_is_not_wanted_is_silent(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.count_progress("scoring texts", 100, show=False) as advance:
        now[0] = 50.0
        advance(50)
    assert not capsys.readouterr().err


def test_a_log_says_how_long_uncounted_work_has_taken(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "FIRST_SECONDS", 0.01)
    written = threading.Event()
    monkeypatch.setattr(terminal, "clock", lambda seconds: written.set() or "0:05")
    with terminal.busy("measuring"):
        assert written.wait(60)
    assert capsys.readouterr().err == "measuring: 0:05 so far\n"
    assert "progress" not in [thread.name for thread in threading.enumerate()]


def test_short_work_is_silent(capsys):
    with terminal.busy("measuring"):
        pass
    assert not capsys.readouterr().err


def test_a_dumb_terminal_and_colours_in_a_log_are_not_redrawn(monkeypatch):
    for name in ("TERM", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    screen = io.StringIO()
    screen.isatty = lambda: True
    assert is_live(Console(file=screen, _environ={"TERM": "xterm"}))
    assert not is_live(Console(file=screen, _environ={"TERM": "dumb"}))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not is_live(Console(file=io.StringIO(), force_terminal=True))
    assert is_live(Console(file=screen, force_terminal=True))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_cannot_be_written_is_dropped_and_ends_nothing(stream, monkeypatch, capfd):
    """Linux refuses every write to /dev/full, as on a full disk; Python writes what is left when a file is closed."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, stream, full)
        with terminal.losable_output():
            for _ in range(2):
                Console(stderr=stream == "stderr").print("step 1")
                print("step 2", file=getattr(sys, stream), flush=True)
            assert not getattr(sys, stream).isatty()
        assert getattr(sys, stream) is full
    said = "note: stdout is lost ([Errno 28] No space left on device); the run continues without it\n"
    assert capfd.readouterr() == ("", said if stream == "stdout" else "")
