"""The precision of a run that asks for `training.precision: auto`: resolved when the run starts, then kept on resume.

On GPUs, auto is bf16 where the device computes it natively.  On CPUs with native bf16, which of bf16 and fp32 is faster
depends on the processor and on the size of the model, so both are measured on the run's own first batch.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from ltg_mdlm.core.machine import native_bf16
from ltg_mdlm.data.tokenizer import MASK
from ltg_mdlm.model.cross_entropy import weighted_cross_entropy
from ltg_mdlm.storage.checkpoint import read_about, run_settings
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.training.assembly import Run

WARM_UP_PASSES = 2

TIMED_PASSES = 5

MAX_SECONDS = 4.0
"""No further pass starts after this time, once there are two in each precision; a large model is too slow for more."""

MIN_SPEEDUP = 1.1
"""bf16 is chosen if it is faster by this factor: it is less precise, and smaller differences are within the noise."""


def stored_setting(folder: RunFolder, checkpoint: Path | None, name: str) -> str | None:
    """The setting `training.<name>` that a run was started with; None for a new run, auto if it stored none.

    Read from the folder's config.yaml, or else from `checkpoint`, if the run is to resume from another folder's.
    """
    if (config := run_settings(folder)) is not None:
        return str(getattr(config.training, name))
    if checkpoint is not None:
        return str(read_about(checkpoint).get("config", {}).get("training", {}).get(name, "auto"))
    return None


def resolve_precision(run: Run, stored: str | None = None) -> tuple[Run, str | None]:
    """Replace a `training.precision` of auto by fp32 or bf16; all ranks must call it, and get the same.

    `stored` is the setting that the run was started with, None for a new run.  Runs that stored auto were started by a
    version that measured nothing: they keep bf16 where it is native.

    Returns the run with the resolved setting, and a line that reports the measurement, if there was one.
    """
    training, ranks = run.config.training, run.ranks
    if training.precision != "auto":
        return run, None
    native = ranks.all_agree(native_bf16(ranks.device))
    precision, note = ("bf16" if native else "fp32"), None
    if stored in ("fp32", "bf16"):
        precision = stored
    elif stored is None and native and ranks.device.type == "cpu":
        run.loader.micro_batches(0)  # on every rank, since a row order may sum over ranks
        seconds = ranks.broadcast_object(pass_seconds(run) if ranks.is_main else {})
        precision = "bf16" if seconds["fp32"] >= MIN_SPEEDUP * seconds["bf16"] else "fp32"
        measured = ", ".join(f"{name} {1000 * value:,.1f} ms" for name, value in seconds.items())
        note = f"precision: {precision} (measured forward and backward pass: {measured})"
    run.loss.bf16 = precision == "bf16"
    resolved = training.model_copy(update={"precision": precision})
    return replace(run, config=run.config.model_copy(update={"training": resolved})), note


def pass_seconds(run: Run) -> dict[str, float]:
    """Median seconds of a forward and backward pass over this rank's first micro-batch, by precision; for CPUs.

    Half of the tokens are masked, whatever the plugins do: no component but the row order is called, since components
    may have state.
    Nothing is updated, gradients are dropped, and the state of the random number generator is restored.
    """
    loss, model = run.loss, run.loss.model
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    batch = run.loader.micro_batches(0)[0]
    masked_BT = batch.maskable_BT & (torch.arange(batch.ids_BT.shape[1], device=batch.ids_BT.device) % 2 == 0)
    input_BT = batch.ids_BT.masked_fill(masked_BT, MASK)
    causal_B = torch.zeros_like(batch.row_B, dtype=torch.bool)
    is_conditioned = run.recipe.components.time_conditioning.active
    conditioning_B = torch.zeros(len(causal_B), device=causal_B.device) if is_conditioned else None
    label_N = batch.ids_BT[masked_BT]
    weight_N = torch.full(label_N.shape, 1 / max(len(label_N), 1), device=label_N.device)
    end = time.perf_counter() + MAX_SECONDS
    with torch.random.fork_rng(devices=()):
        for done in range(WARM_UP_PASSES + TIMED_PASSES):
            if done >= 2 and time.perf_counter() > end:  # the very first passes are slow in any precision
                break
            # In turn, so that other work on the machine slows down both.
            for precision, times in seconds.items():
                loss.bf16 = precision == "bf16"
                start = time.perf_counter()
                with loss.autocast(causal_B.device):
                    hidden_BTD = model(input_BT, batch.document_BT, causal_B, conditioning_B)
                    features_ND = model.head(hidden_BTD[masked_BT])
                    output = weighted_cross_entropy(
                        features_ND, model.output_weight_VD, model.output_bias_V, label_N, weight_N, None
                    )
                output.loss.backward()  # type: ignore[no-untyped-call]
                times.append(time.perf_counter() - start)
                run.optimizer.zero_grad()
    return {name: statistics.median(times[WARM_UP_PASSES:] or times[-1:]) for name, times in seconds.items()}
