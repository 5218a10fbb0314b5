"""The operations between matrix products of a run on CPUs: compiled ones, or those of torch.

Both compute the same up to rounding and draw the same dropout masks.  Which of them a run takes is decided when it
starts and stored in its config.yaml, so that it continues bit-exactly where a compiler came or went in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ltg_mdlm.core.errors import UserError, text_of
from ltg_mdlm.core.preemption import Stopped, StopRequest
from ltg_mdlm.model.cpu_kernels import use_compiled_operations
from ltg_mdlm.model.flops import flops_per_token
from ltg_mdlm.model.transformer import ModelConfig, Transformer
from ltg_mdlm.training.assembly import Run

MIN_FLOP = 1e14
"""FLOP per process from which auto compiles: some minutes on two cores, of which the compiler needs a quarter."""

ASSUMED_SUPERVISED = 0.4

ALLOWED_ERROR = 1e-4
"""Relative difference, in float32, of a gradient from that of torch's operations; rounding makes about 1e-6."""


def resolve_cpu_kernels(
    run: Run,
    stored: Mapping[str, Any] | None,
    say: Callable[[str], None] = lambda line: None,
    steps: int | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Replace a `training.cpu_kernels` of auto, and let the model compute accordingly; all ranks must call it.

    `stored` are the `training` settings that the run was started with, None for a new run.  `say` prints a line.
    `steps` is the length of the run if its schedule is only a part of it.  Whatever fails on the way, auto falls back
    to torch.

    Returns the run with the resolved setting.  Raises UserError if the setting is compiled, and this fails, and Stopped
    if it fails after a stop signal.
    """
    training, ranks = run.config.training, run.ranks
    kernels = training.cpu_kernels
    if kernels == "auto":
        wanted = is_long(run, steps) if stored is None else stored.get("cpu_kernels") == "compiled"
        kernels = "compiled" if wanted and ranks.device.type == "cpu" else "torch"
    if kernels == "compiled":
        say("CPU kernels: compiled (at the first use on a machine, the compiler takes about half a minute)")
        problem = None
        try:
            if ranks.device.type != "cpu":
                raise RuntimeError("they are for CPUs")
            if not (error := largest_error()) <= ALLOWED_ERROR:  # also for NaN
                raise RuntimeError(f"their results differ from those of torch by {error:.1e}")
        except Exception as failure:  # a compiler or a loader can fail in any way, and training need not
            problem = text_of(failure)
        if ranks.all_agree(problem is None):
            use_compiled_operations(run.loss.model)
        elif not ranks.all_agree(stop is None or not stop.requested):
            raise Stopped
        elif training.cpu_kernels == "compiled":
            raise UserError(
                f"training.cpu_kernels=compiled does not work on {ranks.device}: {problem or 'another process failed'}"
                "\n  they need a C++ compiler and ninja (pip install ninja); training.cpu_kernels=torch needs neither"
            )
        else:
            resumed = "; the run continues with other rounding errors than it began" if stored else ""
            say(
                f"CPU kernels: those of torch, since compiled ones fail: {problem or 'another process failed'}{resumed}"
            )
            kernels = "torch"
    resolved = training.model_copy(update={"cpu_kernels": kernels})
    return replace(run, config=run.config.model_copy(update={"training": resolved}))


def is_long(run: Run, steps: int | None) -> bool:
    """Whether compiling is worth its time; a function of the settings alone."""
    flop = sum(
        tokens * flops_per_token(run.loss.model.config, length, ASSUMED_SUPERVISED).training
        for length, tokens in run.schedule.totals().tokens_by_length
    )
    if steps is not None:
        flop *= steps / run.schedule.max_steps
    return flop >= MIN_FLOP * run.ranks.world_size


def largest_error() -> float:
    """The largest relative difference of a gradient between both kinds of operations, in a small model in float32.

    With dropout, two documents, padding and a causal row.  The state of the random number generator is restored.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        models = [Transformer(ModelConfig(48, 80, 1, 3, 50, 64, 8, cond_dim=8)) for _ in range(2)]
        for model in models:  # AdaLN starts as the identity
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
        use_compiled_operations(models[1])
        ids_BT = torch.randint(50, (2, 37))
        document_BT = (torch.arange(37) >= 20).int().repeat(2, 1)
        document_BT[1, 30:] = -1
        weight = torch.randn(2, 37, 48)
        gradients: list[list[Tensor]] = []
        for model in models:
            torch.manual_seed(1)
            hidden_BTD = model(ids_BT, document_BT, torch.tensor([False, True]), torch.tensor([0.2, 0.7]))
            parameters = [*model.embedding.parameters(), *model.transformer.parameters(), *model.sigma_map.parameters()]
            gradients.append(list(torch.autograd.grad((hidden_BTD * weight).sum(), parameters)))
    # NaN if one of them is
    return float(torch.stack([(a - b).norm() / b.norm() for b, a in zip(*gradients, strict=True)]).max())
