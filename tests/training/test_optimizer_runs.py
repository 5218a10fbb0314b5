"""Runs with Muon, with uniform averages in the tail, and with the optimiser of a plugin."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from support.installed import BROKEN_PLUGINS, plugins_installed
from support.runs import run

from ltg_mdlm.core.errors import PluginFailure, UserError
from ltg_mdlm.host.failures import failures_named
from ltg_mdlm.storage.checkpoint import find_checkpoint, load_checkpoint, load_weights
from ltg_mdlm.testing import PluginUnderTest, run_on_ranks
from ltg_mdlm.testing.training_steps import take_steps, train_steps, trainer_of

MUON = ("optimizer.name=muon", "optimizer.tail_average=0.5", "model.depth_weighted_averaging=true")
"""In the eight steps of the kit's tiny run, the tail begins with the fifth."""

UNIFORM = PluginUnderTest("uniform_mdlm")


@pytest.mark.parametrize("stop", [3, 5])
def test_a_run_with_muon_and_a_tail_average_resumes_bit_exactly(stop):
    with trainer_of(UNIFORM, *MUON) as (straight, _), trainer_of(UNIFORM, *MUON) as (resumed, _):
        take_steps(straight, stop)
        straight.save()
        straight.checkpoints.finish()
        resumed.restore(straight.checkpoints.load(find_checkpoint(straight.checkpoints.folder / f"step_{stop:07d}")))
        take_steps(straight, 7 - stop)
        take_steps(resumed, 7 - stop)
        for part in ("model", "ema", "optimizer"):
            expected, found = getattr(straight.state(), part), getattr(resumed.state(), part)
            assert expected.keys() == found.keys()
            assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def losses_on(ranks):
    return train_steps(UNIFORM, *MUON, "model.dropout=0", steps=4, ranks=ranks).losses


def test_two_processes_with_muon_train_what_one_does():
    first, second = run_on_ranks(losses_on, 2)
    assert first == second
    assert first == pytest.approx(losses_on(None), rel=1e-3)


def test_a_finished_run_names_its_averages_and_its_last_steps_are_averaged_uniformly(tmp_path: Path):
    every = ("checkpoint.every=1", "checkpoint.keep=100")
    (done,) = run(tmp_path / "run", "optimizer.name=muon", "optimizer.tail_average=0.25", *every)
    text = "exponential average with decay 0.999, uniform average from step 10 on"
    assert f"optimiser: muon; weights for validation and export: {text}" in done.output
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["optimizer"]["name"] == "muon"
    checkpoints = [tmp_path / "run" / "checkpoints" / f"step_{step:07d}" for step in (10, 11, 12)]
    assert {json.loads((path / "state.json").read_text())["averages"] for path in checkpoints} == {text}
    averaged = load_weights(checkpoints[-1])
    raw = [load_weights(path, averaged=False) for path in checkpoints]
    for name, average in averaged.items():
        torch.testing.assert_close(average, torch.stack([weights[name] for weights in raw]).mean(0))


def test_averaging_has_no_influence_on_training(tmp_path: Path):
    ends = []
    for name, setting in (("ema", "optimizer.tail_average=0"), ("tail", "optimizer.tail_average=1")):
        run(tmp_path / name, setting)
        ends.append(load_checkpoint(tmp_path / name / "checkpoints" / "step_0000012"))
    assert all(torch.equal(tensor, ends[1].model[name]) for name, tensor in ends[0].model.items())
    assert any(not torch.equal(tensor, ends[1].ema[name]) for name, tensor in ends[0].ema.items())


def test_an_unknown_optimiser_is_an_error_of_the_user(tmp_path: Path):
    (done,) = run(tmp_path / "run", "optimizer.name=adam")
    assert "optimizer.name: no optimiser is called 'adam' (did you mean 'adamw'?)" in done.output
    assert "set on the command line: --set optimizer.name=adam" in done.output
    assert not (tmp_path / "run").exists()


def test_an_update_of_a_wrong_shape_names_the_plugin_of_the_optimiser():
    sets = "optimizer.name=one_rate_for_all"
    message = r"plugin 'one_rate_for_all' of broken-plugins 1\.0 .*: OneRateForAll\.update returned float32\[\]"
    with plugins_installed(BROKEN_PLUGINS), trainer_of(PluginUnderTest("one_rate_for_all"), sets) as (trainer, _):
        assert trainer.config.provenance["optimizer"].plugin == "one_rate_for_all"
        with pytest.raises(UserError, match=message), failures_named(trainer.recipe.components, lambda _: "in step 1"):
            take_steps(trainer, 1)


def test_an_exception_in_an_update_names_the_plugin_of_the_optimiser(monkeypatch):
    with (
        plugins_installed(BROKEN_PLUGINS),
        trainer_of(PluginUnderTest("momentum"), "optimizer.name=momentum") as (t, _),
    ):
        monkeypatch.setattr(type(t.run.optimizer), "update", lambda self, *_: 1 / 0)
        with pytest.raises(PluginFailure) as caught, failures_named(t.recipe.components, lambda _: "in step 1"):
            take_steps(t, 1)
    assert "plugin 'momentum' of broken-plugins 1.0" in str(caught.value)
    assert "(optimizer) failed in step 1" in str(caught.value)
