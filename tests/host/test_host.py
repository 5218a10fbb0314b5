"""Importing and registering plugins, and filling slots.  Every error names the plugin and its distribution."""

import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from pydantic import Field, computed_field, field_serializer

from ltg_mdlm.api import (
    Component,
    CorpusStatistics,
    MaskingStrategy,
    Optimizer,
    ParameterGroup,
    Plugin,
    PluginOptions,
    RunContext,
    TimeConditioning,
    hookimpl,
)
from ltg_mdlm.cli.plugin_help import describe_plugin
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host import discovery
from ltg_mdlm.host.discovery import Installed, installed_plugins
from ltg_mdlm.host.plugin_host import Host, options_as_json, seeded
from ltg_mdlm.testing import toy

CONTEXT = RunContext(
    seed=0,
    max_steps=10,
    seq_len=8,
    vocab_size=20,
    hidden_size=4,
    mask_id=4,
    special_V=torch.arange(20) < 16,
    tokens_V=tuple(map(str, range(20))),
    word_start_V=torch.ones(20, dtype=torch.bool),
    num_positions=100,
    device=torch.device("cpu"),
    rank=0,
    world_size=1,
    sum_over_ranks=lambda x: x,
)
STATISTICS = CorpusStatistics(token_count_V=torch.arange(20), num_tokens=190, num_words=100)


class Half(MaskingStrategy):
    def mask_probability(self, batch, noise, step):
        return torch.full(batch.ids_BT.shape, 0.5)


class HalfOptions(PluginOptions):
    share: float = Field(0.5, ge=0, le=1, description="of tokens to mask")


class HalfPlugin(Plugin[HalfOptions]):
    """Masks half of everything."""

    options_model = HalfOptions

    @hookimpl
    def ltg_mdlm_masking(self, ctx):
        return Half(ctx.mask_id)


class OtherHalfPlugin(HalfPlugin):
    pass


class FuturePlugin(HalfPlugin):
    api_version = 99


class MisspeltPlugin(Plugin[PluginOptions]):
    @hookimpl
    def ltg_mdlm_maskng(self, ctx):
        return None


class WrongReturn(Plugin[PluginOptions]):
    @hookimpl
    def ltg_mdlm_masking(self):
        return "not a strategy"


class Silent(Plugin[PluginOptions]):
    @hookimpl
    def ltg_mdlm_masking(self):
        return None


class Picky(Plugin[PluginOptions]):
    @hookimpl
    def ltg_mdlm_check_config(self, config):
        return [f"seed is {config.seed}"]


@pytest.fixture
def install(monkeypatch):
    """Make classes of this module look like installed plugins of named distributions."""
    known = dict(installed_plugins())

    def add(name: str, target: str, distribution: str = "some-dist") -> None:
        point = EntryPoint(name, target, "ltg_mdlm")
        known[name] = (*known.get(name, ()), Installed(name, target, distribution, "1.2", point))
        monkeypatch.setattr(discovery, "installed_plugins", lambda: known)

    return add


@pytest.fixture
def module(monkeypatch):
    """This module under an importable name."""
    monkeypatch.setitem(sys.modules, "host_test_plugins", sys.modules[__name__])
    return "host_test_plugins"


def make_host(*plugins: str, sets: tuple[str, ...] = ()) -> Host:
    settings = load_settings(["laptop"], sets, plugins)
    return Host(settings.config, settings.sources)


def test_built_in_plugins_are_found_through_their_entry_points():
    assert {"uniform_mdlm", "freq_mdlm", "gpt_bert"} <= set(installed_plugins())


def test_a_misspelt_plugin_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'freq_mdlm'"):
        make_host("freq_mdml")


def test_a_misspelt_option_is_explained_with_its_place_and_the_known_ones():
    with pytest.raises(UserError) as error:
        make_host("freq_mdlm", sets=("plugins.freq_mdlm.pwer=0.1",))
    text = str(error.value)
    assert "plugins.freq_mdlm.pwer: no such option (did you mean 'power'?)" in text
    assert "set on the command line: --set plugins.freq_mdlm.pwer=0.1" in text
    assert "options of freq_mdlm: " in text
    assert "ltg-mdlm plugins show freq_mdlm" in text


def test_a_selected_plugin_fills_its_slot_and_the_fallback_the_others(install, module):
    install("half", f"{module}:HalfPlugin")
    components = make_host("half").build(CONTEXT, STATISTICS)
    assert components.providers["masking"] == "half"
    assert {v for k, v in components.providers.items() if k != "masking"} == {"uniform_mdlm"}


def test_a_plugin_that_returns_none_leaves_its_slot(install, module):
    install("silent", f"{module}:Silent")
    assert make_host("silent").build(CONTEXT, STATISTICS).providers["masking"] == "uniform_mdlm"


def test_two_plugins_in_one_slot_are_an_error_unless_the_settings_choose(install, module):
    install("half", f"{module}:HalfPlugin", "first-dist")
    install("other", f"{module}:OtherHalfPlugin", "second-dist")
    with pytest.raises(UserError, match=r"(?s)first-dist 1\.2.*second-dist 1\.2.*slots\.masking=half"):
        make_host("half", "other").build(CONTEXT, STATISTICS)
    decided = make_host("half", "other", sets=("slots.masking=other",)).build(CONTEXT, STATISTICS)
    assert decided.providers["masking"] == "other"


@pytest.mark.parametrize(
    ("setting", "message"),
    [("slots.maskin=half", "did you mean 'masking'"), ("slots.masking=hal", "did you mean 'half'")],
)
def test_slot_settings_are_checked(install, module, setting, message):
    install("half", f"{module}:HalfPlugin")
    with pytest.raises(UserError, match=message):
        make_host("half", sets=(setting,))


def test_two_distributions_with_one_name_are_both_named(install, module):
    install("half", f"{module}:HalfPlugin", "first-dist")
    install("half", f"{module}:OtherHalfPlugin", "second-dist")
    with pytest.raises(UserError, match=r"first-dist 1\.2 and second-dist 1\.2"):
        make_host("half")


def test_a_broken_plugin_is_an_error_only_if_it_is_selected(install, tmp_path: Path, monkeypatch):
    (tmp_path / "broken_plugin_module.py").write_text(textwrap.dedent("import nonexistent_package_xyz\n"))
    monkeypatch.syspath_prepend(tmp_path)
    install("broken", "broken_plugin_module:Plugin", "broken-dist")
    make_host("freq_mdlm")
    with pytest.raises(UserError, match=r"broken-dist 1\.2.*broken_plugin_module.*nonexistent_package_xyz"):
        make_host("broken")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("FuturePlugin", r"plugin API 99; this is API \d+: update ltg-mdlm"),
        ("MisspeltPlugin", r"(?s)ltg_mdlm_maskng.*hooks of the host: .*ltg_mdlm_masking"),
        ("CONTEXT", "is not a subclass"),
    ],
)
def test_unusable_plugins_are_refused_with_their_distribution(install, module, target, message):
    install("odd", f"{module}:{target}", "odd-dist")
    with pytest.raises(UserError, match=message) as error:
        make_host("odd")
    assert "odd-dist 1.2" in str(error.value)


def test_a_hook_that_returns_the_wrong_type_is_named(install, module):
    install("wrong", f"{module}:WrongReturn", "wrong-dist")
    with pytest.raises(UserError, match=r"wrong-dist 1\.2 \(.*test_host\.py\): ltg_mdlm_masking returned str, not"):
        make_host("wrong").build(CONTEXT, STATISTICS)


def test_warnings_of_check_config_carry_the_plugins_name(install, module):
    install("picky", f"{module}:Picky")
    assert make_host("picky").check_config() == ["picky: seed is 0"]


def test_resolved_settings_hold_all_options_and_versions(install, module):
    install("half", f"{module}:HalfPlugin")
    config = make_host("half").config
    assert config.plugins["half"] == {"share": 0.5}
    assert config.plugin_versions["half"] == "some-dist 1.2"
    assert "schedule" in config.plugins["uniform_mdlm"]


def test_after_build_the_resolved_settings_name_the_origin_of_every_component(install, module):
    install("half", f"{module}:HalfPlugin")
    host = make_host("half")
    assert host.config.provenance == {}
    components = host.build(CONTEXT, STATISTICS)
    assert host.config.provenance == components.provenance
    assert host.config.provenance["masking"].plugin == "half"


def test_a_plugin_describes_itself(install, module):
    install("half", f"{module}:HalfPlugin")
    shown = describe_plugin("half")
    assert shown.summary == "Masks half of everything."
    assert shown.hooks == ["ltg_mdlm_masking"]
    assert [(o.name, o.type, o.default, o.description) for o in shown.options] == [
        ("share", "float", 0.5, "of tokens to mask")
    ]
    assert shown.file == __file__


class ZeroStep(Optimizer):
    def update(self, parameter, gradient, state, lr):
        return torch.zeros_like(gradient)


class Still(Plugin):
    @hookimpl
    def ltg_mdlm_optimizer(self, groups, settings):
        return ZeroStep(groups, max_norm=settings.clip)


class NoStep(Plugin):
    @hookimpl
    def ltg_mdlm_optimizer(self):
        return None


class HalfStep(Plugin):
    @hookimpl
    def ltg_mdlm_optimizer(self, groups):
        return ZeroStep(groups[:1], max_norm=1.0)


class Unprepared(ZeroStep):
    def __init__(self):
        pass


class UnpreparedStep(Plugin):
    @hookimpl
    def ltg_mdlm_optimizer(self):
        return Unprepared()


class WrongStep(Plugin):
    @hookimpl
    def ltg_mdlm_optimizer(self):
        return ZeroStep


GROUPS = [ParameterGroup({name: torch.nn.Parameter(torch.zeros(2))}, 0.0) for name in ("weight", "bias")]


def test_the_plugin_that_the_settings_name_provides_the_optimiser_and_is_recorded(install, module):
    install("still", f"{module}:Still")
    host = make_host("still", sets=("optimizer.name=still",))
    host.build(CONTEXT, STATISTICS)
    optimizer = host.optimizer(GROUPS)
    assert isinstance(optimizer, ZeroStep)
    assert host.config.provenance["optimizer"] == optimizer.provider
    assert str(optimizer.provider).startswith("plugin 'still' of some-dist 1.2")


def test_a_plugin_with_an_optimiser_that_the_settings_do_not_name_is_not_asked(install, module):
    install("wrong", f"{module}:WrongStep")
    host = make_host("wrong")
    host.build(CONTEXT, STATISTICS)
    assert host.optimizer(GROUPS) is None
    assert "optimizer" not in host.config.provenance


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("NoStep", "optimizer.name: plugin 'step' provides no optimiser with its current options"),
        ("HalfStep", "returned an optimiser without 1 of the parameters, such as bias\n  give all groups to Optimizer"),
        ("UnpreparedStep", "returned an optimiser without 2 of the parameters, such as weight"),
        ("WrongStep", "ltg_mdlm_optimizer returned the class ZeroStep itself, not a Optimizer"),
    ],
)
def test_a_plugin_that_returns_no_optimiser_is_named(install, module, target, message):
    install("step", f"{module}:{target}")
    host = make_host("step", sets=("optimizer.name=step",))
    host.build(CONTEXT, STATISTICS)
    with pytest.raises(UserError, match=message):
        host.optimizer(GROUPS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "moun",
            r"no optimiser is called 'moun' \(did you mean 'muon'\?\)\n.*\n  optimisers: lamb, adamw, muon, still",
        ),
        (
            "stil",
            r"no optimiser is called 'stil' \(did you mean 'still'\?\)\n  set on the command line: --set optimizer.n",
        ),
        ("half", r"the plugin 'half' provides no optimiser \(hook ltg_mdlm_optimizer\)\n.*\n  optimisers: lamb"),
        ("freq_mdlm", r"the plugin 'freq_mdlm' is not selected\n.*\n  add it with --plugin freq_mdlm"),
    ],
)
def test_an_unknown_optimiser_is_refused_with_where_it_was_set_and_what_there_is(install, module, name, message):
    install("still", f"{module}:Still")
    install("half", f"{module}:HalfPlugin")
    with pytest.raises(UserError, match=f"optimizer.name: {message}"):
        make_host("still", "half", sets=(f"optimizer.name={name}",))


def test_a_plugin_cannot_take_the_name_of_a_built_in_optimiser(install, module):
    install("muon", f"{module}:Still")
    with pytest.raises(UserError, match=r"some-dist 1.2.*an optimiser named 'muon' is built in; rename the plugin"):
        make_host("muon", sets=("optimizer.name=muon",))


def test_building_on_the_cpu_leaves_gpus_alone(monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail("a GPU was initialised"))
    with seeded(CONTEXT, "test"):
        pass
    assert not recwarn.list


def test_options_that_are_sets_are_written_in_one_order():
    class Options(PluginOptions):
        sources: frozenset[str] = frozenset({"wiki", "childes", "bnc"})
        nested: dict[str, list[set[str]]] = Field(default_factory=lambda: {"a": [{"y", "x"}]})

        layers: list[int] = Field(default_factory=lambda: [1, 2, 3])

        @field_serializer("layers", when_used="json")
        def _shortened(self, layers):
            return "1-3"

    assert options_as_json(Options()) == {
        "sources": ["bnc", "childes", "wiki"],
        "nested": {"a": [["x", "y"]]},
        "layers": "1-3",
    }


def test_options_are_written_so_that_they_can_be_read_again():
    class Options(PluginOptions):
        lambda_: float = Field(0.5, alias="lambda")

        @computed_field
        @property
        def doubled(self) -> float:
            return 2 * self.lambda_

    written = options_as_json(Options(**{"lambda": 0.25}))
    assert written == {"lambda": 0.25}
    assert Options(**written).lambda_ == 0.25


class LearnsNothing(Component):
    """A loss without learned parts."""

    def own_loss(self, observations, corrupteds, logits):
        return torch.zeros(1)


class LearnsNothingNow(LearnsNothing):
    """Its learned parts are switched off."""

    def modules(self):
        return {}


class LearnsNothingNowPlugin(Plugin):
    @hookimpl
    def ltg_mdlm_observers(self):
        return [LearnsNothingNow()]


class LearnsNothingPlugin(Plugin):
    @hookimpl
    def ltg_mdlm_observers(self):
        return [LearnsNothing()]


class Shared(Component):
    """Two learned parts with one parameter."""

    def modules(self):
        first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        second.weight = first.weight
        return {"first": first, "second": second}

    def own_loss(self, observations, corrupteds, logits):
        return torch.zeros(1)


class SharedPlugin(Plugin):
    @hookimpl
    def ltg_mdlm_observers(self):
        return [Shared()]


class Remembers(TimeConditioning):
    active = False

    def value(self, corrupted, noise):
        return None

    def value_for_rate(self, rate_B):
        return None

    def state_dict(self):
        return {"mean": torch.zeros(1)}


class RemembersPlugin(Plugin):
    @hookimpl
    def ltg_mdlm_time_conditioning(self):
        return Remembers()


def test_a_loss_of_learned_parts_without_any_is_refused(install, module):
    install("learns_nothing", f"{module}:LearnsNothingPlugin")
    install("learns_nothing_now", f"{module}:LearnsNothingNowPlugin")
    context, statistics = toy.context(), toy.statistics(toy.zipfian_counts())
    with pytest.raises(UserError, match=r"modules is not defined, but LearnsNothing defines own_loss"):
        make_host("learns_nothing").build(context, statistics)
    make_host("learns_nothing_now").build(context, statistics)


def test_a_parameter_of_two_learned_parts_is_refused(install, module):
    install("shared", f"{module}:SharedPlugin")
    with pytest.raises(UserError, match="observer0/first and observer0/second share a parameter"):
        make_host("shared").build(toy.context(), toy.statistics(toy.zipfian_counts()))


def test_a_time_conditioning_with_state_is_a_warning(install, module):
    install("remembers", f"{module}:RemembersPlugin")
    host = make_host("remembers")
    components = host.build(toy.context(), toy.statistics(toy.zipfian_counts()))
    assert "without the state of its time_conditioning" in host.component_warnings(components)[0]


@pytest.mark.parametrize(
    ("plugins", "sets", "expected"),
    [
        (["gpt_bert"], ["plugins.uniform_mdlm.schedule=linear"], ["schedule"]),
        (["dual"], ["plugins.uniform_mdlm.derivative_power=0.1"], ["derivative_power"]),
        (["freq_mdlm"], ["plugins.uniform_mdlm.schedule=linear", "plugins.uniform_mdlm.conditioning=none"], []),
    ],
)
def test_options_of_slots_that_another_plugin_fills_are_warnings(plugins, sets, expected):
    settings = load_settings(plugins=plugins, sets=sets)
    host = Host(settings.config)
    warnings = host.component_warnings(host.build(toy.context(), toy.statistics(toy.zipfian_counts())))
    assert [text.split()[1] for text in warnings] == expected
