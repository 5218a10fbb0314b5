"""Paths, signals and pipes that a user may produce: one message, and never a traceback."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from ltg_mdlm.cli import app as cli
from ltg_mdlm.cli.error_output import report_errors
from ltg_mdlm.core.errors import UserError, file_error
from ltg_mdlm.data.synthetic.builtin import default_cache_dir

LONG = "long" * 75


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--config", LONG],
        ["train", "--out", LONG],
        ["train", "--resume", LONG],
        ["sweep", "list", LONG],
        ["report", LONG],
        ["watch", LONG],
        ["export", LONG, "--out", "x"],
        ["generate", LONG],
        ["prepare", LONG, "--out", "x"],
        ["import", LONG, "--out", "x"],
        ["plugins", "new", "short", "--out", LONG],
        ["plugins", "new", LONG],
        ["check", "--set", f"data.corpus={LONG}"],
    ],
)
def test_a_path_that_is_too_long_is_one_message(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ltg-mdlm", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert LONG in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_only_errors_of_files_are_explained():
    assert "ab: no permission" in str(file_error(PermissionError(13, "Permission denied", "ab")))
    assert file_error(ConnectionResetError(104, "Connection reset by peer")) is None
    assert file_error(OSError("no number")) is None


def test_ctrl_c_during_imports_ends_with_one_line():
    code = "import ltg_mdlm.cli; raise KeyboardInterrupt"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_in_a_command_ends_with_one_line(monkeypatch, capsys):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("ltg_mdlm.core.settings.load_settings", interrupted)
    monkeypatch.setattr(sys, "argv", ["ltg-mdlm", "check"])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (end.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_a_reader_that_closes_the_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-m", "ltg_mdlm", "plugins", "list"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert ended.stderr == b""


def test_without_a_home_folder_the_message_says_what_to_set(monkeypatch):
    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        default_cache_dir()


def test_on_windows_the_program_names_wsl_instead_of_a_missing_module():
    code = "import sys; sys.platform = 'win32'; import signal; del signal.SIGUSR1; import ltg_mdlm.train"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ltg-mdlm runs on Linux and macOS")
    assert "WSL" in ended.stderr


def test_json_has_no_infinity(run):
    code, out, err = run("check", "--set", "optimizer.clip=.inf", "--set", "data.builtin_words=2000", "--json")
    assert code == 0, err
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert found["config"]["optimizer"]["clip"] == "inf"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vocab-size", "300"), "--vocab-size is for a tokenizer that is trained"),
        (("--balance",), "--balance is for a tokenizer that is trained"),
    ],
)
def test_options_for_training_a_tokenizer_are_refused_with_a_given_tokenizer(run, tmp_path, options, message):
    code, _, err = run("prepare", "x.txt", "--tokenizer", "t.json", "--out", str(tmp_path / "c"), *options)
    assert (code, message in err) == (2, True)


def test_ngram_is_refused_without_decontaminate(run, tmp_path):
    code, _, err = run("prepare", "x.txt", "--ngram", "8", "--out", str(tmp_path / "c"))
    assert (code, "--ngram goes with --decontaminate" in err) == (2, True)


@pytest.mark.parametrize("ask", [lambda: torch.empty(1 << 62, dtype=torch.uint8), lambda: bytearray(1 << 62)])
def test_a_machine_without_enough_memory_is_one_message(ask, capsys):
    """With torch it is a RuntimeError on CPUs, and otherwise a MemoryError."""
    with pytest.raises(SystemExit) as end:
        report_errors(ask)
    assert end.value.code == 2
    assert re.fullmatch(
        r"error: (RuntimeError: .*can't allocate memory.*|MemoryError)\n  free memory of .*\n", capsys.readouterr().err
    )
