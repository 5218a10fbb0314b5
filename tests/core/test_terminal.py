"""Progress in logs."""

from ltg_mdlm.core import terminal


def test_a_log_has_a_line_of_progress_with_the_time_left_every_half_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.count_progress("scoring texts", 100) as advance:
        for _ in range(100):
            now[0] += 1.0
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "scoring texts: 30 %, about 1:10 left",
        "scoring texts: 60 %, about 0:40 left",
        "scoring texts: 90 %, about 0:10 left",
    ]


def test_progress_that_is_not_wanted_is_silent(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.count_progress("scoring texts", 100, show=False) as advance:
        now[0] = 50.0
        advance(50)
    assert not capsys.readouterr().err
