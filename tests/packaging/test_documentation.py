"""Documentation that cannot rot: its examples run, its names exist, and every hook is documented and tested."""

import doctest
import inspect
import re
from pathlib import Path

import pytest
import torch
import typer

from ltg_mdlm import hookspecs
from ltg_mdlm.api import Noise, Plugin, Step
from ltg_mdlm.cli import app
from ltg_mdlm.config import config_folders
from ltg_mdlm.testing.toy import batch_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOOKS = [name for name in vars(hookspecs) if name.startswith("ltg_mdlm_")]


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_an_example_that_runs(name):
    examples = doctest.DocTestFinder().find(getattr(hookspecs, name), name, globs={})
    runner = doctest.DocTestRunner()
    assert [example for test in examples for example in test.examples], f"{name} has no example"
    assert all(runner.run(test).failed == 0 for test in examples)


@pytest.mark.parametrize("name", HOOKS)
def test_the_example_of_a_hook_implements_that_hook(name):
    assert f"def {name}(" in inspect.getdoc(getattr(hookspecs, name))


def test_the_readme_plugin_masks_at_its_rate():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    namespace = {}
    exec(code, namespace)
    plugin = namespace["Tilted"](namespace["Options"](tilt=0.5))
    assert isinstance(plugin, Plugin)
    strategy = namespace["TiltedMasking"](4, 0.5)
    batch = batch_of([[[16 + i % 30 for i in range(60)]]] * 4, 64)
    rate_B = torch.full((4,), 0.3, dtype=torch.float64)
    noise = Noise(t_B=rate_B, rate_B=rate_B, slope_B=torch.ones_like(rate_B))
    p_BT = strategy.mask_probability(batch, noise, Step(seed=0, step=0, progress=0.0, epoch=0.0, rows=4))
    for row in range(4):
        p = p_BT[row][batch.maskable_BT[row]]
        assert torch.all(p[1:] >= p[:-1])
        assert float(p.mean()) == pytest.approx(0.3, abs=0.02)


def test_the_readme_names_configs_and_files_that_exist():
    known = {path.stem for folder in config_folders() for path in folder.glob("*.yaml")}
    assert set(re.findall(r"--config (\w+)", README)) <= known
    assert all((ROOT / target).exists() for target in re.findall(r"\]\((?!http)([^)#]+)\)", README))


PAGES = [ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?<![\w/])ltg-mdlm ([a-z][^`|#;.()\n]*)")
LINES = [(page.name, line) for page in PAGES for line in COMMAND.findall(page.read_text("utf-8"))]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_commands_in_the_documentation_exist_with_their_options(page, line):
    words = line.split()
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: ltg-mdlm {line}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known | {"--help"}, f"{page}: ltg-mdlm {line}"
