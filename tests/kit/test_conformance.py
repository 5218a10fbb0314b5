"""The conformance kit: the built-in plugins pass it, and every mistake is found by the right check."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.installed import BROKEN_PLUGINS, plugins_installed

from ltg_mdlm.testing import PluginConformance, PluginUnderTest, training_checks
from ltg_mdlm.testing.bound_checks import a_claimed_bound_is_one, components_for_language, least_expected_loss
from ltg_mdlm.testing.component_checks import COMPONENT_CHECKS
from ltg_mdlm.testing.enumeration import ENTROPY
from ltg_mdlm.testing.learned_part_checks import every_learned_part_learns_from_its_own_loss
from ltg_mdlm.testing.plugin_under_test import Examination
from ltg_mdlm.testing.registration_checks import rows_are_in_the_modes_that_are_declared
from ltg_mdlm.testing.training_checks import CHECKS

DOCS = Path(__file__).parents[2] / "docs"


class TestUniformMDLM(PluginConformance):
    plugin = "uniform_mdlm"

    def test_a_five_step_run_logs_every_step(self, five_step_run):
        assert [row["step"] for row in five_step_run.rows] == [1, 2, 3, 4, 5]
        assert five_step_run.losses == [row["loss"] for row in five_step_run.rows]


class TestUniformMDLMWithTheBimodalSchedule(PluginConformance):
    plugin = "uniform_mdlm"
    options = {"schedule": "bimodal_gaussian", "derivative_power": 0.1, "conditioning": "sigma"}  # noqa: RUF012


class TestFreqMDLM(PluginConformance):
    plugin = "freq_mdlm"


class TestTheExactWeightingOfFreqMDLM(PluginConformance):
    plugin = "freq_mdlm"
    options = {"statistics": "corpus", "weighting": "exact", "power": 1.0}  # noqa: RUF012


class TestGPTBert(PluginConformance):
    plugin = "gpt_bert"

    def test_a_five_step_run_leaves_state(self, five_step_run):
        assert int(five_step_run.state["masking/mask_count"].sum()) > 0


@pytest.fixture(scope="module")
def broken_plugins() -> Iterator[None]:
    with plugins_installed(BROKEN_PLUGINS):
        yield


class Mistake(NamedTuple):
    """A plugin of `support/broken_plugins`, what is wrong with it, and how the kit reports it."""

    plugin: str
    broken: str
    check: str
    where: str
    message: str
    """A regular expression for the expected and the actual result."""


MISTAKES = [
    Mistake(
        "absent",
        "its entry point names no class",
        "it_is_found_by_its_entry_point_and_fills_what_it_registers",
        "plugin 'absent', entry-point group ltg_mdlm",
        "importing broken_plugins:Absent raised AttributeError",
    ),
    Mistake(
        "lenient",
        "options accept unknown names",
        "an_unknown_option_is_refused",
        r"LenientOptions \(broken_plugins.py:\d+\)",
        "(?s)an error for plugins.lenient.no_such_option.*found: accepted; keep extra='forbid'",
    ),
    Mistake(
        "mute",
        "an option has no description",
        "every_option_is_described",
        r"MuteOptions \(broken_plugins.py:\d+\)",
        "found: none for untold$",
    ),
    Mistake(
        "undescribed",
        "no docstring anywhere",
        "the_plugin_and_its_hooks_are_described",
        r"Undescribed \(undescribed.py:\d+\)",
        "expected: a docstring of the class or its module",
    ),
    Mistake(
        "double_realised_rate",
        "a float64 realised rate",
        "masking_returns_tensors_of_the_promised_types_and_shapes",
        r"DoubleRealisedRate.corrupt of ltg_mdlm_masking \(broken_plugins.py:\d+\)",
        r"realised_rate_B float32\[19\] on cpu\n  found: float64\[19\] on cpu",
    ),
    Mistake(
        "no_views",
        "a list without views",
        "masking_returns_tensors_of_the_promised_types_and_shapes",
        "NoViews.corrupt_views of ltg_mdlm_masking",
        r"a list of at least one Corrupted\n  found: 0 views",
    ),
    Mistake(
        "rate_in_place",
        "clamps the batch's mask rates in place",
        "masking_leaves_its_inputs_as_they_are",
        "RateInPlace.mask_probability of ltg_mdlm_masking",
        "expected: Noise.rate_B unchanged",
    ),
    Mistake(
        "masks_nothing",
        "no token is masked at any mask rate",
        "some_tokens_are_masked",
        "MasksNothing.mask_probability of ltg_mdlm_masking",
        r"some of 11629 tokens masked at mask rates .* vocabulary of ltg_mdlm.testing.toy\n  found: none",
    ),
    Mistake(
        "masks_control_tokens",
        "masks `<s>`, too",
        "control_tokens_and_padding_are_never_masked_or_predicted",
        "MasksControlTokens.corrupt of ltg_mdlm_masking",
        r"found: id 1 \(<s>\) masked at \[0, 0\], mask rate 0.5",
    ),
    Mistake(
        "leaking_input",
        "hides the tokens of causal rows",
        "only_masked_tokens_of_masked_rows_are_changed",
        "LeakingInput.corrupt of ltg_mdlm_masking",
        r"input_BT, where nothing is masked, = 1 at \[1, 0\]\n  found: 4",
    ),
    Mistake(
        "unshifted_causal_labels",
        "causal rows predict the token they show",
        "labels_are_the_hidden_tokens_where_they_are_predicted",
        "UnshiftedCausalLabels.corrupt of ltg_mdlm_masking",
        r"label 21 at \[1, 0\] of labels_BT \(causal row, predicts same",
    ),
    Mistake(
        "realised_over_all_positions",
        "a realised rate that counts padding",
        "the_realised_rate_is_masked_over_maskable",
        "RealisedOverAllPositions.corrupt of ltg_mdlm_masking",
        r"realised_rate_B 0\.\d{4} in row \d+\n  found: 0\.\d{4}",
    ),
    Mistake(
        "less_than_its_rate",
        "masks 90 % of its mask rate",
        "the_mask_rate_is_kept_if_keeps_rate_says_so",
        "LessThanItsRate.mask_probability of ltg_mdlm_masking",
        r"50.00% \+- 2.3\d% of 11629 tokens masked, since keeps_rate is True\n  found: 45.\d\d%",
    ),
    Mistake(
        "not_uniform",
        "says uniform, masks odd types more",
        "its_kind_is_what_the_probabilities_show",
        "NotUniform.mask_probability of ltg_mdlm_masking",
        "probability 0.02000 at mask rate 0.02, since kind is 'uniform'\n  found: 0.01000 for a token of type",
    ),
    Mistake(
        "uniform_bert",
        "says uniform, shows random tokens and the tokens themselves (80/10/10)",
        "its_kind_is_what_choose_and_show_do",
        "UniformBERT.show of ltg_mdlm_masking",
        r"<mask> in place of every masked token, since kind is 'uniform'.*\n  found: id \d+ for a token of type",
    ),
    Mistake(
        "uniform_whole_words",
        "says uniform, masks whole words",
        "its_kind_is_what_choose_and_show_do",
        "UniformWholeWords.choose of ltg_mdlm_masking",
        r"correlation 0 .* of the masks of neighbouring tokens .*\n  found: 0.5",
    ),
    Mistake(
        "uniform_exact_count",
        "says uniform, masks a fixed number of tokens per row",
        "its_kind_is_what_choose_and_show_do",
        "UniformExactCount.choose of ltg_mdlm_masking",
        "standard deviation .* of the masks per row",
    ),
    Mistake(
        "every_step_alike",
        "says uniform, masks the same tokens in every step",
        "its_kind_is_what_choose_and_show_do",
        "EveryStepAlike.choose of ltg_mdlm_masking",
        "of 1824 tokens of type 47 masked at mask rate 0.02, since kind is 'uniform'",
    ),
    Mistake(
        "wrong_transition",
        "a transition with other shares of random tokens",
        "the_transition_is_what_choose_and_show_do",
        "WrongTransition.transition of ltg_mdlm_masking",
        r"tokens of type \d+ shown as \d+ at mask rate 0.\d+, by transition",
    ),
    Mistake(
        "equal_views",
        "two views with the same draws",
        "views_of_a_row_have_draws_of_their_own",
        "EqualViews.corrupt_views of ltg_mdlm_masking",
        r"step.branched.*\n  found: views 1 and 2 are equal in 12 of 12 rows",
    ),
    Mistake(
        "generator_with_state",
        "draws with torch.rand",
        "a_step_gives_the_same_masks_whenever_it_is_asked",
        "GeneratorWithState.mask_probability of ltg_mdlm_masking",
        "asked twice: masked_BT = ",
    ),
    Mistake(
        "rows_of_the_micro_batch",
        "numbers rows within the micro-batch",
        "masks_belong_to_rows_of_the_global_batch",
        "RowsOfTheMicroBatch.corrupt of ltg_mdlm_masking",
        "rows 8 to 18 on their own: masked_BT = ",
    ),
    Mistake(
        "second_view_of_the_micro_batch",
        "a second view that numbers rows within the micro-batch",
        "masks_belong_to_rows_of_the_global_batch",
        "SecondViewOfTheMicroBatch.corrupt_views of .*, view 2",
        "rows 8 to 18 on their own: masked_BT = ",
    ),
    Mistake(
        "infinite_hazard",
        "a hazard 1 / (1 - gamma)",
        "hazards_are_finite_and_not_negative",
        "InfiniteHazard.hazard of ltg_mdlm_masking",
        "finite hazard at mask rate 1\n  found: inf",
    ),
    Mistake(
        "blocks_of_the_micro_batch",
        "blocks are numbered through all rows of the micro-batch",
        "visibility_and_copies_belong_to_the_rows",
        "BlocksOfTheMicroBatch.corrupt of ltg_mdlm_masking",
        r"rows 2 to 8 on their own: visibility.group_BX = \d+ at \[0, 0\]",
    ),
    Mistake(
        "sees_its_own_copy",
        "a corrupted block sees its own clean copy",
        "no_prediction_depends_on_its_own_label",
        "SeesItsOwnCopy.corrupt of ltg_mdlm_masking",
        r"logits of column \d+ that do not depend on its label.*\(masked row 0\)",
    ),
    Mistake(
        "falling",
        "gamma = 1 - t",
        "mask_rates_are_in_the_unit_interval_and_never_fall",
        "Falling.rate of ltg_mdlm_noise_schedule",
        "rates that increase with t, from 1 at t = 1e-09",
    ),
    Mistake(
        "wrong_slope",
        "gamma = t^2 with slope t",
        "slopes_are_the_derivatives_of_the_rates",
        "WrongSlope.slope of ltg_mdlm_noise_schedule",
        r"0.0121311, the difference quotient of rate at t = 0.0061\n  found: 0.00606557",
    ),
    Mistake(
        "wrong_density",
        "gamma = t^2 with density 2 gamma",
        "the_density_is_one_over_the_slope",
        "WrongDensity.density of ltg_mdlm_noise_schedule",
        r"82.4324 at mask rate 3.679e-05, 1 / \(d rate / dt\)\n  found: 7.35824e-05",
    ),
    Mistake(
        "partial_support",
        "mask rates from 0.2 to 0.8, said to be all",
        "full_support_means_that_every_mask_rate_is_drawn",
        "PartialSupport.rate of ltg_mdlm_noise_schedule",
        "none of 100,000 rows between 0.00 and 0.01",
    ),
    Mistake(
        "one_draw_for_all",
        "one t for a whole micro-batch",
        "the_noise_of_a_row_belongs_to_the_row",
        "OneDrawForAll.sample of ltg_mdlm_noise_schedule",
        "rows 18 to 5 on their own: t_B = ",
    ),
    Mistake(
        "double_weights",
        "float64 weights",
        "the_objective_returns_tensors_of_the_promised_types_and_shapes",
        "DoubleWeights.weights of ltg_mdlm_objective",
        r"nll weight float32\[(\d+)\] on cpu\n  found: float64\[\1\] on cpu",
    ),
    Mistake(
        "slope_in_place",
        "clamps slopes in place",
        "the_objective_leaves_its_inputs_as_they_are",
        "SlopeInPlace.weights of ltg_mdlm_objective",
        "expected: Supervised.slope_N unchanged",
    ),
    Mistake(
        "infinite_at_one",
        "a weight 1 / (1 - gamma)",
        "losses_and_gradients_are_finite_at_the_ends",
        "InfiniteAtOne.weights of ltg_mdlm_objective",
        "finite weights at mask rate 1, slope 1e-06\n  found: inf",
    ),
    Mistake(
        "constant_denominator",
        "a denominator of 1 for every micro-batch",
        "denominators_are_positive_and_add_up_over_micro_batches",
        "ConstantDenominator.denominators of ltg_mdlm_objective",
        r"add up to \[1.0\], that of the whole batch\n  found: \[1.0\] \+ \[1.0\] \+ \[1.0\]",
    ),
    Mistake(
        "mean_of_means",
        "weights divided by the micro-batch's positions",
        "the_loss_of_a_row_does_not_depend_on_other_rows",
        "MeanOfMeans.weights of ltg_mdlm_objective",
        "in a micro-batch, as in the whole batch\n.*divide in denominators",
    ),
    Mistake(
        "bound_for_all",
        "every recipe is called a bound",
        "no_bound_is_claimed_where_none_is_known",
        "BoundForAll.bound_for of ltg_mdlm_objective",
        "False for masking of kind 'other'\n  found: True",
    ),
    Mistake(
        "softened_bound",
        "derivative power 0.5 is called a bound",
        "a_claimed_bound_is_one",
        "SoftenedBound.bound_for of ltg_mdlm_objective",
        "at least 2.8829 nats per row, the entropy.*\n  found: 2.7200 for the denoiser that this loss prefers",
    ),
    Mistake(
        "bert_bound",
        "80/10/10 is called a bound, with its transition",
        "a_claimed_bound_is_one",
        "ClaimsBound.bound_for of ltg_mdlm_objective",
        r"at least 2.8829 nats per row.*\n  found: 2.6249 .* with BERT and",
    ),
    Mistake(
        "rates_by_type_bound",
        "mask rates by type are called uniform masking",
        "a_claimed_bound_is_one",
        "DiffusionObjective.bound_for of",
        r"at least \d\.\d+ nats per row.*\n  found: \d\.\d+ for the denoiser",
    ),
    Mistake(
        "constant_below_zero",
        "a constant that lowers the bound",
        "a_claimed_bound_is_one",
        "ConstantBelowZero.bound_for of ltg_mdlm_objective",
        r"at least 2.8829 nats per row.*\n  found: 2.3829",
    ),
    Mistake(
        "tells_causal_rows",
        "causal rows are told a mask rate",
        "the_model_is_told_a_finite_value_and_zero_in_causal_rows",
        "TellsCausalRows.value of ltg_mdlm_time_conditioning",
        "0 for causal rows\n  found: .* in row 1, which is causal",
    ),
    Mistake(
        "infinite_sigma",
        "sigma = -log(1 - gamma) up to gamma = 1",
        "every_mask_rate_has_a_value_for_evaluation",
        "InfiniteSigma.value_for_rate of ltg_mdlm_time_conditioning",
        "a finite value for mask rate 1\n  found: inf",
    ),
    Mistake(
        "noise_in_place",
        "zeroes the rates of causal rows in place",
        "conditioning_and_schedule_leave_their_inputs_as_they_are",
        "NoiseInPlace.value of ltg_mdlm_time_conditioning",
        "expected: Noise.rate_B unchanged",
    ),
    Mistake(
        "scalar_embedding",
        "an embedding that is no vector",
        "the_embedding_maps_values_to_vectors",
        "ScalarEmbedding.embedding of ltg_mdlm_time_conditioning",
        r"float32\[3, 12\] on cpu\n  found: float32\[3\] on cpu",
    ),
    Mistake(
        "alternating",
        "modes depend on how often they were asked",
        "the_modes_of_a_step_are_a_function_of_the_step",
        "Alternating.causal of ltg_mdlm_row_mode",
        "step 7 asked again: causal_R = ",
    ),
    Mistake(
        "undeclared_causal_rows",
        "causal rows, but modes says masked only",
        "rows_are_in_the_modes_that_are_declared",
        "UndeclaredCausalRows.modes of ltg_mdlm_row_mode",
        "and no others: masked\n  found: 6400 causal rows of 12800",
    ),
    Mistake(
        "infinite_order",
        "an unmasking order that is infinite where the model is certain",
        "an_unmasking_order_has_a_finite_number_for_every_position",
        r"ltg_mdlm_unmasking_orders \(broken_plugins.py:\d+\), order 'broken'",
        "unmasking order 'broken' returned values that are not finite",
    ),
    Mistake(
        "relative_order",
        "an unmasking order that divides by the sum over positions",
        "an_unmasking_order_looks_at_one_position_at_a_time",
        "ltg_mdlm_unmasking_orders .*, order 'broken'",
        r"whatever other positions there are\n  found: 1 on its own",
    ),
    Mistake(
        "sharpening_order",
        "an unmasking order that sharpens the logits in place",
        "one_token_per_step_follows_the_joint_distribution",
        "ltg_mdlm_unmasking_orders .*, order 'broken'",
        r"total variation distance of 0.24\d\d; an order must not change the logits",
    ),
    Mistake(
        "vector_metric",
        "a metric of three numbers",
        "a_step_is_observed_and_logged_as_scalars",
        "VectorMetric.metrics of ltg_mdlm_masking",
        r"for 'scales'\n  found: a tensor of shape \[3\]",
    ),
    Mistake(
        "logs_twice",
        "two components log the same name",
        "a_step_is_observed_and_logged_as_scalars",
        "LogsAName.metrics of ltg_mdlm_observers",
        "a name that no other component of the plugin logs\n  found: progress",
    ),
    Mistake(
        "smooths_in_place",
        "clamps the observed losses in place",
        "a_step_is_observed_and_logged_as_scalars",
        "observe of its components",
        "expected: nll_N unchanged",
    ),
    Mistake(
        "crashes_in_step_end",
        "an error in step_end",
        "a_step_is_observed_and_logged_as_scalars",
        r"broken_plugins.py:\d+ in step_end",
        "found: AttributeError: 'CrashesInStepEnd' object has no attribute 'never_set'",
    ),
    Mistake(
        "nan_in_step_three",
        "a weight that is not a number, in one step",
        "five_steps_of_training_have_finite_losses",
        "plugin 'nan_in_step_three'",
        "a finite loss in step 4\n  found: nan",
    ),
    Mistake(
        "single_rate",
        "one mask rate, with slope 0",
        "five_steps_of_training_have_finite_losses",
        "plugin 'single_rate'",
        "a loss\n  found: 0 in all five steps",
    ),
    Mistake(
        "forgetful",
        "adaptive state that no checkpoint holds",
        "a_resumed_run_goes_on_bitwise",
        "state_dict and load_state_dict of its components",
        "bitwise the weights of an uninterrupted run\n  found: .* differs after a resume",
    ),
    Mistake(
        "last_micro_batch",
        "state from the last micro-batch only",
        "two_micro_batches_train_what_one_does",
        "1 against 2 micro-batches",
        "(loss|state) .* as without a second micro-batch",
    ),
    Mistake(
        "each_rank_for_itself",
        "state that is not summed over ranks",
        "two_processes_train_what_one_does",
        "1 against 2 processes",
        "state masking/scale equal on every rank\n.*sum with RunContext.sum_over_ranks in step_end",
    ),
    Mistake(
        "unseeded_parts",
        "initial weights of learned parts that the seed does not determine",
        "learned_parts_begin_with_the_weights_of_the_seed",
        "modules of its components",
        r"the same initial observer0/loss_by_type.weight whenever .*\n  found: other values",
    ),
    Mistake(
        "idle_part",
        "a learned part that no loss reaches",
        "every_learned_part_learns_from_its_own_loss",
        "own_loss of its components",
        r"a gradient of observer0/scale.bias, which `modules` returns\n  found: 0 in the first 3 steps",
    ),
    Mistake(
        "rows_from_one",
        "an order that counts rows from 1",
        "a_row_order_names_rows_that_exist",
        r"RowsFromOne.epoch of ltg_mdlm_row_order \(broken_plugins.py:\d+\)",
        r"expected: rows from 0 to 39\n  found: row 40 at place \d+",
    ),
    Mistake(
        "half_of_the_rows",
        "an order of half of the rows",
        "a_row_order_names_rows_that_exist",
        "HalfOfTheRows.epoch of ltg_mdlm_row_order",
        r"expected: a NumPy array int64\[40\] for epoch 0 of stage 0\n  found: int64\[20\]",
    ),
    Mistake(
        "rows_as_floats",
        "an order of floating-point numbers",
        "a_row_order_names_rows_that_exist",
        "RowsAsFloats.epoch of ltg_mdlm_row_order",
        r"expected: a NumPy array int64\[40\] for epoch 0 of stage 0\n  found: float64\[40\]",
    ),
    Mistake(
        "another_order_every_time",
        "an order from numbers that nobody can draw again",
        "a_row_order_is_a_function_of_its_arguments",
        "AnotherOrderEveryTime.epoch of ltg_mdlm_row_order",
        r"the same rows for the same epoch 0 of stage 0.*\n  found: row \d+ instead of \d+ at \d+",
    ),
    Mistake(
        "order_of_the_rank",
        "an order that depends on the rank",
        "a_row_order_is_the_same_on_every_rank",
        "OrderOfTheRank.epoch of ltg_mdlm_row_order",
        r"the same order on ranks 0 and 1 for epoch 0 of stage 0\n  found: rows \d+ and \d+ at place \d+",
    ),
    Mistake(
        "order_without_state",
        "an adaptive order whose state no checkpoint holds",
        "a_run_resumed_in_mid_epoch_takes_the_same_rows",
        "OrderWithoutState.epoch of ltg_mdlm_row_order",
        r"the rows of an uninterrupted run in step \d, after a resume from step 3\n  found: other rows",
    ),
    Mistake(
        "counts_validation",
        "counts the tokens that validation masks",
        "validation_leaves_the_state_as_it_is",
        "CountsValidation.corrupt of ltg_mdlm_masking",
        r"state masking/scale as without a validation; .*\n  found: other values two steps later",
    ),
    Mistake(
        "counts_validation_in_its_state",
        "state that validation changes",
        "validation_leaves_the_state_as_it_is",
        "CountsValidationInItsState.corrupt of ltg_mdlm_masking",
        "state masking/total unchanged by a validation; count and adapt only if step.training",
    ),
    Mistake(
        "talkative_state",
        "state_dict sums over ranks",
        "saving_and_loading_do_not_communicate",
        "TalkativeState.state_dict of ltg_mdlm_masking",
        "found: a call of sum_over_ranks",
    ),
    Mistake(
        "keeps_nan",
        "state takes in the NaN of a refused step",
        "a_refused_step_leaves_finite_state",
        "KeepsNaN.observe of ltg_mdlm_masking",
        "state scale finite after a step whose nll_N is not\n  found: nan",
    ),
    Mistake(
        "asks_the_host",
        "item() in observe",
        "steps_never_read_from_the_device",
        r"broken_plugins.py:\d+ in observe",
        "found: aten._local_scalar_dense.default waits for the device",
    ),
    Mistake(
        "selects_by_mask",
        "x[mask] in observe",
        "steps_never_read_from_the_device",
        r"broken_plugins.py:\d+ in observe",
        "found: aten.index.Tensor waits for the device",
    ),
    Mistake(
        "one_rate_for_all",
        "an optimiser whose update is one number",
        "an_optimiser_keeps_names_shapes_and_types",
        r"OneRateForAll of ltg_mdlm_optimizer \(broken_plugins.py:\d+\)",
        r"found: update returned float32\[\] on cpu for embedding.relative_embedding, not float32\[\d+, 32\]",
    ),
    Mistake(
        "momentum_in_place",
        "an optimiser that changes its state in place",
        "a_refused_update_changes_nothing",
        r"MomentumInPlace.new_state of ltg_mdlm_optimizer \(broken_plugins.py:\d+\)",
        "nothing changed by a refused update.*\n  found: state momentum/embedding.relative_embedding differs",
    ),
    Mistake(
        "unsaved_momentum",
        "an optimiser with state that no checkpoint holds",
        "a_resumed_optimiser_continues_bitwise",
        r"UnsavedMomentum.update of ltg_mdlm_optimizer \(broken_plugins.py:\d+\)",
        "return all state from new_state\n  found: parameter embedding.relative_embedding differs",
    ),
    Mistake(
        "noisy_descent",
        "an optimiser that draws random numbers",
        "an_optimiser_takes_the_same_steps_on_every_rank",
        r"NoisyDescent.update of ltg_mdlm_optimizer \(broken_plugins.py:\d+\)",
        "equal steps on every rank.*\n  found: parameter embedding.relative_embedding differs",
    ),
    Mistake(
        "skips_small_gradients",
        "an optimiser that compares a norm on the host",
        "an_optimiser_never_reads_from_the_device",
        r"broken_plugins.py:\d+ in update",
        "found: aten._local_scalar_dense.default waits for the device",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.plugin for mistake in MISTAKES])
def test_a_mistake_is_found_by_the_right_check_and_no_other(mistake: Mistake, broken_plugins):
    examination = Examination(PluginUnderTest(mistake.plugin))
    failed = {v.check.name: v.reason for v in map(examination.verdict, CHECKS) if v.outcome == "failed"}
    assert list(failed) == [mistake.check]
    assert f"plugin '{mistake.plugin}'" in failed[mistake.check]
    assert re.search(mistake.where, failed[mistake.check]), failed[mistake.check]
    assert re.search(mistake.message, failed[mistake.check]), failed[mistake.check]


CORRECT_COMPONENTS = (
    "bert",
    "unverified",
    "carries",
    "selects_with_dropout",
    "capped",
    "by_epoch",
    "shows_random_tokens",
    "token_rates",
)


@pytest.mark.parametrize(
    ("plugin", "checks"),
    [
        ("adaptive", CHECKS),
        ("both_halves", CHECKS),
        ("momentum", CHECKS),
        ("hard_rows_again", CHECKS),
        ("error_predictor", CHECKS),
        *((plugin, COMPONENT_CHECKS) for plugin in CORRECT_COMPONENTS),
        ("only_views", COMPONENT_CHECKS),
        ("mode_of_epoch", (rows_are_in_the_modes_that_are_declared,)),
        ("starts_at_zero", (every_learned_part_learns_from_its_own_loss,)),
        ("predicts_with_dropout", (training_checks.two_micro_batches_train_what_one_does,)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_correct_plugins_from_which_broken_ones_are_derived_pass(plugin, checks, broken_plugins):
    examination = Examination(PluginUnderTest(plugin))
    assert not [v for v in map(examination.verdict, checks) if v.outcome == "failed"]


@pytest.mark.parametrize(
    ("plugin", "outcome", "reason"),
    [
        ("both_halves", "passed", ""),
        ("states_its_transition", "passed", ""),
        ("unverified", "not applicable", "unverified: masking of kind 'other' defines no transition"),
    ],
)
def test_bounds_of_views_and_of_other_kinds_are_enumerated_or_unverified(plugin, outcome, reason, broken_plugins):
    verdict = Examination(PluginUnderTest(plugin)).verdict(a_claimed_bound_is_one)
    assert (verdict.outcome, verdict.reason[: len(reason)]) == (outcome, reason)


@pytest.mark.parametrize("plugin", ["both_halves", "states_its_transition"])
def test_the_best_denoiser_of_uniform_masking_reaches_the_entropy(plugin, broken_plugins):
    least = least_expected_loss(components_for_language(PluginUnderTest(plugin)))
    assert least == pytest.approx(ENTROPY, abs=1e-4)


def test_every_check_that_needs_no_gpu_finds_some_mistake():
    assert {check.name for check in CHECKS} - {mistake.check for mistake in MISTAKES} == {"steps_never_wait_for_cuda"}


def test_the_documentation_lists_every_mistake():
    rows = re.findall(r"^\| (.+) \| (.+) \|$", (DOCS / "mistakes.md").read_text(), re.MULTILINE)
    assert rows[1:] == [(mistake.broken, mistake.check.replace("_", " ")) for mistake in MISTAKES]


def test_checks_that_require_a_failed_check_are_not_run_and_say_why(broken_plugins):
    verdicts = {c.name: Examination(PluginUnderTest("falling")).verdict(c) for c in CHECKS if "slopes" in c.name}
    (verdict,) = verdicts.values()
    assert verdict.outcome == "not applicable"
    assert verdict.reason == "not run, because 'mask rates are in the unit interval and never fall' failed"


def test_the_command_needs_no_pytest():
    code = "import sys, ltg_mdlm.testing.check_report; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_step_whose_losses_are_not_finite_is_refused_as_in_training(monkeypatch):
    told = []
    with training_checks.trainer_of(PluginUnderTest("freq_mdlm")) as (trainer, _):
        monkeypatch.setattr(trainer.recipe, "step_end", lambda step, refused: told.append(bool(refused)))
        training_checks.observe_a_step(PluginUnderTest("freq_mdlm"), trainer)
        training_checks.observe_a_step(PluginUnderTest("freq_mdlm"), trainer, math.nan, math.inf)
    assert told == [False, True]
