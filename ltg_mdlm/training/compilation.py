"""Compiled layers: when a run has them, and the way back to eager execution if the compiler fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import is_out_of_memory, text_of
from ltg_mdlm.core.machine import native_bf16, synchronise
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.training.assembly import Run
from ltg_mdlm.training.recipe import DenoisingLoss, MicroBatch

BACKEND = "inductor"
"""The compiler of `torch.compile`."""

Report = Callable[[str, Mapping[str, Any]], None]
"""Gets a line for the console, and facts for environment.json."""


def resolve_compile(run: Run, stored: Mapping[str, Any] | None = None, before: Mapping[str, Any] | None = None) -> Run:
    """Compile the layers of the model if `training.compile` says so; returns the run with the setting to store.

    `stored` are the `training` settings that the run was started with, and `before` the facts of its last start on such
    a device.  With auto, a run that stored true or false keeps it, and one that could not be compiled stays uncompiled.
    """
    setting, is_gpu = run.config.training.compile, run.ranks.device.type == "cuda"
    kept = (stored or {}).get("compile", "auto")
    if setting == "auto" and kept != "auto":
        training = run.config.training.model_copy(update={"compile": kept})
        run = replace(run, config=run.config.model_copy(update={"training": training}))
        setting = kept and is_gpu  # true had no effect on CPUs when auto did not exist
    elif setting == "auto":
        # The compiler leaves bf16 alone on GPUs without instructions for it.
        suits = is_gpu and (native_bf16(run.ranks.device) or not run.loss.bf16)
        last = (before or {}).get("compile", {})
        setting = suits and (last.get("enabled", True) or last.get("retry", False))
    if setting:
        if run.config.training.deterministic:
            # Before torch 2.10, measurements decide whether matrices are padded, which changes the rounding.
            import torch._inductor.config as inductor  # takes a second

            inductor.shape_padding = False
        run.loss.compile_layers(BACKEND)
    return run


class CompiledLayers:
    """Compiles the layers when training reaches a new row length, before the step that needs them.

    A forward and a backward pass of the model alone are tried, whose results are dropped.  If they fail, the run trains
    without compiled layers: compilers fail in many ways, and training does not need them.
    """

    def __init__(
        self,
        loss: DenoisingLoss,
        ranks: Ranks,
        report: Report,
        busy: Callable[[str], AbstractContextManager[None]],
        stop: StopRequest,
    ) -> None:
        """`busy` shows its text while the layers are compiled; `stop` has the signals that also end compilers."""
        self._loss, self._ranks, self._report, self._busy, self._stop = loss, ranks, report, busy, stop
        self.seconds: dict[str, float] = {}
        """Time of the first pass, by row length."""

    def prepare(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Compile for the shapes of these micro-batches; all ranks must call it in every step.  Returns its seconds."""
        loss, device = self._loss, self._ranks.device
        rows, length = micro_batches[0].batch.ids_BT.shape
        if not loss.compiled or str(length) in self.seconds:
            return 0.0
        rows = max(rows, loss.full_rows.get(length, 0))
        views = [m for m in micro_batches if m.views is micro_batches[0].views]
        problem, start = "", time.perf_counter()
        try:
            devices = [device] if device.type == "cuda" else []
            busy = self._busy(f"compiling layers for rows of {length}")
            with busy, torch.random.fork_rng(devices=devices), loss.autocast(device):
                for micro_batch in views:
                    hidden_BTD = loss.hidden(micro_batch, training=True)
                    weights = [p for p in loss.model.parameters() if p.requires_grad]
                    # Not `backward`, which would add to the gradients and start their reduction over ranks.
                    torch.autograd.grad(hidden_BTD.sum(), weights, allow_unused=True)
            synchronise(device)
        except Exception as error:
            if is_out_of_memory(error):
                raise  # eager execution needs more memory
            problem = " ".join(text_of(error).split())[:300]
        self.seconds[str(length)] = seconds = round(time.perf_counter() - start, 3)
        # All ranks must compute alike.
        if self._ranks.all_agree(not problem):
            text = f"compile: layers for {rows:,} rows of {length}, {seconds:.1f} s for the first pass"
            self._report(text, {"compile": {"enabled": True, "seconds": dict(self.seconds)}})
        else:
            loss.run_uncompiled()
            torch._dynamo.reset()
            problem = problem or "another process failed"
            # Later starts try again if a stop signal may have ended the compiler.
            retry = {} if self._ranks.all_agree(not self._stop.requested) else {"retry": True}
            text = f"compile: off, since it failed for {rows:,} rows of {length}: {problem}"
            self._report(text, {"compile": {"enabled": False, "reason": problem, **retry}})
        return seconds
