"""The speed of training steps on one GPU, in one command that keeps to a number of minutes.

    python benchmarks/gpu.py --minutes 10 --json gpu.json --write docs/benchmarks.md

First, the loss and all gradients of the small model are compared with the published formulas (tests/support/oracle.py),
in float32 and bf16.  Then whole training steps (forward, cross-entropy, backward, LAMB) are timed: the base and the
small model, rows of 128, 512 and 1,024 tokens, with and without torch.compile, and four kinds of attention:

- fused: the Triton kernel of this project
- library: torch's kernel with the position scores as a bias
- flashdeberta: the kernel of the package of this name (0.0.8), which has no dropout
- published: the model as it was published, formula by formula

Every row is one document, which is the most work for the fused kernel: it skips what lies between documents.

Cells are measured in the order of importance.  A cell that would take longer than the time that is left, to judge by
earlier ones, is left out and named.  A cell that fails is a line that says so.  The JSON file is written after every
cell, so that it is complete up to the moment at which the command is stopped.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.metadata
import itertools
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from markdown import add_write_option, publish, table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ltg_mdlm.core.config import OptimizerConfig
from ltg_mdlm.core.errors import text_of
from ltg_mdlm.core.files import write_text
from ltg_mdlm.core.machine import describe_machine, matrix_peak, peak_memory, synchronise
from ltg_mdlm.model.attention import Kernel
from ltg_mdlm.model.cross_entropy import weighted_cross_entropy
from ltg_mdlm.model.flops import flops_per_token
from ltg_mdlm.model.transformer import ModelConfig, Transformer
from ltg_mdlm.training.attention_choice import use_fused_attention
from ltg_mdlm.training.optimizers import build_optimizer
from ltg_mdlm.training.parameter_groups import parameter_groups

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.oracle import Oracle  # type: ignore[import-not-found]

SIZES = {
    "base": ModelConfig(),
    "small": ModelConfig(hidden_size=384, intermediate_size=1280, num_attention_heads=6, vocab_size=8192),
    "tiny": ModelConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=256
    ),
}
SUPERVISED = 0.36
"""Share of the positions that are predicted, as with a cosine schedule."""

WARM_UP_STEPS, MIN_STEPS, MAX_STEPS, STEP_SECONDS = 2, 3, 20, 3.0
"""After the first step, so many are not timed; then steps are timed for `STEP_SECONDS`, within these numbers."""

EXPECTED_SECONDS = {False: 15.0, True: 75.0}
"""Time of a cell, compiled or not, before one has been measured."""

ALLOWED_ERROR = {"fp32": 1e-4, "bf16": 0.0}
"""An error of the fused kernel is right up to this, or up to twice that of the library."""

PROFILE_ROWS = 12

HEADER = (
    "model", "T", "attention", "compiled", "tokens/s", "ratio to published", "share of peak",
    "step, ms (least to most)", "peak memory, GB", "launches per step", "GPU busy", "rows", "first step, s",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    size: str
    length: int
    kernel: str
    compiled: bool

    def __str__(self) -> str:
        return f"{self.size}, T {self.length:,}, {self.kernel}{', compiled' if self.compiled else ''}"

    @property
    def unimportance(self) -> float:
        """Cells with a small value are measured first; what users train with comes before what it is compared with."""
        kernel = {"fused": 0.0, "library": 1.0, "published": 2.0, "flashdeberta": 2.5}[self.kernel]
        is_usual = self.compiled == (self.kernel in ("fused", "library"))
        return (
            kernel
            + {"small": 3.0}.get(self.size, 0.0)
            + {512: 0.5, 1024: 2.0}.get(self.length, 0.0)
            + (0.0 if is_usual else 1.5 if self.kernel in ("fused", "library") else 4.0)
        )


@dataclass(frozen=True)
class Conditions:
    """What is the same for all cells."""

    device: str
    bf16: bool
    tokens: int
    """Tokens of a step, which is one micro-batch; halved until it fits."""


# ---- training steps ----


@dataclass(frozen=True)
class FlashDeberta:
    """The kernel of the package flashdeberta behind the interface of ours; without dropout and documents."""

    max_positions: int
    bucket_size: int

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        scale: float,
        dropout_rate: float,
    ) -> Tensor:
        """See `ltg_mdlm.model.attention.attend`."""
        from flashdeberta.ops.flash_attention import (  # type: ignore[import-not-found, unused-ignore]
            flash_attention_with_disentangled,
        )

        # Its tables have a further row in front, for a distance that does not occur, and it scales them itself.
        c2p, p2c = (F.pad(x.to(query.dtype) / scale, (0, 0, 1, 0))[None] for x in (key_pos, query_pos))
        query, key, value = (x.contiguous() for x in (query, key, value))
        context: Tensor = flash_attention_with_disentangled(
            query, key, value, None, c2p, p2c, False, scale, self.bucket_size, self.max_positions
        )
        return context


def flashdeberta_geometry(length: int, max_positions: int, bucket_size: int, *_: Any, **__: Any) -> Kernel:
    """The geometry of rows of one document for flashdeberta."""
    return FlashDeberta(max_positions, bucket_size)


class TrainingStep:
    """A model, a batch, and a step of training by one kind of attention."""

    def __init__(
        self, sizes: ModelConfig, document_BT: Tensor, kernel: str, *, bf16: bool, compiled: bool = False
    ) -> None:
        torch.manual_seed(0)
        device, (rows, length) = document_BT.device, document_BT.shape
        sizes = replace(sizes, max_position_embeddings=max(sizes.max_position_embeddings, length))
        self.kernel, self.bf16, self.document_BT = kernel, bf16, document_BT
        self.model = Transformer(sizes)
        for name, parameter in self.model.named_parameters():
            if "adaLN" in name:  # 0 would cut off every layer, and products with 0 need less power
                torch.nn.init.normal_(parameter, std=0.1)
        self.ids_BT = torch.randint(16, sizes.vocab_size, (rows, length))
        self.conditioning_B = torch.rand(rows)
        self.supervised_N = torch.randperm(rows * length)[: max(int(SUPERVISED * rows * length), 1)]
        self.model.to(device)
        self.ids_BT, self.conditioning_B, self.supervised_N = (
            x.to(device) for x in (self.ids_BT, self.conditioning_B, self.supervised_N)
        )
        self.label_N = self.ids_BT.flatten()[self.supervised_N]
        if kernel == "published":
            oracle = Oracle(sizes, dict(self.model.named_parameters()), training=True)
            oracle.position_indices_QK = oracle.position_indices_QK.to(device)
            self.visible_BTT = document_BT[:, :, None] == document_BT[:, None, :]
            self.hidden, self.logits = oracle.hidden, oracle.logits
            if compiled:
                self.hidden = torch.compile(self.hidden, dynamic=False)
        elif compiled:  # as DenoisingLoss.compile_layers
            layers = self.model.transformer
            layers.residual = torch.compile(layers.residual, dynamic=False)  # type: ignore[method-assign]
        if kernel == "fused":
            use_fused_attention(self.model)
        elif kernel == "flashdeberta":
            self.model.geometry_of = flashdeberta_geometry
        self.optimizer = build_optimizer(parameter_groups(self.model, 0.1), OptimizerConfig())

    def loss(self) -> Tensor:
        """The mean cross-entropy of the supervised positions."""
        model = self.model
        with torch.autocast(self.ids_BT.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            if self.kernel == "published":
                hidden_BTD = self.hidden(self.ids_BT, self.visible_BTT, self.conditioning_B)
                logits_NV = self.logits(hidden_BTD.flatten(0, 1).index_select(0, self.supervised_N))
                return F.cross_entropy(logits_NV.float(), self.label_N)
            hidden_BTD = model(self.ids_BT, self.document_BT, None, self.conditioning_B)
            features_ND = model.head(hidden_BTD.flatten(0, 1).index_select(0, self.supervised_N))
            weight_N = torch.full_like(self.label_N, 1 / len(self.label_N), dtype=torch.float32)
            return weighted_cross_entropy(
                features_ND, model.output_weight_VD, model.output_bias_V, self.label_N, weight_N
            ).loss

    def __call__(self) -> None:
        """Forward, backward, update."""
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(1e-4)
        self.optimizer.zero_grad()


def measure_cell(cell: Cell, conditions: Conditions) -> dict[str, Any]:
    """Time the steps of a cell; rows are halved, up to three times, if memory is not enough."""
    rows = most = max(conditions.tokens // cell.length, 1)
    while True:
        torch.compiler.reset()
        gc.collect()
        if conditions.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            return measure_rows(cell, conditions, rows)
        except torch.OutOfMemoryError:
            if rows == 1 or rows <= most // 8:
                raise
        rows //= 2


def measure_rows(cell: Cell, conditions: Conditions, rows: int) -> dict[str, Any]:
    """Time the steps of a cell with this number of rows."""
    device, sizes = torch.device(conditions.device), SIZES[cell.size]
    document_BT = torch.zeros(rows, cell.length, dtype=torch.int32, device=device)
    step = TrainingStep(sizes, document_BT, cell.kernel, bf16=conditions.bf16, compiled=cell.compiled)

    def seconds() -> float:
        start = time.perf_counter()
        step()
        synchronise(device)
        return time.perf_counter() - start

    first = seconds()
    for _ in range(WARM_UP_STEPS):
        seconds()
    times: list[float] = []
    while len(times) < MIN_STEPS or (len(times) < MAX_STEPS and sum(times) < STEP_SECONDS):
        times.append(seconds())
    memory = peak_memory(device)
    median, tokens = statistics.median(times), rows * cell.length
    operations = operations_of(step, device)
    return {
        "rows": rows,
        "tokens_per_second": tokens / median,
        "step_seconds": {"median": median, "least": min(times), "most": max(times), "steps": len(times)},
        "flops_per_token": flops_per_token(sizes, cell.length, SUPERVISED).training,
        "peak_memory_bytes": memory,
        "first_step_seconds": first,
        "launches": sum(operation["count"] for operation in operations),
        "busy_share": sum(operation["seconds"] for operation in operations) / median,
        "operations": operations[:PROFILE_ROWS],
    }


def operations_of(step: Callable[[], None], device: torch.device) -> list[dict[str, Any]]:
    """Name, number and seconds of what a step runs on the device, longest first: kernels of a GPU, or torch operators.

    On a GPU, copies and fills count as well: all that the host launches.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
        synchronise(device)
    found = [
        {
            "name": event.key,
            "count": event.count,
            "seconds": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6,
        }
        for event in profiler.key_averages()
        if event.device_type.name == device.type.upper() and not getattr(event, "is_user_annotation", False)
    ]
    return sorted(found, key=lambda operation: -operation["seconds"])


# ---- correctness ----


def check_kernel(kernel: str, size: str, conditions: Conditions) -> dict[str, Any]:
    """The largest relative error of the loss and of the gradient of any parameter, without dropout.

    The reference are the published formulas in float32.  Rows have two documents and padding; for flashdeberta, which
    has no documents, one document.
    """
    sizes = replace(SIZES[size], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    document_BT = torch.zeros(3, 80, dtype=torch.int32, device=conditions.device)
    if kernel != "flashdeberta":
        document_BT[0, 37:] = 1
        document_BT[1, 61:] = -1

    def results(kernel: str, bf16: bool) -> dict[str, Tensor]:
        step = TrainingStep(sizes, document_BT, kernel, bf16=bf16)
        loss = step.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **gradients}

    exact, found = results("published", False), results(kernel, conditions.bf16)
    errors = {
        name: float((found[name].float() - reference).norm() / reference.norm())
        for name, reference in exact.items()
        if float(reference.norm()) > 0
    }
    worst = max(errors, key=lambda name: errors[name])
    return {"error": "", "largest_error": errors[worst], "where": worst, "loss_error": errors["loss"]}


def describe(conditions: Conditions) -> dict[str, Any]:
    """The machine, the versions, and the measured peak of matrix products."""
    device = torch.device(conditions.device)
    versions = {"Python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "flashdeberta"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "machine": describe_machine(device),
        "versions": versions,
        "peak_flops": matrix_peak(device, bf16=conditions.bf16),
    }


# ---- a process that may die, and a time that must suffice ----


class Worker:
    """Calls functions in a process of its own, which is replaced if a call kills it or takes too long."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None

    def __call__(self, seconds: float, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """The result of the function, or `{"error": REASON}`."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._ours, theirs = context.Pipe()
            self._process = context.Process(target=work, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._ours.send((function, arguments))
        try:
            if not self._ours.poll(seconds):
                self.stop()
                return {"error": f"stopped after {seconds:.0f} s"}
            outcome: dict[str, Any] = self._ours.recv()
        except (EOFError, ConnectionError):
            code = self.stop()
            return {"error": f"its process died with exit code {code}"}
        if "CUDA error" in outcome.get("error", ""):
            self.stop()  # after such an error, every call of the process fails
        return outcome

    def stop(self) -> int | None:
        """End the process; its exit code, if it had one."""
        if self._process is None:
            return None
        self._process.join(1)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        self._process = None
        return code


def attempt(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of the function, or `{"error": REASON}`: whatever fails, other cells can be measured."""
    try:
        return function(*arguments)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    except ModuleNotFoundError as error:
        return {"error": f"the package {(error.name or '').partition('.')[0]} is not installed"}
    except Exception as error:
        return {"error": " ".join(text_of(error).split())[:300]}


def work(connection: Connection) -> None:
    """The process of a `Worker`."""
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        connection.send(attempt(function, *arguments))


def measure_in_time(
    cells: Sequence[Cell],
    measure: Callable[[Cell, float], dict[str, Any]],
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """The results of the cells in the order of importance, each with the seconds that it took.

    `measure` is called with a cell and the seconds that are left.  A cell that is expected to take longer is not
    measured; its result has the reason as `left_out`.
    """
    results: list[dict[str, Any]] = []
    for cell in sorted(cells, key=lambda cell: cell.unimportance):
        expected, left = expected_seconds(cell, results), deadline - clock()
        if expected > left:
            reason = f"expected to take {expected:.0f} s, {max(left, 0):.0f} s were left"
            yield {**asdict(cell), "left_out": reason}
            continue
        start = clock()
        outcome = measure(cell, left)
        results.append({**asdict(cell), **outcome, "seconds": clock() - start})
        yield results[-1]


def expected_seconds(cell: Cell, results: Sequence[dict[str, Any]]) -> float:
    """The longest time of similar cells: of the same kernel if there are any, else of others; else a guess."""
    similar = [result for result in results if result["compiled"] == cell.compiled]
    same = [result for result in similar if result["kernel"] == cell.kernel]
    if same:
        return max(float(result["seconds"]) for result in same)
    succeeded = [float(result["seconds"]) for result in similar if not result.get("error")]
    return max(succeeded, default=EXPECTED_SECONDS[cell.compiled])


# ---- the report ----


def correctness_text(checks: Sequence[dict[str, Any]]) -> str:
    """A table of errors against the published formulas."""
    rows = []
    for check in checks:
        library = next(
            (c["largest_error"] for c in checks if c["kernel"] == "library" and c["precision"] == check["precision"]
             and not c["error"]), 0.0,
        )  # fmt: skip
        if check["error"]:
            rows.append([check["kernel"], check["precision"], check["error"], "", ""])
            continue
        allowed = max(2 * library, ALLOWED_ERROR[check["precision"]])
        verdict = "right" if check["largest_error"] <= allowed else "WRONG"
        figures = (f"{check['largest_error']:.1e} ({check['where']})", f"{check['loss_error']:.1e}", verdict)
        rows.append([check["kernel"], check["precision"], *figures])
    return table(
        ("attention", "precision", "largest relative error", "of the loss", "at most twice the library's"), rows
    )


def cell_row(result: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """A row of the main table."""
    names = [result["size"], str(result["length"]), result["kernel"], "yes" if result["compiled"] else "no"]
    if result.get("error"):
        return [*names, result["error"], *[""] * (len(HEADER) - len(names) - 1)]
    step, rate = result["step_seconds"], result["tokens_per_second"]
    published = [
        other["tokens_per_second"]
        for other in report["cells"]
        if not other.get("error")
        and (other["size"], other["length"], other["kernel"]) == (result["size"], result["length"], "published")
    ]
    return [
        *names,
        f"{rate:,.0f}",
        f"{rate / max(published):.2f}" if published else "",
        f"{rate * result['flops_per_token'] / report['peak_flops']:.1%}" if report.get("peak_flops") else "",
        f"{1000 * step['median']:.1f} ({1000 * step['least']:.1f} to {1000 * step['most']:.1f})",
        f"{result['peak_memory_bytes'] / 1e9:.1f}",
        f"{result['launches']:,}",
        f"{result['busy_share']:.0%}",
        f"{result['rows']:,}",
        f"{result['first_step_seconds']:.1f}",
    ]


def report_text(report: dict[str, Any]) -> str:
    """The section of the documentation."""
    machine = report.get("machine", "unknown machine")
    versions = ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items())
    peak = f"matrix peak {report['peak_flops'] / 1e12:,.1f} TFLOP/s, measured" if report.get("peak_flops") else "?"
    about = (
        f"{machine}; {versions}. {report['precision']}, {report['tokens']:,} tokens per step,"
        f" dropout 0.1 (flashdeberta: none in the attention); {peak}; {report['seconds']:.0f} s in all."
    )
    parts = [about, correctness_text(report["correctness"])]
    parts.append(table(HEADER, [cell_row(result, report) for result in report["cells"]]))
    if report["left_out"]:
        names = "; ".join(f"{text} ({reason})" for text, reason in report["left_out"].items())
        parts.append(f"Left out for lack of time: {names}.")
    for result in report["cells"][:3]:
        if result.get("operations"):
            total = result["busy_share"] * result["step_seconds"]["median"]
            rows = [
                [f"`{o['name'][:70]}`", f"{1000 * o['seconds']:.2f}", f"{o['seconds'] / total:.1%}", str(o["count"])]
                for o in result["operations"]
            ]
            cell = Cell(*(result[name] for name in ("size", "length", "kernel", "compiled")))
            parts.append(f"What a step of {cell} consists of:")
            parts.append(table(("kernel", "ms", "share", "launches"), rows))
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print as it goes, and write the JSON file after every result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="time for everything")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file for the results")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["base", "small"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512, 1024])
    kernels = ["fused", "library", "flashdeberta", "published"]
    parser.add_argument("--kernels", nargs="+", choices=kernels, default=kernels)
    parser.add_argument("--compiled", choices=("yes", "no", "both"), default="both")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--tokens", type=int, default=65536, help="of a step; halved where memory is not enough")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only shows that this works")
    add_write_option(parser)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is visible; benchmarks/model_speed.py and `ltg-mdlm bench` measure a CPU")

    start = time.monotonic()
    deadline = start + 60 * arguments.minutes
    conditions = Conditions(arguments.device, arguments.precision == "bf16", arguments.tokens)
    report: dict[str, Any] = {
        "precision": arguments.precision, "tokens": arguments.tokens, "complete": False, "seconds": 0.0,
        "correctness": [], "cells": [], "left_out": {},
    }  # fmt: skip

    def save() -> None:
        report["seconds"] = time.monotonic() - start
        write_text(arguments.json, json.dumps(report, indent=1) + "\n")

    worker = Worker()
    found = worker(deadline - time.monotonic(), describe, conditions)
    report |= {key: value for key, value in found.items() if key != "error"}
    print(found.get("error") or f"{found['machine']}: {found['peak_flops'] / 1e12:,.1f} TFLOP/s", flush=True)
    checked = "small" if "small" in arguments.sizes else arguments.sizes[-1]
    for precision, kernel in itertools.product(("fp32", "bf16"), ("library", "fused", "flashdeberta")):
        if kernel in arguments.kernels or kernel == "library":
            how = replace(conditions, bf16=precision == "bf16")
            outcome = worker(deadline - time.monotonic(), check_kernel, kernel, checked, how)
            report["correctness"].append({"kernel": kernel, "precision": precision, **outcome})
            print(kernel, precision, outcome["error"] or f"error {outcome['largest_error']:.1e}", flush=True)
            save()

    compiled = {"yes": [True], "no": [False], "both": [True, False]}[arguments.compiled]
    choices = itertools.product(arguments.sizes, arguments.lengths, arguments.kernels, compiled)
    cells = [Cell(*choice) for choice in choices]
    measure = functools.partial(measure_by, worker, conditions)
    for result in measure_in_time(cells, measure, deadline):
        name = str(Cell(*(result[name] for name in ("size", "length", "kernel", "compiled"))))
        if "left_out" in result:
            report["left_out"][name] = result["left_out"]
            print(f"{name}: left out, {result['left_out']}", flush=True)
        else:
            report["cells"].append(result)
            print(f"{name}: {' | '.join(cell_row(result, report)[4:])}", flush=True)
        save()
    worker.stop()
    report["complete"] = True
    save()
    publish("gpu", report_text(report), arguments.write)


def measure_by(worker: Worker, conditions: Conditions, cell: Cell, seconds: float) -> dict[str, Any]:
    """`measure_cell` in the worker's process."""
    return worker(seconds, measure_cell, cell, conditions)


if __name__ == "__main__":
    main()
