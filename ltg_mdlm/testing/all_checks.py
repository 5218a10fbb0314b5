"""All checks, in the order in which their verdicts are read."""

from __future__ import annotations

from ltg_mdlm.testing import training_checks as processes
from ltg_mdlm.testing import training_checks as training
from ltg_mdlm.testing.component_checks import COMPONENT_CHECKS, REGISTRATION_CHECKS
from ltg_mdlm.testing.plugin_under_test import Check

TRAINING_CHECKS = (
    training.a_step_is_observed_and_logged_as_scalars,
    training.five_steps_of_training_have_finite_losses,
    training.a_resumed_run_goes_on_bitwise,
    training.two_micro_batches_train_what_one_does,
    processes.two_processes_train_what_one_does,
    training.saving_and_loading_do_not_communicate,
    training.a_refused_step_leaves_finite_state,
    training.steps_never_read_from_the_device,
    training.steps_never_wait_for_cuda,
)


CHECKS: tuple[Check, ...] = (*REGISTRATION_CHECKS, *COMPONENT_CHECKS, *TRAINING_CHECKS)
