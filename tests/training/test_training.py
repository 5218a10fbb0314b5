"""The properties of the training loop, tested with whole runs."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support import runs
from support.corpora import documents, small_tokenizer, write_text
from support.runs import (
    TINY,
    environment,
    faulty_environment,
    launch_quietly,
    losses,
    rows,
    run,
    status,
    train_command,
)
from support.waiting import wait_until

from ltg_mdlm.cli.error_output import report_errors
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.synthetic.builtin import builtin_corpus
from ltg_mdlm.storage.checkpoint import _write_state_file, newest_checkpoint, read_about
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.train import command
from ltg_mdlm.training import launch as launch_module
from ltg_mdlm.training.recipe import DenoisingLoss

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


def test_a_run_continues_if_nobody_reads_its_output_any_more(tmp_path: Path):
    """As with `| head`, or if `tee` has died: stdout is a pipe that is closed before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    arguments = train_command(tmp_path / "run", sets=("training.max_steps=4",))
    done = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment())
    assert (done.returncode, status(tmp_path / "run")["status"]) == (0, "finished")
    assert done.stderr == "note: stdout is lost ([Errno 32] Broken pipe); the run continues without it\n"
    os.close(writing)


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


def test_a_resumed_run_does_not_need_the_run_that_it_started_from(tmp_path: Path):
    run(tmp_path / "old", "training.max_steps=2")
    settings = (f"run.init_from={tmp_path / 'old'}", "training.max_steps=6")
    run(tmp_path / "new", *settings, plugin="faulty", faults=({"at": "step 4", "do": "SIGTERM"},))
    shutil.rmtree(tmp_path / "old")
    assert run(tmp_path / "new", *settings, plugin="faulty")[0].code == 0


def test_a_path_to_resume_from_is_for_the_first_start(tmp_path: Path):
    """The second start continues from the run's own checkpoint, and does not need the path any more."""
    run(tmp_path / "old", "training.max_steps=4", plugin="faulty")
    options = {"plugin": "faulty", "resume": str(tmp_path / "old")}
    first = run(tmp_path / "new", "optimizer.lr=0.02", faults=({"at": "step 6", "do": "SIGTERM"},), **options)[0]
    assert "resuming from step 4 of 12" in first.output
    assert re.search(
        r"note: .*step_0000004 was trained with other settings: optimizer.lr \(0.02 .* 0.01\)", first.output
    )
    shutil.rmtree(tmp_path / "old")
    second = run(tmp_path / "new", "optimizer.lr=0.02", **options)[0]
    assert "resuming from step 7 of 12" in second.output
    assert second.code == 0
    assert "is finished" in run(tmp_path / "new", "optimizer.lr=0.02", **options)[0].output


def test_a_checkpoint_that_cannot_be_restored_changes_nothing(tmp_path: Path):
    run(tmp_path / "old", "training.max_steps=4")
    outcome = run(tmp_path / "new", "model.hidden_size=48", resume=str(tmp_path / "old"))[0]
    assert outcome.code is None
    assert "another shape" in outcome.output
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_a_run_of_an_old_version_does_not_resume_with_another_tokenizer(tmp_path: Path):
    """Its checkpoints do not say which one they belong to."""
    run(tmp_path / "run", "training.max_steps=4")
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    about = {key: value for key, value in read_about(newest).items() if key not in ("tokenizer", "training_text")}
    _write_state_file(newest, about)
    tokenizer = tmp_path / "run" / "tokenizer.json"
    other = json.loads(tokenizer.read_text())
    vocabulary = other["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    tokenizer.write_text(json.dumps(other))
    outcome = run(tmp_path / "run", "training.max_steps=4", resume=str(newest))[0]
    assert "was trained with another tokenizer" in outcome.output
    assert json.loads(tokenizer.read_text()) == other


def test_checkpoints_behind_a_link_are_the_runs_own(tmp_path: Path):
    run(tmp_path / "run", "training.max_steps=8")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "scratch")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "scratch")
    older = min((tmp_path / "run" / "checkpoints").glob("step_*"))
    outcome = run(tmp_path / "run", "training.max_steps=8", resume=str(older))[0]
    assert f"resuming from step {int(older.name[5:])} of 8" in outcome.output


def test_words_of_a_continued_run_include_those_of_the_other_settings(tmp_path: Path):
    run(tmp_path / "old", "training.max_steps=4", plugin="faulty")
    options = {"plugin": "faulty", "resume": str(tmp_path / "old")}
    for faults in (({"at": "step 6", "do": "SIGTERM"},), ()):
        run(tmp_path / "new", "training.global_batch_rows=12", faults=faults, **options)
    before, words = ({row["step"]: row["words_seen"] for row in rows(tmp_path / name)} for name in ("old", "new"))
    per_step = [words[step + 1] - words[step] for step in range(5, 11)]
    assert before[4] < words[5] < before[4] + 2 * max(per_step)
    assert min(per_step) > 1.5 * (before[4] - before[1]) / 3  # batches of twice the size


def test_a_checkpoint_beyond_the_last_step_is_an_error(tmp_path: Path):
    run(tmp_path / "old", "training.max_steps=4")
    outcome = run(tmp_path / "new", "training.max_steps=3", resume=str(tmp_path / "old"))[0]
    assert "step_0000004 is of step 4, but this run has only 3 steps" in outcome.output


@pytest.mark.parametrize(
    ("environment", "resume", "newest", "expected"),
    [
        ({}, "never", None, "never"),
        ({"SLURM_RESTART_COUNT": "1"}, "never", None, "auto"),
        ({"TORCHELASTIC_RESTART_COUNT": "0"}, "run/checkpoints/chck_1M", 2, "run/checkpoints/chck_1M"),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, "run/checkpoints/chck_1M", 0, "run/checkpoints/chck_1M"),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, "run/checkpoints/chck_1M", 1, "auto"),
        ({}, "other", None, "other"),
        ({}, "other", 0, "auto"),
    ],
)
def test_restarts_continue_from_what_has_been_saved_since(
    environment, resume, newest, expected, tmp_path: Path, monkeypatch
):
    """Start 1 went back to a milestone; the newest checkpoint was saved by the start with this number."""
    monkeypatch.chdir(tmp_path)
    for name in launch_module.RESTART_COUNTS:
        monkeypatch.setenv(name, environment.get(name, ""))
    folder = RunFolder(Path("run"))
    folder.checkpoints.mkdir(parents=True)
    starts = [{"resume": "auto"}, {"resume": "run/checkpoints/chck_1M"}, {"resume": "auto"}]
    folder.environment_file.write_text(json.dumps({"starts": starts}))
    if newest is not None:
        (folder.checkpoints / "step_0000004").mkdir()
    monkeypatch.setattr(launch_module, "newest_checkpoint", lambda folder: newest if newest is None else folder)
    monkeypatch.setattr(launch_module, "read_about", lambda path: {"start": newest})
    assert launch_module.resume_of_this_start(folder, resume) == expected


@pytest.mark.parametrize(("same_tokenizer", "message"), [(True, "on other text than"), (False, "another tokenizer")])
def test_a_run_does_not_resume_on_a_corpus_that_was_replaced(same_tokenizer, message, tmp_path: Path):
    corpus = tmp_path / "corpus"
    small_tokenizer().save(tmp_path / "tokenizer.json")

    def prepare(seed: int, **options) -> None:
        text = write_text(tmp_path / "a.train", documents(300, seed))
        prepare_corpus([text], corpus, progress=False, **options)

    prepare(1, tokenizer=tmp_path / "tokenizer.json")
    settings = (f"data.corpus={corpus}", "training.max_steps=6")
    run(tmp_path / "run", *settings, plugin="faulty", faults=({"at": "step 3", "do": "SIGTERM"},))
    shutil.rmtree(corpus)
    prepare(2, **({"tokenizer": tmp_path / "tokenizer.json"} if same_tokenizer else {"vocab_size": 310}))
    kept = (tmp_path / "run" / "tokenizer.json").read_bytes()
    assert message in run(tmp_path / "run", *settings, plugin="faulty")[0].output
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == kept


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_run_that_does_not_fit_the_gpu_says_what_to_change(compiled, tmp_path: Path, monkeypatch):
    """Also if the compiler is the first to meet it: eager execution needs more memory, not less."""
    monkeypatch.setattr(runs, "launch_quietly", _without_memory)
    outcome = run(tmp_path / "run", f"training.compile={compiled}", "validation.every=99")[0]
    assert re.search(r"error: OutOfMemoryError: 58 GiB\n +set training\.micro_batch_rows to fewer", outcome.output)
    assert status(tmp_path / "run")["status"] == "failed"


def _without_memory(rank, *args):
    hidden = DenoisingLoss.hidden

    def fail(self, micro_batch, *, training):
        if training:
            raise torch.OutOfMemoryError("58 GiB")
        return hidden(self, micro_batch, training=training)

    DenoisingLoss.hidden = fail
    return launch_quietly(rank, *args)


def test_logging_can_be_switched_off_by_any_large_number(tmp_path: Path):
    assert run(tmp_path / "run", "logging.every=1000000000000000")[0].code == 0
    assert sorted(losses(tmp_path / "run")) == [1, 12]


def test_bytes_are_compared_with_all_tokens_that_the_bound_is_a_mean_over(tmp_path: Path):
    """Ends of documents are predicted too, and have no bytes."""
    run(tmp_path / "run", "data.end_of_document=true", "training.max_steps=2")

    last = [row for row in rows(tmp_path / "run") if "valid/bound" in row][-1]
    valid = builtin_corpus(words=4000).valid
    tokens = valid.num_tokens + valid.num_documents
    assert last["valid/bits_per_byte"] == pytest.approx(
        last["valid/bound"] * tokens / valid.text_bytes / math.log(2), rel=1e-6
    )


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
