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
from support.ranks import run_on_ranks
from support.runs import TINY, environment, losses, rows, status

from ltg_mdlm.config import load_settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHORT = ("training.max_steps=4", "training.micro_batch_rows=2", "validation.rows=4", "validation.pairs=null")


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


def train_example(rank: int, folder: Path, name: str, out: Path, sets: tuple[str, ...]) -> int:
    sys.path.insert(0, str(folder))
    from ltg_mdlm.train import launch

    return launch(load_settings([], [*TINY, *SHORT, *sets], [name], out))


def trained(example: Example, folder: Path, *sets: str, processes: int = 1) -> dict[int, float]:
    """Losses of a short run with the example's plugin."""
    name, out = installed(example, folder), folder / "run"
    codes = run_on_ranks(train_example, processes, folder, name, out, sets, joined=False, timeout=300)
    assert codes == [0] * processes
    return losses(out)


@pytest.mark.parametrize("example", PLUGINS, ids=str)
def test_a_plugin_of_the_guide_trains_from_its_entry_point(example, tmp_path):
    found = trained(example, tmp_path)
    assert sorted(found) == [1, 2, 3, 4]
    assert all(0 < loss < 100 for loss in found.values())
    assert status(tmp_path / "run")["status"] == "finished"


def example_on(page: str, plugin: str) -> Example:
    return next(e for e in PLUGINS if e.page.name == page and e.plugin == plugin)


def test_the_adaptive_example_trains_alike_on_one_and_on_two_processes(tmp_path):
    example = example_on("adaptive.md", "ErrorDriven")
    curves = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        curves.append(trained(example, folder, "plugins.errordriven.every=2", processes=processes))
        logged = [row["errordriven/mean_error"] for row in rows(folder / "run") if "errordriven/mean_error" in row]
        assert logged[0] == 1
        assert logged[1] != 1, "the second step updates the estimates"
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_the_observer_of_the_guide_logs_a_share(tmp_path):
    trained(example_on("slots.md", "WordInitialWatch"), tmp_path)
    logged = [row["wordinitialwatch/accuracy"] for row in rows(tmp_path / "run") if "loss" in row]
    assert all(0 <= share <= 1 for share in logged)


def test_the_readme_and_the_guide_show_the_same_plugin():
    (in_readme,) = examples(ROOT / "README.md", "python")
    assert in_readme.code == examples(ROOT / "docs/write_a_plugin.md", "python")[0].code


def test_the_first_plugin_has_fifteen_lines_beside_docstring_and_import():
    code = examples(ROOT / "docs/write_a_plugin.md", "python")[0].code
    lines = [line for line in code.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(('"""', "from "))]) == 15


@pytest.fixture(scope="module")
def first_plugin(tmp_path_factory) -> Path:
    """The two files that the guide shows, built to a wheel and installed into a folder of their own."""
    folder = tmp_path_factory.mktemp("guide")
    page = ROOT / "docs/write_a_plugin.md"
    for example in [*examples(page, "python"), *examples(page, "toml")]:
        assert example.title, f"{example} names no file"
        file = folder / example.title
        file.parent.mkdir(exist_ok=True)
        file.write_text(example.code)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "tilted")
        wheel = build_wheel(str(folder))
    zipfile.ZipFile(folder / wheel).extractall(folder / "site")
    return folder / "site"


def command(site: Path, *arguments: str) -> str:
    """Run `ltg-mdlm` with that folder on the path; its output."""
    environ = environment()
    environ["PYTHONPATH"] = f"{site}:{environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "ltg_mdlm", *arguments], capture_output=True, text=True, env=environ, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_plugin_is_found_by_its_wheel_and_documents_itself(first_plugin):
    shown = json.loads(command(first_plugin, "plugins", "show", "tilted", "--json"))
    assert (shown["distribution"], shown["version"]) == ("ltg-mdlm-tilted", "0.1.0")
    assert [option["name"] for option in shown["options"]] == ["tilt"]
    assert shown["summary"] == "Mask content from the end of the row more often."


def test_the_first_plugin_trains_with_the_command_of_the_guide(first_plugin, tmp_path):
    (line,) = re.findall(r"ltg-mdlm (train --plugin tilted --set .*)", (ROOT / "docs/write_a_plugin.md").read_text())
    sets = [part for text in (*TINY, *SHORT) for part in ("--set", text)]
    command(first_plugin, *line.split(), *sets, "--out", str(tmp_path / "run"))
    assert status(tmp_path / "run")["status"] == "finished"
