"""`ltg-mdlm plugins check`: the table of verdicts, the reasons of failures, and the exit code."""

import json
import shutil

import pytest
from support.installed import BROKEN_PLUGINS, plugins_installed

from ltg_mdlm.testing import check_report as report
from ltg_mdlm.testing import toy
from ltg_mdlm.testing.component_checks import REGISTRATION_CHECKS
from ltg_mdlm.testing.masking_checks import the_mask_rate_is_kept_if_keeps_rate_says_so

FEW = (*REGISTRATION_CHECKS, the_mask_rate_is_kept_if_keeps_rate_says_so)


@pytest.fixture(autouse=True)
def few_checks(monkeypatch):
    monkeypatch.setattr(report, "CHECKS", FEW)


def test_a_correct_plugin_gives_exit_code_0_and_nothing_is_written(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("plugins", "check", "freq_mdlm")
    assert (code, err) == (0, "")
    assert "an unknown option is refused" in out
    assert out.endswith(": 5 passed, 0 failed, 0 not applicable\n")
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_does_not_apply_says_why(run):
    _, out, _ = run("plugins", "check", "gpt_bert")
    (line,) = (line for line in out.splitlines() if line.startswith("not applicable"))
    assert line.split(maxsplit=2)[2].rstrip() == "1 check: keeps_rate is False"


def test_a_broken_plugin_gives_exit_code_2_and_the_reason_below_the_table(run):
    with plugins_installed(BROKEN_PLUGINS):
        code, out, _ = run("plugins", "check", "mute")
    assert code == 2
    assert "failed: every option is described\n  plugin 'mute' (broken-plugins 1.0): MuteOptions" in out
    assert "    found: none for untold\n" in out
    assert "mute of broken-plugins 1.0: 4 passed, 1 failed" in out


def test_options_of_the_command_line_are_used(run):
    code, out, _ = run("plugins", "check", "freq_mdlm", "--set", "plugins.freq_mdlm.statistics=corpus", "--json")
    verdicts = {row["check"]: row for row in json.loads(out)}
    assert code == 0
    assert verdicts["the_mask_rate_is_kept_if_keeps_rate_says_so"]["reason"] == "keeps_rate is False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("freq_mdln",), "did you mean 'freq_mdlm'"),
        (("freq_mdlm", "--set", "training.max_steps=3"), "set only plugins.* and slots.*"),
        (("freq_mdlm", "--only", "every_option_is_describd"), "did you mean 'every_option_is_described'"),
    ],
)
def test_user_errors_are_reported_before_any_check(run, arguments, message):
    code, out, err = run("plugins", "check", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_only_the_named_checks_are_reported(run):
    names = ("every option is described", "the_mask_rate_is_kept_if_keeps_rate_says_so")
    code, out, _ = run(
        "plugins", "check", "freq_mdlm", *(part for name in names for part in ("--only", name)), "--json"
    )
    assert code == 0
    assert [row["check"] for row in json.loads(out)] == [name.replace(" ", "_") for name in names]


def test_a_named_check_that_requires_a_failed_one_reports_that_one_and_fails(run):
    with plugins_installed(BROKEN_PLUGINS):
        code, out, _ = run("plugins", "check", "masks_nothing", "--only", FEW[-1].name, "--json")
    assert code == 2
    assert {row["check"]: row["outcome"] for row in json.loads(out)} == {
        "some_tokens_are_masked": "failed",
        "the_mask_rate_is_kept_if_keeps_rate_says_so": "not applicable",
    }


def test_the_help_lists_the_checks_that_only_can_name(run):
    code, out, _ = run("plugins", "check", "--help")
    assert code == 0
    assert [check.title for check in FEW if check.title not in out] == []


def test_several_processes_may_make_the_toy_corpus_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    first = toy.corpus_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    prepare = toy.prepare_corpus

    def prepare_slowly(*arguments, **options):
        """Meanwhile another process finishes."""
        made = prepare(*arguments, **options)
        shutil.copytree(first, tmp_path / "two" / "ltg_mdlm" / first.name)
        return made

    monkeypatch.setattr(toy, "prepare_corpus", prepare_slowly)
    assert toy.corpus_folder() == tmp_path / "two" / "ltg_mdlm" / first.name
