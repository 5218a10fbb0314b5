"""The methods paragraph of runs: its numbers are those of the runs, and what it cannot know is refused."""

import json

import pytest
from support.fabricated import fabricate_run
from support.runs import TINY, rows

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.inference.trained_model import open_model
from ltg_mdlm.reporting.html_report.run_groups import group_runs, read_record
from ltg_mdlm.reporting.methods_paragraph import methods_paragraph
from ltg_mdlm.training.launch import launch


def paragraph(*folders) -> str:
    return methods_paragraph(group_runs([read_record(folder) for folder in folders]))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("runs") / f"tiny-s{seed}" for seed in (3, 5)]
    for folder in folders:
        settings = ("optimizer.warmup=0.25", "plugins.uniform_mdlm.schedule=linear", f"seed={folder.name[-1]}")
        assert launch(load_settings([], [*TINY, *settings], [], folder)) == 0
    return folders


def test_the_numbers_are_those_of_the_runs(seeds):
    text = paragraph(*seeds)
    starts = [json.loads((folder / "environment.json").read_text())["starts"][0] for folder in seeds]
    corpus, parameters = starts[0]["corpus"], sum(p.numel() for p in open_model(seeds[0]).model.parameters())
    words = sorted(rows(folder)[-1]["words_seen"] for folder in seeds)
    hours = sum(start["cpu_seconds"] for start in starts) / 3600
    for sentence in (
        f"with {parameters:,} trainable parameters: 2 layers of width 32, 2 attention heads, gated MLPs of inner width",
        f"{corpus['words']:,} words or {corpus['tokens']:,} tokens in {corpus['documents']:,} documents",
        "Training takes 12 steps of 6 rows of 32 tokens",
        f"a run sees {words[0]:,} to {words[1]:,} words",
        "the noise schedule (Linear)",
        "its options are schedule = linear, and otherwise the defaults",
        "The optimiser is LAMB (betas 0.9 and 0.98, epsilon 1e-08).",
        "rises linearly to 0.01 in 3 steps",
        "There are 2 runs, with the seeds 3 and 5. Training ran in fp32",
        f"{hours:.3g} CPU hours.",
    ):
        assert sentence in text


def test_the_origin_of_the_initial_weights_is_named(tmp_path):
    text = paragraph(fabricate_run(tmp_path / "run", "uniform_mdlm", "run.init_from=runs/base"))
    assert "Training starts from the weights of runs/base." in text


def test_processes_are_summed_over_machines(tmp_path, run):
    folder = fabricate_run(tmp_path / "run")
    start = {
        "precision": "bf16",
        "versions": {"ltg_mdlm": "0.2.0", "torch": "2.13.0"},
        "machines": [{"host": host, "cpu": "c", "gpu": "NVIDIA X", "processes": 4} for host in ("a", "b")],
    }
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    code, text, err = run("report", str(folder), "--methods")
    assert code == 0, err
    assert "8 processes on NVIDIA X on 2 machines." in text


def test_stages_growing_batches_and_muon_are_described(tmp_path, run):
    settings = (
        "training.seq_len_schedule=[[0,32],[0.5,64]]",
        "training.global_batch_rows=32",
        "training.batch_ramp={start: 0.25, until: 0.5}",
        "optimizer.name=muon",
        "optimizer.muon_head_lr=0.002",
        "optimizer.tail_average=0.2",
        "optimizer.clip=.inf",
        "optimizer.weight_decay=0",
    )
    fabricate_run(tmp_path / "run", "gpt_bert", *settings)
    code, text, err = run("report", str(tmp_path / "run"), "--methods")
    assert code == 0, err
    assert "50 steps of 8 to 32 rows of 32 tokens, then 50 steps of 16 rows of 64 tokens" in text
    assert "0.002 for the head, 0.004 for embeddings" in text
    assert "the mean of the weights after each of the last 20 steps" in text
    assert "There is no weight decay, and gradients are not clipped." in text
    assert "conditioned on time" not in text


def test_several_recipes_unfinished_runs_and_another_corpus_are_refused(tmp_path, seeds):
    other = fabricate_run(tmp_path / "other", "freq_mdlm")
    with pytest.raises(UserError, match="these runs have 2"):
        paragraph(seeds[0], other)
    with pytest.raises(UserError, match="none of these is finished"):
        paragraph(fabricate_run(tmp_path / "half", status="preempted"))
    imported = fabricate_run(tmp_path / "imported", "freq_mdlm")
    (imported / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="the metrics of these runs do not describe it"):
        paragraph(imported)
    (other / "environment.json").write_text(json.dumps({"starts": [{"corpus": {"fingerprint": "0" * 64}}]}))
    with pytest.raises(UserError, match="not the one that the runs were trained on"):
        paragraph(other)
