"""`ltg-mdlm reproduce`: its commands make the run again."""

import hashlib
import json
import shlex
import shutil

import pytest
from support.fabricated import fabricate_run
from support.runs import TINY, rows

from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.reporting.reproduction import reproduction
from ltg_mdlm.training.launch import launch

TEXT = "The dog sees a cat. It runs to the house, and the cat sleeps.\n\nA child reads the book about {}.\n\n"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder with two text files; it is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my text.txt").write_text("".join(TEXT.format(f"animal {i}") for i in range(60)))
    (tmp_path / "held_out.txt").write_text("".join(TEXT.format(f"plant {i}") for i in range(20)))
    return tmp_path


def test_the_commands_give_the_same_metrics_from_the_same_text(sources, run, monkeypatch):
    prepared = ("prepare", "my text.txt", "--valid", "held_out.txt", "--vocab-size", "300", "--nfkc", "--out", "corpus")
    assert run(*prepared)[0] == 0
    own = [text for text in TINY if not text.startswith("training.threads")] + ["data.corpus=corpus", "seed=4"]
    code, _, err = run("train", "--out", "first", *(part for text in own for part in ("--set", text)))
    assert code == 0, err

    with monkeypatch.context() as inside:
        inside.chdir("first")
        assert f"--out {sources / 'first-again'}" in run("reproduce", ".")[1]
    code, text, err = run("reproduce", "first", "--out", "second")
    assert code == 0, err
    for name in ("my text.txt", "held_out.txt"):
        assert f"{hashlib.sha256((sources / name).read_bytes()).hexdigest()}  {name}" in text
    assert json.loads((sources / "corpus" / "corpus.json").read_text())["fingerprint"] in text
    final = rows(sources / "first")[-1]
    assert f"#   bound {final['valid/bound']!r}\n" in text

    shutil.rmtree(sources / "corpus")
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("ltg-mdlm ")]
    assert [command[0] for command in commands] == ["prepare", "train", "report"]
    for command in commands:
        code, out, err = run(*command)
        assert code == 0, err
    assert json.loads(out)[0]["bound"] == final["valid/bound"]
    first, second = rows(sources / "first"), rows(sources / "second")
    for row in (*first, *second):
        row.pop("tokens_per_second", None)
    assert first == second


def test_all_options_of_prepare_are_printed(sources, run):
    options = ("--budget", "500", "--language", "zho", "--words", "characters", "--drop-duplicates", "--balance")
    assert run("prepare", "my text.txt", *options, "--vocab-size", "300", "--out", "corpus")[0] == 0
    fabricate_run(sources / "run", "uniform_mdlm", "data.corpus=corpus")
    lines = reproduction(sources / "run", sources / "new").splitlines()
    command = next(line for line in lines if line.startswith("ltg-mdlm prepare"))
    before = (sources / "corpus" / "corpus.json").read_bytes()
    shutil.rmtree(sources / "corpus")
    assert run(*shlex.split(command)[1:])[0] == 0
    assert (sources / "corpus" / "corpus.json").read_bytes() == before


def test_files_of_one_name_and_a_given_tokenizer_are_printed(sources, run):
    assert run("prepare", "my text.txt", "--vocab-size", "300", "--out", "first")[0] == 0
    for language in ("nld", "zho"):
        (sources / language).mkdir()
        (sources / language / "train.txt").write_text(TEXT.format(language))
    given = ("--tokenizer", "first/tokenizer.json")
    assert run("prepare", "nld/train.txt", "zho/train.txt", *given, "--out", "corpus")[0] == 0
    folder = fabricate_run(sources / "run", "uniform_mdlm", "data.corpus=corpus")
    text = reproduction(folder, sources / "new")
    assert "ltg-mdlm prepare train.txt train.txt --tokenizer " + shlex.quote(str(folder / "tokenizer.json")) in text


def test_versions_commit_machine_and_choices_are_those_of_the_run(tmp_path):
    folder = fabricate_run(tmp_path / "run", "dual", "training.attention=auto")
    machine = {"host": "a", "cpu": "c", "threads": 8, "gpu": "NVIDIA X", "processes": 4}
    start = {
        "resume": "runs/old",
        "step": 6,
        "versions": {"ltg_mdlm": "0.2.0", "python": "3.12.1", "torch": "2.13.0+cu128"},
        "git": {"commit": "f00", "dirty": True},
        "device": "cuda",
        "processes": 4,
        "machines": [machine],
        "attention": {"kernel": "fused"},
        "compile": {"enabled": True},
    }
    text = (folder / "config.yaml").read_text().replace("plugin_versions: {}", "plugin_versions: {dual: a-dual 1.5}")
    (folder / "config.yaml").write_text(text)
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    found = reproduction(folder, tmp_path / "new")
    for part in (
        "# Python 3.12.1\npip install torch==2.13.0+cu128 --extra-index-url https://download.pytorch.org/whl/cu128\n",
        "changes that this commit does not have",
        "git checkout f00\npip install -e .\npip install a-dual==1.5\n",
        "# 4 process(es) with 8 thread(s) each on NVIDIA X\n",
        "# It began at step 6 with the checkpoint runs/old.\n",
        "torchrun --nproc-per-node 4 -m ltg_mdlm.train --config",
        "--resume runs/old --set training.attention=fused --set training.compile=true\n",
    ):
        assert part in found


def test_a_corpus_that_was_replaced_or_lost_is_named(sources, run):
    run("prepare", "my text.txt", "--vocab-size", "300", "--out", "corpus")
    settings = load_settings([], [*TINY, "data.corpus=corpus", "training.max_steps=1"], [], sources / "run")
    assert launch(settings) == 0
    shutil.rmtree(sources / "corpus")
    assert "# The corpus cannot be read: corpus: not a corpus folder" in reproduction(sources / "run", sources / "new")
    run("prepare", "held_out.txt", "--vocab-size", "300", "--out", "corpus")
    assert "# The corpus has been replaced since" in reproduction(sources / "run", sources / "new")


def test_a_folder_without_a_run_is_refused(tmp_path, run):
    code, _, err = run("reproduce", str(tmp_path))
    assert code == 2
    assert "not a run folder that has been started" in err


@pytest.mark.parametrize(
    ("resumes", "expected"),
    [
        ([("auto", 0), ("runs/old", 5)], True),  # the first start died before its first checkpoint
        ([("runs/old", 5), ("auto", 0)], False),  # the first one died, and the second began anew
        ([("runs/old", 5), ("auto", 9)], True),
    ],
)
def test_the_checkpoint_that_a_run_began_with_is_that_of_the_start_that_counts(tmp_path, resumes, expected):
    folder = fabricate_run(tmp_path / "run")
    start = {
        "versions": {"ltg_mdlm": "0.2.0", "python": "3.12.1", "torch": "2.13.0"},
        "device": "cpu",
        "processes": 1,
        "machines": [{"host": "a", "cpu": "c", "threads": 8, "processes": 1}],
    }
    starts = [start | {"resume": resume, "step": step} for resume, step in resumes]
    (folder / "environment.json").write_text(json.dumps({"starts": starts}))
    assert ("--resume runs/old" in reproduction(folder, tmp_path / "new")) == expected
