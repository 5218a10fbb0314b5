"""What a finished run prints: its figures with errors and floor, samples, and commands that work."""

import re
import shlex

import pytest
from support.runs import SCORED, TINY

from ltg_mdlm.storage.metrics_file import read_validations
from ltg_mdlm.training.run_ending import SAMPLES, SHOWN


@pytest.fixture
def trained(run, tmp_path, monkeypatch):
    """Output and folder of a tiny run in a folder whose name needs quoting."""
    monkeypatch.chdir(tmp_path)
    sets = [part for text in (*TINY, *SCORED, "training.max_steps=2") for part in ("--set", text)]
    code, out, err = run("train", "--out", "my run", *sets)
    assert code == 0, err
    return out[out.index("held-out text") :], tmp_path / "my run"


def test_the_table_has_errors_the_floor_and_every_phenomenon(trained):
    out, folder = trained
    last = read_validations(folder / "metrics.jsonl").last
    line = re.search(r"^bound on -log p, nats per token +\S+ +(\S+) ± (\S+)$", out, re.MULTILINE)
    assert float(line[1]) == pytest.approx(last["valid/bound"], abs=1e-4)
    assert float(line[2]) == pytest.approx(last["valid/bound_standard_error"], abs=1e-4)
    assert re.search(rf"^floor: -log p under the generator +\S+ +{last['valid/floor']:.4f}$", out, re.MULTILINE)
    assert len(re.findall(r"^  \w+ +\S+ +\S+% ± \S+%$", out, re.MULTILINE)) == 13
    accuracies = [value for key, value in last.items() if re.fullmatch(r"valid/pairs/\w+", key) and "error" not in key]
    assert last["valid/minimal_pairs"] == pytest.approx(sum(accuracies) / 13)


def test_samples_are_judged_by_the_grammar(trained):
    out, _ = trained
    line = rf"^{SHOWN} of {SAMPLES} samples \(--sampler confidence\); the grammar accepts (\d+%|nan%) of their \d+ "
    assert re.search(line, out, re.M)
    assert len(re.findall(r" \.\.\.$", out, re.M)) >= SHOWN


def test_the_printed_commands_work(trained, run):
    out, _ = trained
    commands = [shlex.split(line) for line in out[out.index("next:") :].splitlines()[1:4]]
    assert [command[:2] for command in commands] == [["ltg-mdlm", name] for name in ("generate", "watch", "sweep")]
    for command in commands[:2]:
        code, _, err = run(*command[1:])
        assert code == 0, err
    assert run("sweep", "list", commands[2][3])[0] == 0, "the sweep is known; training it takes minutes"
