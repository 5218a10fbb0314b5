"""On a CUDA device, every masking gives the masks of the CPU, without synchronising."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import pytest
import torch
from ltg_mdlm_plugins import freq_mdlm, gpt_bert, uniform_mdlm
from support.batches import FREQUENCY_OPTIONS, SCHEDULES, schedule

from ltg_mdlm.api import Corrupted, MaskingStrategy
from ltg_mdlm.testing.host_reads import cuda_waits_are_errors
from ltg_mdlm.testing.toy import context, statistics, step_for, text_batch, zipfian_counts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
T = TypeVar("T")


def on(value: T, device: torch.device) -> T:
    """A dataclass with its tensors on the device."""
    tensors = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **{n: v.to(device) for n, v in tensors.items() if torch.is_tensor(v)})


def masking(name: str, device: torch.device) -> MaskingStrategy:
    """A built-in masking whose tables are on the device."""
    ctx = on(context(device=device), device)
    if name == "uniform":
        return uniform_mdlm.UniformMDLM(uniform_mdlm.Options()).ltg_mdlm_masking(ctx)
    if name == "spans":
        return gpt_bert.GPTBert(gpt_bert.Options()).ltg_mdlm_masking(ctx)
    plugin = freq_mdlm.FreqMDLM(freq_mdlm.Options(**FREQUENCY_OPTIONS[name]))
    plugin.ltg_mdlm_corpus_statistics(statistics(zipfian_counts()), ctx)
    return plugin.ltg_mdlm_masking(ctx)


def corrupt(name: str, noise: str, device: torch.device) -> Corrupted:
    batch = on(text_batch(32, 64), device)
    step = step_for(batch)
    causal_R = gpt_bert.CausalShare(0.25).causal(step, device)
    step = dataclasses.replace(step, causal_R=causal_R)
    strategy, made = masking(name, device), schedule(noise)
    if device.type == "cpu":
        return strategy.corrupt(batch, causal_R[batch.row_B], made.sample(batch, step), step)
    with cuda_waits_are_errors():
        return strategy.corrupt(batch, causal_R[batch.row_B], made.sample(batch, step), step)


@pytest.mark.parametrize("name", ["uniform", *FREQUENCY_OPTIONS, "spans"])
@pytest.mark.parametrize("noise", SCHEDULES)
def test_masks_equal_those_of_the_cpu(name, noise):
    ours, theirs = corrupt(name, noise, torch.device("cuda")), corrupt(name, noise, torch.device("cpu"))
    for field in ("input_BT", "labels_BT", "masked_BT", "causal_B"):
        assert torch.equal(getattr(ours, field).cpu(), getattr(theirs, field))
