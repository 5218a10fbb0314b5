"""The command line: results on stdout, user errors as one message on stderr with exit code 2."""

import json
import re
import subprocess
import sys

import pytest
from support.commands import all_commands
from torch.distributed.run import get_args_parser
from typer.main import get_command
from typer.testing import CliRunner

from ltg_mdlm import __version__, train
from ltg_mdlm.cli.app import app
from ltg_mdlm.cli.command_classes import ORDER

SMALL = (
    "--set", "data.builtin_words=4000",
    "--set", "model.hidden_size=32",
    "--set", "model.intermediate_size=64",
    "--set", "model.num_attention_heads=2",
)  # fmt: skip


def test_version(run):
    assert run("--version") == (0, f"ltg-mdlm {__version__}\n", "")


def test_plugins_list_names_the_built_in_ones_with_their_distribution(run):
    code, out, _ = run("plugins", "list", "--json")
    found = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert {"uniform_mdlm", "freq_mdlm", "gpt_bert"} <= found.keys()
    assert found["freq_mdlm"]["distribution"] == "ltg-mdlm"


@pytest.mark.parametrize("name", ["uniform_mdlm", "freq_mdlm", "gpt_bert"])
def test_plugins_show_describes_every_option(run, name):
    code, out, _ = run("plugins", "show", name, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["options"]
    assert all(option["description"] for option in shown["options"])
    assert all(hook.startswith("ltg_mdlm_") for hook in shown["hooks"])
    assert name in run("plugins", "show", name)[1]


def test_check_resolves_counts_and_trains_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("check", "--plugin", "freq_mdlm", "--json", *SMALL)
    report = json.loads(out)
    assert code == 0
    assert report["steps"] == report["config"]["training"]["max_steps"]
    assert report["rows"] == report["steps"] * report["config"]["training"]["global_batch_rows"]
    assert report["slots"]["masking"] == "freq_mdlm"
    assert report["config"]["plugins"]["freq_mdlm"]["power"] == 0.02
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("config", "parameters"), [("freq_cosine", 126_636_800), ("gpt_bert_100m", 119_454_532)])
def test_check_counts_the_published_parameters(run, base_vocabulary_corpus, config, parameters):
    code, out, err = run("check", "--config", config, "--set", f"data.corpus={base_vocabulary_corpus}", "--json")
    assert code == 0, err
    assert json.loads(out)["parameters"] == parameters


def test_check_warns_beyond_the_babylm_budget(run):
    _, out, _ = run("check", "--set", "training.max_steps=null", "--set", "training.epochs=11", "--json", *SMALL)
    assert any("BabyLM submissions may see each word at most 10 times" in text for text in json.loads(out)["warnings"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--plugin", "freq_mdln"), "did you mean 'freq_mdlm'"),
        (("train", "--set", "training.max_stepz=3"), "did you mean 'max_steps'"),
        (("train", "--set", "seed=minus one"), "seed:"),
        (("train", "--set", "data.corpus=/nowhere"), "/nowhere: not a corpus folder"),
        (("train", "--resume", "/nowhere"), "/nowhere"),
        (("train", "--plugin", "freq_mdlm", "--plugin", "gpt_bert", *SMALL), "slots.masking=freq_mdlm"),
        (("prepare", "/nowhere.txt", "--out", "x"), "/nowhere.txt"),
        (("plugins", "show", "nonsense"), "no installed plugin is called 'nonsense'"),
    ],
)
def test_user_errors_give_exit_code_2_and_one_message_and_write_nothing(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


COMMANDS = all_commands(get_command(app), "ltg-mdlm")
PROGRAMS = [(app, name, command) for name, command in COMMANDS.items()]
PROGRAMS.append((train.command, "python -m ltg_mdlm.train", get_command(train.command)))


@pytest.mark.parametrize(("program", "name", "command"), PROGRAMS, ids=[name for _, name, _ in PROGRAMS])
def test_the_help_of_a_command_shows_its_texts_completely(program, name, command, monkeypatch):
    """Markdown drops `<...>` outside backticks, and rich drops `[...]`."""
    monkeypatch.setenv("COLUMNS", "500")
    words = [] if program is train.command else name.split()[1:]
    shown = re.sub(r"[\s│]+", "", CliRunner().invoke(program, [*words, "--help"]).output)
    paragraphs = (command.help or "").split("\n\n")
    texts = [*paragraphs, *(p.help or "" for p in command.params if not getattr(p, "hidden", False))]
    assert [text for text in texts if re.sub(r"[\s`]+", "", text) not in shown] == []


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize(("program", "name", "command"), PROGRAMS, ids=[name for _, name, _ in PROGRAMS])
def test_the_help_of_a_command_is_in_plain_words(program, name, command, columns, monkeypatch):
    """No names of Python types, no truncated words, no range as an inequality, no line beyond the terminal."""
    monkeypatch.setenv("COLUMNS", str(columns))
    words = [] if program is train.command else name.split()[1:]
    shown = CliRunner().invoke(program, [*words, "--help"]).output
    written = " ".join([command.help or "", *(getattr(parameter, "help", "") for parameter in command.params)])
    panels = [line for line in shown.splitlines() if line.startswith(("│", "╭", " Usage"))]
    assert set(re.findall(r"<[^>│]*>", "".join(panels))) <= set(re.findall(r"<[^>]*>", written))
    assert not [line for line in panels if "…" in line or "RANGE" in line.upper().split() or len(line) > columns]
    assert not re.search(r"\w[<>]=|[<>]=\w|\{|\[\[", "".join(panels))
    options = [part for line in panels if (part := re.search(r"^│ [* ]*--(\S+).*?  +(\S.*) │$", line))]
    assert {part[1] for part in options} == {
        parameter.opts[0].removeprefix("--")
        for parameter in command.params
        if parameter.opts[0].startswith("--") and not parameter.hidden
    } | {"help"}


def test_the_help_gives_the_range_of_a_bounded_number(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = re.sub(r"[\s│]+", " ", CliRunner().invoke(app, ["generate", "--help"]).output)
    assert "--count N Number of samples. At least 1. [default: 1]" in shown
    assert "--eta-cap X" in shown
    assert "for --sampler ancestral. From 0 to 1." in shown


def test_numbers_outside_the_range_of_an_option_are_user_errors(run):
    """The range that the help gives is also the one that is checked."""
    code, _, err = run("generate", "nowhere", "--top-p", "1.5")
    assert code == 2
    assert "--top-p" in err


def test_commands_are_listed_in_the_order_of_the_work():
    shown = re.findall(r"^│ ([a-z]+) ", CliRunner().invoke(app, ["--help"]).output, re.MULTILINE)
    assert shown == list(ORDER)


def test_options_do_not_collide_with_torchruns_own():
    """torchrun's parser swallows, even after the module, options that are prefixes of its own."""
    names = [name for command in COMMANDS.values() for parameter in command.params for name in parameter.opts]
    names = [name for name in names if name.startswith("--")]
    assert "--valid" in names
    torchruns = get_args_parser()._option_string_actions
    assert "--log-dir" in torchruns
    assert not [name for name in names if any(theirs.startswith(name) for theirs in torchruns)]


def test_the_package_imports_without_torch():
    code = "import sys, ltg_mdlm, ltg_mdlm.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bench_prints_one_json_object_and_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("bench", "--plugin", "gpt_bert", "--rows", "4", "--steps", "3", "--json", *SMALL)
    assert code == 0
    assert json.loads(out)["global_batch_rows"] == 4
    assert not list(tmp_path.iterdir())


def test_every_path_after_valid_is_held_out(run, tmp_path):
    """A shell expands `--valid dev/*.dev` to several arguments; none of them may become a training file."""
    for name in ("a.train", "b.train", "c.dev", "d.dev"):
        (tmp_path / name).write_text(f"the text of {name} is not long\n")
    paths = [str(tmp_path / name) for name in ("a.train", "c.dev", "d.dev", "b.train")]
    corpus = str(tmp_path / "corpus")
    code, out, _ = run("prepare", paths[0], "--valid", *paths[1:3], "--out", corpus, paths[3], "--vocab-size", "300")
    assert code == 0
    assert re.findall(r"in (\d) file", out) == ["2", "2"]
