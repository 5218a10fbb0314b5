"""Pictures of plugins: curves, selection of panels, and errors before anything is drawn."""

import sys
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from support.batches import SCHEDULES, schedule
from typer.testing import CliRunner

from ltg_mdlm.api import Batch, MaskingStrategy, Noise, Step
from ltg_mdlm.cli.app import app
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.data.tokenizer import MASK
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.reporting.figure import Panel, check_writable, draw_panel, power_of_ten, save_panels
from ltg_mdlm.reporting.plugin_pictures import (
    frequency_rank,
    mask_at,
    masking_by_rank,
    masking_panels,
    plot_plugin,
    schedule_panels,
    title_of,
)
from ltg_mdlm.testing.toy import no_causal, noise_at, step_for, text_batch

PNG = b"\x89PNG"


def drawn(panel: Panel) -> Axes:
    axes = Figure().add_subplot()
    draw_panel(panel, axes)
    return axes


def curve(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    line = next(line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


@pytest.mark.parametrize("name", [name for name in SCHEDULES if "clamped" not in name and name != "declining"])
def test_effective_weight_at_power_one_is_the_inverse_rate_for_every_schedule(name):
    panel = next(panel for panel in schedule_panels(schedule(name)) if panel.title.startswith("Effective weight"))
    rate, weight = curve(drawn(panel), "p = 1")
    assert weight == pytest.approx(1 / rate, rel=1e-9)


def test_effective_weight_at_power_zero_is_the_cosine_density_over_the_rate():
    panel = next(panel for panel in schedule_panels(schedule("cosine")) if panel.title == "Effective weight")
    rate, weight = curve(drawn(panel), "p = 0")
    assert weight == pytest.approx(2 / np.pi / np.sqrt(1 - (1 - rate) ** 2) / rate, rel=1e-9)


def test_labels_of_logarithmic_axes_are_plain_powers_of_ten():
    assert [power_of_ten(x) for x in (1e-4, 0.01, 0.03, 1.0, 1000.0)] == ["10⁻⁴", "0.01", "0.03", "1", "10³"]
    axes = drawn(Panel("", lambda axes: axes.set(xscale="log", xlim=(1, 1000))))
    assert [axes.xaxis.get_major_formatter()(x) for x in (1.0, 10.0, 1000.0)] == ["1", "10", "10³"]


def test_density_curve_lies_on_the_histogram_of_drawn_rates():
    axes = drawn(schedule_panels(schedule("gaussian"))[0])
    rate, density = curve(axes, "density")
    heights = axes.patches[0].get_xy()[1:200:2, 1]  # of the corners of the outline
    middle = (np.arange(100) + 0.5) / 100
    assert np.asarray(heights) == pytest.approx(np.interp(middle, rate, density), abs=0.02)


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("linear", ["Density", "Weight", "Effective"]),
        ("bimodal", ["Density", "Weight", "Effective", "Density over training"]),
        ("bimodal_clamped", ["Density", "Weight", "Mask rates over training"]),
        ("gaussian_clamped", ["Density", "Weight"]),
        ("declining", ["Mask rates over training"]),
    ],
)
def test_a_schedule_has_the_panels_that_it_can_fill(name, titles):
    panels = schedule_panels(schedule(name))
    assert len(panels) == len(titles)
    assert all(panel.title.startswith(title) for panel, title in zip(panels, titles, strict=True))


def test_rows_outside_the_axis_are_reported():
    axes = drawn(schedule_panels(schedule("gaussian_clamped"))[1])
    # Normal(0.2, 0.12) is below 0.005 with probability Phi(-1.625); most of these rates are clamped to 1e-8.
    assert NormalDist(0.2, 0.12).cdf(0.005) == pytest.approx(0.052, abs=5e-4)
    assert [text.get_text().partition(",")[0] for text in axes.texts] == ["5.2% further left"]


def test_declining_rate_is_drawn_from_its_start_to_its_end():
    _, rate = curve(drawn(schedule_panels(schedule("declining"))[0]), "median")
    assert rate[[0, 20, -1]] == pytest.approx([0.3, 0.225, 0.15])


def test_rank_one_is_the_most_frequent_type_and_ties_are_ordered_by_id():
    assert frequency_rank(torch.tensor([0, 5, 9, 5, 1])).tolist() == [5, 2, 1, 3, 4]


class ByRank(MaskingStrategy):
    """Masks types of odd id at twice the rate, and states it."""

    def __init__(self) -> None:
        super().__init__(MASK)

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> torch.Tensor:
        return ((1 + batch.ids_BT % 2) * noise.rate_B.unsqueeze(1)).clamp(max=1).float()


def test_masking_is_averaged_over_the_tokens_of_similar_rank():
    batch = text_batch(200, 128)
    step = step_for(batch)
    # Even ids are ranks 1 .. 24, odd ids 25 .. 48.
    identity = torch.arange(48)
    rank_V = torch.where(identity % 2 == 0, identity // 2 + 1, 25 + identity // 2)
    measured = masking_by_rank(ByRank(), [batch], rank_V, step, rates=(0.2,))
    even_I = measured.rank_I < 24.5
    assert 0 < int(even_I.sum()) < len(even_I)
    expected_I = torch.where(even_I, 0.2, 0.4).double()
    whole_I = (measured.rank_I - 24.5).abs() > 4  # an interval may hold both kinds
    assert measured.probability_GI[0][whole_I] == pytest.approx(expected_I[whole_I].numpy(), abs=1e-6)
    assert measured.masked_GI[0][whole_I] == pytest.approx(expected_I[whole_I].numpy(), abs=0.06)


def test_masks_in_the_picture_are_those_of_the_strategy():
    batch = text_batch(4, 64)
    step = step_for(batch)
    _, masked_BT = mask_at(ByRank(), batch, 0.3, step)
    expected = ByRank().corrupt(batch, no_causal(batch), noise_at(0.3, batch), step).masked_BT
    assert torch.equal(masked_BT, expected)


class EvenIdsAtOnce(MaskingStrategy):
    """All tokens with an even id, or none of them, with the mask rate as probability."""

    def __init__(self):
        super().__init__(mask_id=4)

    def choose(self, batch, noise, step):
        return (step.uniform(batch, "even") < noise.rate_B.unsqueeze(1)) & (batch.ids_BT % 2 == 0)


def test_probabilities_of_a_strategy_that_states_none_are_estimated_from_its_masks():
    batch = text_batch(200, 64)
    probability_BT, masked_BT = mask_at(EvenIdsAtOnce(), batch, 0.3, step_for(batch))
    even_BT = batch.maskable_BT & (batch.ids_BT % 2 == 0)
    assert float(probability_BT[even_BT].mean()) == pytest.approx(0.3, abs=0.03)
    assert float(probability_BT[~even_BT].max()) == 0
    assert not masked_BT[~even_BT].any()


def test_a_strategy_that_ignores_frequency_gets_no_panel_of_ratios():
    batch = text_batch(200, 128)
    rank_V = frequency_rank(torch.arange(48))
    measured = masking_by_rank(ByRank(), [batch], rank_V, step_for(batch), rates=(0.2, 0.4))
    flat = replace(measured, probability_GI=torch.tensor([[0.2], [0.4]]).expand_as(measured.probability_GI))
    assert [panel.title for panel in masking_panels(measured, "", (0.2, 0.4))][1:] == ["Relative to the mask rate"]
    assert len(masking_panels(flat, "", (0.2, 0.4))) == 1


@pytest.mark.parametrize("count", [1, 4, 5])
def test_pictures_are_written_whatever_the_number_of_panels(tmp_path: Path, count):
    path = tmp_path / "picture.png"
    save_panels([Panel(f"panel {i}", lambda axes: None) for i in range(count)], path, title="all", dpi=40)
    assert path.read_bytes().startswith(PNG)


@pytest.fixture
def small_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return ["data.builtin_words=4000"]


def test_every_built_in_plugin_and_one_that_learns_has_a_picture(tmp_path: Path, small_corpus):
    for name in ("uniform_mdlm", "freq_mdlm", "gpt_bert", "learned_schedule"):
        plot_plugin(name, tmp_path / f"{name}.png", sets=small_corpus)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


def test_a_plugin_without_schedule_and_masking_has_nothing_to_draw(tmp_path: Path, small_corpus):
    taken = ["slots.masking=uniform_mdlm", "slots.noise_schedule=uniform_mdlm"]
    with pytest.raises(UserError, match="nothing to draw"):
        plot_plugin("freq_mdlm", tmp_path / "x.png", sets=[*small_corpus, *taken])


def test_the_title_names_the_options_that_were_changed():
    settings = load_settings(plugins=["freq_mdlm"], sets=["plugins.freq_mdlm.power=0.1"])
    assert title_of("freq_mdlm", Host(settings.config).config) == "freq_mdlm   power = 0.1"


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(UserError, match=r"pip install \"ltg-mdlm\[plots\]\""):
        check_writable(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("file", "message"), [("x.txt", "no picture format ends in '.txt'"), ("none/x.png", "there is no folder")]
)
def test_a_file_that_cannot_be_written_is_refused_before_drawing(tmp_path: Path, file, message):
    with pytest.raises(UserError, match=message):
        check_writable(tmp_path / file)


def test_options_of_the_picture_without_plot_are_an_error():
    result = CliRunner().invoke(app, ["plugins", "show", "freq_mdlm", "--set", "plugins.freq_mdlm.power=1"])
    assert isinstance(result.exception, UserError)
    assert "--plot" in str(result.exception)
