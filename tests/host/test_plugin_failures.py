"""Every failure of a third-party plugin is one message that names the plugin, its distribution, version and file."""

import json
import re
import textwrap
from pathlib import Path

import pytest
import yaml
from support.runs import TINY, rows, status
from support.third_party import installed, write_distribution

from ltg_mdlm.core.errors import PluginFailure, UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.training.check import describe_run
from ltg_mdlm.training.launch import launch

IMPORTS = """\
import torch
from ltg_mdlm_plugins.conditioning import MaskRate
from ltg_mdlm_plugins.objectives import DiffusionObjective
from ltg_mdlm_plugins.schedules import Linear
from ltg_mdlm_plugins.uniform_mdlm import UniformMasking
from ltg_mdlm.api import *
from dataclasses import replace

class Options(PluginOptions):
    share: float = 0.5

class Parts(Component):
    def __init__(self, modules): self.modules = modules
"""
QUICK = (*TINY, "data.builtin_words=2000", "training.max_steps=3", "checkpoint.every=2", "validation.rows=2")
NO_HOOK = "def ltg_mdlm_masking(self): pass"


def plugin_with(hook: str) -> str:
    """Source of a plugin with one hook, given as its `def` line and body on one line."""
    return f"{IMPORTS}\nclass P(Plugin[Options]):\n    options_model = Options\n    @hookimpl\n    {hook}\n"


def message_of(folder: Path, source: str) -> str:
    """The error of `check` for a plugin `odd` with this source."""
    module = write_distribution(folder, "odd", source, version="2.5")
    with installed(folder), pytest.raises(UserError) as error:
        describe_run(load_settings([], QUICK, ["odd"]))
    text = str(error.value)
    assert text.startswith(f"plugin 'odd' of odd-dist 2.5 ({module})"), text
    return text


AT_START = {
    "a missing dependency": ("import nonexistent_package_xyz", "importing odd_module:P raised ModuleNotFoundError"),
    "a syntax error": ("def f(:\n    pass", r"raised SyntaxError: [^\n]*\n  at [^\n]*odd_module.py:1\n"),
    "an exit": ("import sys\nsys.exit(1)", r"raised SystemExit: 1\n  at [^\n]*odd_module.py:2\n"),
    "no such class": ("Q = 1", "raised AttributeError: module 'odd_module' has no attribute 'P'\n  set LTG"),
    "not a plugin": ("P = 1", "odd_module:P is not a subclass of ltg_mdlm.api.Plugin"),
    "a newer API": (
        plugin_with(NO_HOOK).replace("options_model =", "api_version = 99; options_model ="),
        r"is written for plugin API 99; this is API \d+: update ltg-mdlm$",
    ),
    "an older API": (
        plugin_with(NO_HOOK).replace("options_model =", "api_version = -1; options_model ="),
        r"is written for plugin API -1; this is API \d+: update odd-dist$",
    ),
    "an API version as text": (
        plugin_with(NO_HOOK).replace("options_model =", "api_version = '1'; options_model ="),
        "api_version is '1', not a whole number",
    ),
    "no options": (
        plugin_with(NO_HOOK).replace("model = Options", "model = dict"),
        "options_model is <class 'dict'>, not a subclass",
    ),
    "forgotten options": (
        plugin_with(NO_HOOK) + "    def __init__(self, options): pass\n",
        "P.__init__ does not keep its options",
    ),
    "a failing constructor": (
        plugin_with(NO_HOOK) + "    def __init__(self, options): 1 / 0\n",
        r"P\(\) raised ZeroDivisionError: division by zero\n  at [^\n]*odd_module.py:\d+",
    ),
    "a misspelt hook": (plugin_with("def ltg_mdlm_maskng(self): pass"), "ltg_mdlm_maskng.*\n  hooks of the host: "),
    "an argument no hook has": (plugin_with("def ltg_mdlm_masking(self, context): pass"), "'context'.*\n  hooks of"),
    "a failing check": (plugin_with("def ltg_mdlm_check_config(self): 1 / 0"), "ltg_mdlm_check_config raised Zero"),
    "one warning as text": (
        plugin_with("def ltg_mdlm_check_config(self): return 'slow'"),
        "ltg_mdlm_check_config returned str, not a list of str",
    ),
    "failing statistics": (
        plugin_with("def ltg_mdlm_corpus_statistics(self, stats): stats.nothing"),
        "ltg_mdlm_corpus_statistics raised AttributeError: .*'nothing'",
    ),
    "learned parts that are no modules": (
        plugin_with("def ltg_mdlm_observers(self): return [Parts(lambda: {'weight': 1})]"),
        r"Parts.modules returned dict, not a mapping of names to torch.nn.Module",
    ),
    "a learned part without a parameter": (
        plugin_with("def ltg_mdlm_observers(self): return [Parts(lambda: {'gate': torch.nn.ReLU()})]"),
        "Parts.modules: 'gate' has no parameter that requires a gradient, so it cannot learn",
    ),
    "learned parts without a loss": (
        plugin_with("def ltg_mdlm_observers(self): return [Parts(lambda: {'gate': torch.nn.Linear(1, 1)})]"),
        "Parts.modules returned learned parts, but Parts defines no own_loss",
    ),
    "a failing slot": (
        plugin_with("def ltg_mdlm_masking(self): raise KeyError"),
        r"ltg_mdlm_masking raised KeyError\n  at [^\n]*odd_module.py:\d+\n  set LTG_MDLM_DEBUG=1",
    ),
    "a component of another slot": (
        plugin_with("def ltg_mdlm_masking(self): return Linear()"),
        "ltg_mdlm_masking returned Linear, not a MaskingStrategy",
    ),
    "the class in place of an object": (
        plugin_with("def ltg_mdlm_masking(self): return UniformMasking"),
        "ltg_mdlm_masking returned the class UniformMasking itself, not a MaskingStrategy",
    ),
    "a strategy that masks nothing": (
        plugin_with("def ltg_mdlm_masking(self, ctx): return MaskingStrategy(ctx.mask_id)"),
        "ltg_mdlm_masking raised TypeError: MaskingStrategy must define one of mask_probability, choose, corrupt,",
    ),
    "one observer": (
        plugin_with("def ltg_mdlm_observers(self): return Component()"),
        "ltg_mdlm_observers returned Component, not a list of Component",
    ),
    "an observer that is none": (
        plugin_with("def ltg_mdlm_observers(self): return [print]"),
        "ltg_mdlm_observers returned builtin_function_or_method in its list, not a Component",
    ),
    "a failing generator": (
        plugin_with("def ltg_mdlm_observers(self): yield 1 / 0"),
        "ltg_mdlm_observers raised ZeroDivisionError",
    ),
}


@pytest.mark.parametrize(("source", "message"), AT_START.values(), ids=AT_START)
def test_a_failure_at_start_up_names_the_plugin_and_what_it_did(source, message, tmp_path):
    assert re.search(message, message_of(tmp_path, source))


def test_a_user_error_of_the_plugin_is_passed_on_unchanged(tmp_path):
    write_distribution(
        tmp_path, "odd", plugin_with("def ltg_mdlm_check_config(self): raise UserError('rows are too long')")
    )
    with installed(tmp_path), pytest.raises(UserError, match=r"^odd: rows are too long$"):
        describe_run(load_settings([], QUICK, ["odd"]))


def train_odd(folder: Path, slot: str, component: str) -> tuple[Path, Path]:
    """Train with a plugin `odd` whose component fails; (its file, the run folder)."""
    source = plugin_with(f"def ltg_mdlm_{slot}(self, ctx): return make(ctx)")
    module = write_distribution(folder / "site", "odd", source + component)
    with installed(folder / "site"):
        launch(load_settings([], QUICK, ["odd"], folder / "run"))
    return module, folder / "run"


IN_TRAINING = {
    "masking": (
        "masking",
        """
        class C(UniformMasking):
            def mask_probability(self, batch, noise, step):
                if step.step == 1: raise ArithmeticError("the culprit")
                return super().mask_probability(batch, noise, step)
        def make(ctx): return C(ctx.mask_id)
        """,
        r"C.mask_probability \(masking\) failed in step 2",
    ),
    "objective": (
        "objective",
        """
        class C(DiffusionObjective):
            def weights(self, supervised, step):
                if step.step == 2: return helper(step)
                return super().weights(supervised, step)
        def helper(step): raise ArithmeticError("the culprit")
        def make(ctx): return C(1.0)
        """,
        r"C.weights \(objective\) failed in step 3",
    ),
    "the code that it inherits": (
        "objective",
        """
        class C(DiffusionObjective):
            def __init__(self): pass
        def make(ctx): return C()
        """,
        r"C.bound_for \(objective\) failed before the first step",
    ),
    "an observer": (
        "observers",
        """
        class C(Component):
            def metrics(self): raise ArithmeticError("the culprit")
        def make(ctx): return [Component(), C()]
        """,
        r"C.metrics \(observer1\) failed in step 1",
    ),
}


@pytest.mark.parametrize(("slot", "component", "message"), IN_TRAINING.values(), ids=IN_TRAINING)
def test_a_failure_in_training_names_plugin_component_and_step(slot, component, message, tmp_path):
    with pytest.raises(PluginFailure) as failure:
        train_odd(tmp_path, slot, textwrap.dedent(component))
    named = re.escape(f"plugin 'odd' of odd-dist 1.0 ({tmp_path / 'site' / 'odd_module.py'}): ")
    assert re.fullmatch(named + message, str(failure.value)), failure.value
    recorded = status(tmp_path / "run")["reason"] if (tmp_path / "run").exists() else failure.value.reason
    assert recorded.startswith(f"{failure.value} with ")
    assert "C' object has no attribute 'power'" in recorded or recorded.endswith("ArithmeticError: the culprit")


WRONG_RESULTS = {
    "masking": (
        "class C(UniformMasking):\n    def mask_probability(self, *a): return super().mask_probability(*a)[:, :1]",
        "C(ctx.mask_id)",
        r"C.mask_probability returned float32\[\d+, 1\], not float\[\d+, 32\]",
    ),
    "noise_schedule": (
        "class C(Linear):\n    def rate(self, t, progress): return t.unsqueeze(1)",
        "C()",
        r"C.sample returned rate_B as float64\[\d+, 1\], not float\[\d+\]",
    ),
    "objective": (
        "class C(DiffusionObjective):\n    def weights(self, *a): return super().weights(*a)[0]",
        "C(1.0)",
        r"C.weights returned Tensor, not a pair \(nll_weight_N, z_weight_N or None\)",
    ),
    "time_conditioning": (
        "class C(MaskRate):\n    def value(self, *a): return super().value(*a).long()",
        "C()",
        r"C.value returned int64\[\d+\], not float\[\d+\]",
    ),
    "row_mode": (
        "class C(RowMode):\n    def causal(self, step, device): return torch.zeros(step.rows - 1, dtype=torch.bool)",
        "C()",
        r"C.causal returned bool\[1\], not bool\[2\]",
    ),
    "observers": (
        "class C(Component):\n    def state_dict(self): return {'count': 1}",
        "[C()]",
        "C.state_dict returned 'count' as int, not a tensor",
    ),
}


@pytest.mark.parametrize(("slot", "wrong"), WRONG_RESULTS.items(), ids=WRONG_RESULTS)
def test_a_wrong_first_result_names_plugin_and_method(slot, wrong, tmp_path):
    component, made, message = wrong
    with pytest.raises(UserError) as error:
        train_odd(tmp_path, slot, f"{component}\ndef make(ctx): return {made}\n")
    named = re.escape(f"plugin 'odd' of odd-dist 1.0 ({tmp_path / 'site' / 'odd_module.py'}): ")
    assert re.fullmatch(named + message, str(error.value)), error.value
    assert status(tmp_path / "run") == {"status": "failed", "step": 0, "reason": f"UserError: {error.value}"}


def test_checks_of_results_call_no_component(tmp_path):
    """A strategy that counts its own calls trains as without checks."""
    component = """
    class C(UniformMasking):
        steps = []
        def mask_probability(self, batch, noise, step):
            self.steps.append(step.step)
            return super().mask_probability(batch, noise, step)
        def metrics(self): return {f"calls_{step}": self.steps.count(step) for step in set(self.steps)}
    def make(ctx): return C(ctx.mask_id)
    """
    _, run = train_odd(tmp_path, "masking", textwrap.dedent(component))
    *_, last = (row for row in rows(run) if "loss" in row)
    assert [last[f"odd/calls_{step}"] for step in range(3)] == [2, 1, 1]  # validation uses step 0, too


def test_a_metric_that_is_no_number_names_plugin_and_method(tmp_path):
    component = "class C(Component):\n    def metrics(self): return {'curve': [1, 2]}\ndef make(ctx): return [C()]\n"
    with pytest.raises(UserError, match=r"C\.metrics returned 'curve' as list, not a single number$"):
        train_odd(tmp_path, "observers", component)


def test_the_files_of_a_run_tell_which_plugin_filled_each_slot(tmp_path):
    component = "class C(UniformMasking): pass\ndef make(ctx): return C(ctx.mask_id)\n"
    module, run = train_odd(tmp_path, "masking", component)
    expected = {"plugin": "odd", "distribution": "odd-dist", "version": "1.0", "file": str(module)}
    state = json.loads((run / "checkpoints" / "step_0000003" / "state.json").read_text())
    for provenance in (yaml.safe_load((run / "config.yaml").read_text())["provenance"], state["provenance"]):
        assert provenance["masking"] == expected
        assert provenance["objective"]["plugin"] == "uniform_mdlm"
        assert provenance["objective"]["distribution"] == "ltg-mdlm"


MASKS = "class C(UniformMasking): pass\ndef make(ctx): return C(ctx.mask_id)\n"


@pytest.fixture
def interrupted(tmp_path):
    """The folder of a run with the plugin `odd` of odd-dist 1.0, which fills masking, stopped after two steps."""
    stops = MASKS.replace("pass", "\n    def step_end(self, step): 1 / (2 - step.step)")
    with pytest.raises(PluginFailure):
        train_odd(tmp_path, "masking", stops)
    return tmp_path / "run"


def resume(run: Path, source: str, **distribution: str) -> int:
    """Run the same command again, with another distribution of `odd`; returns the exit code."""
    site = run.parent / "other-site"
    write_distribution(site, "odd", source, **distribution)
    with installed(site):
        return launch(load_settings([], QUICK, ["odd"], run))


def test_resuming_with_another_version_is_noted(interrupted, capsys):
    source = plugin_with("def ltg_mdlm_masking(self, ctx): return make(ctx)") + MASKS
    assert resume(interrupted, source, version="1.1") == 0
    assert "note: odd was odd-dist 1.0, now it is odd-dist 1.1" in capsys.readouterr().out


def test_an_option_that_a_later_version_added_has_its_default(interrupted):
    plugin = plugin_with("def ltg_mdlm_masking(self, ctx): return make(ctx)")
    option = "class More(Options):\n    floor: float = 0.0\n"
    source = plugin.replace(
        "\nclass P(Plugin[Options]):\n    options_model = Options",
        f"\n{option}\nclass P(Plugin[More]):\n    options_model = More",
    )
    assert "Plugin[More]" in source
    assert resume(interrupted, source + MASKS, version="1.1") == 0


def test_resuming_with_another_distribution_of_the_same_plugin_name_is_refused(interrupted):
    source = plugin_with("def ltg_mdlm_masking(self, ctx): return make(ctx)") + MASKS
    with pytest.raises(UserError, match=r"plugin 'odd' was provided by odd-dist 1\.0, now by fork-dist 1\.0"):
        resume(interrupted, source, name="fork-dist")


def test_resuming_with_a_version_that_fills_other_slots_is_refused(interrupted):
    before = (interrupted / "metrics.jsonl").read_bytes()
    source = plugin_with("def ltg_mdlm_masking(self, ctx): return None")
    message = r"masking was filled by 'odd' \(odd-dist 1\.0\), now by 'uniform_mdlm' \(ltg-mdlm "
    with pytest.raises(UserError, match=message):
        resume(interrupted, source, version="2.0")
    assert (interrupted / "metrics.jsonl").read_bytes() == before
