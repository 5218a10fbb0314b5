"""Time and memory of a training step (forward, cross-entropy, backward, LAMB) compared with the published formulas.

    python benchmarks/model_speed.py --precision bf16 --threads 2 --write docs/benchmarks.md

Both implementations run the same small model (384 wide, 12 layers, 6 heads, 8192 token types) on the same rows, each
with two documents, dropout 0.1 and 36 % supervised positions, for every workload ROWSxTOKENS, and take the same step
of our LAMB.  The steps alternate, so that other load slows down both.  The table shows medians, and the smallest and
largest ratio of neighbouring steps.  Peak memory is the resident size of a separate process that makes two steps of one
kind.  Ours uses the compiled operations; `--kernels torch` compares those of torch.

    python benchmarks/model_speed.py --operations --threads 1 --clock cpu --rounds 9 --write docs/benchmarks.md

compares every operation with a written-out backward pass with the same formula under autograd: the time of its forward
and backward pass, and the memory of the tensors that it keeps for the backward pass, in addition to its inputs.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from markdown import add_write_option, conditions, publish, table
from torch import Tensor

from ltg_mdlm.core.config import OptimizerConfig
from ltg_mdlm.core.machine import keep_freed_memory, peak_memory
from ltg_mdlm.core.optimizer import ParameterGroup
from ltg_mdlm.model.attention import (
    _RelativeScores,
    apply,
    attend,
    batch_geometry,
    gated_norm,
    relative_scores,
    weighted_sum,
)
from ltg_mdlm.model.cpu_kernels import use_compiled_operations
from ltg_mdlm.model.cross_entropy import weighted_cross_entropy
from ltg_mdlm.model.transformer import ModelConfig, Transformer
from ltg_mdlm.training.optimizers import build_optimizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.oracle import Oracle  # type: ignore[import-not-found]

SMALL = ModelConfig(
    hidden_size=384, intermediate_size=1280, num_hidden_layers=12, num_attention_heads=6, vocab_size=8192
)
SUPERVISED = 0.36
KINDS = ("ours", "published")
PASS_HEADER = (
    "rows x tokens",
    "published, tokens/s",
    "ours, tokens/s",
    "ratio (least to most)",
    "published, GB",
    "ours, GB",
    "memory ratio",
)
OPERATION_HEADER = ("operation", "rows x tokens", "autograd, ms", "ours, ms", "ratio", "autograd keeps, MB", "ours, MB")


@dataclass(frozen=True)
class Size:
    """Rows of a batch and tokens per row."""

    rows: int
    tokens: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """From `32x128`."""
        found = re.fullmatch(r"(\d+)x(\d+)", text)
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form 32x128")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"


def alternating(runs: Sequence[Callable[[], object]], rounds: int, clock: Callable[[], float]) -> list[list[float]]:
    """Seconds of every call of each function, after one call of each to warm up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for round_ in range(rounds + 1):
        for times, run in zip(seconds, runs, strict=True):
            start = clock()
            run()
            if round_:
                times.append(clock() - start)
    return seconds


# ---- training steps ----


class Workload:
    """A model, a batch, and the two implementations of a training step."""

    def __init__(self, size: Size, precision: str, kernels: str) -> None:
        torch.manual_seed(0)
        self.model = Transformer(SMALL)
        if kernels == "compiled":
            use_compiled_operations(self.model)
        named = dict(self.model.named_parameters())
        groups = [
            ParameterGroup({name: p for name, p in named.items() if (p.dim() > 1) == matrices}, 0.1 * matrices)
            for matrices in (True, False)
        ]
        self.optimizer = build_optimizer(groups, OptimizerConfig())
        self.autocast = precision == "bf16"
        self.ids_BT = torch.randint(16, SMALL.vocab_size, (size.rows, size.tokens))
        self.document_BT = (torch.arange(size.tokens) >= size.tokens // 2).int().expand(size.rows, -1)
        self.visible_BTT = self.document_BT[:, :, None] == self.document_BT[:, None, :]
        self.conditioning_B = torch.rand(size.rows)
        self.supervised_N = torch.randperm(self.ids_BT.numel())[: int(SUPERVISED * self.ids_BT.numel())]
        self.label_N = self.ids_BT.flatten()[self.supervised_N]
        self.oracle = Oracle(SMALL, dict(self.model.named_parameters()), training=True)

    def run(self, kind: str) -> None:
        """One step."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.ours_loss() if kind == "ours" else self.published_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(1e-4)
        self.optimizer.zero_grad()

    def ours_loss(self) -> Tensor:
        model = self.model
        hidden_BTD = model(self.ids_BT, self.document_BT, None, self.conditioning_B)
        features_ND = model.head(hidden_BTD.flatten(0, 1).index_select(0, self.supervised_N))
        weight_N = torch.full(self.label_N.shape, 1 / len(self.label_N))
        return weighted_cross_entropy(
            features_ND, model.output_weight_VD, model.output_bias_V, self.label_N, weight_N
        ).loss

    def published_loss(self) -> Tensor:
        hidden_BTD = self.oracle.hidden(self.ids_BT, self.visible_BTT, self.conditioning_B)
        logits_NV = self.oracle.logits(hidden_BTD.flatten(0, 1).index_select(0, self.supervised_N))
        return F.cross_entropy(logits_NV.float(), self.label_N)


def pass_row(size: Size, arguments: argparse.Namespace, clock: Callable[[], float]) -> list[str]:
    """A row of the table of training steps."""
    workload = Workload(size, arguments.precision, arguments.kernels)
    seconds = alternating([partial(workload.run, kind) for kind in KINDS], arguments.rounds, clock)
    ours, published = map(statistics.median, seconds)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    memory = {}
    for kind in KINDS:
        options = [f"--precision={arguments.precision}", f"--threads={arguments.threads}", f"--only={kind}"]
        options.append(f"--kernels={arguments.kernels}")
        command = [sys.executable, __file__, str(size), *options]
        memory[kind] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    tokens = size.rows * size.tokens
    return [
        str(size),
        f"{tokens / published:,.0f}",
        f"{tokens / ours:,.0f}",
        f"**{published / ours:.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{memory['published']:.2f}",
        f"{memory['ours']:.2f}",
        f"{memory['ours'] / memory['published']:.2f}",
    ]


# ---- operations ----

Operation = Callable[[], Tensor]


def operations(size: Size) -> dict[str, tuple[list[Tensor], Operation, Operation]]:
    """By name of the autograd function: inputs, our operation, and its formula under autograd."""
    torch.manual_seed(0)
    rows, length, width, inner = size.rows, size.tokens, SMALL.hidden_size, SMALL.intermediate_size
    heads = (rows, SMALL.num_attention_heads, length, width // SMALL.num_attention_heads)
    document_BT = (torch.arange(length) >= length // 2).int().expand(rows, -1)
    geometry = batch_geometry(
        length, SMALL.max_position_embeddings, SMALL.position_bucket_size, document_BT, None, None, torch.empty(0)
    )

    def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [torch.randn(shape).requires_grad_() for shape in shapes]

    table = (heads[1], SMALL.num_buckets, heads[3])
    query, key, value, query_pos, key_pos = attention = leaves(heads, heads, heads, table, table)
    positions = [query, key, query_pos, key_pos]
    x, gate = gated = leaves((rows, length, inner), (rows, length, inner))
    weight_K, *terms = summed = leaves((13,), *[(rows, length, width)] * 13)
    supervised = int(SUPERVISED * rows * length)
    features, matrix, bias = head = leaves((supervised, width), (SMALL.vocab_size, width), (SMALL.vocab_size,))
    label = torch.randint(SMALL.vocab_size, (supervised,))

    def autograd_attention() -> Tensor:
        scores = 0.1 * query @ key.mT + relative_scores(geometry, *positions)
        return F.dropout(scores.softmax(-1), 0.1) @ value

    return {
        "_Attention": (
            attention,
            lambda: attend(query, key, value, query_pos, key_pos, geometry, 0.1, 0.1),
            autograd_attention,
        ),
        "_RelativeScores": (
            positions,
            lambda: apply(_RelativeScores, geometry, *positions),
            lambda: relative_scores(geometry, *positions),
        ),
        "_GatedNorm": (
            gated,
            lambda: gated_norm(x, gate, 1e-5, approximate="tanh"),
            lambda: F.layer_norm(x * F.gelu(gate, approximate="tanh"), (inner,)),
        ),
        "_WeightedSum": (
            summed,
            lambda: weighted_sum(weight_K, terms),
            lambda: torch.tensordot(weight_K, torch.stack(terms), dims=1),
        ),
        "_PrecomputedGradients": (
            head,
            lambda: weighted_cross_entropy(features, matrix, bias, label, torch.ones(supervised)).loss,
            lambda: F.cross_entropy(F.linear(features, matrix, bias), label, reduction="sum"),
        ),
    }


def kept_bytes(inputs: list[Tensor], operation: Operation) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass, other than the inputs."""
    known = {x.untyped_storage().data_ptr() for x in inputs}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in known:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        operation()
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def operation_rows(size: Size, rounds: int, clock: Callable[[], float]) -> list[list[str]]:
    """Rows of the table of operations."""
    rows = []
    for name, (inputs, ours, autograd) in operations(size).items():
        grad = torch.randn_like(ours())

        def run(operation: Operation, inputs: list[Tensor] = inputs, grad: Tensor = grad) -> None:
            torch.autograd.grad(operation(), inputs, grad)

        seconds = alternating([partial(run, ours), partial(run, autograd)], rounds, clock)
        ours_time, autograd_time = map(statistics.median, seconds)
        ours_kept, autograd_kept = (kept_bytes(inputs, f) / 1e6 for f in (ours, autograd))
        times = [f"{1e3 * autograd_time:.0f}", f"{1e3 * ours_time:.0f}", f"**{autograd_time / ours_time:.2f}**"]
        rows.append([f"`{name}`", str(size), *times, f"{autograd_kept:.0f}", f"{ours_kept:.0f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=Size.parse, default=[Size(32, 128), Size(8, 512)])
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32", help="of training steps")
    parser.add_argument("--kernels", choices=("compiled", "torch"), default="compiled", help="training.cpu_kernels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu depends less on the load of the machine"
    )
    parser.add_argument("--operations", action="store_true", help="compare operations instead of training steps")
    parser.add_argument("--only", choices=KINDS, help="make two steps of this kind and print the peak memory in GB")
    add_write_option(parser)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as in training; it makes both implementations faster
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    if arguments.only:
        workload = Workload(arguments.sizes[0], arguments.precision, arguments.kernels)
        workload.run(arguments.only)
        workload.run(arguments.only)
        print(peak_memory(torch.device("cpu")) / 1e9)
    elif arguments.operations:
        rows = [row for size in arguments.sizes for row in operation_rows(size, arguments.rounds, clock)]
        about = f"{conditions()} fp32, {arguments.clock} time, medians of {arguments.rounds} alternating passes."
        publish("model_operations", f"{about}\n\n{table(OPERATION_HEADER, rows)}", arguments.write)
    else:
        rows = [pass_row(size, arguments, clock) for size in arguments.sizes]
        about = (
            f"{conditions()} {arguments.precision}, {arguments.kernels} operations, medians of {arguments.rounds}"
            " interleaved steps."
        )
        publish(f"model_speed {arguments.precision}", f"{about}\n\n{table(PASS_HEADER, rows)}", arguments.write)


if __name__ == "__main__":
    main()
