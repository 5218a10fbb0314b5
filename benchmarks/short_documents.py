"""A whole training step on short documents: packed rows against one padded row per document, as published.

    python benchmarks/short_documents.py --write docs/benchmarks.md

The published side reads one document per row and computes the literal formulas with an attention mask [T, T] per row.
Both sides use the same masking, LAMB and moving average, so the ratio is a lower bound. Steps of both sides alternate;
the table shows medians of tokens per second without padding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch.nn.functional as F
from markdown import add_write_option, conditions, publish, table

from ltg_mdlm.api import IGNORE
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.storage.checkpoint import Checkpoints
from ltg_mdlm.training.assembly import Run, build_run
from ltg_mdlm.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.oracle import Oracle  # type: ignore[import-not-found]

HEADER = ("T", "rows", "padding, published", "published, tokens/s", "ours, tokens/s", "ratio (least to most)")


def small_run(packing: str, arguments: argparse.Namespace) -> Run:
    """The published small model on the corpus."""
    sets = [
        f"data.corpus={arguments.corpus}",
        f"training.packing={packing}",
        f"training.seq_len={arguments.tokens}",
        f"training.global_batch_rows={arguments.rows}",
        f"training.micro_batch_rows={arguments.rows}",
        "training.precision=fp32",
        "training.max_steps=100",
        "training.epochs=null",
        "validation.pairs=null",
    ]
    settings = load_settings(["freq_cosine_small"], sets)
    host = Host(settings.config, settings.sources)
    ranks = Ranks.alone()
    return build_run(host, open_corpus(host.config), ranks)


class Published:
    """Training steps with the literal formulas."""

    def __init__(self, run: Run) -> None:
        self.run = run
        model = run.loss.model
        self.oracle = Oracle(model.config, dict(model.named_parameters()), training=True)
        self.steps = Trainer(run, Checkpoints(Path(), every=1, keep=1, writes=False), [], StopRequest()).steps()

    def step(self) -> int:
        """Make one step; returns its tokens without padding."""
        step, run = next(self.steps), self.run
        tokens = 0
        for batch in run.loader.micro_batches(step.step):
            [micro_batch] = run.recipe.corrupt(batch, step)
            corrupted = micro_batch.corrupted
            visible_BTT = batch.document_BT[:, :, None] == batch.document_BT[:, None, :]
            hidden_BTD = self.oracle.hidden(corrupted.input_BT, visible_BTT, micro_batch.conditioning_B)
            label_BT = corrupted.labels_BT
            logits_NV = self.oracle.logits(hidden_BTD[label_BT != IGNORE])
            weight_N = (1 / micro_batch.noise.rate_B).float()[(label_BT != IGNORE).nonzero()[:, 0]]
            nll_N = F.cross_entropy(logits_NV, label_BT[label_BT != IGNORE], reduction="none")
            tokens += int((batch.document_BT >= 0).sum())
            ((nll_N * weight_N).sum() / tokens).backward()  # type: ignore[no-untyped-call]
        run.optimizer.step(1e-3)
        run.optimizer.zero_grad()
        run.ema.update()
        return tokens


class Ours:
    """Training steps of this package."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.trainer = Trainer(run, Checkpoints(Path(), every=1, keep=1, writes=False), [], StopRequest())
        self.steps = self.trainer.steps()

    def step(self) -> int:
        """Make one step; returns its tokens without padding."""
        step, loader = next(self.steps), self.run.loader
        self.trainer.train_step(step)
        return loader.tokens_seen(step.step) - loader.tokens_seen(step.step - 1)


def speeds(arguments: argparse.Namespace) -> tuple[list[float], list[float], float]:
    """Tokens per second of our steps and of the published steps, and the share of padding in the latter."""
    ours, published = Ours(small_run("documents_packed", arguments)), Published(small_run("one_document", arguments))
    kinds: tuple[Ours | Published, ...] = (ours, published)
    found: tuple[list[float], list[float]] = ([], [])
    padding = []
    for round_ in range(arguments.rounds + 1):
        for kind, speed in zip(kinds, found, strict=True):
            start = time.perf_counter()
            tokens = kind.step()
            if round_:
                speed.append(tokens / (time.perf_counter() - start))
        padding.append(1 - tokens / (arguments.rows * arguments.tokens))
    return (*found, statistics.mean(padding))


def main() -> None:
    """Measure and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="builtin", help="corpus folder; default: the built-in corpus")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128], help="row lengths")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    add_write_option(parser)
    arguments = parser.parse_args()
    rows = []
    for length in arguments.tokens:
        ours, published, padding = speeds(argparse.Namespace(**{**vars(arguments), "tokens": length}))
        ratios = [a / b for a, b in zip(ours, published, strict=True)]
        ratio = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        cells = (statistics.median(published), statistics.median(ours))
        rows.append([str(length), str(arguments.rows), f"{padding:.0%}", *(f"{cell:,.0f}" for cell in cells), ratio])
    about = (
        f"{conditions()} fp32, corpus {Path(arguments.corpus).name}, medians of {arguments.rounds} alternating steps."
    )
    publish("short_documents", f"{about}\n\n{table(HEADER, rows)}", arguments.write)


if __name__ == "__main__":
    main()
