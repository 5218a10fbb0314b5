"""Plugins of other distributions keep the promises of the loop, alone and beside each other."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from ltg_mdlm_amlm.masked_lm import DecliningRate
from ltg_mdlm_amlm.masking import AdaptiveMasking
from support.runs import killed, losses, rows, run, saved_bits

from ltg_mdlm.api import Observation, Step, Supervised
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.testing import run_on_ranks
from ltg_mdlm.testing.toy import VOCAB, context, text_batch

STEPS = 12
AMLM = "plugins.amlm.update_every=3"
RECIPES = {"amlm": ("amlm", AMLM), "dual beside amlm": ("dual", AMLM, "slots.objective=dual")}


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request, tmp_path_factory):
    """(plugin, settings, the run folder of an undisturbed run)"""
    plugin, *sets = RECIPES[request.param]
    out = tmp_path_factory.mktemp("undisturbed")
    assert run(out, *sets, plugin=plugin)[0].code == 0
    return plugin, sets, out


def test_killed_between_two_updates_a_run_ends_in_the_same_bits(recipe, tmp_path: Path):
    """Checkpoints fall between the updates of adaptive weights, whose counts have to come back as well."""
    plugin, sets, undisturbed = recipe
    killed(tmp_path, *sets, plugin=plugin, faults=({"at": "step 7", "do": "SIGKILL"},))
    assert run(tmp_path, *sets, plugin=plugin)[0].code == 0
    assert sorted(losses(tmp_path)) == list(range(1, STEPS + 1))
    assert losses(tmp_path) == losses(undisturbed)
    assert saved_bits(tmp_path, STEPS) == saved_bits(undisturbed, STEPS)


def test_two_ranks_train_on_what_one_does(recipe, tmp_path: Path):
    plugin, sets, undisturbed = recipe
    assert run(tmp_path, *sets, plugin=plugin, processes=2)[0].code == 0
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), abs=1e-5)


def test_refused_steps_leave_adaptive_weights_finite(tmp_path: Path):
    """A learning rate that overflows float32 makes every later loss NaN."""
    sets = ("plugins.amlm.update_every=1", "optimizer.lr=1e38", "training.max_refused_updates=3")
    assert run(tmp_path, *sets, plugin="amlm")[0].code == 3
    logged = rows(tmp_path)
    assert sum(row.get("event") == "refused_update" for row in logged) == 3
    spread = [row["amlm/weight_spread"] for row in logged if "loss" in row]
    assert len(spread) > 3
    assert all(math.isfinite(value) for value in spread)


def adapted_over(ranks: Ranks, steps: int) -> dict[str, torch.Tensor]:
    """The state of adaptive masking whose observations are split between ranks."""
    masking = AdaptiveMasking(
        dataclasses.replace(context(), sum_over_ranks=ranks.sum_over_ranks),
        mask_rate=DecliningRate(0.4, 0.15).at,
        history=0.2,
        smoothing=0.5,
        update_every=4,
    )
    for index in range(steps):
        step = Step(seed=0, step=index, progress=index / steps, epoch=0.0, rows=1)
        generator = torch.Generator().manual_seed(index)
        label_N = torch.randint(16, VOCAB, (101,), generator=generator)
        correct_N = torch.rand(101, generator=generator) < label_N / VOCAB
        share = slice(ranks.rank, None, ranks.world_size)
        masking.observe(observed(label_N[share], correct_N[share], step))
        masking.step_end(step)
    return masking.state_dict()


def observed(label_N: torch.Tensor, correct_N: torch.Tensor, step: Step) -> Observation:
    """Predictions of masked tokens."""
    names = [field.name for field in dataclasses.fields(Supervised) if field.name.endswith("_N")]
    values = dict.fromkeys(names, torch.ones_like(correct_N)) | {"label_N": label_N}
    nll_N = torch.ones(len(label_N))
    return Observation(
        step=step, batch=text_batch(1, 8), supervised=Supervised(**values), correct_N=correct_N, nll_N=nll_N
    )


def test_adaptive_weights_and_counts_are_the_same_bits_on_any_number_of_ranks():
    """Saved in the middle of an interval, where every rank has counted other tokens."""
    alone = adapted_over(Ranks.alone(), 10)
    assert int(alone["counts"].sum()) == 2 * 101
    for state in run_on_ranks(adapted_over, 2, 10):
        assert all(torch.equal(state[name], value) for name, value in alone.items())
