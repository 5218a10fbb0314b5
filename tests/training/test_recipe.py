"""From batch to loss, on the real components: gathering, reduction, metrics, and synchronisation with the device."""

from collections.abc import Mapping
from dataclasses import astuple, replace

import pytest
import torch
from ltg_mdlm_plugins.uniform_mdlm import UniformMasking
from torch.utils._python_dispatch import _disable_current_modes

from ltg_mdlm.api import IGNORE, Step
from ltg_mdlm.core.host_memory import HostCopy
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.plugin_host import Host, seeded
from ltg_mdlm.model.transformer import ModelConfig, Transformer
from ltg_mdlm.testing.host_reads import NoHostReads
from ltg_mdlm.testing.toy import batch_of, context, statistics, zipfian_counts
from ltg_mdlm.training.recipe import DenoisingLoss, Recipe, StepMetrics, gather_supervised, true_indices
from ltg_mdlm.training.validation import evaluating

CPU = torch.device("cpu")
PLUGINS: Mapping[str, tuple[str, ...]] = {
    "uniform_mdlm": (),
    "freq_mdlm": (),
    "freq_mdlm exact": ("plugins.freq_mdlm.weighting=exact", "plugins.freq_mdlm.statistics=corpus"),
    "gpt_bert": (),
    "amlm": ("plugins.amlm.update_every=1",),
    "dual": (),
    "dual next_token": ("plugins.dual.next_token=true",),
    "dual freq_mdlm": ("plugins.freq_mdlm.power=1", "plugins.freq_mdlm.weighting=token"),
    "dual amlm": ("plugins.amlm.update_every=1", "slots.objective=dual"),
    "complementary": (),
    "gidd": (),
    "learned_schedule": (),
}
HYBRIDS = {name for name in PLUGINS if name.startswith(("gpt_bert", "dual"))}


def make(name: str) -> tuple[Recipe, DenoisingLoss]:
    settings = load_settings(["laptop"], PLUGINS[name], [name.split()[0]])
    host = Host(settings.config, settings.sources)
    recipe = Recipe(host.build(context(), statistics(zipfian_counts())))
    conditioning = recipe.components.time_conditioning
    sizes = ModelConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=48,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        cond_dim=8 if conditioning.active else None,
    )
    torch.manual_seed(0)
    model = Transformer(sizes, conditioning.embedding(8) if conditioning.active else None)
    # AdaLN starts as the identity; random values let every parameter matter.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return recipe, DenoisingLoss(model, recipe, bf16=False)


def rows(first: int, count: int):
    documents = [[[16 + (7 * r + i) % 32 for i in range(11)], [20 + r % 9] * 6] for r in range(first, first + count)]
    return batch_of(documents, 24, first_row=first)


def gradient_of(loss_module: DenoisingLoss, recipe: Recipe, parts, step: Step) -> torch.Tensor:
    micro_batches = [view for part in parts for view in recipe.corrupt(part, step)]
    denominators_K = recipe.denominators(micro_batches).clamp(min=1e-9)
    loss_module.zero_grad()
    for micro_batch in micro_batches:
        loss_module(micro_batch, denominators_K, step).loss.backward()
    return torch.cat([p.grad.flatten() for p in loss_module.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", PLUGINS)
def test_splitting_a_batch_changes_neither_masks_nor_gradient(name):
    recipe, loss_module = make(name)
    step = recipe.begin(Step(seed=1, step=3, progress=0.3, epoch=0.0, rows=32), CPU)
    whole = gradient_of(loss_module, recipe, [rows(0, 32)], step)
    split = gradient_of(loss_module, recipe, [rows(0, 5), rows(5, 20), rows(25, 7)], step)
    assert float(whole.norm()) > 0
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6)


class Watched(Recipe):
    """Keeps what the components are shown."""

    def __init__(self, components) -> None:
        super().__init__(components)
        self.shown = []

    def observe(self, step, micro_batch, output):
        super().observe(step, micro_batch, output)
        supervised = [v for v in astuple(output.supervised) if v is not None]
        self.shown.append([output.loss.detach(), output.terms_K, output.correct_N, output.nll_N, *supervised])


@pytest.mark.parametrize("name", PLUGINS)
def test_padded_rows_and_positions_change_no_result_and_no_component_sees_them(name, monkeypatch):
    results = []
    for padded in (False, True):
        recipe, loss_module = make(name)
        recipe = loss_module._recipe = Watched(recipe.components)
        sizes = []
        if padded:
            loss_module.full_rows = {24: 7}
            monkeypatch.setattr(DenoisingLoss, "position_multiple", lambda self, device: 16)
        loss_module.model.register_forward_hook(lambda _, inputs, out, sizes=sizes: sizes.append(len(inputs[0])))
        loss_module.model.classifier.register_forward_hook(lambda _, inputs, out, sizes=sizes: sizes.append(len(out)))
        step = recipe.begin(Step(seed=1, step=3, progress=0.3, epoch=0.0, rows=12), CPU)
        micro_batches = [view for part in (rows(0, 7), rows(7, 5)) for view in recipe.corrupt(part, step)]
        denominators_K = recipe.denominators(micro_batches).clamp(min=1e-9)
        for micro_batch in micro_batches:
            output = loss_module(micro_batch, denominators_K, step)
            output.loss.backward()
            recipe.observe(step, micro_batch, output)
        gradients = [p.grad for p in loss_module.parameters() if p.grad is not None]
        results.append((recipe.shown, gradients))
        if padded:
            assert set(sizes[::2]) == {7}
            assert all(size % 16 == 0 or size == 5 * 24 for size in sizes[1::2])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_step_reads_nothing_but_the_count_of_supervised_positions(name, monkeypatch):
    """The count was copied ahead, and is read when the forward pass is already queued."""

    def count(self: HostCopy) -> int:
        with _disable_current_modes():
            return int(self._host)

    monkeypatch.setattr(HostCopy, "get", count)
    recipe, loss_module = make(name)
    step = Step(seed=1, step=3, progress=0.3, epoch=0.0, rows=16)
    batch = rows(0, 16)
    with NoHostReads():
        step = recipe.begin(step, CPU)
        views = recipe.corrupt(batch, step)
        denominators_K = recipe.denominators(views).clamp(min=1e-9)
        for view in views:
            output = loss_module(view, denominators_K, step)
            output.loss.backward()
            recipe.observe(step, view, output)
            StepMetrics(recipe, CPU).update(view, output)
        recipe.step_end(step, torch.zeros((), dtype=torch.bool))


@pytest.mark.parametrize("name", PLUGINS)
def test_supervised_positions_carry_what_belongs_to_their_own_token(name):
    """Labels equal the token at the predicted position, and masked_N belongs to that token."""
    recipe, _ = make(name)
    step = recipe.begin(Step(seed=2, step=0, progress=0.0, epoch=0.0, rows=32), CPU)
    batch = rows(0, 32)
    predicts_next = recipe.components.masking.predicts == "next"
    for view in recipe.corrupt(batch, step):
        supervised, index_N = gather_supervised(view, predicts_next=predicts_next)
        place_N = supervised.row_N, supervised.column_N + (supervised.causal_N | predicts_next)
        assert torch.equal(batch.ids_BT[place_N], supervised.label_N)
        assert torch.equal(view.corrupted.input_BT[place_N], supervised.input_N)
        assert torch.equal(batch.position_BT[place_N], supervised.position_N)
        assert torch.equal(batch.row_B[supervised.row_N], supervised.global_row_N)
        assert torch.equal(supervised.masked_N, ~supervised.causal_N)
        assert len(index_N) == int((view.corrupted.labels_BT != IGNORE).sum())
        if name in HYBRIDS:
            assert 0 < int(supervised.causal_N.sum()) < len(index_N)


def test_true_indices_equal_nonzero():
    generator = torch.Generator().manual_seed(0)
    for size in (0, 1, 7, 100):
        mask = torch.rand(size, generator=generator) < 0.3
        assert torch.equal(true_indices(mask, int(mask.sum())), mask.nonzero().flatten())


def test_the_logged_loss_is_the_loss_that_was_differentiated():
    recipe, loss_module = make("freq_mdlm")
    step = recipe.begin(Step(seed=1, step=3, progress=0.3, epoch=0.0, rows=8), CPU)
    parts = [view for part in (rows(0, 3), rows(3, 5)) for view in recipe.corrupt(part, step)]
    denominators_K = recipe.denominators(parts)
    metrics = StepMetrics(recipe, CPU)
    total = 0.0
    for part in parts:
        output = loss_module(part, denominators_K, step)
        total += float(output.loss.detach())
        metrics.update(part, output)
    row = metrics.compute(denominators_K, lambda x: x)
    masked = sum(int(part.corrupted.masked_BT.sum()) for part in parts)
    maskable = sum(int(part.batch.maskable_BT.sum()) for part in parts)
    assert row["loss"] == pytest.approx(total, rel=1e-5)
    assert row["mask_rate"] == pytest.approx(masked / maskable)
    assert "bound" not in row


def test_a_bound_is_reported_exactly_where_the_objective_is_one():
    assert make("uniform_mdlm")[0].is_bound
    assert not make("freq_mdlm")[0].is_bound
    assert make("freq_mdlm exact")[0].is_bound
    assert not make("gpt_bert")[0].is_bound


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
def test_only_training_runs_the_compiled_layers():
    """Validation rows and sentences have too many shapes to compile for each of them."""
    recipe, loss = make("freq_mdlm")
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    plain = gradient_of(loss, recipe, [rows(0, 4)], Step(seed=0, step=3, progress=0.5, epoch=0.0, rows=4))
    loss.compile_layers(backend)
    with evaluating(loss):
        loss.model(rows(0, 2).ids_BT, conditioning_B=torch.zeros(2))
    assert not compiled
    for rest in (2, 7):  # another number of supervised positions
        step = Step(seed=0, step=rest, progress=0.5, epoch=0.0, rows=4)
        gradient_of(loss, recipe, [rows(0, 4)], step)
        assert len(compiled) == 2  # an attention and a feed-forward sublayer, for all layers
    again = gradient_of(loss, recipe, [rows(0, 4)], Step(seed=0, step=3, progress=0.5, epoch=0.0, rows=4))
    torch.testing.assert_close(again, plain)


class Twice(UniformMasking):
    """Two equal views, with a value for every token."""

    def corrupt_views(self, batch, causal_B, noise, step):
        view = replace(self.corrupt(batch, causal_B, noise, step), carry_BT=batch.ids_BT.double() / 2)
        return [view, view]


def test_a_second_equal_view_changes_neither_loss_nor_bound():
    recipe, loss_module = make("uniform_mdlm")
    twice = Recipe(replace(recipe.components, masking=Twice(recipe.components.masking.mask_id)))
    step = Step(seed=1, step=3, progress=0.3, epoch=0.0, rows=8)
    results = []
    for each in (recipe, twice):
        views = each.corrupt(rows(0, 8), step)
        metrics = StepMetrics(each, CPU)
        denominators_K = each.denominators(views)
        for view in views:
            output = DenoisingLoss(loss_module.model, each, bf16=False)(view, denominators_K, step)
            metrics.update(view, output)
        results.append(metrics.compute(denominators_K, lambda x: x))
    assert results[1] == pytest.approx(results[0])
    assert torch.equal(output.supervised.carry_N, output.supervised.label_N.double() / 2)


def test_rates_of_tokens_replace_those_of_their_rows():
    recipe, _ = make("uniform_mdlm")
    batch, step = rows(0, 4), Step(seed=1, step=3, progress=0.3, epoch=0.0, rows=4)
    [view] = recipe.corrupt(batch, step)
    rate_BT = torch.rand(batch.ids_BT.shape, dtype=torch.float64)
    noise = replace(view.noise, rate_BT=rate_BT, slope_BT=2 * rate_BT)
    supervised, _ = gather_supervised(replace(view, noise=noise), predicts_next=False)
    expected_N = rate_BT[supervised.row_N, supervised.column_N]
    assert torch.equal(supervised.rate_N, expected_N)
    assert torch.equal(supervised.slope_N, 2 * expected_N)
    assert torch.equal(supervised.hazard_N, 1 / expected_N)


def test_a_loss_of_its_own_trains_only_the_modules_of_its_component():
    recipe, loss_module = make("learned_schedule")
    step = Step(seed=1, step=3, progress=0.3, epoch=0.0, rows=8)
    [own] = loss_module.learned_parts.parameters()
    gradients = {}
    for training in (True, False):
        views = recipe.corrupt(rows(0, 8), step)  # both views, whatever is done with them
        denominators_K = recipe.denominators(views)
        loss_module.zero_grad()
        for number, view in enumerate(views):
            loss_module(view, denominators_K, replace(step, training=training)).loss.backward()
            if training and number == 0:
                assert torch.count_nonzero(own.grad) == 0  # data parallelism finds a gradient in every pass
        gradients[training] = [p.grad.clone() for p in loss_module.model.parameters() if p.grad is not None]
        if training:
            assert torch.count_nonzero(own.grad) > 0
    for with_own_loss, without in zip(*gradients.values(), strict=True):
        assert torch.equal(with_own_loss, without)


def test_initial_weights_of_learned_parts_are_a_function_of_the_seed():
    settings = load_settings(["laptop"], (), ["learned_schedule"])

    def exponents(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # the state of torch's generator does not matter
        with seeded(replace(context(), seed=seed), "masking"):
            return torch.rand(3)

    assert torch.equal(exponents(4), exponents(4))
    assert not torch.equal(exponents(4), exponents(5))
    assert Host(settings.config, settings.sources).build(context(), statistics(zipfian_counts())).modules
