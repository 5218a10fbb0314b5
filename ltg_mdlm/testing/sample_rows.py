"""Batches on which components are checked, and requirements on the tensors that they return."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ltg_mdlm.core.batch import IGNORE, Batch, Corrupted, Noise, Step, Supervised, labels_for, realised_rate
from ltg_mdlm.core.components import MaskingStrategy
from ltg_mdlm.core.host_memory import HostCopy
from ltg_mdlm.host.slots import Components
from ltg_mdlm.testing.plugin_under_test import Violation
from ltg_mdlm.testing.toy import batch_of, noise_at, step_for, text_rows
from ltg_mdlm.training.recipe import MicroBatch, gather_supervised

COLUMNS = 40
"""Tokens per row."""

UNUSUAL: tuple[list[list[int]], ...] = (
    [],  # padding alone
    [[]],  # `<s>` alone
    [[20]],
    [[0, 2, 5]],  # nothing but control tokens
    [[], [21, 0, 22], [23, 24]],
    [[25] * (COLUMNS - 1)],
)
"""Rows that are rare in corpora."""

ENDS = (2.0**-24, 1e-6, 0.5, 1 - 1e-9, 1.0)
"""Mask rates up to both ends. `Step.uniform` masks nothing at smaller rates."""

SLOPES = (1e-6, 1.0, 1e3)
"""Slopes of noise schedules, flat and steep."""


def sample_batch() -> Batch:
    """A global batch: rows of text, unusual rows, and a row whose second document has no `<s>`."""
    rows = [*text_rows(12, COLUMNS), *UNUSUAL, [[26, 27, 28], [29, 30, 31]]]
    batch = batch_of(rows, COLUMNS)
    second = batch.document_BT[-1] == 1
    batch.ids_BT[-1, second] = torch.tensor([32, 29, 30, 31])
    batch.maskable_BT[-1, second] = True
    return batch


def sample_step(batch: Batch, **changes: object) -> Step:
    """A step in the middle of training, with every third row causal."""
    return dataclasses.replace(step_for(batch, **changes), causal_R=torch.arange(int(batch.row_B.max()) + 1) % 3 == 1)


def causal_rows(batch: Batch, step: Step) -> Tensor:
    """bool[B]: whether each row of a micro-batch is causal."""
    assert step.causal_R is not None
    return step.causal_R[batch.row_B]


def noise_for(strategy: MaskingStrategy, rate: float | Tensor, batch: Batch) -> Noise:
    """Noise with one mask rate for all rows, or one for each; also by token, if the strategy reads rates per token."""
    return with_token_rates(strategy, noise_at(rate, batch), batch)


def with_token_rates(strategy: MaskingStrategy, noise: Noise, batch: Batch) -> Noise:
    """The noise with the rates and slopes of the rows for all of their tokens, if the strategy reads these."""
    if not strategy.reads_token_rates or noise.rate_BT is not None:
        return noise
    of_tokens = (value_B.unsqueeze(1).expand(batch.ids_BT.shape) for value_B in (noise.rate_B, noise.slope_B))
    rate_BT, slope_BT = (value_BT.clone() for value_BT in of_tokens)
    return dataclasses.replace(noise, rate_BT=rate_BT, slope_BT=slope_BT)


def all_masked(components: Components, batch: Batch, noise: Noise, step: Step) -> MicroBatch:
    """The batch with all maskable tokens of masked rows masked, at the given noise level."""
    strategy, causal_B = components.masking, causal_rows(batch, step)
    noise = with_token_rates(strategy, noise, batch)
    masked_BT = batch.maskable_BT & ~causal_B.unsqueeze(1)
    hazard_BT, hazard_by_type_BV = strategy.hazard(batch, noise, step)
    corrupted = Corrupted(
        input_BT=batch.ids_BT.masked_fill(masked_BT, strategy.mask_id),
        labels_BT=labels_for(batch, masked_BT, causal_B, strategy.predicts),
        masked_BT=masked_BT,
        realised_rate_B=realised_rate(batch, masked_BT),
        causal_B=causal_B,
        hazard_BT=hazard_BT,
        hazard_by_type_BV=hazard_by_type_BV,
        carry_BT=strategy.corrupt_views(batch, causal_B, noise, step)[0].carry_BT,
    )
    return micro_batch_of(batch, corrupted, noise)


def corrupted_at(components: Components, batch: Batch, step: Step, rate: float = 0.3) -> list[MicroBatch]:
    """The views of the batch, corrupted as in training at one mask rate."""
    noise = noise_for(components.masking, rate, batch)
    views = components.masking.corrupt_views(batch, causal_rows(batch, step), noise, step)
    return [micro_batch_of(batch, view, view.noise or noise) for view in views]


def micro_batch_of(batch: Batch, corrupted: Corrupted, noise: Noise) -> MicroBatch:
    """A micro-batch as the recipe builds it, without time conditioning."""
    count = HostCopy((corrupted.labels_BT != IGNORE).sum())
    return MicroBatch(batch=batch, corrupted=corrupted, noise=noise, conditioning_B=None, supervised_count=count)


def supervised_of(components: Components, micro_batch: MicroBatch) -> Supervised:
    """The supervised positions, gathered as in training."""
    return gather_supervised(micro_batch, predicts_next=components.masking.predicts == "next")[0]


def noise_at_the_ends(batch: Batch) -> list[Noise]:
    """Noise for all pairs of the mask rates ENDS and the slopes SLOPES."""
    slope_B = torch.ones(len(batch.row_B), dtype=torch.float64)
    return [
        dataclasses.replace(noise_at(rate, batch), slope_B=slope_B * slope)
        for rate, slope in itertools.product(ENDS, SLOPES)
    ]


def describe(value: object) -> str:
    """For example `float32[4, 32] on cpu`; type and value if it is not a tensor."""
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r}" if value is not None else "None"
    return _expected(value.dtype, tuple(value.shape), value.device)


def _expected(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)} on {device.type}"


def require_tensor(
    value: object, where: str, name: str, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """Raise `Violation` unless `value` is a tensor of this type and shape on this kind of device."""
    if isinstance(value, Tensor) and describe(value) == _expected(dtype, shape, device):
        return
    raise Violation(where, f"{name} {_expected(dtype, shape, device)}", describe(value))


def require_finite(value: Tensor, where: str, name: str) -> None:
    """Raise `Violation` if a value is infinite or not a number."""
    wrong = ~torch.isfinite(value)
    if wrong.any():
        raise Violation(where, f"finite {name}", f"{float(value[wrong][0])} at {first_place(wrong)}")


def first_place(wrong: Tensor) -> str:
    """Index of the first true element of a boolean tensor, for example `[3, 7]`."""
    return str([int(i) for i in wrong.nonzero()[0]])


def require_equal(value: Tensor, expected: Tensor, where: str, name: str) -> None:
    """Raise `Violation`, with the first place that differs, unless two tensors are equal."""
    if value.shape != expected.shape:
        raise Violation(where, f"{name} {describe(expected)}", describe(value))
    wrong = (value != expected) & ~(value.isnan() & expected.isnan())
    if wrong.any():
        place = first_place(wrong)
        raise Violation(where, f"{name} = {expected[wrong][0].item()} at {place}", str(value[wrong][0].item()))


@contextmanager
def unchanged(where: str, *inputs: Any, **tensors: Tensor) -> Iterator[None]:
    """Raise `Violation` if a tensor changes in this context: a field of the dataclasses `inputs`, or of `tensors`."""
    watched = [*_fields(inputs), *tensors.items()]
    before = {name: tensor.clone() for name, tensor in watched}
    yield
    for name, tensor in watched:
        if not torch.equal(tensor.nan_to_num(), before[name].nan_to_num()):
            raise Violation(where, f"{name} unchanged", "changed values; copy an argument before you change it")


def _fields(inputs: tuple[Any, ...]) -> Iterator[tuple[str, Tensor]]:
    for value in inputs:
        values = ((f"{type(value).__name__}.{f.name}", getattr(value, f.name)) for f in fields(value))
        yield from ((name, part) for name, part in values if isinstance(part, Tensor))
