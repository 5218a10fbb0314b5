"""`ltg-mdlm plugins new`: what it writes installs, passes its tests, checks and trains without changes."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hatchling.build import build_wheel
from support.runs import TINY, rows
from support.third_party import installed
from support.trained import write_run

from ltg_mdlm import __version__
from ltg_mdlm.cli.plugin_help import describe_plugin
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.scaffold import Kind
from ltg_mdlm.scaffold.write_distribution import EXAMPLE_SETTINGS, names_of, write_distribution
from ltg_mdlm.training.launch import launch

ROOT = Path(__file__).parents[2]
KINDS = get_args(Kind)
SLOT = {"masking": "masking", "schedule": "noise_schedule", "objective": "objective"}
SLOT |= {"conditioning": "time_conditioning", "observer": "observers", "order": "unmasking_orders"}
QUICK = (*TINY, "data.builtin_words=2000", "training.max_steps=5", "validation.rows=2")


def installed_wheel(folder: Path, site: Path) -> Path:
    """Build the wheel of a distribution and unpack it into `site`, as pip does."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        name = build_wheel(str(site.parent))
    finally:
        os.chdir(before)
    zipfile.ZipFile(site.parent / name).extractall(site)
    return site


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The folder of a new plugin of every kind, `my_<kind>`, all of them installed."""
    folder = tmp_path_factory.mktemp("scaffold")
    (folder / "wheels").mkdir()
    for kind in KINDS:
        _, written = write_distribution(f"my-{kind}", kind, folder / kind)
        site = installed_wheel(written, folder / "wheels" / "site")
    with installed(site):
        yield folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_found_checked_and_trained_without_changes(kind, fresh, run, tmp_path):
    name = f"my_{kind}"
    shown = describe_plugin(name)
    assert (shown.distribution, shown.version) == (f"ltg-mdlm-my-{kind}", "0.1.0")
    assert shown.hooks == [f"ltg_mdlm_{SLOT[kind]}"]
    assert all(option.description for option in shown.options)
    sets = [part for text in QUICK for part in ("--set", text)]
    code, out, err = run("check", "--plugin", name, *sets)
    assert code == 0, err
    if kind == "order":
        model = write_run(tmp_path / "model")
        code, out, err = run("generate", str(model), "--plugin", name, "--sampler", name, "--length", "4", "--json")
        assert (code, json.loads(out)["rule"]["sampler"]) == (0, name), err
        return
    assert f"{SLOT[kind].replace('observers', 'observer0')}: {name}" in out
    assert launch(load_settings([], QUICK, [name], tmp_path / "run")) == 0
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert len(losses) == 5
    if kind == "observer":
        last = [row for row in rows(tmp_path / "run") if "loss" in row][-1]
        assert {"my_observer/accuracy_light", "my_observer/accuracy_heavy"} <= last.keys()


def test_new_plugins_pass_the_tests_that_they_come_with(fresh):
    """Runs the tests of their formulas. The conformance checks take longer and are tested elsewhere."""
    checks = " or ".join(f"TestMy{kind.capitalize()}Plugin" for kind in KINDS)
    options = ("-v", "-p", "no:cacheprovider", "--import-mode=importlib", f"--rootdir={fresh}", "-k", f"not ({checks})")
    command = [sys.executable, "-m", "pytest", *options, *KINDS]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=fresh, env=paths, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    passed = set(re.findall(r"^(\w+)/tests/test_plugin.py::test_\w+ PASSED", done.stdout, re.MULTILINE))
    assert passed == set(KINDS), done.stdout


def test_new_plugins_are_formatted_linted_and_typed(fresh):
    pytest.importorskip("ruff")
    api = pytest.importorskip("mypy.api")
    for kind in KINDS:
        for command in (["check", "--select=E,F,W,I,B,UP,SIM"], ["format", "--diff"]):
            ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
            done = subprocess.run(ruff, cwd=fresh / kind, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    modules = [str(next((fresh / kind / "src").glob("*/plugin.py"))) for kind in KINDS]
    out, err, code = api.run(["--strict", f"--config-file={ROOT / 'pyproject.toml'}", *modules])
    assert code == 0, out + err


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_has_the_names_of_the_plugin(kind, tmp_path):
    _, folder = write_distribution("zipf", kind, tmp_path / "new")
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert {".gitignore", "LICENSE", "README.md", "src/ltg_mdlm_zipf/plugin.py"} <= set(files)
    assert not [name for name, text in files.items() if re.search(r"\{[{%]", text.replace("${{ matrix", ""))]
    assert yaml.safe_load(files[".github/workflows/tests.yml"])["jobs"]["tests"]["strategy"]
    assert 'zipf = "ltg_mdlm_zipf.plugin:ZipfPlugin"' in files["pyproject.toml"]
    assert f"ltg-mdlm>={__version__}" in files["pyproject.toml"]
    assert "class ZipfPlugin(Plugin[Options])" in files["src/ltg_mdlm_zipf/plugin.py"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_sets_an_option_to_another_value_than_its_default(kind, fresh):
    option, _, value = EXAMPLE_SETTINGS[kind].partition("=")
    defaults = {option.name: option.default for option in describe_plugin(f"my_{kind}").options}
    assert defaults[option] != float(value)
    assert f"--set plugins.my_{kind}.{option}={value}" in (fresh / kind / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "plugin", "distribution", "plugin_class"),
    [
        ("zipf", "zipf", "ltg-mdlm-zipf", "ZipfPlugin"),
        ("Late.Masking", "late_masking", "ltg-mdlm-late-masking", "LateMaskingPlugin"),
        ("ltg_mdlm_late--masking", "late_masking", "ltg-mdlm-late-masking", "LateMaskingPlugin"),
        ("plugin", "plugin", "ltg-mdlm-plugin", "PluginPlugin"),
    ],
)
def test_a_name_is_read_as_package_indexes_read_it(text, plugin, distribution, plugin_class):
    names = names_of(text)
    assert (names.plugin, names.distribution, names.plugin_class) == (plugin, distribution, plugin_class)
    assert names.module == distribution.replace("-", "_")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be the name of a distribution"),
        ("late masking", "cannot be the name of a distribution"),
        ("../late", "cannot be the name of a distribution"),
        ("late-", "cannot be the name of a distribution"),
        ("späte", "cannot be the name of a distribution"),
        ("2late", "must begin with a letter"),
        ("Lambda", "'lambda' is a keyword of Python"),
        ("freq-mdlm", r"'freq_mdlm' is already installed, from ltg-mdlm \d"),
        ("plugins", "a module called ltg_mdlm_plugins is already installed"),
        ("off", "LTG_MDLM_PLUGINS=off disables"),
        ("valid", "logged as valid/"),
    ],
)
def test_names_that_cannot_be_used_are_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_distribution(text, "masking", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_left_unchanged(tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="already exists"):
        write_distribution("late", "masking", tmp_path)
    with pytest.raises(UserError, match="already exists"):
        write_distribution("late", "masking", tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="is the current folder"):
        write_distribution("late", "masking", Path("."))


def test_a_distribution_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="new: the disk is full; nothing was written"):
        write_distribution("late", "masking", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_commands_that_exist(run, tmp_path):
    code, out, err = run("plugins", "new", "late", "--kind", "schedule", "--out", str(tmp_path / "new folder"))
    assert code == 0, err
    assert f"cd '{tmp_path / 'new folder'}'" in out
    assert "train --plugin late" in out
    code, _, err = run("plugins", "new", "late", "--kind", "scheduel", "--out", str(tmp_path / "other"))
    assert (code, "scheduel" in err, (tmp_path / "other").exists()) == (2, True, False)
