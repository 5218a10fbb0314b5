"""The guide to writing a plugin: every example runs, trains, and is what the README shows.

Convention: a block marked `python` is a module of its own and is run; a `title` names the file it stands for.
"""

import dataclasses
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.build import build_wheel
from support.installed import plugins_installed
from support.runs import TINY, environment, rows, status

from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.testing.check_report import examine
from ltg_mdlm.testing.ranks import run_on_ranks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHORT = ("training.max_steps=4", "training.micro_batch_rows=2", "validation.rows=4")


@dataclasses.dataclass(frozen=True)
class Example:
    """One block of code."""

    page: Path
    line: int
    title: str
    code: str

    @property
    def plugin(self) -> str | None:
        """Name of the plugin class that it defines."""
        found = re.search(r"^class (\w+)\(Plugin\b", self.code, re.MULTILINE)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def examples(page: Path, language: str) -> list[Example]:
    """The page's blocks in a language."""
    text = page.read_text("utf-8")
    blocks = re.finditer(rf'^```{language}(?: title="([^"]*)")?\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    return [Example(page, text.count("\n", 0, b.start(2)) + 1, b[1] or "", b[2]) for b in blocks]


EXAMPLES = [example for page in PAGES for example in examples(page, "python")]
PLUGINS = [example for example in EXAMPLES if example.plugin]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_runs(example):
    exec(compile("\n" * (example.line - 1) + example.code, str(example.page), "exec"), {"__name__": "example"})


def installed(example: Example, folder: Path) -> str:
    """Lay the example's plugin out as an installed distribution; the plugin's name."""
    name = example.plugin.lower()
    (folder / f"{name}_example.py").write_text(example.code)
    metadata = folder / f"{name}_example-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-example\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[ltg_mdlm]\n{name} = {name}_example:{example.plugin}\n")
    return name


@pytest.mark.parametrize("example", {e.plugin: e for e in PLUGINS}.values(), ids=lambda example: example.plugin)
def test_a_plugin_of_the_guide_passes_the_conformance_kit(example, tmp_path):
    name = installed(example, tmp_path)
    with plugins_installed(tmp_path):
        verdicts = examine(name)
    assert [f"{v.check.title}: {v.reason}" for v in verdicts if v.outcome == "failed"] == []
    assert "passed" in {v.outcome for v in verdicts}


def trained(rank: int, folder: Path, name: str, sets: tuple[str, ...]) -> list[dict]:
    """Rows that a short run with this plugin logs in training."""
    sys.path.insert(0, str(folder))
    from ltg_mdlm.training.launch import launch

    launch(load_settings([], [*TINY, *SHORT, *sets], [name], folder / "run"))
    return [row for row in rows(folder / "run") if "loss" in row]


def train_example(page: str, plugin: str, folder: Path, *sets: str) -> list[dict]:
    (example,) = (e for e in PLUGINS if e.page.name == page and e.plugin == plugin)
    name = installed(example, folder)
    return run_on_ranks(trained, 1, folder, name, sets, joined=False, timeout=300)[0]


def test_the_estimates_of_the_adaptive_example_move_when_they_are_due(tmp_path):
    logged = train_example("adaptive.md", "ErrorDriven", tmp_path, "plugins.errordriven.every=3")
    errors = [row["errordriven/mean_error"] for row in logged]
    assert errors[:2] == [1, 1]
    # At most one fifth of the way, down to what is never wrong.
    assert 0.8 <= errors[2] < 1
    assert errors[3] == errors[2]


def test_the_observer_of_the_guide_logs_a_share(tmp_path):
    logged = train_example("slots.md", "WordInitialWatch", tmp_path)
    assert len(logged) == 4
    assert all(0 <= row["wordinitialwatch/accuracy"] <= 1 for row in logged)


def test_the_readme_and_the_guide_show_the_same_plugin():
    (in_readme,) = examples(ROOT / "README.md", "python")
    assert in_readme.code == examples(ROOT / "docs/write_a_plugin.md", "python")[0].code


def test_the_first_plugin_has_fifteen_lines_beside_docstring_and_import():
    code = examples(ROOT / "docs/write_a_plugin.md", "python")[0].code
    lines = [line for line in code.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(('"""', "from "))]) == 15


@pytest.fixture(scope="module")
def first_plugin(tmp_path_factory) -> Path:
    """The files that the guide names, written out; what they build is installed into the folder `site`."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "tilted").mkdir()
    pages = [ROOT / "docs" / name for name in ("write_a_plugin.md", "publish.md")]
    for example in [e for page in pages for language in ("python", "toml") for e in examples(page, language)]:
        if example.title:
            (folder / example.title).write_text(example.code)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "tilted")
        wheel = build_wheel(str(folder))
    zipfile.ZipFile(folder / wheel).extractall(folder / "site")
    return folder


def test_the_first_plugin_is_found_by_its_wheel_and_documents_itself(first_plugin, run):
    with plugins_installed(first_plugin / "site"):
        code, out, _ = run("plugins", "show", "tilted", "--json")
    shown = json.loads(out)
    assert code == 0
    assert (shown["distribution"], shown["version"]) == ("ltg-mdlm-tilted", "0.1.0")
    assert [option["name"] for option in shown["options"]] == ["tilt"]
    assert shown["summary"] == "Mask content from the end of the row more often."


def test_the_first_plugin_trains_with_the_command_of_the_guide(first_plugin, run, tmp_path):
    (line,) = re.findall(r"ltg-mdlm (train --plugin tilted --set .*)", (ROOT / "docs/write_a_plugin.md").read_text())
    sets = [part for text in (*TINY, *SHORT) for part in ("--set", text)]
    arguments = [*line.split(), *sets, "--out", str(tmp_path / "run")]
    with plugins_installed(first_plugin / "site"):
        assert run(*arguments)[0] == 0
    assert status(tmp_path / "run")["status"] == "finished"


def test_the_tests_of_the_first_plugin_pass(first_plugin):
    """Without the check that starts two more processes, which `Tilted` has passed above."""
    files = sorted(file.name for file in (first_plugin / "tilted").glob("test_*.py"))
    assert files == ["test_idea.py", "test_tilted.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not two_processes", "tilted"]
    environ = environment()
    environ["PYTHONPATH"] = f"{first_plugin / 'site'}:{environ.get('PYTHONPATH', '')}"
    done = subprocess.run(command, cwd=first_plugin, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
