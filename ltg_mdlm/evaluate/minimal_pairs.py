"""Minimal pairs: does the model give the acceptable sentence the higher likelihood?

A bidirectional model scores a sentence by its masked pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659):
each token is masked in turn, in a row of its own, and the log-probabilities of the true tokens are summed. A causal
model needs one row per sentence.

Suffixes: B rows, T tokens per row, N scored positions, D width, V vocabulary, S sentences.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ltg_mdlm.data.special_tokens import BOS, MASK
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.evaluate.pair_files import MinimalPair, read_minimal_pairs

__all__ = ["MinimalPair", "MinimalPairScores", "read_minimal_pairs", "score_minimal_pairs", "sentence_log_likelihoods"]

Mode = Literal["masked", "causal"]
Predicts = Literal["same", "next"]


class Denoiser(Protocol):
    """What is asked of a model; `model.transformer.Transformer` is one."""

    def __call__(
        self,
        ids_BT: Tensor,
        document_BT: Tensor | None = None,
        causal_B: Tensor | None = None,
        value_B: Tensor | None = None,
    ) -> Tensor:
        """hidden_BTD"""

    def head(self, hidden_ND: Tensor) -> Tensor: ...

    def logits(self, features_ND: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class MinimalPairScores:
    """How often the good sentence was the more likely one; a tie counts one half.

    Attributes:
        accuracy: mean over the phenomena, each counting the same.
        accuracy_by_uid: accuracy of each phenomenon.
        pairs: number of pairs.
        tie_rate: share of the pairs with equal likelihoods; a large one says that the model does not work.
    """

    accuracy: float
    accuracy_by_uid: dict[str, float]
    pairs: int
    tie_rate: float


class Rows(NamedTuple):
    """Rows of one length, and the N places in them where a label of a sentence is predicted.

    The label `label_N[k]` belongs to sentence `sentence_N[k]` and stood in row `row_N[k]` at column `column_N[k]`.
    """

    ids_BT: Tensor
    row_N: Tensor
    column_N: Tensor
    label_N: Tensor
    sentence_N: Tensor


def score_minimal_pairs(
    model: Denoiser,
    tokenizer: Tokenizer,
    pairs: Sequence[MinimalPair],
    *,
    device: torch.device | str,
    predicts: Predicts = "same",
    value: float | None = None,
    mode: Mode = "masked",
    token_budget: int = 16384,
    rank: int = 0,
    world_size: int = 1,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> MinimalPairScores:
    """Accuracy of a model on minimal pairs.

    Args:
        model: in evaluation mode, on `device`.
        predicts: where a masked token is predicted: at its own position ("same") or one to the left ("next").
        value: conditioning value that every row gets; None for a model without conditioning.
        mode: "masked" (pseudo-log-likelihood) or "causal" (rows attend to the left, the next token is predicted).
        token_budget: tokens per batch, at most (but at least one row).
        rank: with `world_size`, which share of the sentences is scored here.
        sum_over_ranks: sum of a tensor over the ranks, on each of them.
    """
    assert pairs, "no minimal pairs"
    sentences = [sentence for pair in pairs for sentence in (pair.good, pair.bad)]
    encoded = [code.ids for code in tokenizer.backend.encode_batch(sentences, add_special_tokens=False)]
    mine = range(rank, len(encoded), world_size)
    own_S = sentence_log_likelihoods(
        model,
        [encoded[i] for i in mine],
        device=device,
        predicts=predicts,
        value=value,
        mode=mode,
        token_budget=token_budget,
    )
    score_S = torch.zeros(len(encoded), dtype=torch.float64, device=device)
    score_S[rank::world_size] = own_S
    return _accuracies(pairs, sum_over_ranks(score_S).cpu())


@torch.no_grad()
def sentence_log_likelihoods(
    model: Denoiser,
    sentences: Sequence[Sequence[int]],
    *,
    device: torch.device | str,
    predicts: Predicts = "same",
    value: float | None = None,
    mode: Mode = "masked",
    token_budget: int = 16384,
) -> Tensor:
    """float64[S] in nats: the (pseudo-)log-likelihood of each sentence, given as ids without `<s>`.

    The other arguments are those of `score_minimal_pairs`. Sums are in float64, so that ties come from the model only.
    """
    total_S = torch.zeros(len(sentences), dtype=torch.float64, device=device)
    shift = 1 if predicts == "next" or mode == "causal" else 0
    for batch in _batches(sentences, mode, token_budget):
        batch = Rows(*(tensor.to(device) for tensor in batch))
        rows = len(batch.ids_BT)
        hidden_BTD = model(
            batch.ids_BT,
            causal_B=torch.full((rows,), True, device=device) if mode == "causal" else None,
            value_B=None if value is None else torch.full((rows,), value, device=device),
        )
        # The vocabulary matrix is the largest: only the scored positions go through it.
        hidden_ND = hidden_BTD[batch.row_N, batch.column_N - shift]
        logits_NV = model.logits(model.head(hidden_ND)).float()
        log_probability_N = -torch.nn.functional.cross_entropy(logits_NV, batch.label_N, reduction="none")
        total_S.index_add_(0, batch.sentence_N, log_probability_N.double())
    return total_S


def _batches(sentences: Sequence[Sequence[int]], mode: Mode, token_budget: int) -> Iterator[Rows]:
    """Rows of exactly equal length, so that nothing is padded, at most `token_budget` tokens together."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, ids in enumerate(sentences):
        by_length[len(ids)].append(i)
    make = _masked_rows if mode == "masked" else _causal_rows
    for length, members in sorted(by_length.items()):
        row_length = length + 1
        rows_per_sentence = length if mode == "masked" else 1
        rows = max(1, token_budget // row_length)
        per_chunk = max(1, rows // rows_per_sentence)
        for start in range(0, len(members), per_chunk):
            chunk = members[start : start + per_chunk]
            ids_ST = torch.tensor([[BOS, *sentences[i]] for i in chunk])
            yield from _split(make(ids_ST, torch.tensor(chunk)), rows)


def _masked_rows(ids_ST: Tensor, sentence_S: Tensor) -> Rows:
    """Every token of every sentence masked in a row of its own."""
    sentences, length = ids_ST.shape
    column_N = torch.arange(1, length).repeat(sentences)
    ids_BT = ids_ST.repeat_interleave(length - 1, dim=0)
    row_N = torch.arange(len(ids_BT))
    label_N = ids_BT[row_N, column_N]
    ids_BT[row_N, column_N] = MASK
    return Rows(ids_BT, row_N, column_N, label_N, sentence_S.repeat_interleave(length - 1))


def _causal_rows(ids_ST: Tensor, sentence_S: Tensor) -> Rows:
    """Every token of every sentence scored in one row."""
    sentences, length = ids_ST.shape
    row_N = torch.arange(sentences).repeat_interleave(length - 1)
    column_N = torch.arange(1, length).repeat(sentences)
    return Rows(ids_ST, row_N, column_N, ids_ST[:, 1:].reshape(-1), sentence_S.repeat_interleave(length - 1))


def _split(batch: Rows, rows: int) -> Iterator[Rows]:
    """Parts of at most so many rows (a long sentence alone may have more masked rows than the budget allows)."""
    for start in range(0, len(batch.ids_BT), rows):
        inside_N = (batch.row_N >= start) & (batch.row_N < start + rows)
        yield Rows(
            batch.ids_BT[start : start + rows],
            batch.row_N[inside_N] - start,
            batch.column_N[inside_N],
            batch.label_N[inside_N],
            batch.sentence_N[inside_N],
        )


def _accuracies(pairs: Sequence[MinimalPair], score_S: Tensor) -> MinimalPairScores:
    good_P, bad_P = score_S[0::2], score_S[1::2]
    tie_P = good_P == bad_P
    won_P = ((good_P > bad_P).double() + 0.5 * tie_P.double()).tolist()
    by_uid: dict[str, list[float]] = defaultdict(list)
    for pair, won in zip(pairs, won_P, strict=True):
        by_uid[pair.uid].append(won)
    accuracy_by_uid = {uid: sum(won) / len(won) for uid, won in by_uid.items()}
    accuracy = sum(accuracy_by_uid.values()) / len(accuracy_by_uid)
    return MinimalPairScores(accuracy, accuracy_by_uid, len(pairs), tie_P.double().mean().item())
