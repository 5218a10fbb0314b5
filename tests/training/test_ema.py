"""The averaged weights, exponential and uniform, against closed forms, and their bit-exact exchange with the model."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.testing.host_reads import NoHostReads
from ltg_mdlm.training.ema import EMA, tail_start


def one_weight(value=0.0):
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def follow(values, **settings):
    """The average of a weight that starts at the first value and takes the others, with an update after each."""
    model = one_weight(values[0])
    ema = EMA(model, **settings)
    for value in values[1:]:
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update()
    return float(ema.state_dict()["weight"])


walks = st.lists(st.floats(-10, 10), min_size=2, max_size=12)


@given(walks, st.floats(0, 0.9999))
def test_without_ramp_past_values_have_weights_that_are_powers_of_the_decay(walk, decay):
    age = np.arange(len(walk))[::-1]
    share = (1 - decay) * decay**age
    share[0] = decay ** (len(walk) - 1)
    expected = float(share @ np.array(walk))
    assert follow(walk, decay=decay, ramp=False) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(walks)
def test_the_ramp_starts_at_two_elevenths(walk):
    """d = (1 + n) / (10 + n) for update n = 1, 2, ..., which here never reaches 0.999."""
    average = walk[0]
    for n, value in enumerate(walk[1:], start=1):
        decay = (1 + n) / (10 + n)
        average = decay * average + (1 - decay) * value
    assert follow(walk, decay=0.999, ramp=True) == pytest.approx(average, rel=1e-12, abs=1e-12)


def test_the_ramp_ends_at_the_decay():
    """(1 + n) / (10 + n) exceeds 0.5 from n = 9 on."""
    walk = [0.0] * 9 + [1.0, 1.0]
    assert follow(walk, decay=0.5, ramp=True) == pytest.approx(0.75)


def test_a_decay_of_zero_is_the_newest_weight_itself():
    assert follow([0.1, 0.2, 0.3], decay=0.0, ramp=False) == 0.3
    assert follow([0.1, 0.2, 0.3], decay=0.0, ramp=True) == 0.3


def follow_steps(model, ema, steps, refusals=()):
    """Add 1 to the weight in every step; its value after step s is s + 1, unless steps before were refused."""
    for step in steps:
        if step not in refusals:
            with torch.no_grad():
                model.weight.add_(1.0)
        ema.update(refused=torch.tensor(step in refusals), step=step)


def test_in_the_tail_the_average_is_the_mean_over_its_steps():
    model = one_weight()
    ema = EMA(model, decay=0.9, ramp=True, tail_start=6)
    for step in range(10):
        follow_steps(model, ema, [step])
        if step >= 6:
            assert float(ema.state_dict()["weight"]) == pytest.approx(np.mean(range(7, step + 2)), rel=1e-12)
    assert int(ema.state_dict()["count"]) == 4


def test_before_the_tail_the_average_is_exponential():
    averages = []
    for start in (None, 6):
        model = one_weight()
        ema = EMA(model, decay=0.9, ramp=True, tail_start=start)
        follow_steps(model, ema, range(6))
        averages.append(float(ema.state_dict()["weight"]))
    assert averages[0] == averages[1]


def test_a_refused_step_in_the_tail_does_not_count():
    """Not even its first one, before which the exponential average is kept."""
    model = one_weight()
    ema = EMA(model, decay=0.9, ramp=False, tail_start=3)
    follow_steps(model, ema, range(3))
    before = float(ema.state_dict()["weight"])
    follow_steps(model, ema, [3], refusals=[3])
    assert float(ema.state_dict()["weight"]) == before
    follow_steps(model, ema, range(4, 8), refusals=[5])  # the weight is 4, 5 and 6
    assert float(ema.state_dict()["weight"]) == pytest.approx(5)
    assert int(ema.state_dict()["count"]) == 3


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_an_average_that_is_resumed_before_or_in_the_tail_continues_bit_exactly(stop):
    model, twin = one_weight(0.1), one_weight(0.1)
    straight, before, resumed = (EMA(m, decay=0.9, ramp=True, tail_start=3) for m in (model, twin, twin))
    follow_steps(model, straight, range(8))
    follow_steps(twin, before, range(stop))
    resumed.load_state_dict({name: t.clone() for name, t in before.state_dict().items()})
    follow_steps(twin, resumed, range(stop, 8))
    assert all(torch.equal(t, resumed.state_dict()[name]) for name, t in straight.state_dict().items())


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_the_tail_is_the_given_share_of_the_steps_and_at_least_one(share, max_steps):
    start = tail_start(share, max_steps)
    if share == 0:
        assert start is None
    else:
        assert 0 <= start < max_steps
        assert abs(max_steps - start - share * max_steps) <= 1


def test_a_refused_step_does_not_count():
    averages = []
    for refusals in ((), (0, 2)):
        model = one_weight()
        ema = EMA(model, decay=0.999, ramp=True)
        for step in range(5):
            if step in refusals:
                ema.update(refused=torch.tensor(True))
            with torch.no_grad():
                model.weight.add_(1.0)
            ema.update(refused=torch.tensor(False))
        averages.append(ema.state_dict())
    assert averages[0].keys() == averages[1].keys()
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_all_weights_are_averaged_in_one_call(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    ema = EMA(model, decay=0.9, ramp=False)
    before = [p.detach().clone() for p in model.parameters()]
    calls = []
    foreach = torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *lists: calls.append(len(lists[0])) or foreach(*lists))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    ema.update()
    assert calls == [4]
    for average, old, new in zip(ema.state_dict().values(), before, model.parameters(), strict=False):
        assert torch.equal(average, old.lerp(new, torch.tensor(0.1)))


def test_an_update_never_waits_for_the_device():
    ema = EMA(one_weight(), decay=0.999, ramp=True, tail_start=1)
    with NoHostReads():
        for step in range(3):
            ema.update(refused=torch.tensor(False), step=step)


def trained(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    ema = EMA(model, decay=0.9, ramp=False)
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update()
    return model, ema


def test_inside_the_block_the_model_is_the_average():
    model, ema = trained()
    averages = {name: t.clone() for name, t in ema.state_dict().items() if name != "count"}
    own = copy.deepcopy(model.state_dict())
    with ema.swap():
        assert all(torch.equal(p, averages[name]) for name, p in model.named_parameters())
        assert not torch.equal(model[0].weight, own["0.weight"])
        # A checkpoint or a second evaluation inside the block still sees the averages.
        assert all(torch.equal(ema.state_dict()[name], t) for name, t in averages.items())
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    assert all(torch.equal(ema.state_dict()[name], t) for name, t in averages.items())


def test_the_models_weights_are_restored_after_an_exception():
    model, ema = trained()
    own = copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError), ema.swap():
        raise ZeroDivisionError
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    with ema.swap():  # swapping works again
        assert not torch.equal(model[0].weight, own["0.weight"])


def test_updating_or_swapping_inside_the_block_is_an_error():
    _, ema = trained()
    with ema.swap():
        with pytest.raises(AssertionError):
            ema.update()
        with pytest.raises(AssertionError), ema.swap():
            pass


def test_swapping_keeps_the_tensors_that_optimiser_and_data_parallelism_hold():
    """Only values are copied; parameters and their memory stay the same."""
    model, ema = trained()
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    with ema.swap():
        assert [(id(p), p.data_ptr()) for p in model.parameters()] == before


def test_shared_parameters_are_averaged_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert EMA(model, decay=0.9, ramp=False).state_dict().keys() == {"0.weight", "count"}


def test_a_resumed_average_continues_bit_exactly():
    model, ema = trained()
    twin = copy.deepcopy(model)
    resumed = EMA(twin, decay=0.9, ramp=False)
    resumed.load_state_dict({name: t.clone() for name, t in ema.state_dict().items()})
    for m, e in ((model, ema), (twin, resumed)):
        with torch.no_grad():
            m[0].weight.mul_(1.1)
        e.update()
    states = ema.state_dict(), resumed.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_averages_of_another_model_are_refused():
    state = EMA(nn.Linear(3, 2), decay=0.9, ramp=False).state_dict()
    with pytest.raises(UserError, match=r"weight \[2, 3\] instead of \[2, 2\]"):
        EMA(nn.Linear(2, 2), decay=0.9, ramp=False).load_state_dict(state)
