"""Speed of scoring minimal pairs, compared with a literal version of the loop in the official pipelines.

    python benchmarks/scoring_speed.py MODEL --data blimp_fast [--pairs 20] [--write docs/benchmarks.md]

The official loop has one row per scored token, in the order of the file.  It pads batches of 64 rows to the longest,
computes logits and log-softmax at every position, and adds up the label's value row by row in float32.  Both loops use
the same model and alternate; the chosen sentences are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from markdown import add_write_option, conditions, publish, table
from torch import Tensor

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.data.records import MinimalPair, read_minimal_pairs
from ltg_mdlm.data.tokenizer import BOS, MASK, PAD
from ltg_mdlm.inference.scoring import LikelihoodScorer, Score, ScoringRule, default_score
from ltg_mdlm.inference.texts import Text
from ltg_mdlm.inference.trained_model import Denoiser, open_model
from ltg_mdlm.training.assembly import first_of_each

BATCH = 64
HEADER = ("score", "rows", "official loop, rows/s", "ours, rows/s", "ratio (least to most)", "other choices")

Row = tuple[list[int], int, int]
"""(ids, column of the scored token, index of the sentence)."""


def official_rows(sentences: Sequence[list[int]], causal: bool) -> Iterator[Row]:
    """Rows in the order of the file; causal rows are scored at every column, which is written as -1."""
    for number, ids in enumerate(sentences):
        if causal:
            yield ids, -1, number
        else:
            for column in range(1, len(ids)):
                yield [*ids[:column], MASK, *ids[column + 1 :]], column, number


@torch.no_grad()
def official_scores(denoiser: Denoiser, sentences: Sequence[list[int]], causal: bool) -> list[float]:
    """Sums of log-probabilities by sentence, in float32."""
    rows = list(official_rows(sentences, causal))
    totals = torch.zeros(len(sentences))
    shift = 1 if causal or denoiser.predicts == "next" else 0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        log_share_BTV = padded_forward(denoiser, [ids for ids, _, _ in batch], causal).log_softmax(-1)
        for place, (_, column, number) in enumerate(batch):
            ids = sentences[number]
            columns = range(1, len(ids)) if causal else [column]
            labels = torch.tensor([ids[c] for c in columns])
            read_at = torch.tensor([c - shift for c in columns])
            totals[number] += log_share_BTV[place, read_at, labels].sum().item()
    return [float(total) for total in totals]


def padded_forward(denoiser: Denoiser, rows: Sequence[list[int]], causal: bool) -> Tensor:
    """Logits [B, T, V] of rows padded to the longest."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids in rows])
    document_BT = torch.where(ids_BT == PAD, -1, 0).int()
    causal_B = torch.full((len(rows),), True) if causal else None
    rate_B = (ids_BT == MASK).sum(1) / (ids_BT >= MASK).sum(1)
    hidden_BTD = denoiser.model(ids_BT, document_BT, causal_B, denoiser.value(rate_B, causal))
    return denoiser.model.logits(denoiser.model.head(hidden_BTD))


def timed(run: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """Seconds, and the result."""
    started = time.perf_counter()
    scores = run()
    return time.perf_counter() - started, scores


def measure(denoiser: Denoiser, pairs: Sequence[MinimalPair], score: Score, rounds: int) -> tuple[str, ...]:
    """One row of the table."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    sentences = [[BOS, *denoiser.tokenizer.encode(text)] for text in texts]
    scorer = LikelihoodScorer(denoiser, ScoringRule(score=score), Ranks.alone())
    causal = score == "causal"
    rows = len(sentences) if causal else sum(len(ids) - 1 for ids in sentences)
    official_seconds, our_seconds = [], []
    for _ in range(rounds):
        seconds, official = timed(lambda: official_scores(denoiser, sentences, causal))
        official_seconds.append(seconds)
        seconds, ours = timed(lambda: [s.log_likelihood for (s,) in scorer([[Text("", text)] for text in texts])])
        our_seconds.append(seconds)
    other = sum(a != b for a, b in zip(choices(official), choices(ours), strict=True))
    ratios = [a / b for a, b in zip(official_seconds, our_seconds, strict=True)]
    return (
        score,
        f"{rows:,}",
        f"{rows / statistics.median(official_seconds):,.0f}",
        f"{rows / statistics.median(our_seconds):,.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{other} of {len(pairs):,}",
    )


def choices(scores: Sequence[float]) -> list[bool]:
    """Whether the first of every two scores is chosen; it wins ties."""
    return [good >= bad for good, bad in zip(scores[::2], scores[1::2], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="run folders or checkpoints")
    parser.add_argument("--data", type=Path, required=True, help="folder of minimal pairs, such as blimp_fast")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of each phenomenon")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    add_write_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pairs = first_of_each(read_minimal_pairs(arguments.data), arguments.pairs)
    rows = []
    for path in arguments.models:
        model = open_model(path, Ranks.alone())
        scores: list[Score] = [default_score(model)]
        scores += ["causal"] if "causal" in model.modes and scores != ["causal"] else []
        sizes = f"{model.model.config.num_hidden_layers} layers of {model.model.config.hidden_size}"
        rows += [(f"{sizes}, {score}", *measure(model, pairs, score, arguments.rounds)[1:]) for score in scores]
    text = f"{conditions(arguments.threads)}\n\n{table(HEADER, rows)}"
    publish("scoring", text, arguments.write)


if __name__ == "__main__":
    main()
