"""Unmasking orders of plugins: `generate --plugin NAME --sampler ORDER`, on run folders and on exported folders."""

from __future__ import annotations

import json

import pytest
import torch
from support.exact_sampling import chi_square, draw
from support.third_party import installed, write_distribution
from support.trained import write_run

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.inference import SamplingRule, generate, open_model, plugin_orders
from ltg_mdlm.inference.samplers import top_probability
from ltg_mdlm.interchange.export_model import export_model
from ltg_mdlm.testing.enumeration import JOINT_Q, LENGTH

ORDERS = """
    import torch
    from ltg_mdlm.api import Field, Plugin, PluginOptions, hookimpl

    def margin(logits_NV):
        first_N, second_N = logits_NV.softmax(1).topk(2).values.unbind(1)
        return first_N - second_N

    class Options(PluginOptions):
        exponent: float = Field(1.0, description="exponent of the probabilities")

    class P(Plugin[Options]):
        options_model = Options

        def confidence(self, logits_NV):
            return logits_NV.softmax(1).pow(self.options.exponent).amax(1)

        @hookimpl
        def ltg_mdlm_unmasking_orders(self):
            return {"margin": margin, "sure": self.confidence, "unsure": lambda logits_NV: -self.confidence(logits_NV)}
"""

FAULTY = """
    import torch
    from ltg_mdlm.api import Plugin, hookimpl

    def of_everything(logits_NV):
        return logits_NV.softmax(1)

    def infinite(logits_NV):
        return logits_NV.amin(1)

    def crash(logits_NV):
        return logits_NV.no_such_method()

    class P(Plugin):
        @hookimpl
        def ltg_mdlm_unmasking_orders(self):
            return {"of_everything": of_everything, "infinite": infinite, "crash": crash}
"""


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orders")
    write_distribution(folder, "orders", ORDERS)
    write_distribution(folder, "faulty", FAULTY)
    write_distribution(folder, "again", ORDERS.replace('"sure"', '"certain"').replace('"unsure"', '"doubtful"'))
    write_distribution(
        folder, "listed", ORDERS.replace('{"margin": margin, ', '[{"margin": margin, ').replace(")}", ")}]")
    )
    write_distribution(folder, "taken", ORDERS.replace('"margin"', '"entropy"'))
    write_distribution(folder, "named", ORDERS.replace('"margin": margin', '"margin": "margin"'))
    with installed(folder):
        yield


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "uniform", "uniform_mdlm", "model.max_position_embeddings=128")


@pytest.mark.parametrize("name", ["margin", "sure", "unsure"])
def test_with_one_token_per_step_every_order_follows_the_joint_distribution(name, orders):
    counts_Q, canvas = draw(6_000, sampler=name, order=plugin_orders(["orders"])[name])
    assert chi_square(counts_Q, JOINT_Q).p > 1e-3
    assert set(canvas.passes_B.tolist()) == {LENGTH}


def test_the_order_of_a_plugin_decides_which_token_comes_first(orders):
    """The most certain position of the language is that of `confidence`, and never the first one for its opposite."""
    names = plugin_orders(["orders"])
    places = {
        name: draw(50, sampler=name, order=order)[1].drawn_at_BT for name, order in names.items() if name != "margin"
    }
    built_in = draw(50, sampler="confidence")[1].drawn_at_BT
    assert torch.equal(places["sure"], built_in)
    assert not torch.equal(places["unsure"], built_in)


def test_margins_are_those_of_the_two_most_likely_tokens(orders):
    probability_NV = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.2, 0.4]])
    assert plugin_orders(["orders"])["margin"](probability_NV.log()).tolist() == pytest.approx([0.3, 0.0])


def test_options_of_the_plugin_reach_its_orders(orders):
    logits_NV = torch.randn(4, 7)
    squared = plugin_orders(["orders"], ["plugins.orders.exponent=2"])["sure"](logits_NV)
    torch.testing.assert_close(squared, top_probability(logits_NV) ** 2)


def test_a_run_and_its_export_generate_the_same_with_a_plugin_that_neither_was_trained_with(
    orders, run_folder, tmp_path
):
    trained = open_model(run_folder, Ranks.alone())
    (folder,) = export_model(run_folder, tmp_path / "exported")
    rule = SamplingRule(sampler="margin", order=plugin_orders(["orders"])["margin"], seed=4)
    drawn = generate(trained, rule, length=6, count=2)
    assert generate(open_model(str(folder), Ranks.alone()), rule, length=6, count=2) == drawn
    assert all(sorted(sample.unmasked_at) == list(range(6)) for sample in drawn)


def test_the_command_samples_in_the_order_of_a_plugin_and_records_its_name(orders, run_folder, run):
    arguments = ("generate", str(run_folder), "--sampler", "sure", "--length", "5", "--json")
    code, out, err = run(*arguments, "--plugin", "orders", "--set", "plugins.orders.exponent=3")
    assert code == 0, err
    record = json.loads(out)
    assert record["rule"]["sampler"] == "sure"
    assert "order" not in record["rule"]
    code, built_in, _ = run("generate", str(run_folder), "--sampler", "confidence", "--length", "5", "--json")
    assert json.loads(built_in)["ids"] == record["ids"]  # a power of the probabilities orders them in the same way


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sampler", "confidenc"), "no such sampler (did you mean 'confidence'?)"),
        (("--sampler", "margin"), "and the unmasking orders of plugins (--plugin)"),
        (("--sampler", "margn", "--plugin", "orders"), "(did you mean 'margin'?)\n  orders: margin, sure, unsure"),
        (
            ("--sampler", "entropy", "--plugin", "orders"),
            "--sampler entropy is not an unmasking order of --plugin orders",
        ),
        (("--plugin", "freq_mdlm", "--sampler", "margin"), "--plugin freq_mdlm: no unmasking orders"),
        (("--plugin", "ordres", "--sampler", "margin"), "did you mean 'orders'"),
        (("--plugin", "orders", "--plugin", "again", "--sampler", "margin"), "'orders' and 'again' both have an"),
        (("--plugin", "listed", "--sampler", "margin"), "ltg_mdlm_unmasking_orders returned list, not a mapping"),
        (("--plugin", "named", "--sampler", "margin"), "must map names to functions, not 'margin' to 'margin'"),
        (
            ("--plugin", "taken", "--sampler", "entropy"),
            "the unmasking order 'entropy' of a plugin has the name of a built-in sampler",
        ),
        (("--sampler", "margin", "--set", "plugins.orders.exponent=2"), "add --plugin NAME"),
        (("--plugin", "orders", "--sampler", "margin", "--set", "seed=2"), "--set seed=2: only options of plugins"),
        (
            ("--plugin", "orders", "--sampler", "margin", "--block-length", "4"),
            "--block-length goes with --sampler block",
        ),
        (
            ("--plugin", "faulty", "--sampler", "of_everything"),
            "faulty_module.py): unmasking order 'of_everything' returned float32[64, 320], not float[64]",
        ),
        (
            ("--plugin", "faulty", "--sampler", "infinite"),
            "unmasking order 'infinite' returned values that are not finite",
        ),
        (("--plugin", "faulty", "--sampler", "crash"), "unmasking order 'crash' raised AttributeError"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_order_is_a_clear_error(arguments, message, orders, run_folder, run):
    code, out, err = run("generate", str(run_folder), *arguments)
    assert (code, out) == (2, "")
    assert message in err, err


def test_an_order_needs_a_name_that_is_not_a_sampler():
    with pytest.raises(UserError, match="has an order of its own"):
        SamplingRule(sampler="ancestral", order=top_probability)
