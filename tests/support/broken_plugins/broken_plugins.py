"""Plugins with one mistake each. `tests/kit/test_conformance.py` lists the check that finds it."""

import dataclasses

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
    block_visibility,
    hookimpl,
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


class Falling(NoiseSchedule):
    def rate(self, t, progress):
        return 1 - t

    def slope(self, t, progress):
        return torch.ones_like(t)


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


def observer(kind):
    return plugin_with("ltg_mdlm_observers", lambda ctx: [kind()])


def optimizer(kind):
    """A plugin that provides an optimiser."""

    @hookimpl
    def register(self, groups, settings):
        return kind(groups, settings)

    return type(kind.__name__, (Plugin,), {"ltg_mdlm_optimizer": register, "__module__": __name__})


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
crashes_in_step_end = observer(CrashesInStepEnd)
momentum = optimizer(Momentum)
one_rate_for_all = optimizer(OneRateForAll)
momentum_in_place = optimizer(MomentumInPlace)
unsaved_momentum = optimizer(UnsavedMomentum)
noisy_descent = optimizer(NoisyDescent)
skips_small_gradients = optimizer(SkipsSmallGradients)
