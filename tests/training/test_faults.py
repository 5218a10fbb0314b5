"""A run that is interrupted, damaged or restarted ends with the curve and the weights of an undisturbed run."""

import importlib
import json
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from support import runs
from support.runs import (
    SCORED,
    killed,
    launch_under_agent,
    losses,
    rows,
    run,
    saved_bits,
    status,
)
from support.waiting import wait_until
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ltg_mdlm.core import peer_watch
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.storage import checkpoint
from ltg_mdlm.storage.run_folder import Owner, RunFolder, Status
from ltg_mdlm.training.consistency import differences, require_same_slots, resume_notes, source_digest

STEPS = 12
PLUGINS = ("uniform_mdlm", "freq_mdlm", "gpt_bert", "faulty")
DROPOUT, NO_DROPOUT = "model.dropout=0.1", "model.dropout=0"


def fault(at, do, **more):
    return ({"at": at, "do": do, **more},)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run folder of each kind of run, trained once, without faults."""
    made = {}

    def get(*sets, plugin="uniform_mdlm", processes=1):
        key = (sets, plugin, processes)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("undisturbed") / "run"
            assert run(made[key], *sets, plugin=plugin, processes=processes)[0].code == 0
        return made[key]

    return get


def require_same(out, expected):
    """Equal losses and validations, each logged once, and a bitwise equal last checkpoint."""
    assert sorted(losses(out)) == list(range(1, STEPS + 1))
    assert losses(out) == losses(expected)
    validated = [[row for row in rows(folder) if "valid/loss" in row] for folder in (out, expected)]
    assert validated[0] == validated[1]
    assert saved_bits(out, STEPS) == saved_bits(expected, STEPS)
    assert status(out) == {"status": "finished", "step": STEPS, "reason": ""}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_run_that_is_killed_repeatedly_ends_bitwise_equal(plugin, tmp_path, undisturbed):
    """With dropout and plugin state; killed before the first checkpoint, between two, and while one is written."""
    for at in ("step 2", "step 7", "step 9"):
        killed(tmp_path / "run", DROPOUT, *SCORED, plugin=plugin, faults=fault(at, "SIGKILL"))
    assert run(tmp_path / "run", DROPOUT, *SCORED, plugin=plugin)[0].code == 0
    require_same(tmp_path / "run", undisturbed(DROPOUT, *SCORED, plugin=plugin))


@pytest.mark.parametrize(
    ("at", "signals", "step"),
    [
        ("start-up", "SIGTERM", 0),
        ("step 5", "SIGTERM", 6),
        ("step 5", "SIGUSR1 SIGTERM SIGUSR1", 6),
        ("step 7", "SIGUSR1", 8),  # a checkpoint is due as well
        ("validation", "SIGTERM", 7),
    ],
)
def test_one_or_several_signals_save_and_stop_the_run(at, signals, step, tmp_path, undisturbed):
    assert run(tmp_path / "run", plugin="faulty", faults=fault(at, signals))[0].code == 75
    assert status(tmp_path / "run") == {"status": "preempted", "step": step, "reason": signals.split()[0]}
    assert run(tmp_path / "run", plugin="faulty")[0].code == 0
    require_same(tmp_path / "run", undisturbed(plugin="faulty"))


def test_a_run_killed_after_resuming_from_an_older_checkpoint_resumes_from_it_again(tmp_path, undisturbed):
    """Its metrics end at the older checkpoint, so the newer ones do not fit them any more."""
    out = tmp_path / "run"
    assert run(out, plugin="faulty")[0].code == 0
    older = min((out / "checkpoints").glob("step_*"))
    killed(out, plugin="faulty", resume=str(older), faults=fault(f"step {int(older.name[5:]) + 2}", "SIGKILL"))
    (done,) = run(out, plugin="faulty")
    assert done.code == 0
    assert f"`latest` names the older {older.name}" in done.output
    require_same(out, undisturbed(plugin="faulty"))


def test_a_signal_in_the_last_step_does_not_keep_a_run_from_finishing(tmp_path, undisturbed):
    assert run(tmp_path / "run", faults=fault(f"step {STEPS}", "SIGTERM"))[0].code == 0
    require_same(tmp_path / "run", undisturbed())


@pytest.mark.parametrize("plugin", PLUGINS[:3])
def test_any_number_of_ranks_trains_on_the_same_batches_with_the_same_masks(plugin, tmp_path, undisturbed):
    """Also from 2 ranks to 1 and back, with other micro-batches: losses are equal up to rounding."""
    curve = losses(undisturbed(NO_DROPOUT, plugin=plugin))
    for processes, micro_batch_rows in ((1, 1), (2, 3), (4, 8)):
        out = tmp_path / f"{processes} ranks"
        run(out, NO_DROPOUT, f"training.micro_batch_rows={micro_batch_rows}", plugin=plugin, processes=processes)
        assert losses(out) == pytest.approx(curve, abs=1e-5)
    for processes, micro_batch_rows, faults in ((2, 1, "step 3"), (1, 4, "step 7"), (2, 2, "never")):
        sets = (NO_DROPOUT, f"training.micro_batch_rows={micro_batch_rows}")
        outcome = run(tmp_path / "resized", *sets, plugin=plugin, processes=processes, faults=fault(faults, "SIGTERM"))[
            0
        ]
    assert "note: the run had 1 process(es), now it has 2: " in outcome.output
    assert sorted(losses(tmp_path / "resized")) == list(range(1, STEPS + 1))
    assert losses(tmp_path / "resized") == pytest.approx(curve, abs=1e-5)


def test_a_change_of_ranks_and_of_versions_is_noted():
    """Dropout is seeded by rank, so the curve then differs by more than rounding."""
    before = {"world_size": 2, "versions": {"torch": "1", "ltg_mdlm": "3"}}
    now = {"world_size": 1, "versions": {"torch": "2", "ltg_mdlm": "3"}, "config": {"model": {"dropout": 0.1}}}
    versions, ranks = resume_notes(before, now)
    assert versions == "torch was 1, now it is 2"
    assert re.search(r"had 2 process.* now it has 1: .* masks stay the same, dropout does not", ranks)
    assert resume_notes(now, now) == []


@pytest.mark.parametrize(("dropout", "effect"), [(0.1, "same, dropout does not"), (0.0, "same up to rounding")])
def test_a_change_of_micro_batches_is_noted(dropout, effect, tmp_path):
    sets, resumed = (f"model.dropout={dropout}", "training.max_steps=4"), "training.micro_batch_rows=4"
    run(tmp_path / "run", *sets, faults=fault("step 2", "SIGTERM"))
    (outcome,) = run(tmp_path / "run", *sets, resumed)
    note = "note: micro-batches had at most 128 rows, now 4: batches, noise and masks stay the "
    assert f"{note}{effect}" in outcome.output


def _with_small_milestones(rank, *args):
    checkpoint._MILLION = 100
    return runs.launch_quietly(rank, *args)


@pytest.mark.parametrize("processes", [1, 2])
def test_milestones_are_those_of_the_first_step_that_reaches_their_words(processes, tmp_path, monkeypatch):
    """A "million" is a hundred words here; keep=1 deletes no milestone."""
    monkeypatch.setattr(runs, "launch_quietly", _with_small_milestones)
    run(tmp_path / "run", "checkpoint.keep=1", processes=processes)
    words = {row["step"]: row["words_seen"] for row in rows(tmp_path / "run") if "loss" in row}
    folders = (tmp_path / "run" / "checkpoints").glob("chck_*")
    found = {path.name: json.loads((path / "state.json").read_text())["step"] for path in folders}
    reached = [m for m in (*range(1, 10), *range(10, 100, 10)) if m * 100 <= words[STEPS]]
    assert len(reached) > 9
    assert found == {f"chck_{m}M": min(s for s in words if words[s] >= m * 100) for m in reached}


def test_a_single_non_finite_step_is_refused_and_listed_and_training_continues(tmp_path):
    """The event is written even if the run is stopped before the next logged step."""
    sets = ("logging.every=10", "validation.every=100")
    faults = (*fault("loss 3", "nan"), *fault("step 5", "SIGTERM"))
    assert run(tmp_path / "run", *sets, plugin="faulty", faults=faults)[0].code == 75
    assert run(tmp_path / "run", *sets, plugin="faulty")[0].code == 0
    events = [row for row in rows(tmp_path / "run") if "event" in row]
    assert events == [{"step": 3, "event": "refused_update", "first_row": 12, "end_row": 18}]
    assert [step for step, loss in losses(tmp_path / "run").items() if loss is not None] == [1, 10, 12]
    whole = tmp_path / "whole"
    run(whole, *sets, plugin="faulty", faults=fault("loss 3", "nan"))
    assert saved_bits(whole, STEPS) == saved_bits(tmp_path / "run", STEPS)


def test_the_status_of_a_failed_run_has_its_number_of_steps(tmp_path):
    faults = tuple(entry for step in (5, 6) for entry in fault(f"loss {step}", "nan"))
    outcome = run(tmp_path / "run", "training.max_refused_updates=2", plugin="faulty", faults=faults)[0]
    assert outcome.code == 3
    assert (status(tmp_path / "run")["status"], status(tmp_path / "run")["step"]) == ("failed", 6)


def test_a_full_disk_ends_the_run_with_an_error_and_loses_no_checkpoint(tmp_path, undisturbed):
    """The save of step 8 fails, is repeated at step 9 and fails again."""
    saved = tmp_path / "run" / "checkpoints" / "latest"
    outcome = run(tmp_path / "run", faults=fault("step 5", "small files", after=str(saved)))[0]
    assert outcome.code is None
    assert re.search(r"warning: cannot write .*step_0000008: .*File too large", outcome.output)
    assert re.search(r"error: cannot write .*step_00000(09|1[0-2]): .*\n.*make room, then run the same", outcome.output)
    assert status(tmp_path / "run")["status"] == "failed"
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step_0000004\n"
    assert run(tmp_path / "run")[0].code == 0
    require_same(tmp_path / "run", undisturbed())


def test_a_save_that_fails_once_is_repeated_by_all_ranks(tmp_path, undisturbed):
    """Only the first rank writes, but all must save: they wait for each other after a save."""
    out, expected = tmp_path / "run", undisturbed(plugin="faulty", processes=2)
    saved = str(out / "checkpoints" / "latest")
    faults = (*fault("step 5", "no save", after=saved), *fault("step 9", "save failed"))
    outcome = run(out, plugin="faulty", processes=2, faults=faults)[0]
    assert re.search(r"warning: cannot write .*step_0000008: the quota is used up", outcome.output)
    assert re.search(r"trying once more, at step (9|10)\n", outcome.output)
    require_same(out, expected)


def test_damaged_files_are_reported_and_the_previous_checkpoint_is_used(tmp_path, undisturbed):
    """A flipped bit in the step of the newest checkpoint and in `latest`; settings that are torn."""
    folder = tmp_path / "run"
    run(folder, faults=fault("step 8", "SIGTERM"))
    state = folder / "checkpoints" / "step_0000009" / "state.json"
    state.write_text(state.read_text().replace('"step": 9,', '"step": 8,'))
    (folder / "checkpoints" / "latest").write_bytes(b"\xf3tep_0000009\n")
    (folder / "config.yaml").write_text("a: [")
    outcome = run(folder)[0]
    assert re.search(r"warning: the checkpoint .*step_0000009 is skipped: .*state\.json .*digest", outcome.output)
    assert "latest is ignored" in outcome.output
    assert re.search(r"config\.yaml is not valid YAML: .*\n  the settings in .*step_0000008 are used", outcome.output)
    assert "resuming from step 8" in outcome.output
    assert "name: laptop" in (folder / "config.yaml").read_text()
    require_same(folder, undisturbed())


def test_rows_that_were_lost_while_the_run_was_down_are_reported(tmp_path):
    out = tmp_path / "run"
    run(out, faults=fault("step 5", "SIGTERM"))
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:4]))
    assert "warning: metrics.jsonl has lost the rows of steps 4 to 6: " in run(out)[0].output


def test_a_second_trainer_does_not_touch_the_folder_of_the_first(tmp_path):
    with RunFolder(tmp_path / "run").claim():
        outcome = run(tmp_path / "run")[0]
    assert re.search("error: .*another process trains in this run folder", outcome.output)
    assert os.listdir(tmp_path / "run") == ["lock"]


def launch_after_another_run(rank, *arguments):
    """`launch_quietly`; before this process claims the folder, another run starts there and is killed."""
    claim = RunFolder.claim

    def claim_late(folder):
        shutil.copytree(folder.path.with_name("killed"), folder.path)
        return claim(folder)

    RunFolder.claim = claim_late
    return runs.launch_quietly(rank, *arguments)


def test_a_run_that_was_overtaken_by_one_with_other_settings_does_not_resume_it(tmp_path, monkeypatch):
    killed(tmp_path / "killed", faults=fault("step 7", "SIGKILL"))
    original = runs.run_on_ranks
    monkeypatch.setattr(
        runs, "run_on_ranks", lambda _, *rest, **options: original(launch_after_another_run, *rest, **options)
    )
    (outcome,) = run(tmp_path / "run", "seed=3")
    assert outcome.code is None
    assert "belongs to a run with other settings: seed" in outcome.output
    for name in ("config.yaml", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_ranks_with_different_settings_do_not_start(tmp_path):
    """Every rank reports the same."""
    outcomes = run(tmp_path / "run", processes=2, sets_of_rank=((), ("seed=3", "optimizer.lr=0.5")))
    for outcome in outcomes:
        assert "process 1: optimizer.lr (0.5 instead of 0.01), seed (3 instead of 0)" in outcome.output
    assert not (tmp_path / "run").exists()


def test_observers_in_another_order_are_refused_since_their_state_is_numbered(tmp_path):
    def about(*plugins):
        provider = {"distribution": "d", "version": "1"}
        return {"provenance": {f"observer{i}": provider | {"plugin": plugin} for i, plugin in enumerate(plugins)}}

    with pytest.raises(UserError, match="those of a, b, now those of b, a\n  select the plugins in the same order"):
        require_same_slots(about("a", "b"), about("b", "a"), tmp_path)
    require_same_slots(about("a", "b"), about("a", "b"), tmp_path)
    require_same_slots(about("a"), about("b"), tmp_path)  # another observer may replace one


def test_source_code_that_differs_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "package_x" / "part").mkdir(parents=True)
    for name, text in (("__init__", ""), ("part/code", "x = 1\n")):
        (tmp_path / "package_x" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("package_x")
    before = source_digest("package_x")
    assert source_digest("package_x") == before
    (tmp_path / "package_x" / "part" / "code.py").write_text("x = 2\n")
    assert source_digest("package_x") != before
    facts = {"source code of package_x": before, "seed": "0"}
    assert differences(facts, facts) == ""
    text = differences(facts, {"source code of package_x": "y", "seed": "0"})
    assert text == f"source code of package_x (y instead of {before})"


@contextmanager
def handlers_kept():
    """torchrun's agent replaces the signal handlers of the process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def log_of_two_processes(folder, faults, restarts=0, names=("run",)):
    """What runs in these folders, one after the other, write to standard error under torchrun's agent."""
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="test",
        max_restarts=restarts,
        start_method="forkserver",
    )
    with handlers_kept():
        elastic_launch(agent, launch_under_agent)([folder / name for name in names], faults, folder / "log")
    return (folder / "log").read_text()


def test_torchrun_restarts_a_run_of_which_processes_die(tmp_path, undisturbed):
    """First one raises: its traceback is printed before the error of the other process.  Then one is killed.

    The agent is torchrun's, but forks its processes from one that has imported torch, which saves seven imports.
    """
    expected = undisturbed(plugin="faulty", processes=2)
    faults = (
        *fault("step 5", "raise", rank=1, once=str(tmp_path / "raised")),
        *fault("step 10", "SIGKILL", rank=1, once=str(tmp_path / "killed")),
    )
    log = log_of_two_processes(tmp_path, faults, restarts=2)
    traceback, other = log.find("ArithmeticError: the culprit"), log.find("another process has ended")
    assert 0 < traceback < other, log
    assert log.count("ArithmeticError: the culprit") == 1
    assert (tmp_path / "killed").exists()
    require_same(tmp_path / "run", expected)


def test_the_processes_of_torchrun_train_several_runs_one_after_the_other(tmp_path, undisturbed):
    """As `sweep run` does.  The agent keeps the addresses of the first run."""
    expected = undisturbed(plugin="faulty", processes=2)
    log_of_two_processes(tmp_path, (), names=("first", "second"))
    for name in ("first", "second"):
        require_same(tmp_path / name, expected)


def test_the_status_names_the_process_that_failed_first(tmp_path):
    """Although the first rank, which writes it, only lost its connection."""
    with pytest.raises(ChildFailedError):
        log_of_two_processes(tmp_path, fault("step 5", "raise", rank=1))
    said = status(tmp_path / "run")
    assert said["status"] == "failed"
    assert re.match("process 1 of 2 failed: plugin .*faulty.* with ArithmeticError: the culprit", said["reason"])


def _impatient(rank, *args):
    peer_watch.ANSWER_SECONDS = 1.0
    return runs.launch_quietly(rank, *args)


def test_the_status_says_so_if_another_process_hangs_after_sigterm(tmp_path, monkeypatch):
    """One process is stopped; the other receives SIGTERM and waits outside Python until it is killed."""
    monkeypatch.setattr(runs, "launch_quietly", _impatient)
    folder = RunFolder(tmp_path / "run")
    faults = (*fault("step 5", "SIGSTOP", rank=1), *fault("step 5", "SIGTERM", rank=0))
    reason = "SIGTERM, and 1 of 2 processes did not answer, the first of them process 1: ended, or hangs"
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(killed, folder.path, plugin="faulty", processes=2, faults=faults)
        wait_until(lambda: folder.read_status() == Status("failed", 5, reason), "the status", 300)
        os.kill(Owner.parse((folder.path / "lock").read_text()).process, signal.SIGKILL)
        ended.result()
