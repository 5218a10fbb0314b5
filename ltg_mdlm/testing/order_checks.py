"""Checks of unmasking orders: certainty of every position on its own, and the exact law of one token per step.

Shapes: as in `enumeration`; N positions, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import NUM_SPECIAL
from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import hooks_of, import_plugin
from ltg_mdlm.inference.sampling_rule import orders_of_host
from ltg_mdlm.testing.enumeration import JOINT_Q, LENGTH, SEQUENCES_QL, TYPES
from ltg_mdlm.testing.plugin_under_test import NotApplicable, PluginUnderTest, Violation, check, line_of
from ltg_mdlm.testing.registration_checks import found
from ltg_mdlm.testing.sample_rows import require_finite, require_tensor
from ltg_mdlm.testing.toy import VOCAB

HOOK = "ltg_mdlm_unmasking_orders"

TOLERANCE = 1e-5
"""Total variation distance that rounding of float32 logits may cause."""

Order = Callable[[Tensor], Tensor]


def orders_of(subject: PluginUnderTest) -> dict[str, tuple[str, Order]]:
    """(where, order) by name, as `generate --plugin` gets them. Raises `NotApplicable` if the plugin has no orders."""
    plugin = import_plugin(find(subject.name))
    if HOOK not in hooks_of(plugin):
        raise NotApplicable(f"{subject.name} provides no unmasking orders")
    where = f"{subject.label}: {plugin.__name__}.{HOOK} ({line_of(plugin, HOOK)})"
    try:
        orders = orders_of_host(subject.host())
    except UserError as error:
        raise Violation(where, "a mapping of names to functions of logits", str(error)) from error
    return {name: (f"{where}, order {name!r}", order) for name, order in orders.items()}


def sample_logits() -> Tensor:
    """float32[N, V]: likely and unlikely, flat and peaked predictions, with -inf for special tokens."""
    scale_N1 = torch.tensor([0.0, 0.1, 1.0, 1.0, 5.0, 30.0, 1e4]).unsqueeze(1)
    logits_NV = scale_N1 * torch.randn(len(scale_N1), VOCAB, generator=torch.Generator().manual_seed(0))
    logits_NV[:, :NUM_SPECIAL] = -torch.inf
    return logits_NV


@check(found)
def an_unmasking_order_has_a_finite_number_for_every_position(subject: PluginUnderTest) -> None:
    """An order returns float[N], finite also where the model is certain or has no preference."""
    for where, order in orders_of(subject).values():
        logits_NV = sample_logits()
        try:
            certainty_N = order(logits_NV)
        except UserError as error:
            raise Violation(where, f"finite float[{len(logits_NV)}] for logits [N, V]", str(error)) from error
        require_tensor(certainty_N, where, "certainty", certainty_N.dtype, (len(logits_NV),), logits_NV.device)
        require_finite(certainty_N, where, "certainties")


@check(an_unmasking_order_has_a_finite_number_for_every_position)
def an_unmasking_order_looks_at_one_position_at_a_time(subject: PluginUnderTest) -> None:
    """Certainties do not depend on other positions or on earlier calls; otherwise samples depend on their batch."""
    for where, order in orders_of(subject).values():
        logits_NV = sample_logits()
        together_N = order(logits_NV.clone())
        alone_N = torch.cat([order(logits_NV[n : n + 1].clone()) for n in range(len(logits_NV))])
        wrong_N = ~torch.isclose(together_N.double(), alone_N.double(), rtol=1e-4, atol=1e-6)
        if wrong_N.any():
            n = int(wrong_N.nonzero()[0])
            expected = f"certainty {float(together_N[n]):.6g} of a position, whatever other positions there are"
            raise Violation(where, expected, f"{float(alone_N[n]):.6g} on its own")


@check(an_unmasking_order_has_a_finite_number_for_every_position)
def one_token_per_step_follows_the_joint_distribution(subject: PluginUnderTest) -> None:
    """With an exact model of an enumerated language, the samples have exactly the distribution of the language.

    The tokens are drawn from the logits that the order was given, so it must not change them.
    """
    for where, order in orders_of(subject).values():
        distance = float((law_of_samples(order) - JOINT_Q).abs().sum() / 2)
        if distance > TOLERANCE:
            raise Violation(
                where,
                "the joint distribution of the enumerated language, with one token per step",
                f"a distribution at a total variation distance of {distance:.4f}; an order must not change the logits",
            )


def law_of_samples(order: Order) -> Tensor:
    """float64[Q]: distribution of the samples of an exact model, one token per step, by enumeration of all states."""
    hidden = TYPES
    states = dict.fromkeys(itertools.product(range(TYPES + 1), repeat=LENGTH), 0.0)
    states[(hidden,) * LENGTH] = 1.0
    for _ in range(LENGTH):
        following = dict.fromkeys(states, 0.0)
        for state, probability in states.items():
            if not probability:
                continue
            state_L = torch.tensor(state)
            agrees_Q = ((state_L == SEQUENCES_QL) | (state_L == hidden)).all(1)
            weight_Q = JOINT_Q * agrees_Q / (JOINT_Q * agrees_Q).sum()
            one_hot_QLV = torch.nn.functional.one_hot(SEQUENCES_QL, TYPES).double()
            gaps = (state_L == hidden).nonzero().flatten()
            logits_NV = torch.full((len(gaps), VOCAB), -torch.inf)
            logits_NV[:, NUM_SPECIAL : NUM_SPECIAL + TYPES] = (
                torch.einsum("q,qlv->lv", weight_Q, one_hot_QLV)[gaps].clamp(min=1e-30).log().float()
            )
            first = int(order(logits_NV).argmax())
            drawn_V = logits_NV[first].double().softmax(0)[NUM_SPECIAL : NUM_SPECIAL + TYPES]
            for token, share in enumerate(drawn_V.tolist()):
                after = list(state)
                after[int(gaps[first])] = token
                following[tuple(after)] += probability * share
        states = following
    return torch.tensor([states[tuple(sequence)] for sequence in SEQUENCES_QL.tolist()], dtype=torch.float64)
