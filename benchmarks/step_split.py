"""Where the time of a training step goes: the published formulas before, this trainer after, on equal packed rows.

    python benchmarks/step_split.py --write docs/benchmarks.md

The small model; steps alternate, and medians are taken over steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack

import torch
from markdown import add_write_option, conditions, publish, table
from short_documents import Ours, Published, small_run

from ltg_mdlm.training.bench import PhaseClock, replaced

PHASES = ("data", "masking", "forward", "backward", "optimizer", "EMA", "other")


def published_split(published: Published, steps: int) -> list[dict[str, float]]:
    """Seconds by part; the backward pass is what no other part accounts for."""
    run, found = published.run, []
    for _ in range(steps):
        clock = PhaseClock(torch.device("cpu"))
        with ExitStack() as stack:
            for phase, owner, name in (
                ("data", run.loader, "micro_batches"),
                ("masking", run.recipe, "corrupt"),
                ("forward", published.oracle, "hidden"),
                ("forward", published.oracle, "logits"),
                ("optimizer", run.optimizer, "step"),
                ("EMA", run.ema, "update"),
            ):
                stack.enter_context(replaced(owner, name, clock.timed(phase, getattr(owner, name))))
            start = time.perf_counter()
            published.step()
            whole = time.perf_counter() - start
        found.append(dict(clock.now) | {"backward": whole - sum(clock.now.values()), "other": 0.0})
    return found


def ours_split(ours: Ours, steps: int) -> list[dict[str, float]]:
    """Seconds by part."""
    clock = PhaseClock(torch.device("cpu"))
    with clock.attached(ours.trainer):
        for _ in range(steps):
            clock.time_step(ours.trainer, next(ours.steps))
    return clock.steps


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="builtin", help="corpus folder; default: the generated one")
    parser.add_argument("--tokens", type=int, default=128, help="row length")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    add_write_option(parser)
    arguments = parser.parse_args()
    published = Published(small_run("documents_packed", arguments))
    ours = Ours(small_run("documents_packed", arguments))
    before, after = [], []
    for _ in range(arguments.rounds + 1):
        before += published_split(published, 1)
        after += ours_split(ours, 1)
    rows = []
    for phase in PHASES:
        seconds = [statistics.median(step[phase] for step in steps[1:]) for steps in (before, after)]
        shares = [
            statistics.median(step[phase] / sum(step.values()) for step in steps[1:]) for steps in (before, after)
        ]
        rows.append([phase, *(f"{1000 * s:,.0f} ms ({share:.0%})" for s, share in zip(seconds, shares, strict=True))])
    about = (
        f"{conditions()} fp32, small model, {arguments.rows} packed rows of {arguments.tokens},"
        f" medians of {arguments.rounds} alternating steps; on the published side the loss counts as backward."
    )
    publish("split", f"{about}\n\n{table(('part', 'published formulas', 'this trainer'), rows)}", arguments.write)


if __name__ == "__main__":
    main()
