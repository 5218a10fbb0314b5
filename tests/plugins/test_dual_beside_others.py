"""Plugins of several distributions in one run: each provides its slots, and conflicts are resolved by name."""

from dataclasses import replace

import pytest
import torch

from ltg_mdlm.api import IGNORE, Step
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.slots import Components
from ltg_mdlm.testing.toy import context, statistics, text_batch, zipfian_counts
from ltg_mdlm.training.recipe import Recipe, gather_supervised

SLOTS = ("row_mode", "noise_schedule", "masking", "objective", "time_conditioning")


def build(*plugins: str, sets: tuple[str, ...] = ()) -> Components:
    """The components that `--plugin` for each of them and these settings select."""
    settings = load_settings(["laptop"], sets, plugins)
    return Host(settings.config, settings.sources).build(context(), statistics(zipfian_counts()))


@pytest.mark.parametrize(
    ("plugins", "sets", "providers"),
    [
        ("amlm", (), "uniform_mdlm amlm amlm amlm amlm"),
        ("dual", (), "dual uniform_mdlm uniform_mdlm dual uniform_mdlm"),
        ("dual", ("plugins.dual.next_token=true",), "dual uniform_mdlm dual dual uniform_mdlm"),
        ("dual freq_mdlm", (), "dual uniform_mdlm freq_mdlm dual uniform_mdlm"),
        ("freq_mdlm dual", (), "dual uniform_mdlm freq_mdlm dual uniform_mdlm"),
        ("dual amlm", ("slots.objective=dual",), "dual amlm amlm dual amlm"),
        ("amlm dual", ("slots.objective=amlm",), "dual amlm amlm amlm amlm"),
        (
            "dual amlm freq_mdlm",
            ("slots.objective=dual", "slots.masking=freq_mdlm", "slots.time_conditioning=uniform_mdlm"),
            "dual amlm freq_mdlm dual uniform_mdlm",
        ),
        ("dual gpt_bert", ("slots.row_mode=dual", "slots.objective=dual"), "dual gpt_bert gpt_bert dual gpt_bert"),
    ],
)
def test_every_slot_comes_from_the_plugin_that_was_selected_for_it(plugins, sets, providers):
    components = build(*plugins.split(), sets=sets)
    assert [components.providers[slot] for slot in SLOTS] == providers.split()


@pytest.mark.parametrize(
    ("plugins", "sets", "slot"),
    [
        (("dual", "amlm"), (), "objective"),
        (("dual", "freq_mdlm"), ("plugins.dual.next_token=true",), "masking"),
        (
            ("dual", "freq_mdlm"),
            ("plugins.freq_mdlm.weighting=exact", "plugins.freq_mdlm.statistics=corpus"),
            "objective",
        ),
    ],
)
def test_a_conflict_between_two_distributions_names_both(plugins, sets, slot):
    with pytest.raises(UserError) as error:
        build(*plugins, sets=sets)
    text = str(error.value)
    assert "'dual' (ltg-mdlm-dual 0.1.0)" in text
    assert f"'{plugins[1]}'" in text
    assert f"--set slots.{slot}=" in text


SCHEDULES = ("linear", "cosine", "cosine_squared", "gaussian", "bimodal_gaussian")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("masking", ["uniform_mdlm", "freq_mdlm", "amlm"])
def test_causal_rows_are_unmasked_beside_masked_rows_of_any_masking_and_schedule(masking, schedule):
    """Causal rows have no mask, predict every token one position earlier, and are conditioned on mask rate 0."""
    sets = (
        "slots.objective=dual",
        "slots.noise_schedule=uniform_mdlm",
        "slots.time_conditioning=uniform_mdlm",
        f"plugins.uniform_mdlm.schedule={schedule}",
    )
    recipe = Recipe(build("dual", masking, sets=sets))
    batch = text_batch(16, 64)
    step = recipe.begin(Step(seed=0, step=3, progress=0.4, epoch=0.0, rows=16, first_row=48), torch.device("cpu"))
    [micro_batch] = recipe.corrupt(batch, step)
    corrupted, causal_B = micro_batch.corrupted, micro_batch.corrupted.causal_B
    assert int(causal_B.sum()) == 4
    assert torch.equal(corrupted.input_BT[causal_B], batch.ids_BT[causal_B])
    assert torch.equal(
        (corrupted.labels_BT[causal_B, :-1] != IGNORE), batch.maskable_BT[causal_B, 1:]
    )  # every token has a predecessor in its document, since documents begin with <s>
    assert torch.equal(corrupted.labels_BT[~causal_B] != IGNORE, corrupted.masked_BT[~causal_B])
    assert micro_batch.conditioning_B is not None
    assert torch.equal(micro_batch.conditioning_B == 0, causal_B)
    maskable, masked = batch.maskable_BT[~causal_B].sum(), corrupted.masked_BT[~causal_B].sum()
    assert float(masked / maskable) == pytest.approx(float(micro_batch.noise.rate_B[~causal_B].mean()), abs=0.06)
    assert recipe.denominators([micro_batch]).tolist() == [
        float(maskable),
        float((corrupted.labels_BT[causal_B] != IGNORE).sum()),
    ]


@pytest.mark.parametrize("plugin", ["learned_schedule", "gidd"])
def test_causal_rows_have_no_mask_rate_in_any_objective(plugin):
    recipe = Recipe(build("dual", plugin, sets=(f"slots.objective={plugin}",)))
    batch = text_batch(16, 64)
    step = recipe.begin(Step(seed=0, step=3, progress=0.4, epoch=0.0, rows=16), torch.device("cpu"))
    micro_batch = recipe.corrupt(batch, step)[0]
    supervised, _ = gather_supervised(micro_batch, predicts_next=False)
    logits_NV = torch.randn(len(supervised.label_N), context().vocab_size, generator=torch.Generator().manual_seed(0))

    def loss(rate: float) -> float:
        """With this mask rate and slope in the causal rows."""
        changed = {
            name: torch.where(supervised.causal_N, rate, getattr(supervised, name)) for name in ("rate_N", "slope_N")
        }
        (total,) = recipe.components.objective.loss_terms(logits_NV, replace(supervised, **changed), step).tolist()
        return total

    assert bool(supervised.causal_N.any())
    assert loss(0.1) == loss(0.9)
