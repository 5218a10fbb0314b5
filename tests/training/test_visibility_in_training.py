"""Runs whose strategies bring a visibility and copies of the row: training, validation, and what is refused."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.models import disturbed_model
from support.runs import SCORED, TINY, losses, rows
from support.third_party import installed, write_distribution

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.testing import PluginUnderTest, train_steps
from ltg_mdlm.testing.training_steps import take_steps, trainer_of
from ltg_mdlm.training.assembly import micro_batch_rows
from ltg_mdlm.training.check import describe_run
from ltg_mdlm.training.launch import launch

PLUGINS = '''
"""Strategies with a visibility of their own."""
from dataclasses import replace

import torch

from ltg_mdlm.api import Field, MaskingStrategy, Plugin, PluginOptions, TimeConditioning, Visibility, block_visibility
from ltg_mdlm.api import hookimpl


class Options(PluginOptions):
    pattern: str = Field("blocks", description="which strategy")


class Uniform(MaskingStrategy):
    kind = "uniform"

    def mask_probability(self, batch, noise, step):
        return noise.rate_B.float().unsqueeze(1).expand(batch.ids_BT.shape)

    def corrupt(self, batch, causal_B, noise, step):
        return self.seen(super().corrupt(batch, causal_B, noise, step), batch, step)


class Blocks(Uniform):
    block_length, context_copies = 4, 1

    def seen(self, corrupted, batch, step):
        visibility = block_visibility(batch.document_BT, self.block_length).with_clean_copy()
        return replace(corrupted, visibility=visibility, context_BS=batch.ids_BT)


class UndeclaredCopies(Blocks):
    context_copies = 0


class AnyOrder(Uniform):
    context_copies = 1

    def seen(self, corrupted, batch, step):
        columns = batch.ids_BT.shape[1]
        rank_BT = step.uniform(batch, "order", columns).argsort(1).argsort(1).int()
        column_BT = torch.arange(columns, dtype=torch.int32).expand_as(rank_BT)
        clean = Visibility(group_BX=column_BT, order_BX=rank_BT, limit_BX=rank_BT)
        return replace(corrupted, visibility=clean.with_clean_copy(), context_BS=batch.ids_BT)


class Prefix(Uniform):
    def seen(self, corrupted, batch, step):
        column_BT = torch.arange(batch.ids_BT.shape[1], dtype=torch.int32).expand(batch.ids_BT.shape)
        group_BT = column_BT.masked_fill(column_BT < 8, 0)
        return replace(corrupted, visibility=Visibility(group_BX=group_BT, order_BX=column_BT, limit_BX=group_BT))


class HalfCopy(Blocks):
    def seen(self, corrupted, batch, step):
        return replace(super().seen(corrupted, batch, step), context_BS=batch.ids_BT[:, ::2])


class NoVisibility(Blocks):
    def seen(self, corrupted, batch, step):
        return replace(corrupted, context_BS=batch.ids_BT)


class ShortVisibility(Blocks):
    def seen(self, corrupted, batch, step):
        return replace(super().seen(corrupted, batch, step), visibility=block_visibility(batch.document_BT, 4))


class LongIntegers(Uniform):
    def seen(self, corrupted, batch, step):
        visibility = block_visibility(batch.document_BT, 4)
        return replace(corrupted, visibility=replace(visibility, limit_BX=visibility.limit_BX.long()))


class ATuple(Uniform):
    def seen(self, corrupted, batch, step):
        return replace(corrupted, visibility=(0, 0, 0))


class NextInBlocks(Blocks):
    predicts = "next"


class HalfABlock(Blocks):
    block_length = 0.5


class Without(TimeConditioning):
    active = False

    def value(self, corrupted, noise):
        return None

    def value_for_rate(self, rate_B):
        return None


class P(Plugin[Options]):
    options_model = Options

    @hookimpl
    def ltg_mdlm_masking(self, ctx):
        return globals()[self.options.pattern.removesuffix("Conditioned")](ctx.mask_id)

    @hookimpl
    def ltg_mdlm_time_conditioning(self):
        return None if self.options.pattern.endswith("Conditioned") else Without()
'''


@pytest.fixture(scope="module", autouse=True)
def patterns(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    module = write_distribution(folder, "patterns", PLUGINS)
    with installed(folder):
        yield module


def subject(pattern: str) -> PluginUnderTest:
    return PluginUnderTest("patterns", {"pattern": pattern})


def trained(out: Path, pattern: str, *sets: str) -> tuple[list[dict], list[str]]:
    """Rows and warnings of a tiny run."""
    settings = load_settings([], [*TINY, *sets, f"plugins.patterns.pattern={pattern}"], ["patterns"], out)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        assert launch(settings) == 0
    return rows(out), [str(warning.message) for warning in found]


SHORT = ("training.max_steps=3", "validation.every=2", "checkpoint.every=3")


def test_block_diffusion_trains_and_is_validated_with_the_bound_of_its_blocks(tmp_path):
    found, shown = trained(tmp_path / "run", "Blocks", *SHORT, *SCORED)
    assert [text for text in shown if "valid/bound" in text] == []
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run").values())
    validated = [row for row in found if "valid/loss" in row]
    assert all("valid/bound" in row for row in validated)
    assert [("valid/minimal_pairs" in row) for row in validated] == [True, False, True]
    state = json.loads(next((tmp_path / "run/checkpoints").glob("step_*/state.json")).read_text())
    assert state["block_length"] == 4


@pytest.mark.parametrize("pattern", ["AnyOrder", "Prefix"])
def test_models_with_another_visibility_have_no_bound_and_no_minimal_pairs_and_one_line_says_so(pattern, tmp_path):
    found, shown = trained(tmp_path / "run", pattern, *SHORT, *SCORED)
    validated = [row for row in found if "valid/loss" in row]
    assert len(validated) == 3
    assert not {"valid/bound", "valid/bits_per_byte", "valid/minimal_pairs"} & set().union(*validated)
    (line,) = [text for text in shown if "valid/bound" in text]
    assert re.match(r"valid/bound and valid/minimal_pairs are not measured: plugin 'patterns' of patterns-dist", line)


@pytest.mark.parametrize("pattern", ["Blocks", "AnyOrder", "Prefix"])
def test_losses_do_not_depend_on_the_split_into_micro_batches(pattern):
    one, three = (
        train_steps(subject(pattern), "model.dropout=0", f"training.micro_batch_rows={n}", steps=3) for n in (6, 2)
    )
    assert one.losses == pytest.approx(three.losses, rel=1e-5)


@torch.no_grad()
def test_the_bound_of_blocks_in_validation_is_that_of_blocks_which_are_run_alone():
    """For blocks of one token there is nothing to draw: the bound is exact, and reads from left to right."""
    with trainer_of(subject("Blocks"), "validation.rows=3") as (trainer, _):
        trainer.recipe.components.masking.block_length = 1
        model = disturbed_model(trainer.run.loss.model.config, dtype=torch.float32)
        trainer.run.loss.model.load_state_dict(model.state_dict())
        validator = trainer.run.validator
        assert validator is not None
        found = validator(0.0, 0.0)["valid/bound"]
        total, count = 0.0, 0
        for batch in validator._batches:
            for row in range(len(batch.ids_BT)):
                for document in range(int(batch.document_BT[row].max()) + 1):
                    inside_T = batch.document_BT[row] == document
                    ids, maskable = batch.ids_BT[row][inside_T], batch.maskable_BT[row][inside_T]
                    for column in maskable.nonzero().flatten().tolist():
                        context = ids[: column + 1].clone()
                        context[column] = trainer.recipe.components.masking.mask_id
                        causal_B = torch.tensor([True])
                        hidden = trainer.run.loss.model.eval()(context[None], causal_B=causal_B)[0, column]
                        logits = trainer.run.loss.model.logits(trainer.run.loss.model.head(hidden))
                        total -= float(logits.double().log_softmax(0)[ids[column]])
                        count += 1
    assert found == pytest.approx(total / count, rel=1e-4)


def test_a_run_whose_rows_have_copies_has_smaller_micro_batches_and_costs_more():
    config = load_settings([], TINY).config
    device = torch.device("cpu")
    assert micro_batch_rows(config, device, 128) == 2 * micro_batch_rows(config, device, 128, copies=1)
    plain, copies = (
        describe_run(load_settings([], [*TINY, f"plugins.patterns.pattern={name}"], ["patterns"]))
        for name in ("Prefix", "Blocks")
    )
    assert 1.5 * plain.gpu_hours < copies.gpu_hours < 2.5 * plain.gpu_hours


def test_undeclared_copies_train_but_check_says_that_they_are_not_planned_for():
    assert len(train_steps(subject("UndeclaredCopies"), steps=1).losses) == 1
    report = describe_run(load_settings([], [*TINY, "plugins.patterns.pattern=UndeclaredCopies"], ["patterns"]))
    assert [text for text in report.warnings if "appends 1 copies to a row; its context_copies is 0" in text]


REFUSED = {
    "HalfCopy": r"HalfCopy.corrupt returned context_BS as int64\[4, 16\], not int64\[4, 32\]: it holds whole copies of"
    r" the rows of 32 tokens, context_copies = 1 of each",
    "NoVisibility": "NoVisibility.corrupt returned context_BS without a visibility: every token would see itself",
    "ShortVisibility": r"ShortVisibility.corrupt returned visibility.group_BX as int32\[4, 32\], not int32\[4, 64\]",
    "LongIntegers": r"LongIntegers.corrupt returned visibility.limit_BX as int64\[4, 32\], not int32\[4, 32\]",
    "ATuple": "ATuple.corrupt returned visibility as tuple, not Visibility",
    "NextInBlocks": "NextInBlocks.block_length is 4, and predicts is 'next'",
    "HalfABlock": "HalfABlock.block_length is 0.5, not 0 or a positive whole number",
    "BlocksConditioned": r"Blocks.context_copies is 1: copies of the row have no mask rate, but the time conditioning"
    r" of plugin 'uniform_mdlm' .* needs one value per row\n  choose one that is not active",
    "UndeclaredCopiesConditioned": r"UndeclaredCopies.corrupt returned copies of the row \(context_BS\), but the time",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_check_and_the_first_step_refuse_what_does_not_fit_and_name_the_plugin(pattern, patterns):
    messages = []
    with pytest.raises(UserError) as error:
        describe_run(load_settings([], [*TINY, f"plugins.patterns.pattern={pattern}"], ["patterns"]))
    messages.append(str(error.value))
    with pytest.raises(UserError) as error, trainer_of(subject(pattern)) as (trainer, _):
        take_steps(trainer, 1)
    messages.append(re.sub(r"\[6, (\d+)\]", r"[4, \1]", str(error.value)))
    for message in messages:
        assert message.startswith(f"plugin 'patterns' of patterns-dist 1.0 ({patterns})"), message
        assert re.search(REFUSED[pattern], message), message


def test_rates_per_token_with_an_active_conditioning_are_refused_by_check(tmp_path):
    source = """
import torch
from ltg_mdlm_plugins.schedules import Linear
from ltg_mdlm_plugins.uniform_mdlm import UniformMasking
from ltg_mdlm.api import Plugin, hookimpl
from dataclasses import replace

class PerToken(Linear):
    def sample(self, batch, step):
        noise = super().sample(batch, step)
        rate_BT = noise.rate_B.unsqueeze(1).expand(batch.ids_BT.shape)
        return replace(noise, rate_BT=rate_BT, slope_BT=torch.ones_like(rate_BT))

class Reads(UniformMasking):
    reads_token_rates = True

class P(Plugin):
    @hookimpl
    def ltg_mdlm_noise_schedule(self): return PerToken()
    @hookimpl
    def ltg_mdlm_masking(self, ctx): return Reads(ctx.mask_id)
"""
    write_distribution(tmp_path, "rates", source)
    with (
        installed(tmp_path),
        pytest.raises(UserError, match=r"PerToken.sample returned rates per token \(rate_BT\), but"),
    ):
        describe_run(load_settings([], TINY, ["rates"]))
