"""The plugin that provides every slot."""

from __future__ import annotations

import pytest
import torch
from ltg_mdlm_plugins.conditioning import MaskRate, NoConditioning, Sigma
from ltg_mdlm_plugins.schedules import BimodalGaussian, Cosine, CosineSquared, Gaussian, Linear, Modes
from ltg_mdlm_plugins.uniform_mdlm import Options, UniformMDLM
from pydantic import ValidationError

from ltg_mdlm.api import MaskingStrategy, Objective
from ltg_mdlm.testing.toy import context, step_for, text_batch


def plugin(**options: object) -> UniformMDLM:
    return UniformMDLM(Options(**options))


def test_every_slot_is_provided():
    made = plugin()
    assert isinstance(made.ltg_mdlm_masking(context()), MaskingStrategy)
    assert isinstance(made.ltg_mdlm_objective(), Objective)
    assert isinstance(made.ltg_mdlm_noise_schedule(), Cosine)
    assert isinstance(made.ltg_mdlm_time_conditioning(), MaskRate)
    assert made.ltg_mdlm_row_mode().causal(step_for(text_batch(1, 8)), torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("linear", Linear),
        ("cosine", Cosine),
        ("cosine_squared", CosineSquared),
        ("gaussian", Gaussian),
        ("bimodal_gaussian", BimodalGaussian),
    ],
)
def test_schedules_are_chosen_by_name(name, kind):
    assert type(plugin(schedule=name).ltg_mdlm_noise_schedule()) is kind


def test_published_numbers_are_the_defaults():
    assert plugin().options.modes() == Modes(
        left_weight=0.6,
        left_mean=0.12,
        left_std=0.02,
        right_start=0.4,
        right_end=0.85,
        right_growth=1.0,
        right_std=0.08,
    )
    assert (plugin().options.gaussian_mean, plugin().options.gaussian_std) == (0.2, 0.12)


def test_schedule_options_reach_the_schedule():
    t = torch.tensor([0.5], dtype=torch.float64)
    gaussian = plugin(schedule="gaussian", gaussian_mean=0.5, gaussian_std=0.01).ltg_mdlm_noise_schedule()
    assert float(gaussian.rate(t, 0.0)) == pytest.approx(0.5)
    options = {"right_start": 0.9, "right_end": 0.9, "left_mean": 0.1, "left_weight": 0.01, "right_std": 0.001}
    bimodal = plugin(schedule="bimodal_gaussian", **options).ltg_mdlm_noise_schedule()
    assert float(bimodal.rate(t, 0.0)) == pytest.approx(0.9, abs=1e-3)
    assert bimodal.modes.right_mean(1.0) == pytest.approx(0.9)
    clamped = plugin(schedule="gaussian", tails="clamp").ltg_mdlm_noise_schedule()
    assert float(clamped.rate(torch.tensor([0.01], dtype=torch.float64), 0.0)) == pytest.approx(1e-8)


def test_conditioning_is_chosen_by_name():
    assert type(plugin(conditioning="sigma").ltg_mdlm_time_conditioning()) is Sigma
    assert type(plugin(conditioning="none").ltg_mdlm_time_conditioning()) is NoConditioning


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, []),
        ({"schedule": "gaussian", "gaussian_std": 0.2, "tails": "clamp"}, []),
        ({"schedule": "bimodal_gaussian", "left_mean": 0.2, "tails": "clamp", "derivative": "mixture"}, []),
        ({"gaussian_mean": 0.3, "right_end": 0.7}, ["gaussian_mean", "right_end"]),
        ({"schedule": "gaussian", "left_std": 0.1}, ["left_std"]),
        ({"schedule": "linear", "tails": "clamp"}, ["tails"]),
    ],
)
def test_options_of_another_schedule_give_a_warning(options, warned):
    warnings = plugin(**options).ltg_mdlm_check_config(None)
    assert [text.split()[0] for text in warnings] == warned


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "sine"},
        {"gaussian_std": 0.0},
        {"left_weight": 1.0},
        {"derivative_power": -0.1},
        {"right_growth": -1},
        {"conditioning": "rate"},
        {"power": 1.0},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        Options(**wrong)


def test_every_option_has_a_description():
    assert all(field.description for field in Options.model_fields.values())
