"""Time and memory of a training pass (forward, cross-entropy, backward) against the published formulas.

    python benchmarks/model_speed.py --tokens 128 --rows 32 --precision bf16 --threads 2

Both run on the same small model (384 wide, 12 layers, 6 heads, 8192 tokens), the same rows of two documents each, with
dropout, 36 % of the positions supervised.  The passes alternate, so that a busy machine slows both; medians are
reported.  Peak memory is the resident size of a process of its own that makes one kind of pass twice.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ltg_mdlm.model.cross_entropy import weighted_cross_entropy
from ltg_mdlm.model.transformer import ModelConfig, Transformer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.oracle import Oracle  # type: ignore[import-not-found]

SMALL = ModelConfig(
    hidden_size=384, intermediate_size=1280, num_hidden_layers=12, num_attention_heads=6, vocab_size=8192
)
SUPERVISED = 0.36
KINDS = ("ours", "oracle")


class Workload:
    """A model, a batch, and the two ways to make a training pass on it."""

    def __init__(self, rows: int, tokens: int, precision: str) -> None:
        torch.manual_seed(0)
        self.model = Transformer(SMALL)
        self.autocast = precision == "bf16"
        self.ids_BT = torch.randint(16, SMALL.vocab_size, (rows, tokens))
        self.document_BT = (torch.arange(tokens) >= tokens // 2).int().expand(rows, -1)
        self.visible_BTT = self.document_BT[:, :, None] == self.document_BT[:, None, :]
        self.value_B = torch.rand(rows)
        self.supervised_N = torch.randperm(rows * tokens)[: int(SUPERVISED * rows * tokens)]
        self.label_N = self.ids_BT.flatten()[self.supervised_N]
        self.oracle = Oracle(SMALL, dict(self.model.named_parameters()), training=True)

    def run(self, kind: str) -> None:
        """One pass forward and backward."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.ours_loss() if kind == "ours" else self.oracle_loss()
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

    def oracle_loss(self) -> Tensor:
        hidden_BTD = self.oracle.hidden(self.ids_BT, self.visible_BTT, self.value_B)
        logits_NV = self.oracle.logits(hidden_BTD.flatten(0, 1).index_select(0, self.supervised_N))
        return F.cross_entropy(logits_NV.float(), self.label_N)


def interleaved_medians(workload: Workload, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of a pass of each kind, after one of each to warm up."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round_ in range(rounds + 1):
        for kind in KINDS:
            start = clock()
            workload.run(kind)
            if round_:
                seconds[kind].append(clock() - start)
    return {kind: statistics.median(times) for kind, times in seconds.items()}


def peak_gigabytes(kind: str, arguments: argparse.Namespace) -> float:
    """Peak resident size of a fresh process that makes two passes."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("rows", "tokens", "precision", "threads")]
    command = [sys.executable, __file__, *options, f"--only={kind}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak_gigabytes() -> float:
    """Linux's high-water mark of this process (getrusage would count the parent's from before the exec)."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e9


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: less noise on a busy machine")
    parser.add_argument("--only", choices=KINDS, help="make two passes of this kind and print the peak memory in GB")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    workload = Workload(arguments.rows, arguments.tokens, arguments.precision)
    if arguments.only:
        workload.run(arguments.only)
        workload.run(arguments.only)
        print(own_peak_gigabytes())
        return
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    seconds = interleaved_medians(workload, arguments.rounds, clock)
    memory = {kind: peak_gigabytes(kind, arguments) for kind in KINDS}
    tokens = arguments.rows * arguments.tokens
    report = {
        "tokens_per_second": {kind: round(tokens / seconds[kind], 1) for kind in KINDS},
        "peak_gigabytes": {kind: round(memory[kind], 2) for kind in KINDS},
        "speed_ratio": round(seconds["oracle"] / seconds["ours"], 2),
        "memory_ratio": round(memory["ours"] / memory["oracle"], 3),
    }
    print(json.dumps({"workload": vars(arguments)} | report, indent=1))


if __name__ == "__main__":
    main()
