"""Progress where standard error is not a terminal."""

import re

from ltg_mdlm.core import terminal
from ltg_mdlm.core.terminal import byte_progress


def test_a_log_has_lines_with_the_rate_and_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with byte_progress("reading", 100_000_000, show=True) as advance:
        for _ in range(100):
            now[0] += 1.5
            advance(1_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 20 of 100 MB, 0.7 MB/s, 2:00 left"
    assert [re.match(r"reading: (\d+) of", line)[1] for line in lines] == ["20", "40", "60", "80", "100"]


def test_nothing_is_logged_if_progress_is_not_shown(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LOG_SECONDS", 0)
    with byte_progress("reading", 10, show=False) as advance:
        advance(5)
    assert capsys.readouterr().err == ""
