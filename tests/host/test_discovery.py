"""Which installed plugins are considered, and how a command says why one is not."""

import json
from contextlib import nullcontext
from importlib import metadata

import pytest
from support.runs import TINY
from support.third_party import installed, write_distribution

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.host import discovery
from ltg_mdlm.host.discovery import find, installed_plugins, module_file

BUILT_IN = {"uniform_mdlm", "freq_mdlm", "gpt_bert"}
MASKS = """
from ltg_mdlm_plugins.uniform_mdlm import UniformMasking
from ltg_mdlm.api import Plugin, hookimpl

class P(Plugin):
    @hookimpl
    def ltg_mdlm_masking(self, ctx):
        return UniformMasking(ctx.mask_id)
"""


@pytest.fixture
def two(tmp_path):
    """Two third-party distributions, whose plugins `early` and `late` both fill masking."""
    for name in ("early", "late"):
        write_distribution(tmp_path, name, MASKS, version="0.3")
    with installed(tmp_path):
        yield tmp_path


def considered(monkeypatch, value: str) -> set[str]:
    """Names of the plugins under LTG_MDLM_PLUGINS=value."""
    monkeypatch.setenv("LTG_MDLM_PLUGINS", value)
    installed_plugins.cache_clear()
    return set(installed_plugins())


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", BUILT_IN | {"early", "late"}),
        ("off", BUILT_IN),
        ("late", BUILT_IN | {"late"}),
        (" late, early,", BUILT_IN | {"early", "late"}),
    ],
)
def test_the_environment_decides_which_plugins_are_considered(two, monkeypatch, value, names):
    assert {"early", "late"} & considered(monkeypatch, value) == names - BUILT_IN
    assert names >= BUILT_IN


def test_off_does_not_even_read_the_metadata_of_others(two, monkeypatch):
    def forbidden(**_):
        raise AssertionError("looked at every distribution")

    monkeypatch.setattr("ltg_mdlm.host.discovery.entry_points", forbidden)
    assert considered(monkeypatch, "off") == BUILT_IN
    with pytest.raises(UserError, match=r"'late', and others are not considered because of LTG_MDLM_PLUGINS=off"):
        find("late")


@pytest.mark.parametrize(
    ("value", "name", "message"),
    [
        ("early", "late", r"'late' of late-dist 0\.3 is installed, but LTG_MDLM_PLUGINS=early does not list it"),
        ("early", "late", r"allow it with LTG_MDLM_PLUGINS=early,late, or unset"),
        ("early", "lat", r"(?s)no installed plugin is called 'lat'.*; LTG_MDLM_PLUGINS=early excludes others"),
        (
            "",
            "lat",
            r"(?s)no .* called 'lat' \(did you mean 'late'\?\).*late.*\(ltg-mdlm plugins list",
        ),
        ("off", "freq", r"no built-in plugin is called 'freq' \(did you mean 'freq_mdlm'\?\)"),
    ],
)
def test_an_error_says_why_a_plugin_is_not_considered(two, monkeypatch, value, name, message):
    considered(monkeypatch, value)
    with pytest.raises(UserError, match=message):
        find(name)


def test_a_distribution_that_claims_a_built_in_name_is_shut_out_by_off(tmp_path, monkeypatch):
    write_distribution(tmp_path, "freq_mdlm", MASKS, name="imposter")
    with installed(tmp_path):
        with pytest.raises(UserError, match=r"imposter 1\.0.*\n.*LTG_MDLM_PLUGINS=off"):
            find("freq_mdlm")
        considered(monkeypatch, "off")
        assert find("freq_mdlm").distribution == "ltg-mdlm"


def test_the_file_of_a_module_is_found_without_importing_its_package(tmp_path):
    package = tmp_path / "broken_package"
    package.mkdir()
    (package / "__init__.py").write_text("1 / 0\n")
    (package / "part.py").write_text("")
    with installed(tmp_path):
        assert module_file("broken_package.part") == str(package / "part.py")
        assert module_file("broken_package") == str(package / "__init__.py")
        assert module_file("broken_package.no_part") is None
        assert module_file("no_package_xyz.part") is None


def test_plugins_list_says_what_the_environment_keeps_out(two, run, monkeypatch):
    considered(monkeypatch, "early,erly")
    code, out, err = run("plugins", "list")
    assert (code, "early" in out, "late" in out) == (0, True, False)
    assert "LTG_MDLM_PLUGINS=early,erly: no others are considered" in err
    assert "LTG_MDLM_PLUGINS lists 'erly', which is not installed" in err


def test_plugins_list_shows_which_plugin_fills_each_slot(two, run):
    selected = ("--plugin", "early", "--plugin", "late", *(part for text in TINY for part in ("--set", text)))
    code, _, err = run("plugins", "list", *selected)
    assert code == 2
    assert "both 'early' (early-dist 0.3) and 'late' (late-dist 0.3) fill the slot 'masking'" in err
    code, out, _ = run("plugins", "list", *selected, "--set", "slots.masking=late", "--json")
    shown = {row.pop("slot"): row for row in json.loads(out)}
    assert code == 0
    late = {"plugin": "late", "distribution": "late-dist", "version": "0.3", "file": str(two / "late_module.py")}
    assert shown["masking"] == late
    assert shown["objective"]["plugin"] == "uniform_mdlm"
    assert shown["objective"]["version"] == metadata.version("ltg-mdlm")


def test_the_help_of_plugins_list_explains_the_variable(run):
    _, out, _ = run("plugins", "list", "--help")
    assert "LTG_MDLM_PLUGINS" in out


@pytest.mark.parametrize(
    ("program", "plugins", "edited", "mixed"),
    [
        ("wheel", "wheel", "wheel/ltg_mdlm/a.py", False),
        ("checkout", "checkout/plugins", "wheel/ltg_mdlm/a.py", False),
        ("checkout", "wheel", None, False),  # equal copies: pip install . and a run in the checkout
        ("checkout", "wheel", "wheel/ltg_mdlm_plugins/p.py", True),
        ("checkout", "wheel", "checkout/ltg_mdlm/a.py", True),
        ("wheel", "checkout/plugins", "checkout/plugins/ltg_mdlm_plugins/p.py", True),
        ("checkout", "elsewhere", None, False),
    ],
)
def test_two_different_copies_of_the_program_are_not_mixed(program, plugins, edited, mixed, tmp_path, monkeypatch):
    files = {"wheel": ("", ""), "checkout": ("", "plugins/"), "elsewhere": (None, "")}
    for copy, (host, built_in) in files.items():
        for path in [f"{built_in}ltg_mdlm_plugins/p.py"] + ([f"{host}ltg_mdlm/a.py"] if host is not None else []):
            (tmp_path / copy / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / copy / path).write_text("x = 1\n")
    if edited is not None:
        (tmp_path / edited).write_text("x = 2\n")
    monkeypatch.setattr(discovery, "__file__", str(tmp_path / program / "ltg_mdlm" / "host" / "discovery.py"))
    monkeypatch.setattr(discovery, "module_file", lambda _: str(tmp_path / plugins / "ltg_mdlm_plugins" / "p.py"))
    with pytest.raises(UserError, match="copies of ltg-mdlm") if mixed else nullcontext() as error:
        discovery.require_one_installation()
    if error is not None:
        for folder in (tmp_path / program / "ltg_mdlm", tmp_path / plugins / "ltg_mdlm_plugins"):
            assert f"{folder}\n" in str(error.value)
