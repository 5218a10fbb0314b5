"""The checks that train nothing, in the order of their verdicts. `training_checks.CHECKS` has all checks."""

from __future__ import annotations

from ltg_mdlm.testing import bound_checks as bound
from ltg_mdlm.testing import masking_checks as masking
from ltg_mdlm.testing import objective_checks as objective
from ltg_mdlm.testing import registration_checks as registration
from ltg_mdlm.testing import schedule_checks as schedule
from ltg_mdlm.testing import visibility_checks as visibility

REGISTRATION_CHECKS = (
    registration.it_is_found_by_its_entry_point_and_fills_what_it_registers,
    registration.an_unknown_option_is_refused,
    registration.every_option_is_described,
    registration.the_plugin_and_its_hooks_are_described,
)

COMPONENT_CHECKS = (
    registration.the_modes_of_a_step_are_a_function_of_the_step,
    registration.rows_are_in_the_modes_that_are_declared,
    schedule.mask_rates_are_in_the_unit_interval_and_never_fall,
    schedule.slopes_are_the_derivatives_of_the_rates,
    schedule.the_density_is_one_over_the_slope,
    schedule.full_support_means_that_every_mask_rate_is_drawn,
    schedule.the_noise_of_a_row_belongs_to_the_row,
    masking.masking_returns_tensors_of_the_promised_types_and_shapes,
    masking.control_tokens_and_padding_are_never_masked_or_predicted,
    masking.only_masked_tokens_of_masked_rows_are_changed,
    masking.labels_are_the_hidden_tokens_where_they_are_predicted,
    masking.the_realised_rate_is_masked_over_maskable,
    masking.the_mask_rate_is_kept_if_keeps_rate_says_so,
    masking.its_kind_is_what_the_probabilities_show,
    masking.a_step_gives_the_same_masks_whenever_it_is_asked,
    masking.masks_belong_to_rows_of_the_global_batch,
    masking.hazards_are_finite_and_not_negative,
    visibility.visibility_and_copies_belong_to_the_rows,
    visibility.no_prediction_depends_on_its_own_label,
    objective.the_objective_returns_tensors_of_the_promised_types_and_shapes,
    objective.losses_and_gradients_are_finite_at_the_ends,
    objective.denominators_are_positive_and_add_up_over_micro_batches,
    objective.the_loss_of_a_row_does_not_depend_on_other_rows,
    bound.no_bound_is_claimed_where_none_is_known,
    bound.a_claimed_bound_is_one,
    registration.the_model_is_told_a_finite_value_and_zero_in_causal_rows,
    registration.every_mask_rate_has_a_value_for_evaluation,
    registration.the_embedding_maps_values_to_vectors,
    masking.masking_leaves_its_inputs_as_they_are,
    objective.the_objective_leaves_its_inputs_as_they_are,
    registration.conditioning_and_schedule_leave_their_inputs_as_they_are,
)
