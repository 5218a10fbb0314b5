"""The properties of the training loop, tested with whole runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.runs import TINY, environment, faulty_environment, losses, rows, run, status, train_command
from support.waiting import wait_until

from ltg_mdlm.cli.error_output import report_errors
from ltg_mdlm.train import command

NO_DROPOUT = ("model.dropout=0",)
AT_STEP_5 = {"at": "step 5", "do": "wait"}


def test_ranks_take_shares_of_a_batch_that_does_not_divide(tmp_path: Path):
    sets = (*NO_DROPOUT, "training.global_batch_rows=5", "training.max_steps=4")
    run(tmp_path / "one", *sets)
    run(tmp_path / "two", *sets, processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_sigterm_saves_reports_preemption_and_resumes(tmp_path: Path):
    """The run waits in its fifth step for the signal, in a separate process."""
    out, waiting = tmp_path / "run", tmp_path / "waiting"
    settings = environment() | faulty_environment({**AT_STEP_5, "until": "SIGTERM", "once": str(waiting)})
    arguments = train_command(out, "--plugin", "faulty")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=settings)
    wait_until(lambda: waiting.exists() or process.poll() is not None, "the fifth step", 300)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert status(out) == {"status": "preempted", "step": 6, "reason": "SIGTERM"}
    assert (out / "checkpoints" / "latest").read_text() == "step_0000006\n"
    assert run(out, plugin="faulty")[0].code == 0
    assert sorted(losses(out)) == list(range(1, 13))


def test_validation_never_changes_the_training_curve(tmp_path: Path):
    run(tmp_path / "often", "validation.every=1")
    run(tmp_path / "never", "validation.every=100")
    assert losses(tmp_path / "often") == losses(tmp_path / "never")


def test_a_finished_run_prints_its_result_and_does_not_train(tmp_path: Path):
    (first,) = run(tmp_path / "run")
    (again,) = run(tmp_path / "run")
    table = first.output[first.output.index("held-out text") : first.output.index("\nnext:")]
    table = table[: table.index("run folder: ")]
    assert table in again.output
    assert "is finished" in again.output


def test_other_settings_in_a_used_folder_are_refused_by_name(tmp_path: Path):
    run(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (done,) = run(tmp_path / "run", "optimizer.lr=0.5", "seed=3")
    assert "error: " in done.output
    assert "belongs to a run with other settings: optimizer.lr, seed" in done.output
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    monkeypatch.setattr(sys, "argv", ["ltg_mdlm.train", *train_command(tmp_path)[3:]])
    with pytest.raises(SystemExit) as end:
        report_errors(command)
    assert end.value.code == 2
    assert "not a run folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_non_finite_training_refuses_updates_then_stops(tmp_path: Path):
    """A learning rate that overflows float32 makes every later gradient NaN."""
    (done,) = run(tmp_path / "run", "optimizer.lr=1e38", "training.max_refused_updates=3")
    assert done.code == 3
    assert "non-finite loss or gradient" in done.output
    refused = [row["step"] for row in rows(tmp_path / "run") if row.get("event") == "refused_update"]
    assert len(refused) == 3
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


def test_a_new_run_starts_from_the_weights_of_another(tmp_path: Path):
    run(tmp_path / "old")
    run(tmp_path / "new", f"run.init_from={tmp_path / 'old'}")
    last_of_old = [r for r in rows(tmp_path / "old") if "valid/bound" in r][-1]
    first_of_new = next(r for r in rows(tmp_path / "new") if "valid/bound" in r)
    assert first_of_new["valid/bound"] == pytest.approx(last_of_old["valid/bound"], abs=1e-6)


def test_the_run_folder_has_the_documented_contents(tmp_path: Path):
    run(tmp_path / "run", plugin="freq_mdlm")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["plugin_versions"]["freq_mdlm"].startswith("ltg-mdlm ")
    training = [row for row in rows(tmp_path / "run") if "loss" in row][-1]
    documented = {
        "step",
        "epoch",
        "words_seen",
        "tokens_seen",
        "loss",
        "mask_rate",
        "lr",
        "grad_norm",
        "tokens_per_second",
    }
    assert documented <= training.keys()
    newest = tmp_path / "run" / "checkpoints" / "step_0000012"
    names = {path.name for path in newest.iterdir()}
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"} <= names


def test_bench_under_torchrun_reports_the_cost_of_the_all_reduce_once():
    options = [part for text in TINY for part in ("--set", text)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "ltg_mdlm", "bench", "--steps", "3", "--json", *options],
        capture_output=True, text=True, timeout=300, env=environment(), check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["processes"] == 2
    assert 0 <= report["waiting_for_gradients"] < 1
    assert report["micro_batch_rows"] == 3
