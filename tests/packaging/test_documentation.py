"""The documentation agrees with the code: examples run, names exist, every hook and command is documented."""

import ast
import doctest
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch
import typer
from support.commands import all_commands

from ltg_mdlm import api
from ltg_mdlm.api import Noise, Plugin, Step
from ltg_mdlm.cli.app import app
from ltg_mdlm.core import batch, components, optimizer
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.settings import config_folders, flatten
from ltg_mdlm.host import hookspecs
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
    plugin = namespace["Tilted"](namespace["Options"](tilt=1.0))
    assert isinstance(plugin, Plugin)
    strategy = namespace["TiltedMasking"](4, 1.0)
    batch = batch_of([[[16 + i % 30 for i in range(length)]] for length in (1, 7, 60)], 64)
    rate_B = torch.tensor([0.05, 0.3, 0.95], dtype=torch.float64)
    noise = Noise(t_B=rate_B, rate_B=rate_B, slope_B=torch.ones_like(rate_B))
    p_BT = strategy.mask_probability(batch, noise, Step(seed=0, step=0, progress=0.0, epoch=0.0, rows=3))
    for row, rate in enumerate(rate_B.tolist()):
        p = p_BT[row][batch.maskable_BT[row]]
        assert torch.all((p >= 0) & (p <= 1))
        assert torch.all(p[1:] >= p[:-1])
        assert float(p.double().mean()) == pytest.approx(rate, abs=1e-6)


def test_the_readme_names_configs_that_exist():
    known = {path.stem for folder in config_folders() for path in folder.glob("*.yaml")}
    assert set(re.findall(r"--config (\w+)", README)) <= known


PAGES = [ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
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


COMMANDS = {
    name: command
    for name, command in all_commands(typer.main.get_command(app), "ltg-mdlm").items()
    if not hasattr(command, "commands")
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_every_option_has_a_help_text(name):
    assert COMMANDS[name].help
    assert [parameter.name for parameter in COMMANDS[name].params if not parameter.help] == []


def load_generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = load_generator()


@pytest.fixture(scope="module")
def site() -> dict[Path, str]:
    """The Markdown of every page in the repository, with what the site generates."""
    others = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    return {page: GENERATE.on_page_markdown(page.read_text("utf-8")) for page in [*PAGES, *others]}


def undocumented(body: list[ast.stmt], prefix: str) -> list[str]:
    """Public classes, functions and assigned names without a docstring."""
    found = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name, documented = node.name, ast.get_docstring(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            name = ast.unparse(target)
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        else:
            continue
        if not name.startswith("_") and not documented:
            found.append(prefix + name)
        if isinstance(node, ast.ClassDef) and not name.startswith("_"):
            found += undocumented(node.body, f"{prefix}{name}.")
    return found


def test_everything_in_the_plugin_api_has_a_docstring():
    sources = [inspect.getsource(module) for module in (batch, components, hookspecs, optimizer)]
    names = {name for source in sources for name in undocumented(ast.parse(source).body, "")}
    exported = {name for name in names if name.partition(".")[0] in api.__all__}
    assert exported == {"PluginOptions.model_config"}  # pydantic's


@pytest.mark.parametrize("name", api.__all__)
def test_the_reference_has_every_public_name_of_the_plugin_api(site, name):
    page = site[ROOT / "docs/reference/api.md"]
    assert re.search(rf"^(::: ltg_mdlm\.api\.|### ){name}$", page, re.MULTILINE)


@pytest.mark.parametrize("name", HOOKS)
def test_the_reference_has_every_hook_with_its_example(site, name):
    entry = site[ROOT / "docs/reference/hooks.md"].partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    signature, example = re.findall(r"```python\n(.*?)```", entry, re.DOTALL)
    assert signature.startswith(f"{name}(")
    exec(example, {"__name__": "example"})


@pytest.mark.parametrize("name", HOOKS)
def test_the_guide_has_every_hook(name):
    guide = [ROOT / "docs" / f"{page}.md" for page in ("write_a_plugin", "slots", "adaptive", "publish")]
    assert any(name in page.read_text("utf-8") for page in guide)


def table_of(page: str) -> dict[str, list[str]]:
    """The other cells of every table row that begins with a key in backticks."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page, re.MULTILINE)
    return {key: re.split(r" (?<!\\)\| ", cells) for key, cells in rows}


def test_the_reference_has_every_setting_with_a_description(site):
    table = table_of(site[ROOT / "docs/reference/settings.md"])
    keys = set(flatten(RunConfig().model_dump()))
    nested = {"training.batch_ramp.start", "training.batch_ramp.until"}
    nested |= {f"data.curriculum.{name}" for name in ("by", "order", "scores", "over")}
    assert keys | nested == set(table)
    assert [key for key, (_, _, description) in table.items() if not description] == []


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("seed", "integer >= 0", "`0`"),
        ("training.micro_batch_rows", "integer >= 1 or null", "`null`"),
        ("optimizer.name", "string", "`lamb`"),
        ("optimizer.betas", "[number >= 0, &lt;= 1, number >= 0, &lt;= 1]", "`[0.9, 0.98]`"),
        ("model.position_bucket_size", "integer >= 4, multiple of 2", "`32`"),
        ("training.batch_ramp", "the settings below, or null", "`null`"),
        ("data.corpus", "string", "`builtin`"),
        ("plugins", "mapping", ""),
    ],
)
def test_the_reference_gives_types_and_defaults(site, key, kind, default):
    assert table_of(site[ROOT / "docs/reference/settings.md"])[key][:2] == [kind, default]


def test_the_reference_has_the_options_of_the_built_in_plugins(site):
    page = site[ROOT / "docs/reference/options.md"]
    for plugin, option in [("uniform_mdlm", "schedule"), ("freq_mdlm", "power"), ("gpt_bert", "causal_share")]:
        entry = page.partition(f"\n## {plugin}\n")[2].partition("\n## ")[0]
        assert option in table_of(entry)
        assert all(description for *_, description in table_of(entry).values())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_has_every_command_with_its_options(site, name):
    entry = site[ROOT / "docs/reference/commands.md"].partition(f"\n## `{name}`\n")[2]
    entry = entry or site[ROOT / "docs/reference/commands.md"].partition(f"\n### `{name}`\n")[2]
    entry = re.split(r"^#+ `", entry, maxsplit=1, flags=re.MULTILINE)[0]
    shown = [parameter for parameter in COMMANDS[name].params if not getattr(parameter, "hidden", False)]
    options = {option for parameter in shown for option in parameter.opts if option.startswith("--")}
    assert options <= set(re.findall(r"`(--[\w-]+)", entry))


def anchors(markdown: str) -> set[str]:
    """What a link into the page may name: headings, and the objects of the reference."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def test_links_and_their_anchors_exist(site):
    broken = []
    for page, text in site.items():
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            known = anchors(site[file]) if file in site else set()
            if not file.exists() or (anchor and anchor not in known):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_links_of_a_page_on_the_site_stay_on_the_site():
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)\s#]+)", page.read_text("utf-8")):
            assert (page.parent / target).resolve().is_relative_to(ROOT / "docs"), f"{page.name}: {target}"
