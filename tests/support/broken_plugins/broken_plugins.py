"""Plugins with one mistake each. `tests/kit/test_conformance.py` lists the check that finds it."""

import dataclasses

import numpy as np
import torch
from ltg_mdlm_plugins.conditioning import MaskRate, NoConditioning
from ltg_mdlm_plugins.objectives import DiffusionObjective
from ltg_mdlm_plugins.uniform_mdlm import UniformMasking
from pydantic import ConfigDict
from torch import nn

from ltg_mdlm.api import (
    IGNORE,
    Component,
    Field,
    MaskingStrategy,
    NoiseSchedule,
    Optimizer,
    Plugin,
    PluginOptions,
    RowMode,
    RowOrder,
    block_visibility,
    hookimpl,
    labels_for,
    realised_rate,
)


class LenientOptions(PluginOptions):
    model_config = ConfigDict(extra="ignore")


class Lenient(Plugin[LenientOptions]):
    options_model = LenientOptions

    @hookimpl
    def ltg_mdlm_masking(self, ctx):
        return UniformMasking(ctx.mask_id)


class MuteOptions(PluginOptions):
    told: float = Field(0.5, description="is described")
    untold: float = 0.5


class Mute(Plugin[MuteOptions]):
    options_model = MuteOptions

    @hookimpl
    def ltg_mdlm_masking(self, ctx):
        return UniformMasking(ctx.mask_id)


class Masking(MaskingStrategy):
    """A correct strategy, from which broken ones are derived."""

    def mask_probability(self, batch, noise, step):
        return noise.rate_B.float().unsqueeze(1).expand(batch.ids_BT.shape)


class DoubleRealisedRate(Masking):
    def corrupt(self, batch, causal_B, noise, step):
        result = super().corrupt(batch, causal_B, noise, step)
        return dataclasses.replace(result, realised_rate_B=result.realised_rate_B.double())


class RealisedOverAllPositions(Masking):
    def corrupt(self, batch, causal_B, noise, step):
        result = super().corrupt(batch, causal_B, noise, step)
        return dataclasses.replace(result, realised_rate_B=result.masked_BT.float().mean(1))


class RateInPlace(Masking):
    def mask_probability(self, batch, noise, step):
        noise.rate_B.clamp_(min=0.01)
        return super().mask_probability(batch, noise, step)


class MasksControlTokens(Masking):
    def corrupt(self, batch, causal_B, noise, step):
        result = super().corrupt(batch, causal_B, noise, step)
        drawn_BT = step.uniform(batch, "mask", batch.ids_BT.shape[1]) < self.mask_probability(batch, noise, step)
        masked_BT = drawn_BT & (batch.document_BT >= 0) & ~causal_B.unsqueeze(1)
        return dataclasses.replace(
            result,
            input_BT=batch.ids_BT.masked_fill(masked_BT, self.mask_id),
            labels_BT=torch.where(masked_BT, batch.ids_BT, result.labels_BT),
            masked_BT=masked_BT,
            realised_rate_B=realised_rate(batch, masked_BT),
        )


class UnshiftedCausalLabels(Masking):
    def corrupt(self, batch, causal_B, noise, step):
        result = super().corrupt(batch, causal_B, noise, step)
        target_BT = torch.where(causal_B.unsqueeze(1), batch.maskable_BT, result.masked_BT)
        return dataclasses.replace(result, labels_BT=batch.ids_BT.masked_fill(~target_BT, IGNORE))


class LeakingInput(Masking):
    def corrupt(self, batch, causal_B, noise, step):
        result = super().corrupt(batch, causal_B, noise, step)
        return dataclasses.replace(result, input_BT=result.input_BT.masked_fill(causal_B.unsqueeze(1), self.mask_id))


class LessThanItsRate(Masking):
    def mask_probability(self, batch, noise, step):
        return 0.9 * super().mask_probability(batch, noise, step)


class NotUniform(Masking):
    kind = "uniform"
    keeps_rate = False

    def mask_probability(self, batch, noise, step):
        return super().mask_probability(batch, noise, step) * (0.5 + 0.5 * (batch.ids_BT % 2))


class GeneratorWithState(Masking):
    def mask_probability(self, batch, noise, step):
        return (torch.rand(batch.ids_BT.shape) < noise.rate_B.unsqueeze(1)).float()


class RowsOfTheMicroBatch(Masking):
    def corrupt(self, batch, causal_B, noise, step):
        numbered = dataclasses.replace(batch, row_B=torch.arange(len(batch.row_B)))
        return super().corrupt(numbered, causal_B, noise, step)


class SeesItsOwnCopy(Masking):
    """Block diffusion, but a corrupted block also sees its own clean copy."""

    context_copies = 1
    further_blocks = 1

    def visibility(self, batch):
        return block_visibility(batch.document_BT, 4).with_clean_copy()

    def corrupt(self, batch, causal_B, noise, step):
        result, visibility = super().corrupt(batch, causal_B, noise, step), self.visibility(batch)
        visibility = dataclasses.replace(visibility, limit_BX=visibility.limit_BX + self.further_blocks)
        return dataclasses.replace(result, context_BS=batch.ids_BT, visibility=visibility.with_causal_rows(causal_B))


class BlocksOfTheMicroBatch(SeesItsOwnCopy):
    """Block diffusion, but blocks are numbered through all rows of the micro-batch."""

    further_blocks = 0

    def visibility(self, batch):
        visibility = block_visibility(batch.document_BT, 4)
        before_B1 = 100 * torch.arange(len(batch.row_B), dtype=torch.int32).unsqueeze(1)
        return dataclasses.replace(visibility, group_BX=visibility.group_BX + before_B1).with_clean_copy()


class InfiniteHazard(Masking):
    def hazard(self, batch, noise, step):
        return (1 / (1 - noise.rate_B)).unsqueeze(1).expand(batch.ids_BT.shape), None


class MasksNothing(Masking):
    keeps_rate = False

    def mask_probability(self, batch, noise, step):
        return torch.zeros(batch.ids_BT.shape)


class UniformBERT(Masking):
    kind = "uniform"

    def show(self, batch, masked_BT, noise, step):
        """80 % `<mask>`, 10 % random tokens, 10 % the tokens themselves."""
        columns = batch.ids_BT.shape[1]
        random_BT = step.integers(batch, "random", columns, 32) + 16
        u_BT = step.uniform(batch, "show", columns)
        other_BT = torch.where(u_BT < 0.9, random_BT, batch.ids_BT)
        return torch.where(masked_BT, torch.where(u_BT < 0.8, self.mask_id, other_BT), batch.ids_BT)


class UniformWholeWords(Masking):
    kind = "uniform"

    def choose(self, batch, noise, step):
        """One draw for every word, which begins with an even id."""
        columns = batch.ids_BT.shape[1]
        starts_BT = (batch.ids_BT % 2 == 0) | ~batch.maskable_BT
        first_BT = torch.where(starts_BT, torch.arange(columns), 0).cummax(1).values
        return step.uniform(batch, "mask", columns).gather(1, first_BT) < noise.rate_B.unsqueeze(1)


class UniformExactCount(Masking):
    kind = "uniform"

    def choose(self, batch, noise, step):
        """The same number of tokens in all rows with the same length and mask rate."""
        u_BT = step.uniform(batch, "mask", batch.ids_BT.shape[1]).masked_fill(~batch.maskable_BT, 2)
        tokens_B1 = batch.maskable_BT.sum(1, keepdim=True)
        up_B1 = step.uniform(batch, "up")
        return u_BT.argsort(1).argsort(1) < (tokens_B1 * noise.rate_B.unsqueeze(1) + up_B1).floor()


class EveryStepAlike(Masking):
    kind = "uniform"

    def choose(self, batch, noise, step):
        return super().choose(batch, noise, dataclasses.replace(step, step=0))


class ClaimsBound(DiffusionObjective):
    def bound_for(self, strategy, schedule):
        return schedule.full_support and isinstance(strategy, Masking)


class BERT(UniformBERT):
    """80/10/10 that states its transition; no bound is known for it."""

    kind = "other"

    def transition(self, ids_BT, noise, random=0.1):
        to_BTV = torch.zeros(*ids_BT.shape, 48, dtype=torch.float64)
        to_BTV[..., 16:] = random / 32
        to_BTV[..., self.mask_id] = 0.8
        itself_BTV = torch.nn.functional.one_hot(ids_BT, 48).double()
        to_BTV = to_BTV + (0.2 - random) * itself_BTV
        rate_B11 = noise.rate_B[:, None, None]
        return rate_B11 * to_BTV + (1 - rate_B11) * itself_BTV


class WrongTransition(BERT):
    def transition(self, ids_BT, noise):
        return super().transition(ids_BT, noise, random=0.15)


class StatesItsTransition(Masking):
    """Correct: uniform masking as an unknown kind, whose bound is known from its transition."""

    def transition(self, ids_BT, noise):
        itself_BTV = torch.nn.functional.one_hot(ids_BT, 48).double()
        hidden_V = torch.nn.functional.one_hot(torch.tensor(self.mask_id), 48).double()
        rate_B11 = noise.rate_B[:, None, None]
        return rate_B11 * hidden_V + (1 - rate_B11) * itself_BTV


class RatesByType(NoiseSchedule):
    """Correct: every token has a rate of its own, which depends on its type."""

    full_support = True

    def rate(self, t, progress):
        return t

    def slope(self, t, progress):
        return torch.ones_like(t)

    def sample(self, batch, step):
        of_row = super().sample(batch, step)
        t_B1, power_BT = of_row.t_B.unsqueeze(1), 1.0 + batch.ids_BT.double() % 2
        return dataclasses.replace(of_row, rate_BT=t_B1**power_BT, slope_BT=power_BT * t_B1 ** (power_BT - 1))


class ReadsTokenRates(Masking):
    keeps_rate = False
    reads_token_rates = True

    def mask_probability(self, batch, noise, step):
        return noise.rate_BT.float()


class CallsThemUniform(ReadsTokenRates):
    kind = "uniform"


class Carries(Masking):
    """Correct: hands its objective a value for every token."""

    def corrupt(self, batch, causal_B, noise, step):
        corrupted = super().corrupt(batch, causal_B, noise, step)
        return dataclasses.replace(corrupted, carry_BT=batch.maskable_BT.cumsum(1).float())


class WeightsByCarry(DiffusionObjective):
    def weights(self, supervised, step):
        weight_N, z_weight_N = super().weights(supervised, step)
        return weight_N / (1 + supervised.carry_N), z_weight_N

    def bound_for(self, strategy, schedule):
        return False


class SelectsWithDropout(Masking):
    """Correct: a learned selector, whose dropout is off while rows are corrupted."""

    keeps_rate = False

    def __init__(self, mask_id):
        super().__init__(mask_id)
        self.selector = nn.Sequential(nn.Embedding(48, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def modules(self):
        return {"selector": self.selector}

    def own_loss(self, observations, corrupteds, logits):
        return self.selector[2].weight.square().sum().reshape(1)

    def mask_probability(self, batch, noise, step):
        share_BT = 0.5 + 0.5 * self.selector(batch.ids_BT).squeeze(2).sigmoid()
        return noise.rate_B.float().unsqueeze(1) * share_BT


class Capped(NoiseSchedule):
    """Correct: the rate is constant from 0.8 on, where its slope is 0."""

    full_support = False

    def rate(self, t, progress):
        return t.clamp(max=0.8)

    def slope(self, t, progress):
        return (t < 0.8).double()


class ByEpoch(NoiseSchedule):
    """Correct: rates grow with the epoch, of which `rate` is not told."""

    full_support = False

    def rate(self, t, progress):
        return t

    def slope(self, t, progress):
        return torch.ones_like(t)

    def sample(self, batch, step):
        noise, share = super().sample(batch, step), min(1.0, 0.5 + step.epoch / 20)
        return dataclasses.replace(noise, rate_B=share * noise.rate_B, slope_B=share * noise.slope_B)


class ShowsRandomTokens(MaskingStrategy):
    """Correct: uniform noise. All tokens are predicted, some of them are replaced, and none is a mask."""

    keeps_rate = False

    def choose(self, batch, noise, step):
        return batch.maskable_BT

    def show(self, batch, chosen_BT, noise, step):
        columns = batch.ids_BT.shape[1]
        random_BT = 16 + step.integers(batch, "token", columns, 32)
        replaced_BT = step.uniform(batch, "replace", columns) < noise.rate_B.float().unsqueeze(1)
        return torch.where(chosen_BT & replaced_BT, random_BT, batch.ids_BT)


class ConstantBelowZero(DiffusionObjective):
    """Uniform masking with a row's bound lowered by half a nat."""

    def constant(self, batch, corrupted):
        return -0.5 * torch.ones_like(batch.row_B).sum().double()


class Complementary(Masking):
    """Correct: two views of every row, each of which masks what the other shows."""

    kind = "uniform"

    def corrupt_views(self, batch, causal_B, noise, step):
        first = self.corrupt(batch, causal_B, noise, step)
        masked_BT = batch.maskable_BT & ~first.masked_BT & ~causal_B.unsqueeze(1)
        second = dataclasses.replace(
            first,
            input_BT=batch.ids_BT.masked_fill(masked_BT, self.mask_id),
            labels_BT=labels_for(batch, masked_BT, causal_B, self.predicts),
            masked_BT=masked_BT,
            realised_rate_B=realised_rate(batch, masked_BT),
            noise=dataclasses.replace(noise, rate_B=1 - noise.rate_B),
        )
        return [first, second]


class OnlyViews(MaskingStrategy):
    """Correct: two views, and no `choose`."""

    kind = "uniform"

    def corrupt_views(self, batch, causal_B, noise, step):
        draw_BT = step.uniform(batch, "noise", batch.ids_BT.shape[1])
        rate_B1 = noise.rate_B.unsqueeze(1)
        return [
            self.corrupt_chosen(batch, chosen_BT, causal_B, noise, step)
            for chosen_BT in (draw_BT < rate_B1, draw_BT > 1 - rate_B1)
        ]


class EqualViews(Masking):
    def corrupt_views(self, batch, causal_B, noise, step):
        return [self.corrupt(batch, causal_B, noise, step) for _ in range(2)]


class NoViews(Masking):
    def corrupt_views(self, batch, causal_B, noise, step):
        return []


class SecondViewOfTheMicroBatch(Complementary):
    def corrupt_views(self, batch, causal_B, noise, step):
        numbered = dataclasses.replace(batch, row_B=torch.arange(len(batch.row_B)))
        return [
            self.corrupt(batch, causal_B, noise, step),
            self.corrupt(numbered, causal_B, noise, step.branched("second")),
        ]


class Falling(NoiseSchedule):
    def rate(self, t, progress):
        return 1 - t

    def slope(self, t, progress):
        return torch.ones_like(t)


class SingleRate(NoiseSchedule):
    full_support = False

    def rate(self, t, progress):
        return torch.full_like(t, 0.4)

    def slope(self, t, progress):
        return torch.zeros_like(t)


class WrongSlope(NoiseSchedule):
    def rate(self, t, progress):
        return t**2

    def slope(self, t, progress):
        return t


class WrongDensity(NoiseSchedule):
    def rate(self, t, progress):
        return t**2

    def slope(self, t, progress):
        return 2 * t

    def density(self, rate, progress):
        return 2 * rate


class PartialSupport(NoiseSchedule):
    def rate(self, t, progress):
        return 0.2 + 0.6 * t

    def slope(self, t, progress):
        return torch.full_like(t, 0.6)


class OneDrawForAll(NoiseSchedule):
    full_support = False

    def rate(self, t, progress):
        return t

    def slope(self, t, progress):
        return torch.ones_like(t)

    def sample(self, batch, step):
        noise = super().sample(batch, step)
        first_B = noise.t_B[:1].expand_as(noise.t_B)
        return dataclasses.replace(noise, t_B=first_B, rate_B=first_B)


class InfiniteAtOne(DiffusionObjective):
    def weights(self, supervised, step):
        return (supervised.slope_N / (1 - supervised.rate_N)).float(), None


class ConstantDenominator(DiffusionObjective):
    def denominators(self, batch, corrupted):
        return torch.ones(1)


class DoubleWeights(DiffusionObjective):
    def weights(self, supervised, step):
        return supervised.slope_N / supervised.rate_N, None


class SlopeInPlace(DiffusionObjective):
    def weights(self, supervised, step):
        supervised.slope_N.clamp_(max=0.9)
        return super().weights(supervised, step)

    def bound_for(self, strategy, schedule):
        return False


class NaNInStepThree(DiffusionObjective):
    def weights(self, supervised, step):
        weight_N, _ = super().weights(supervised, step)
        return weight_N * (float("nan") if step.step == 3 else 1), None


class MeanOfMeans(DiffusionObjective):
    def weights(self, supervised, step):
        weight_N, _ = super().weights(supervised, step)
        return weight_N / len(weight_N), None


class SoftenedBound(DiffusionObjective):
    def bound_for(self, strategy, schedule):
        return strategy.kind == "uniform" and schedule.full_support


class BoundForAll(DiffusionObjective):
    def bound_for(self, strategy, schedule):
        return True


class TellsCausalRows(MaskRate):
    def value(self, corrupted, noise):
        return noise.rate_B.float()


class InfiniteSigma(MaskRate):
    def value_for_rate(self, rate_B):
        return -torch.log1p(-rate_B.float())

    def value(self, corrupted, noise):
        return noise.rate_B.float().masked_fill(corrupted.causal_B, 0)


class NoiseInPlace(MaskRate):
    def value(self, corrupted, noise):
        noise.rate_B.mul_(~corrupted.causal_B)
        return noise.rate_B.float()


class ScalarEmbedding(MaskRate):
    def embedding(self, cond_dim):
        return nn.Identity()


class Alternating(RowMode):
    def __init__(self):
        self.asked = 0

    def causal(self, step, device):
        self.asked += 1
        return (torch.arange(step.rows, device=device) + self.asked) % 2 == 0


class ModeOfEpoch(RowMode):
    """Correct: all rows of every other epoch are causal."""

    modes = frozenset({"masked", "causal"})

    def causal(self, step, device):
        return torch.ones(step.rows, dtype=torch.bool, device=device) if int(step.epoch) % 2 else None


class UndeclaredCausalRows(RowMode):
    modes = frozenset({"masked"})

    def causal(self, step, device):
        return step.permutation("row_mode", device) % 2 == 0


class Adaptive(Masking):
    """A correct adaptive strategy, which masks less while the loss is low."""

    keeps_rate = False

    def __init__(self, ctx):
        super().__init__(ctx.mask_id)
        self.sum_over_ranks = ctx.sum_over_ranks
        self.scale, self.sums = torch.ones(()), torch.zeros(2)

    def mask_probability(self, batch, noise, step):
        return super().mask_probability(batch, noise, step) * self.scale

    def observe(self, observation):
        self.sums = self.sums + self.seen(observation.nll_N)

    def seen(self, nll_N):
        fine_N = torch.isfinite(nll_N)
        return torch.stack([torch.where(fine_N, nll_N, 0).sum(), fine_N.sum()])

    def step_end(self, step):
        total, count = self.total()
        self.scale = torch.where(count > 0, (total / count.clamp(min=1) / 10).clamp(max=1), self.scale)
        self.sums = torch.zeros(2)

    def total(self):
        return self.sum_over_ranks(self.sums)

    def metrics(self):
        return {"scale": self.scale}

    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, state):
        self.scale = state["scale"].clone()


class ErrorPredictor(Component):
    """A correct component with learned parts, which predicts the loss of every token type."""

    def __init__(self, vocab_size):
        self.loss_V = nn.Embedding(vocab_size, 1)

    def modules(self):
        return {"loss_by_type": self.loss_V}

    def own_loss(self, observations, corrupteds, logits):
        [seen] = observations
        predicted_N = self.loss_V(seen.supervised.label_N).squeeze(1)
        return (predicted_N - seen.nll_N).square().sum().reshape(1)


class StartsAtZero(ErrorPredictor):
    """Correct: its last layer begins with zeros, so that in the first step nothing else learns."""

    def __init__(self, vocab_size):
        self.loss_V = nn.Sequential(nn.Embedding(vocab_size, 4), nn.Linear(4, 4), nn.Linear(4, 1))
        nn.init.zeros_(self.loss_V[2].weight)


class PredictsWithDropout(ErrorPredictor):
    """Correct, though dropout is drawn for every micro-batch."""

    def __init__(self, vocab_size):
        self.loss_V = nn.Sequential(nn.Embedding(vocab_size, 4), nn.Dropout(0.5), nn.Linear(4, 1))


class UnseededParts(ErrorPredictor):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        values = np.random.default_rng().normal(size=(vocab_size, 1))
        self.loss_V = nn.Embedding.from_pretrained(torch.from_numpy(values).float(), freeze=False)


class IdlePart(ErrorPredictor):
    def modules(self):
        return {**super().modules(), "scale": nn.Linear(1, 1)}


class CountsValidation(Adaptive):
    """Masks less the more tokens were masked in the step before, to which it adds those of validations."""

    def __init__(self, ctx):
        super().__init__(ctx)
        self.masked = torch.zeros(())

    def corrupt(self, batch, causal_B, noise, step):
        result = super().corrupt(batch, causal_B, noise, step)
        self.masked = self.masked + result.masked_BT.sum()
        return result

    def step_end(self, step):
        self.scale = 1 / (1 + self.sum_over_ranks(self.masked) / 1000)
        self.masked = torch.zeros(())


class CountsValidationInItsState(CountsValidation):
    """The same with a sum over all steps."""

    def __init__(self, ctx):
        super().__init__(ctx)
        self.total = torch.zeros(())

    def corrupt(self, batch, causal_B, noise, step):
        result = super().corrupt(batch, causal_B, noise, step)
        self.total = self.total + self.sum_over_ranks(result.masked_BT.sum())
        return result

    def state_dict(self):
        return {"total": self.total, "scale": self.scale}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.total = state["total"].clone()


class Forgetful(Adaptive):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class LastMicroBatch(Adaptive):
    def observe(self, observation):
        self.sums = self.seen(observation.nll_N)


class EachRankForItself(Adaptive):
    def total(self):
        return self.sums


class TalkativeState(Adaptive):
    def state_dict(self):
        return {"scale": self.sum_over_ranks(self.scale) / self.sum_over_ranks(torch.ones(()))}


class KeepsNaN(Adaptive):
    def seen(self, nll_N):
        return torch.stack([nll_N.sum(), torch.ones_like(nll_N).sum()])


class VectorMetric(Adaptive):
    def metrics(self):
        return {"scales": self.scale.expand(3)}


class SmoothsInPlace(Component):
    def observe(self, observation):
        observation.nll_N.clamp_(max=1)


class AsksTheHost(Component):
    def observe(self, observation):
        self.error_rate = 1 - observation.correct_N.float().mean().item()

    def metrics(self):
        return {"error_rate": self.error_rate}


class LogsAName(Component):
    def metrics(self):
        return {"progress": 0.5}


class SelectsByMask(Component):
    def observe(self, observation):
        self.nll = observation.nll_N[observation.correct_N].sum()


class CrashesInStepEnd(Component):
    def step_end(self, step):
        return self.never_set


class Momentum(Optimizer):
    """A correct optimiser, from which broken ones are derived."""

    def __init__(self, groups, settings):
        super().__init__(groups, max_norm=settings.clip)

    def initial_state(self, parameter):
        return {"momentum": torch.zeros_like(parameter.value)}

    def new_state(self, parameter, gradient):
        return {"momentum": 0.9 * parameter.state["momentum"] + gradient}

    def update(self, parameter, gradient, state, lr):
        return -lr * state["momentum"]


class OneRateForAll(Momentum):
    def update(self, parameter, gradient, state, lr):
        return -lr * state["momentum"].norm()


class MomentumInPlace(Momentum):
    def new_state(self, parameter, gradient):
        return {"momentum": parameter.state["momentum"].mul_(0.9).add_(gradient)}


class UnsavedMomentum(Momentum):
    def __init__(self, groups, settings):
        super().__init__(groups, settings)
        self.before = {}

    def update(self, parameter, gradient, state, lr):
        change = gradient + self.before.get(parameter.name, 0)
        self.before[parameter.name] = gradient
        return -lr * change


class NoisyDescent(Momentum):
    def update(self, parameter, gradient, state, lr):
        return -lr * (gradient + 0.1 * torch.randn_like(gradient))


class SkipsSmallGradients(Momentum):
    def update(self, parameter, gradient, state, lr):
        return -lr * state["momentum"] if gradient.norm() > 1e-3 else torch.zeros_like(gradient)


class HardRowsAgain(RowOrder):
    """A correct adaptive order: rows with the sources of high loss come first in the next epochs."""

    def __init__(self, ctx):
        self.rank, self.sum_over_ranks = ctx.rank, ctx.sum_over_ranks
        self.source_N = torch.from_numpy(np.repeat(ctx.corpus.source_D, np.diff(ctx.corpus.offset_D1)).astype(int))
        self.sums = torch.zeros(2, len(ctx.corpus.source_names), dtype=torch.float64)
        self.new_sums = torch.zeros_like(self.sums)

    def epoch(self, stage, number, rows, key):
        loss_G = (self.sums[0] / self.sums[1].clamp(min=1)).numpy()
        loss_R = rows.sum_by_row(loss_G[rows.source_P] * rows.length_P) / rows.sum_by_row(rows.length_P)
        return np.argsort(-loss_R - np.random.default_rng(self.entropy(key)).random(rows.count), kind="stable")

    def entropy(self, key):
        return key

    def observe(self, observation):
        nll_N = observation.nll_N.double()
        seen_N = torch.isfinite(nll_N) & (observation.supervised.position_N >= 0)
        source_N = self.source_N[observation.supervised.position_N.clamp(min=0)]
        values = torch.stack([torch.where(seen_N, nll_N, 0), seen_N.double()])
        self.new_sums.index_add_(1, source_N, values)

    def step_end(self, step):
        self.sums += self.sum_over_ranks(self.new_sums)
        self.new_sums.zero_()

    def state_dict(self):
        return {"sums": self.sums}

    def load_state_dict(self, state):
        self.sums.copy_(state["sums"])


class RowsFromOne(HardRowsAgain):
    def epoch(self, stage, number, rows, key):
        return super().epoch(stage, number, rows, key) + 1


class HalfOfTheRows(HardRowsAgain):
    def epoch(self, stage, number, rows, key):
        return super().epoch(stage, number, rows, key)[::2]


class RowsAsFloats(HardRowsAgain):
    def epoch(self, stage, number, rows, key):
        return super().epoch(stage, number, rows, key).astype(float)


class AnotherOrderEveryTime(HardRowsAgain):
    def entropy(self, key):
        return None


class OrderOfTheRank(HardRowsAgain):
    def entropy(self, key):
        return (*key, self.rank)


class OrderWithoutState(HardRowsAgain):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def infinite_where_certain(logits_NV):
    return 1 / (1 - logits_NV.softmax(1).amax(1))


def relative_to_the_others(logits_NV):
    probability_N = logits_NV.softmax(1).amax(1)
    return probability_N / probability_N.sum()


def sharpens_in_place(logits_NV):
    return logits_NV.mul_(2).softmax(1).amax(1)


class Orders(Plugin):
    """Unmasking orders, of which subclasses have one each."""

    order = None

    @hookimpl
    def ltg_mdlm_unmasking_orders(self):
        return {"broken": type(self).order}


def order_plugin(function):
    return type(f"{function.__name__}_plugin", (Orders,), {"order": staticmethod(function), "__doc__": "An order."})


def recipe(strategy, objective):
    """A plugin with a masking strategy and an objective that calls its loss a bound."""

    class Recipe(Plugin):
        @hookimpl
        def ltg_mdlm_masking(self, ctx):
            return strategy(ctx.mask_id)

        @hookimpl
        def ltg_mdlm_objective(self):
            return objective(1.0)

    return Recipe


def plugin_with(hook, make):
    """A plugin that registers `make(ctx)` with one hook."""

    @hookimpl
    def register(self, ctx):
        return make(ctx)

    return type(make.__name__, (Plugin,), {hook: register, "__module__": __name__})


def masking(strategy):
    return plugin_with("ltg_mdlm_masking", lambda ctx: strategy(ctx if issubclass(strategy, Adaptive) else ctx.mask_id))


def masking_without_conditioning(strategy):
    plugin = masking(strategy)
    plugin.ltg_mdlm_time_conditioning = conditioning(NoConditioning).ltg_mdlm_time_conditioning
    return plugin


def schedule(kind):
    return plugin_with("ltg_mdlm_noise_schedule", lambda ctx: kind())


def objective(kind, power=1.0):
    return plugin_with("ltg_mdlm_objective", lambda ctx: kind(power))


def conditioning(kind):
    return plugin_with("ltg_mdlm_time_conditioning", lambda ctx: kind())


def row_mode(kind):
    return plugin_with("ltg_mdlm_row_mode", lambda ctx: kind())


def row_order(kind):
    return plugin_with("ltg_mdlm_row_order", kind)


def observer(kind):
    return plugin_with("ltg_mdlm_observers", lambda ctx: [kind()])


def learning_observer(kind):
    return plugin_with("ltg_mdlm_observers", lambda ctx: [kind(ctx.vocab_size)])


def optimizer(kind):
    """A plugin that provides an optimiser."""

    @hookimpl
    def register(self, groups, settings):
        return kind(groups, settings)

    return type(kind.__name__, (Plugin,), {"ltg_mdlm_optimizer": register, "__module__": __name__})


error_predictor = learning_observer(ErrorPredictor)
starts_at_zero = learning_observer(StartsAtZero)
predicts_with_dropout = learning_observer(PredictsWithDropout)
only_views = recipe(OnlyViews, DiffusionObjective)
mode_of_epoch = row_mode(ModeOfEpoch)
unseeded_parts = learning_observer(UnseededParts)
idle_part = learning_observer(IdlePart)
double_realised_rate = masking(DoubleRealisedRate)
rate_in_place = masking(RateInPlace)
realised_over_all_positions = masking(RealisedOverAllPositions)
masks_control_tokens = masking(MasksControlTokens)
unshifted_causal_labels = masking(UnshiftedCausalLabels)
leaking_input = masking(LeakingInput)
less_than_its_rate = masking(LessThanItsRate)
not_uniform = masking(NotUniform)
generator_with_state = masking(GeneratorWithState)
rows_of_the_micro_batch = masking(RowsOfTheMicroBatch)
sees_its_own_copy = masking_without_conditioning(SeesItsOwnCopy)
blocks_of_the_micro_batch = masking_without_conditioning(BlocksOfTheMicroBatch)
infinite_hazard = masking(InfiniteHazard)
falling = schedule(Falling)
wrong_slope = schedule(WrongSlope)
wrong_density = schedule(WrongDensity)
partial_support = schedule(PartialSupport)
one_draw_for_all = schedule(OneDrawForAll)
infinite_at_one = objective(InfiniteAtOne)
constant_denominator = objective(ConstantDenominator)
double_weights = objective(DoubleWeights)
slope_in_place = objective(SlopeInPlace)
nan_in_step_three = objective(NaNInStepThree)
mean_of_means = objective(MeanOfMeans)
softened_bound = objective(SoftenedBound, power=0.5)
bound_for_all = objective(BoundForAll)
tells_causal_rows = conditioning(TellsCausalRows)
infinite_sigma = conditioning(InfiniteSigma)
noise_in_place = conditioning(NoiseInPlace)
scalar_embedding = conditioning(ScalarEmbedding)
alternating = row_mode(Alternating)
undeclared_causal_rows = row_mode(UndeclaredCausalRows)
adaptive = masking(Adaptive)
forgetful = masking(Forgetful)
last_micro_batch = masking(LastMicroBatch)
each_rank_for_itself = masking(EachRankForItself)
talkative_state = masking(TalkativeState)
keeps_nan = masking(KeepsNaN)
vector_metric = masking(VectorMetric)
smooths_in_place = observer(SmoothsInPlace)
asks_the_host = observer(AsksTheHost)
selects_by_mask = observer(SelectsByMask)
logs_twice = plugin_with("ltg_mdlm_observers", lambda ctx: [LogsAName(), LogsAName()])
single_rate = schedule(SingleRate)
crashes_in_step_end = observer(CrashesInStepEnd)
momentum = optimizer(Momentum)
one_rate_for_all = optimizer(OneRateForAll)
momentum_in_place = optimizer(MomentumInPlace)
unsaved_momentum = optimizer(UnsavedMomentum)
noisy_descent = optimizer(NoisyDescent)
skips_small_gradients = optimizer(SkipsSmallGradients)
hard_rows_again = row_order(HardRowsAgain)
rows_from_one = row_order(RowsFromOne)
half_of_the_rows = row_order(HalfOfTheRows)
rows_as_floats = row_order(RowsAsFloats)
another_order_every_time = row_order(AnotherOrderEveryTime)
order_of_the_rank = row_order(OrderOfTheRank)
order_without_state = row_order(OrderWithoutState)
masks_nothing = masking(MasksNothing)
uniform_bert = masking(UniformBERT)
uniform_whole_words = masking(UniformWholeWords)
uniform_exact_count = masking(UniformExactCount)
every_step_alike = masking(EveryStepAlike)
wrong_transition = masking(WrongTransition)
bert = masking(BERT)
bert_bound = recipe(BERT, ClaimsBound)
carries = recipe(Carries, WeightsByCarry)
selects_with_dropout = masking(SelectsWithDropout)
capped = schedule(Capped)
by_epoch = schedule(ByEpoch)
shows_random_tokens = masking(ShowsRandomTokens)
token_rates = masking_without_conditioning(ReadsTokenRates)
token_rates.ltg_mdlm_noise_schedule = schedule(RatesByType).ltg_mdlm_noise_schedule
rates_by_type_bound = masking_without_conditioning(CallsThemUniform)
rates_by_type_bound.ltg_mdlm_noise_schedule = schedule(RatesByType).ltg_mdlm_noise_schedule
states_its_transition = recipe(StatesItsTransition, ClaimsBound)
unverified = recipe(Masking, ClaimsBound)
constant_below_zero = recipe(Complementary, ConstantBelowZero)
both_halves = recipe(Complementary, DiffusionObjective)
equal_views = masking(EqualViews)
no_views = masking(NoViews)
second_view_of_the_micro_batch = masking(SecondViewOfTheMicroBatch)
counts_validation = masking(CountsValidation)
counts_validation_in_its_state = masking(CountsValidationInItsState)
infinite_order = order_plugin(infinite_where_certain)
relative_order = order_plugin(relative_to_the_others)
sharpening_order = order_plugin(sharpens_in_place)
