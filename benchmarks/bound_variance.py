"""How much each part of the bound's estimator lowers its variance, at an equal number of forward passes.

    ltg-mdlm train --plugin uniform_mdlm --set data.corpus=CORPUS --out RUN
    python benchmarks/bound_variance.py RUN

Every estimator evaluates the same rows of held-out text with two masks each, again and again with other seeds; what
varies is the masks alone.  The unigram baseline needs no forward pass, so that every estimator is measured with and
without it on the same passes.

Shapes: B rows, T tokens per row, S seeds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from trained_run import load_run

from ltg_mdlm.api import IGNORE, Batch, Step, labels_for
from ltg_mdlm.core.random import stream_key, uniform_open
from ltg_mdlm.data.row_loader import validation_batches
from ltg_mdlm.host.run_context import corpus_statistics
from ltg_mdlm.inference.likelihood import complementary_masks, guesses
from ltg_mdlm.training.assembly import Run
from ltg_mdlm.training.validation import evaluating

Draws = Iterator[tuple[Tensor, Tensor]]
"""Two times bool[B, T] masked tokens and float64[B] the probability with which each token is masked."""


def plain(batch: Batch, step: Step, *, stratified: bool = False) -> Draws:
    """t uniform, every token masked with probability t."""
    for draw in ("first", "second"):
        t_B = _t(batch, step, draw, stratified)
        yield (_order(batch, step, draw) < t_B.unsqueeze(1)) & batch.maskable_BT, t_B


def complement(batch: Batch, step: Step) -> Draws:
    """t uniform, a mask as above, and its complement."""
    (mask_BT, t_B), _ = plain(batch, step)
    yield mask_BT, t_B
    yield batch.maskable_BT & ~mask_BT, 1 - t_B


def exact_count(batch: Batch, step: Step, *, stratified: bool = False) -> Draws:
    """k uniform over 1..L, and k of the L tokens."""
    tokens_B = batch.maskable_BT.sum(1)
    for draw in ("first", "second"):
        count_B = (_t(batch, step, draw, stratified) * tokens_B).long() + 1
        order_BT = _order(batch, step, draw).masked_fill(~batch.maskable_BT, 2.0)
        place_BT = order_BT.argsort(dim=1).argsort(dim=1)
        yield (place_BT < count_B.unsqueeze(1)) & batch.maskable_BT, count_B / tokens_B


def pair(batch: Batch, step: Step) -> Draws:
    """What validation uses."""
    for mask_BT in complementary_masks(batch, step, "pair 0"):
        yield mask_BT, mask_BT.sum(1) / batch.maskable_BT.sum(1)


def _t(batch: Batch, step: Step, stream: str, stratified: bool) -> Tensor:
    if stratified:
        return step.stratified(batch, stream)
    return uniform_open(stream_key(step.seed, "independent", stream), batch.row_B)


def _order(batch: Batch, step: Step, stream: str) -> Tensor:
    return step.uniform(batch, f"{stream} order", batch.ids_BT.shape[1])


ESTIMATORS: dict[str, Callable[[Batch, Step], Draws]] = {
    "t independent, Bernoulli masks, 1 / t": plain,
    "t stratified": lambda batch, step: plain(batch, step, stratified=True),
    "exact counts": exact_count,
    "complementary masks": complement,
    "exact counts, stratified": lambda batch, step: exact_count(batch, step, stratified=True),
    "exact counts, stratified, complementary": pair,
}


def row_nll(run: Run, batch: Batch, masked_BT: Tensor, rate_B: Tensor) -> Tensor:
    """float64[B]: -log p of each row's masked tokens."""
    model, parts = run.loss.model, run.recipe.components
    causal_B = torch.zeros_like(batch.row_B, dtype=torch.bool)
    labels_BT = labels_for(batch, masked_BT, causal_B, parts.masking.predicts)
    input_BT = batch.ids_BT.masked_fill(masked_BT, parts.masking.mask_id)
    conditioning_B = parts.time_conditioning.value_for_rate(rate_B.float())
    hidden_BTD = model(input_BT, batch.document_BT, causal_B, conditioning_B)
    row_N, column_N = (labels_BT != IGNORE).nonzero(as_tuple=True)
    logits_NV = model.logits(model.head(hidden_BTD[row_N, column_N]))
    nll_N = torch.nn.functional.cross_entropy(logits_NV, labels_BT[row_N, column_N], reduction="none")
    return torch.zeros(len(rate_B), dtype=torch.float64).index_add_(0, row_N, nll_N.double())


def estimates(
    run: Run, batch: Batch, estimator: Callable[[Batch, Step], Draws], seeds: int, guess_BT: Tensor
) -> Tensor:
    """float64[S, 2]: the bound in nats per token, without and with the baseline."""
    values = torch.zeros(seeds, 2, dtype=torch.float64)
    for seed in range(seeds):
        step = Step(seed=seed, step=0, progress=0.0, epoch=0.0, rows=len(batch.row_B))
        for masked_BT, rate_B in estimator(batch, step):
            nll_B = row_nll(run, batch, masked_BT, rate_B)
            hidden_B, all_B = (guess_BT * masked_BT).sum(1), guess_BT.sum(1)
            values[seed, 0] += (nll_B / rate_B).sum() / 2
            values[seed, 1] += ((nll_B - hidden_B) / rate_B + all_B).sum() / 2
    return values / batch.maskable_BT.sum()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder with a checkpoint and held-out text")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=60)
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    assert run.corpus.valid is not None, "the corpus has no held-out split"
    batch = validation_batches(
        run.corpus.valid,
        seq_len=run.config.training.seq_len,
        micro_batch_rows=arguments.rows,
        rows=arguments.rows,
    ).batches[0]
    count_V = corpus_statistics(run.config, run.corpus).token_count_V.double() + 1
    guess_BT = guesses(batch, -(count_V / count_V.sum()).log())
    tokens = int(batch.maskable_BT.sum())
    print(f"{arguments.rows} rows, {tokens} tokens, 2 forward passes per row, {arguments.seeds} seeds")
    print(f"variances relative to the first; each ratio is known to ± {2 / math.sqrt(arguments.seeds - 1):.0%}\n")
    print(f"{'':42}without baseline                with unigram baseline")
    print(f"{'estimator':42}{'mean':>7}{'deviation':>11}{'variance':>10}{'mean':>11}{'deviation':>11}{'variance':>10}")
    first = 0.0
    with evaluating(run.loss):
        for name, estimator in ESTIMATORS.items():
            values = estimates(run, batch, estimator, arguments.seeds, guess_BT)
            mean, variance = values.mean(0).tolist(), values.var(0).tolist()
            first = first or variance[0]
            cells = [
                f"{m:{7 + 4 * i}.3f}{math.sqrt(v):11.4f}{'1 / ' + format(first / v, '.1f'):>10}"
                for i, (m, v) in enumerate(zip(mean, variance, strict=True))
            ]
            print(f"{name:42}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
