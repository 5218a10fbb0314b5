"""Time and memory of a training pass (forward, cross-entropy, backward) against the published formulas.

    python benchmarks/model_speed.py --precision bf16 --threads 2 --write docs/benchmarks.md

Both run on the same small model (384 wide, 12 layers, 6 heads, 8192 tokens), the same rows of two documents each, with
dropout 0.1, 36 % of the positions supervised, in every workload ROWSxTOKENS.  The passes alternate, so that a busy
machine slows both; medians are reported, with the least and the largest ratio of two neighbouring passes.  Peak memory
is the resident size of a process of its own that makes one kind of pass twice.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from markdown import add_write_option, conditions, publish, table
from torch import Tensor

from ltg_mdlm.core.machine import peak_memory
from ltg_mdlm.model.cross_entropy import weighted_cross_entropy
from ltg_mdlm.model.transformer import ModelConfig, Transformer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.oracle import Oracle  # type: ignore[import-not-found]

SMALL = ModelConfig(
    hidden_size=384, intermediate_size=1280, num_hidden_layers=12, num_attention_heads=6, vocab_size=8192
)
SUPERVISED = 0.36
KINDS = ("ours", "published")
HEADER = (
    "rows x tokens",
    "published, tokens/s",
    "ours, tokens/s",
    "ratio (least to most)",
    "published, GB",
    "ours, GB",
    "memory ratio",
)


@dataclass(frozen=True)
class Size:
    """Of a batch."""

    rows: int
    tokens: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """From `32x128`."""
        found = re.fullmatch(r"(\d+)x(\d+)", text)
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r} is not like 32x128")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"


class Workload:
    """A model, a batch, and the two ways to make a training pass on it."""

    def __init__(self, size: Size, precision: str) -> None:
        torch.manual_seed(0)
        self.model = Transformer(SMALL)
        self.autocast = precision == "bf16"
        self.ids_BT = torch.randint(16, SMALL.vocab_size, (size.rows, size.tokens))
        self.document_BT = (torch.arange(size.tokens) >= size.tokens // 2).int().expand(size.rows, -1)
        self.visible_BTT = self.document_BT[:, :, None] == self.document_BT[:, None, :]
        self.value_B = torch.rand(size.rows)
        self.supervised_N = torch.randperm(self.ids_BT.numel())[: int(SUPERVISED * self.ids_BT.numel())]
        self.label_N = self.ids_BT.flatten()[self.supervised_N]
        self.oracle = Oracle(SMALL, dict(self.model.named_parameters()), training=True)

    def run(self, kind: str) -> None:
        """One pass forward and backward."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.ours_loss() if kind == "ours" else self.published_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad()

    def ours_loss(self) -> Tensor:
        model = self.model
        hidden_BTD = model(self.ids_BT, self.document_BT, None, self.value_B)
        features_ND = model.head(hidden_BTD.flatten(0, 1).index_select(0, self.supervised_N))
        weight_N = torch.full(self.label_N.shape, 1 / len(self.label_N))
        return weighted_cross_entropy(
            features_ND, model.output_weight_VD, model.output_bias_V, self.label_N, weight_N
        ).loss

    def published_loss(self) -> Tensor:
        hidden_BTD = self.oracle.hidden(self.ids_BT, self.visible_BTT, self.value_B)
        logits_NV = self.oracle.logits(hidden_BTD.flatten(0, 1).index_select(0, self.supervised_N))
        return F.cross_entropy(logits_NV.float(), self.label_N)


def interleaved(workload: Workload, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of passes of each kind in turn, after one of each to warm up."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round_ in range(rounds + 1):
        for kind in KINDS:
            start = clock()
            workload.run(kind)
            if round_:
                seconds[kind].append(clock() - start)
    return seconds


def peak_gigabytes(kind: str, size: Size, arguments: argparse.Namespace) -> float:
    """Peak resident size of a fresh process that makes two passes."""
    options = [f"--precision={arguments.precision}", f"--threads={arguments.threads}", f"--only={kind}"]
    command = [sys.executable, __file__, str(size), *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(size: Size, arguments: argparse.Namespace) -> list[str]:
    """Measure one workload."""
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    seconds = interleaved(Workload(size, arguments.precision), arguments.rounds, clock)
    ours, published = (statistics.median(seconds[kind]) for kind in KINDS)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    memory = {kind: peak_gigabytes(kind, size, arguments) for kind in KINDS}
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


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=Size.parse, default=[Size(32, 128), Size(8, 512)])
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: less noise on a busy machine")
    parser.add_argument("--only", choices=KINDS, help="make two passes of this kind and print the peak memory in GB")
    add_write_option(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        workload = Workload(arguments.sizes[0], arguments.precision)
        workload.run(arguments.only)
        workload.run(arguments.only)
        print(peak_memory(torch.device("cpu")) / 1e9)
        return
    rows = [row(size, arguments) for size in arguments.sizes]
    about = f"{conditions()} {arguments.precision}, medians of {arguments.rounds} interleaved passes."
    publish(f"model_speed {arguments.precision}", f"{about}\n\n{table(HEADER, rows)}", arguments.write)


if __name__ == "__main__":
    main()
