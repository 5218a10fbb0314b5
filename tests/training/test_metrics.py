"""Metrics in files, on the console and in wandb."""

import io
import itertools
import json
import math
import re
import sys
import types

import pytest
from rich.console import Console

from ltg_mdlm.core.config import LoggingConfig
from ltg_mdlm.core.terminal import clock
from ltg_mdlm.training import metric_sinks as metrics
from ltg_mdlm.training.metric_sinks import ConsoleSink, JSONLines, TensorBoardSink, WandbSink, wandb_mode

ROW = {"step": 1, "loss": 2.5, "lr": 1e-3, "tokens_per_second": 1234.0}


def test_every_line_of_the_file_is_strict_json(tmp_path):
    sink = JSONLines(tmp_path / "m.jsonl")
    sink.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    sink.write(ROW)
    sink.close()
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]
    assert strict == [{"step": 1, "loss": None, "grad_norm": None}, ROW]


def test_a_log_file_gets_a_line_every_ten_seconds_with_the_remaining_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    sink = ConsoleSink(0, 100, Console(file=out, width=200))
    for step in range(1, 61):
        sink.write({**ROW, "step": step})
        now[0] += 1
    lines = out.getvalue().splitlines()
    assert [int(re.match(r"step (\d+)/100", line).group(1)) for line in lines] == [1, 11, 21, 31, 41, 51]
    assert lines[-1].endswith("ETA 0:49")


def console_lines(monkeypatch, seconds_of_step, *, every, steps):
    """(time, line) of a console log; step 1 and every `every`-th step write a row."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    out, lines = io.StringIO(), []
    sink = ConsoleSink(0, steps, Console(file=out, width=200))
    for step in range(1, steps + 1):
        now[0] += seconds_of_step(step)
        if step == 1 or step % every == 0:
            sink.write({**ROW, "step": step})
        sink.step_done(step)
        new = out.getvalue().splitlines()[len(lines) :]
        lines += [(now[0] - 100, line) for line in new]
    return lines


def test_the_second_line_of_a_log_has_an_eta_without_the_slow_first_step(monkeypatch):
    lines = console_lines(monkeypatch, lambda step: 60 if step == 1 else 2, every=50, steps=100)
    assert lines[0] == (60, "step 1/100  loss 2.5000  lr 1.00e-03  1,234 tokens/s")
    assert lines[1] == (66, "step 4/100  ETA 3:12")  # 96 steps of 2 s


def test_a_log_is_never_silent_for_long(monkeypatch):
    lines = console_lines(monkeypatch, lambda step: 4, every=50, steps=100)
    times = [0, *(time for time, _ in lines)]
    assert max(after - before for before, after in itertools.pairwise(times)) <= 30 + 4
    assert [line for _, line in lines if "loss" in line][-1].startswith("step 100/100 ")


def test_lines_without_a_loss_do_not_take_the_place_of_lines_with_one(monkeypatch):
    lines = console_lines(monkeypatch, lambda step: 1.5, every=7, steps=700)  # a row every 10.5 s
    without_loss = [line for _, line in lines if "loss" not in line]
    assert [line.partition("  ETA ")[0] for line in without_loss] == ["step 5/700"]
    assert len(lines) == 101  # that one, step 1, and every row but that of step 7, which comes 9 s later


def test_the_bar_on_a_terminal_counts_every_step_and_says_what_is_done_between_steps(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    sink = ConsoleSink(0, 10, Console(file=io.StringIO(), width=200, force_terminal=True))
    sink.write(ROW)
    sink.step_done(1)
    now[0] += 3
    sink.step_done(2)
    [task] = sink._progress.tasks
    sink.close()
    assert task.completed == 2
    assert task.fields["status"] == "ETA 0:24  loss 2.5000  lr 1.00e-03  1,234 tokens/s"
    with sink.busy("validation at step 2"):
        assert task.fields["status"] == "validation at step 2"
    assert task.fields["status"].startswith("ETA 0:24")


def test_the_last_step_is_always_shown():
    out = io.StringIO()
    sink = ConsoleSink(0, 2, Console(file=out, width=200))
    sink.write(ROW)
    sink.write({**ROW, "step": 2})
    assert "step 2/2" in out.getvalue()


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"valid/minimal_pairs": 0.625}, "validation at step 3: minimal pairs 62.5%"),
        ({"event": "refused_update", "first_row": 0, "end_row": 6}, "step 3: refused update, see metrics.jsonl"),
    ],
)
def test_rows_other_than_those_of_training_are_printed_at_once(row, text):
    out = io.StringIO()
    ConsoleSink(0, 100, Console(file=out, width=200)).write({"step": 3, **row})
    assert out.getvalue() == f"{text}\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61, "1:01"), (3600, "1:00:00"), (-5, "0:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.fixture
def fake_wandb(monkeypatch):
    """A wandb that records its calls."""
    calls: dict = {"rows": []}

    class Run:
        def log(self, row, step):
            calls["rows"].append((step, row))

        def finish(self):
            calls["finished"] = True

    def init(**arguments):
        calls.update(arguments)
        return Run()

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")
    module.init, module.Settings = init, lambda **kwargs: kwargs
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_wandb_is_offline_unless_the_user_is_logged_in(fake_wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode(LoggingConfig()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert wandb_mode(LoggingConfig()) == "online"
    assert wandb_mode(LoggingConfig(wandb="off")) is None
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode(LoggingConfig()) == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(LoggingConfig()) is None


def test_wandb_is_never_required(monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    assert wandb_mode(LoggingConfig()) is None
    assert wandb_mode(LoggingConfig(wandb="online")) is None


def test_a_wandb_that_cannot_be_imported_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("raise TypeError('protobuf')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.warns(UserWarning, match="wandb failed, and is not used any more: .*protobuf"):
        sink = WandbSink(tmp_path, LoggingConfig(), "offline", {})
    sink.write(ROW)
    sink.close()


def test_a_resumed_run_continues_its_wandb_run(fake_wandb, tmp_path):
    ids = []
    for _ in range(2):
        sink = WandbSink(tmp_path, LoggingConfig(), "offline", {"seed": 0})
        ids.append(fake_wandb["id"])
        sink.write(ROW)
        sink.close()
    assert ids[0] == ids[1]
    assert fake_wandb["resume"] == "allow"
    assert fake_wandb["rows"] == [(1, ROW), (1, ROW)]


def test_training_continues_without_wandb_if_it_fails(fake_wandb, tmp_path, monkeypatch):
    """Slurm's TERM ends wandb's own process before the trainer saves."""
    sink = WandbSink(tmp_path, LoggingConfig(), "offline", {"seed": 0})

    def fail(*_, **__):
        raise BrokenPipeError("gone")

    monkeypatch.setattr(sink._run, "log", fail)
    with pytest.warns(UserWarning, match="wandb failed, and is not used any more: BrokenPipeError: gone"):
        sink.write(ROW)
    sink.write(ROW)
    sink.close()
    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with pytest.warns(UserWarning, match="wandb failed"):
        sink = WandbSink(tmp_path, LoggingConfig(), "online", {"seed": 0})
    sink.write(ROW)
    sink.close()


def test_tensorboard_shows_each_number_once_after_a_resume(tmp_path):
    for purge_step, steps in ((0, (0, 1, 2, 3)), (2, (2, 3, 4))):  # the second process resumes after step 1
        sink = TensorBoardSink(tmp_path, purge_step)
        for step in steps:
            sink.write({"step": step, "loss": 10.0 * purge_step + step, "event": "text is left out"})
        sink.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0), (1, 1), (2, 22), (3, 23), (4, 24)]


def test_without_tensorboard_the_setting_is_refused_before_the_run(monkeypatch, tmp_path, run):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    code, _, err = run("train", "--out", str(tmp_path / "run"), "--set", "logging.tensorboard=true")
    assert code == 2
    assert "pip install 'ltg-mdlm[tensorboard]'" in err
    assert not (tmp_path / "run").exists()
