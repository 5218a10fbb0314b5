"""Memory and speed by size: measured on this machine up to the base model, by arithmetic up to a billion parameters.

    python benchmarks/scale.py --write docs/benchmarks.md

Measured: `ltg-mdlm bench` in a process for each size, with and without activation checkpointing.  By arithmetic: 20
bytes of state per parameter (weight, gradient, two moments, average, all float32), and what autograd keeps per token
in bfloat16, counted on one and two layers of the true width and continued to all layers.  Ranks: a ring all-reduce
moves 2 (n - 1) / n times the gradient's bytes through every GPU.

Shapes: T tokens per row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from markdown import add_write_option, conditions, publish, table

from ltg_mdlm.model import attention
from ltg_mdlm.model.attention import attend_by_library
from ltg_mdlm.model.flops import flops_per_token
from ltg_mdlm.model.transformer import ModelConfig, Transformer

SIZES = {
    "laptop_wide": ModelConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, vocab_size=8192
    ),
    "small": ModelConfig(
        hidden_size=384, intermediate_size=1280, num_hidden_layers=12, num_attention_heads=6, vocab_size=8192
    ),
    "base": ModelConfig(),
    "350M": ModelConfig(hidden_size=1024, intermediate_size=3456, num_hidden_layers=24, num_attention_heads=16),
    "1B": ModelConfig(hidden_size=2048, intermediate_size=6912, num_hidden_layers=17, num_attention_heads=32),
}
MEASURED = {"laptop_wide": 16, "small": 16, "base": 8}
"""Rows of 128 tokens of a step on the CPU."""
BYTES_PER_PARAMETER = 5 * 4
TOKENS = {"T = 128": 128, "T = 512": 512}
GPU_TOKENS = 65_536
"""Tokens of a micro-batch."""
GPU_BYTES = 141e9
GPU_FLOPS = 790e12
"""Measured bf16 rate of one H200."""
UTILISATION = 0.4
BANDWIDTHS = {8: 300e9, 64: 200e9}
"""Bytes per second that a ring all-reduce is taken to reach: within a machine with NVLink, and between machines with
eight 400 Gbit/s network cards each; about half of what the hardware is sold for."""
GLOBAL_BATCHES = (1024, 32_768)
"""Rows of 128 tokens: of the frequency-informed recipe, and of GPT-BERT's."""


@dataclass(frozen=True)
class Activations:
    """Bytes that the layers keep for the backward pass, per token."""

    plain: float
    checkpointed: float


def activations(config: ModelConfig, length: int) -> Activations:
    """As the library's attention keeps them, under bfloat16 autocast."""
    found = []
    for checkpointing in (False, True):
        one, two = (_kept_bytes(replace(config, num_hidden_layers=n), length, checkpointing) for n in (1, 2))
        found.append((one + (config.num_hidden_layers - 1) * (two - one)) / length)
    return Activations(*found)


def _kept_bytes(config: ModelConfig, length: int, checkpointing: bool) -> int:
    model = Transformer(config)
    model.transformer.activation_checkpointing = checkpointing
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights and not _is_weight_copy(x, config):
            kept[x.untyped_storage().data_ptr()] = x
        return x

    ids_BT = torch.randint(16, config.vocab_size, (1, length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        model(ids_BT, torch.zeros_like(ids_BT), None, torch.rand(1) if config.cond_dim else None)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def _is_weight_copy(x: torch.Tensor, config: ModelConfig) -> bool:
    """Autocast's bfloat16 copies of weight matrices do not grow with the rows."""
    width, inner = config.hidden_size, config.intermediate_size
    sizes = {width, 2 * width, 3 * width, 6 * width, inner, 2 * inner, config.cond_dim}
    return x.dim() == 2 and set(x.shape) <= sizes


def arithmetic() -> str:
    """The table of sizes."""
    attention.attend = attend_by_library  # type: ignore[assignment]
    rows = []
    for name, config in SIZES.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in Transformer(config).parameters())
        state = BYTES_PER_PARAMETER * parameters
        for label, length in TOKENS.items():
            kept = activations(config, length)
            flops = flops_per_token(config, length, 0.36).training
            fits = int((0.9 * GPU_BYTES - state) // kept.plain)
            rows.append(
                [
                    f"{name}, {parameters / 1e6:,.0f}M",
                    label,
                    f"{state / 1e9:.1f}",
                    f"{GPU_TOKENS * kept.plain / 1e9:.1f}",
                    f"{GPU_TOKENS * kept.checkpointed / 1e9:.1f}",
                    f"{fits:,}",
                    f"{flops / 1e6:,.0f}",
                    f"{UTILISATION * GPU_FLOPS / flops:,.0f}",
                ]
            )
    header = (
        "model",
        "rows",
        "state, GB",
        f"kept by {GPU_TOKENS:,} tokens, GB",
        "checkpointed, GB",
        "tokens that fit a 141 GB GPU",
        "MFLOP per token",
        f"tokens/s at {UTILISATION:.0%} of {GPU_FLOPS / 1e12:.0f} TFLOP/s",
    )
    return table(header, rows)


def ranks() -> str:
    """Step time on several GPUs."""
    config = SIZES["base"]
    with torch.device("meta"):
        gradient_bytes = 4 * sum(p.numel() for p in Transformer(config).parameters())
    flops = flops_per_token(config, 128, 0.36).training
    rows = []
    for batch in GLOBAL_BATCHES:
        for gpus, bandwidth in {1: float("inf"), **BANDWIDTHS}.items():
            compute = batch * 128 * flops / (gpus * UTILISATION * GPU_FLOPS)
            reduce = 2 * (gpus - 1) / gpus * gradient_bytes / bandwidth
            # Two thirds of the last micro-batch is its backward pass, during which gradients travel.
            last = compute / max(1.0, batch / gpus * 128 / GPU_TOKENS)
            waiting = max(0.0, reduce - 2 / 3 * last)
            rows.append(
                [
                    f"{batch:,}",
                    str(gpus),
                    f"{1000 * compute:,.1f}",
                    f"{1000 * reduce:,.1f}",
                    f"{waiting / (compute + waiting):.1%}",
                ]
            )
    return table(("rows of 128", "GPUs", "computing, ms", "all-reduce, ms", "waiting"), rows)


def bench(name: str, checkpointing: bool, processes: int = 1) -> dict[str, Any]:
    """`ltg-mdlm bench` of a size, in processes of its own, on the generated corpus."""
    config = SIZES[name]
    sets = {
        **{f"model.{k}": getattr(config, k) for k in ("hidden_size", "intermediate_size", "num_hidden_layers")},
        "model.num_attention_heads": config.num_attention_heads,
        "training.activation_checkpointing": checkpointing,
        "training.precision": "fp32",
        "validation.pairs": "null",
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    options = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, *launcher, "-m", "ltg_mdlm", "bench", "--json", "--steps=4", f"--rows={MEASURED[name]}"]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured() -> str:
    """The table of what was run."""
    rows = []
    for name in MEASURED:
        for checkpointing in (False, True):
            rows.append(_measured_row(bench(name, checkpointing), "yes" if checkpointing else "no"))
    rows.append(_measured_row(bench("laptop_wide", False, processes=2), "no"))
    header = (
        "parameters",
        "processes",
        "rows of 128",
        "checkpointing",
        "tokens/s",
        "peak memory, GB",
        "share of peak",
        "waiting for gradients",
    )
    return table(header, rows)


def _measured_row(report: dict[str, Any], checkpointing: str) -> list[str]:
    waiting = report["waiting_for_gradients"]
    return [
        f"{report['parameters'] / 1e6:,.1f}M",
        str(report["processes"]),
        str(report["global_batch_rows"]),
        checkpointing,
        f"{report['padded_tokens_per_second']:,.0f}",
        f"{report['peak_memory_bytes'] / 1e9:.2f}",
        f"{report['share_of_peak']:.0%}",
        "" if waiting is None else f"{waiting:.1%}",
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arithmetic-only", action="store_true", help="measure nothing")
    add_write_option(parser)
    arguments = parser.parse_args()
    if not arguments.arithmetic_only:
        publish("scale measured", f"{conditions()} fp32, vocabulary 2048.\n\n{measured()}", arguments.write)
    publish("scale arithmetic", arithmetic(), arguments.write)
    publish("scale ranks", ranks(), arguments.write)


if __name__ == "__main__":
    main()
