"""Contents of the built wheel, and installation of a new plugin with pip."""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import distributions
from pathlib import Path

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from ltg_mdlm.scaffold.write_distribution import write_distribution

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        name = build_wheel(str(out))
    finally:
        os.chdir(before)
    return zipfile.ZipFile(out / name)


def test_wheel_holds_every_module_of_both_packages(wheel):
    names = set(wheel.namelist())
    modules = [path.relative_to(ROOT) for path in (ROOT / "ltg_mdlm").rglob("*.py")]
    modules += [path.relative_to(ROOT / "plugins") for path in (ROOT / "plugins/ltg_mdlm_plugins").rglob("*.py")]
    assert {str(path) for path in modules} <= names


def test_the_lock_file_was_made_from_these_dependencies(wheel):
    """Otherwise `uv lock` writes it anew."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")
    (ours,) = (p for p in tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))["package"] if p["name"] == "ltg-mdlm")
    locked = {
        (dependency["name"], SpecifierSet(dependency["specifier"])) for dependency in ours["metadata"]["requires-dist"]
    }
    metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    stated = map(Requirement, Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist"))
    assert locked == {(canonicalize_name(r.name), r.specifier) for r in stated if r.name != "ltg-mdlm"}


def test_wheel_holds_every_named_config(wheel):
    configs = {f"ltg_mdlm/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs
    assert configs <= set(wheel.namelist())


@pytest.mark.parametrize("templates", ["ltg_mdlm/scaffold/templates", "ltg_mdlm/reporting/html_report/templates"])
def test_wheel_holds_the_templates(wheel, templates):
    files = {f"{templates}/{path.name}" for path in (ROOT / templates).iterdir()}
    assert files
    assert files <= set(wheel.namelist())


def test_a_new_plugin_is_installed_by_pip_with_its_entry_point(tmp_path):
    write_distribution("my-idea", "masking", tmp_path / "new")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(tmp_path / "site")]
    subprocess.run([*command, str(tmp_path / "new")], check=True, timeout=300)
    (point,) = (p for d in distributions(path=[str(tmp_path / "site")]) for p in d.entry_points)
    assert (point.group, point.name, point.value) == ("ltg_mdlm", "my_idea", "ltg_mdlm_my_idea.plugin:MyIdeaPlugin")
    assert (tmp_path / "site" / "ltg_mdlm_my_idea" / "plugin.py").is_file()


def test_wheel_registers_the_built_in_plugins_and_the_command(wheel):
    text = next(wheel.read(n).decode() for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "ltg-mdlm = ltg_mdlm.cli:main" in text
    for name in ("uniform_mdlm", "freq_mdlm", "gpt_bert"):
        assert f"{name} = ltg_mdlm_plugins.{name}:" in text


def test_wheel_holds_no_tests_and_no_data(wheel):
    assert not [n for n in wheel.namelist() if n.startswith(("tests/", "benchmarks/", "docs/")) or n.endswith(".bin")]


def test_wheel_holds_nothing_of_other_distributions(wheel):
    """The distributions in plugins/examples are installed separately."""
    assert not [name for name in wheel.namelist() if "amlm" in name or "dual" in name]
