"""`ltg-mdlm submit`: a small run built end to end, interrupted, shared, collated and checked.

`accept` is written from the published description of the collated file, and knows nothing of the program.
"""

import json
import shutil
from itertools import pairwise

import pytest
from support.submissions import CHECKPOINTS, SMALL, accept, write_data, write_rows
from support.trained import write_run

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation import submission_work
from ltg_mdlm.evaluation.submission import Size, checkpoint_folder, published_sizes
from ltg_mdlm.evaluation.submission_work import Job, Worker, array_task, hash_of_files
from ltg_mdlm.testing.ranks import run_on_ranks


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", words_seen=[i * 1_000_000 for i in range(1, 9)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "evaluation_data")


@pytest.fixture
def submit(run, small_run, data, tmp_path):
    """Run the command: (exit code, stdout, stderr)."""

    def call(*more, data=data, track="strict-small"):
        quick = [part for text in ("epochs=1", "batch_rows=8", "seq_len=64") for part in ("--set", text)]
        where = ("--data", str(data), "--out", str(tmp_path / "out.json"), "--results", str(tmp_path / "results"))
        return run("submit", str(small_run), "--track", track, *where, *quick, *more)

    return call


def test_a_submission_is_built_end_to_end_although_it_is_killed_twice(submit, tmp_path, monkeypatch):
    write, written = submission_work.write_task_result, []

    def killed(folder, *arguments):
        if len(written) in (3, 20):
            written.append(None)
            raise KeyboardInterrupt
        written.append(folder)
        write(folder, *arguments)

    monkeypatch.setattr(submission_work, "write_task_result", killed)
    for _ in range(2):
        assert submit("--partial")[0] != 0
        assert not (tmp_path / "out.json").exists()
    code, out, _ = submit("--partial")
    assert code == 0
    done = [folder for folder in written if folder]
    assert len(done) == len(set(done)) == 8 + 7 * len(CHECKPOINTS) + 1, "nothing is done twice"
    submission = json.loads((tmp_path / "out.json").read_text())
    # Age of acquisition needs all 19 checkpoints, the official collator says; the run has 8 of them.
    assert submission["aoa_surprisals"] is None
    accept(submission, SMALL)
    lines = out.splitlines()
    assert "surprisals of age of acquisition (without 11 of the 19 checkpoints of the track)" in out
    assert any("11 checkpoints from chck_9M to chck_100M: not in the run" in line for line in lines)
    assert any("boolq, mnli, multirc, qqp, wsc: no data" in line and "eval download strict" in line for line in lines)
    before = (tmp_path / "out.json").read_bytes()
    assert submit("--partial")[0] == 0
    assert len(written) == len(done) + 2, "a finished submission is only collated"
    assert (tmp_path / "out.json").read_bytes() == before


def test_published_sizes_are_required_unless_the_data_are_a_part(submit, tmp_path):
    assert submit()[0] == 0
    submission = json.loads((tmp_path / "out.json").read_text())
    assert all(submission[part] is None for part in ("blimp", "ewok", "comps", "reading", "global_piqa_parallel"))
    assert submission["glue"] == {}
    assert submission["fast_eval_results"]["blimp"] == [None] * 19
    _, out, _ = submit("--collate-only")
    assert "reading (40 predictions of reading instead of 1726)" in out
    assert submit("--collate-only", "--partial")[0] == 0
    accept(json.loads((tmp_path / "out.json").read_text()), SMALL)
    assert submit("--collate-only", "--partial", track="strict")[0] == 0
    more = [f"chck_{i}M" for i in range(200, 1001, 100)]
    accept(json.loads((tmp_path / "out.json").read_text()), [*SMALL, *more])


def test_surprisals_of_every_checkpoint_of_the_track_are_required(submit, tmp_path):
    assert submit("--partial")[0] == 0
    place = tmp_path / "results/tiny/main/zero_shot/mlm/AoA_word"
    file = place / "surprisal.json"
    surprisals = json.loads(file.read_text())
    of_one = [row for row in surprisals["results"] if row["step"] == "chck_1M"]
    assert len(of_one) == 6
    surprisals["results"] = [row | {"step": name} for name in SMALL for row in of_one]
    file.write_text(json.dumps(surprisals))
    assert submit("--partial", "--collate-only")[0] == 0
    submission = json.loads((tmp_path / "out.json").read_text())
    assert submission["aoa_surprisals"] == surprisals
    assert submission["aoa"] == json.loads((place / "aoa_score.json").read_text())
    surprisals["results"].pop()
    file.write_text(json.dumps(surprisals))
    _, out, _ = submit("--partial", "--collate-only")
    assert "surprisals of age of acquisition (5 predictions of chck_100m instead of 6)" in out


def test_figures_of_checkpoints_are_the_shares_of_right_predictions(submit, data, tmp_path):
    assert submit("--partial")[0] == 0
    fast = json.loads((tmp_path / "out.json").read_text())["fast_eval_results"]
    place = tmp_path / "results/tiny/chck_2M/zero_shot/mlm"

    def predicted(folder, uid):
        found = json.loads((place / folder / "predictions.json").read_text())[uid]["predictions"]
        return [row["pred"].strip() for row in found]

    ewok = predicted("ewok/ewok_fast", "d")
    assert fast["ewok"][1] == {"d": sum(map(str.__eq__, ewok, ["the dog ran. a dog", "a tree. a dog"])) / 2}
    blimp = predicted("blimp/blimp_fast", "islands")
    assert fast["blimp"][1]["islands"] == sum(text.startswith("the dog") for text in blimp) / 3
    right = [
        predicted("global_piqa_nonparallel/global_piqa_nonparallel", f"e{i}") == [f"dog {i % 2}"] for i in range(3)
    ]
    assert fast["global_piqa_nonparallel"][1] == {"global_piqa_nonparallel": sum(right) / 3}
    summary = json.loads((place / "reading/summary.json").read_text())
    assert fast["reading"][1]["rt"] == pytest.approx(summary["eye_tracking_gain_percent"] / 100)
    assert fast["reading"][1]["spr"] == pytest.approx(summary["self_paced_reading_gain_percent"] / 100)


def test_missing_data_are_one_line_each_with_the_command_that_gets_them(submit, tmp_path):
    few = tmp_path / "few"
    write_rows(few / "fast_eval/blimp_fast/a.jsonl", {"sentence_good": "the dog", "sentence_bad": "a the"})
    code, out, _ = submit("--partial", data=few)
    assert code == 0
    submission = json.loads((tmp_path / "out.json").read_text())
    assert submission["blimp"] is None
    assert submission["fast_eval_results"]["ewok"] == [None] * 19
    assert set(submission["fast_eval_results"]["blimp"][0]) == {"a"}
    lines = out.partition("missing:\n")[2].splitlines()
    assert len(lines) == 5  # strict, EWoK, both GlobalPIQA, checkpoints
    (strict,) = (line for line in lines if "download strict" in line)
    for name in ("blimp_filtered", "reading", "comps", "age of acquisition", "mnli", "ewok_fast", " of 8 checkpoints"):
        assert name in strict
    assert "--ewok-vocabulary" in next(line for line in lines if line.strip().startswith("ewok_filtered"))


def test_a_job_that_fails_keeps_the_others_and_is_named(submit, data, tmp_path):
    broken = tmp_path / "broken"
    for part in ("blimp_filtered", "comps"):
        write_rows(broken / "full_eval" / part / "a.jsonl", {"sentence_good": "the dog", "sentence_bad": "a the"})
    code, _, err = submit(data=broken)
    assert code == 2
    assert "main comps: " in err
    assert "property_phrase is missing" in err
    assert "Traceback" not in err
    assert (tmp_path / "results/tiny/main/zero_shot/mlm/blimp/blimp_filtered/predictions.json").is_file()
    assert (tmp_path / "out.json").is_file()


def test_malformed_human_data_do_not_prevent_the_file(submit, data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    (file,) = broken.rglob("cdi_human.csv")
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *(",".join([row.split(",")[0], *["7"] * row.count(",")]) for row in rows)]) + "\n")
    code, _, err = submit("--partial", data=broken)
    assert code == 2
    assert "cdi_human.csv" in err
    assert json.loads((tmp_path / "out.json").read_text())["aoa"] is None


def test_a_damaged_checkpoint_does_not_stop_the_others(run, data, tmp_path):
    folder = write_run(tmp_path / "hurt", words_seen=[1_000_000, 2_000_000])
    (checkpoint_folder(folder) / "chck_1M" / "ema.safetensors").unlink()
    where = ("--data", str(data), "--out", str(tmp_path / "out.json"), "--results", str(tmp_path / "results"))
    quick = [part for text in ("epochs=1", "batch_rows=8", "seq_len=64") for part in ("--set", text)]
    code, _, err = run("submit", str(folder), "--track", "strict-small", "--partial", *where, *quick)
    assert code == 2
    assert "chck_1M blimp_fast: " in err
    assert (tmp_path / "out.json").is_file()
    assert (tmp_path / "results/hurt/chck_2M/zero_shot/mlm/blimp/blimp_fast/predictions.json").is_file()


def test_results_of_another_model_of_the_same_name_are_not_taken(submit, tmp_path):
    few = tmp_path / "few"
    write_rows(few / "full_eval/blimp_filtered/a.jsonl", {"sentence_good": "the dog", "sentence_bad": "a the"})
    assert submit(data=few)[0] == 0
    code, _, err = submit("--weights", "raw", data=few)
    assert code == 2
    assert "other weights" in err
    (summary,) = (tmp_path / "results").rglob("summary.json")
    about = json.loads(summary.read_text())
    summary.write_text(json.dumps(about | {"weights_sha256": "0" * 64}))
    assert "other weights_sha256" in submit(data=few)[2]


def test_results_of_older_versions_without_a_hash_of_the_weights_are_used(submit, tmp_path):
    few = tmp_path / "few"
    write_rows(few / "full_eval/blimp_filtered/a.jsonl", {"sentence_good": "the dog", "sentence_bad": "a the"})
    assert submit(data=few)[0] == 0
    (summary,) = (tmp_path / "results").rglob("summary.json")
    about = json.loads(summary.read_text())
    del about["weights_sha256"]
    summary.write_text(json.dumps(about))
    assert submit(data=few)[0] == 0


def test_results_of_other_data_or_another_score_are_not_mixed(submit, tmp_path):
    few = tmp_path / "few"
    write_rows(few / "full_eval/blimp_filtered/a.jsonl", {"sentence_good": "the dog", "sentence_bad": "a the"})
    assert submit(data=few)[0] == 0
    write_rows(few / "full_eval/blimp_filtered/a.jsonl", {"sentence_good": "the cats", "sentence_bad": "a the"})
    code, _, err = submit(data=few)
    assert code == 2
    assert "holds a result with other sha256; choose another --results or delete it" in err
    write_rows(few / "full_eval/blimp_filtered/a.jsonl", {"sentence_good": "the dog", "sentence_bad": "a the"})
    assert submit(data=few)[0] == 0
    code, _, err = submit("--time", "zero", data=few)
    assert code == 2
    assert "other time" in err


def test_what_cannot_be_submitted_is_refused(submit, run, small_run, tmp_path):
    assert "no folder full_eval or fast_eval" in submit(data=tmp_path)[2]
    assert "no folder tasks and no files of fine-tuning tasks" in submit(track="multilingual")[2]
    assert "--score bound: only the track multilingual has this option" in submit("--score", "bound")[2]
    assert "--language: only the track multilingual" in submit("--language", "eng")[2]
    assert "--language deu: no such language; there are eng, nld, zho" in submit("--language", "deu")[2]
    assert "--score causal needs a model trained on causal rows" in submit("--score", "causal")[2]
    assert "no results of this model" in submit("--collate-only")[2]
    (tmp_path / "out.json").mkdir()
    assert "out.json: is a folder; this track has one file" in submit("--partial")[2]


def test_every_job_has_one_worker_and_the_cost_is_balanced():
    jobs = [Job("main", str(i), None, cost, lambda: None, {}) for i, cost in enumerate([9, 1, 4, 4, 1, 1, 7, 3])]
    shares = [Worker(index, 3).share(jobs) for index in range(3)]
    assert sorted(job.name for share in shares for job in share) == [job.name for job in jobs]
    assert {sum(job.cost for job in share) for share in shares} == {10}


def test_tasks_of_an_array_are_numbered_from_zero_whatever_their_numbers_are():
    def environment(number, count=3, least=4, step=2):
        names = {"ID": number, "COUNT": count, "MIN": least, "STEP": step}
        return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}

    assert [array_task(environment(number)) for number in (4, 6, 8)] == [(0, 3), (1, 3), (2, 3)]
    assert array_task({}) == (0, 1)
    with pytest.raises(UserError, match="have gaps"):
        array_task(environment(7))


def test_the_tasks_of_an_array_share_the_jobs_and_each_collates_what_there_is(submit, tmp_path, monkeypatch):
    """None can wait for the others: a job of another task may have been left out, or have failed."""
    for name, value in {"COUNT": 2, "MIN": 0, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    code, _, err = submit("--partial")
    assert code == 0
    assert "jobs have no result yet; collating what there is" in err
    first = json.loads((tmp_path / "out.json").read_text())
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert submit("--partial")[0] == 0
    second = json.loads((tmp_path / "out.json").read_text())
    assert second != first
    accept(second, SMALL)


def test_surprisals_that_the_suite_wrote_for_all_checkpoints_are_used(submit, tmp_path):
    """`eval suite` on a checkpoint writes into its folder the surprisals of all checkpoints."""
    assert submit("--partial")[0] == 0
    expected = (tmp_path / "out.json").read_text()
    files = sorted((tmp_path / "results" / "tiny").glob("chck_*/zero_shot/*/AoA_word/surprisal.json"))
    every = [row for file in files for row in json.loads(file.read_text())["results"]]
    for file in files:
        file.write_text(json.dumps({"results": every}))
    (combined,) = (tmp_path / "results" / "tiny" / "main").glob("zero_shot/*/AoA_word")
    shutil.rmtree(combined)
    code, _, err = submit("--partial")
    assert code == 0, err
    assert (tmp_path / "out.json").read_text() == expected


def test_a_step_and_the_main_revision_stand_for_their_run(tmp_path):
    for folder in ("run/checkpoints", "export"):
        for name in ("chck_1M", "step_0000004", "main"):
            (tmp_path / folder / name).mkdir(parents=True)
    run, export = tmp_path / "run", tmp_path / "export"
    for given in (run, run / "checkpoints" / "step_0000004"):
        assert checkpoint_folder(given) == run / "checkpoints"
    for given in (export, export / "main"):
        assert checkpoint_folder(given) == export


def test_the_hash_of_data_covers_what_is_read_and_nothing_else(tmp_path):
    """Data files of a folder; of the tasks of lm-eval, task files in its subfolders, too."""
    for name in ("below", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    files = [tmp_path / "a.jsonl", tmp_path / "below/task.yaml", tmp_path / ".ipynb_checkpoints/a.jsonl"]
    of_data, of_tasks = [], []
    for file in (*files, *files):
        file.write_text(f"{len(of_data)}")
        of_data.append(hash_of_files(tmp_path))
        of_tasks.append(hash_of_files(tmp_path, tasks=True))
    assert [a != b for a, b in pairwise(of_data)] == [False, False, True, False, False]
    assert [a != b for a, b in pairwise(of_tasks)] == [True, False, True, True, False]
    assert hash_of_files(files[1]) != hash_of_files(files[0])


def on_rank(rank, arguments):
    from ltg_mdlm.cli.submit_command import submit

    submit(**arguments)


def test_two_ranks_write_the_file_of_one(submit, small_run, data, tmp_path):
    assert submit("--partial")[0] == 0
    both = {"run": small_run, "data": data, "track": "strict-small", "partial": True}
    both |= {"set_": ["epochs=1", "batch_rows=8", "seq_len=64"], "results": tmp_path / "both"}
    run_on_ranks(on_rank, 2, both | {"out": tmp_path / "both.json"}, joined=False)
    assert json.loads((tmp_path / "both.json").read_text()) == json.loads((tmp_path / "out.json").read_text())


def test_sizes_are_those_of_the_official_collator():
    sizes = published_sizes()
    totals = {key: sum(size.by_uid.values()) for key, size in sizes.full.items() if size.by_uid}
    assert totals == {
        "blimp": 59_875,
        "blimp_supplement": 5_218,
        "ewok": 7_618,
        "entity_tracking_filtered": 517 + 409 + 405 + 425 + 388 + 94
        + 508 + 428 + 413 + 409 + 434 + 123
        + 516 + 437 + 399 + 406 + 353 + 116,
        "comps": 49_340 + 3 * 13_896,
        "reading": 1_726,
    }  # fmt: skip
    assert not sizes.full["global_piqa_parallel"].problem({f"e{i}": 1 for i in range(103)})
    assert sizes.full["global_piqa_parallel"].problem({f"e{i}": 1 for i in range(102)})
    assert sizes.full["global_piqa_nonparallel"].problem({f"e{i}": 1 + (i == 3) for i in range(100)})
    assert not sizes.fast["blimp"].problem({"a": 200, "b": 200})
    assert sizes.fast["ewok"].problem({"a": 100, "b": 99}) == "99 predictions of b instead of 100"
    assert Size({"Ab": 1}).problem({"aB": 1, "new": 3}) == "unknown uid new"
    assert Size({"a": 1, "b": 1}).problem({"a": 1}) == "0 predictions of b instead of 1"
    assert Size(each=5).problem({}) == "no predictions"
