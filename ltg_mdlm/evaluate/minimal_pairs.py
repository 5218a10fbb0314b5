"""Minimal pairs: does the model give the acceptable sentence the higher likelihood?

A bidirectional model scores a sentence by its masked pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659):
each token is masked in turn, in a row of its own, and the log-probabilities of the true tokens are summed. A causal
model needs one row per sentence.

Suffixes: S sentences, B rows, T tokens per row, N scored positions, D width, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltg_mdlm.data.special_tokens import BOS, MASK
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.evaluate.pair_files import MinimalPair, read_minimal_pairs
from ltg_mdlm.model.transformer import Transformer

__all__ = ["MinimalPair", "MinimalPairScores", "read_minimal_pairs", "score_minimal_pairs", "sentence_log_likelihoods"]

Mode = Literal["masked", "causal"]
Predicts = Literal["same", "next"]
_SCORED_AT_ONCE = 2048


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
    model: Transformer,
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
    model: Transformer,
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
        nll_N = _negative_log_likelihood(model, hidden_BTD[batch.row_N, batch.column_N - shift], batch.label_N)
        total_S.index_add_(0, batch.sentence_N, -nll_N.double())
    return total_S


def _negative_log_likelihood(model: Transformer, hidden_ND: Tensor, label_N: Tensor) -> Tensor:
    """float32[N]. Logits take by far the most memory, so only some positions have theirs at any time."""
    parts = zip(torch.split(hidden_ND, _SCORED_AT_ONCE), torch.split(label_N, _SCORED_AT_ONCE), strict=True)
    return torch.cat(
        [cross_entropy(model.logits(model.head(hidden)).float(), label, reduction="none") for hidden, label in parts]
    )


def _batches(sentences: Sequence[Sequence[int]], mode: Mode, token_budget: int) -> Iterator[Rows]:
    """Rows of exactly equal length, so that nothing is padded, at most `token_budget` tokens together."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, ids in enumerate(sentences):
        by_length[len(ids)].append(i)
    for length, members in sorted(by_length.items()):
        ids_ST = torch.tensor([[BOS, *sentences[i]] for i in members])
        count = len(members) * (length if mode == "masked" else 1)
        for index_B in torch.split(torch.arange(count), max(1, token_budget // (length + 1))):
            yield (_masked_rows if mode == "masked" else _causal_rows)(ids_ST, torch.tensor(members), index_B)


def _masked_rows(ids_ST: Tensor, sentence_S: Tensor, index_B: Tensor) -> Rows:
    """Of the rows in which every token of every sentence is masked in turn, those with these numbers."""
    length = ids_ST.shape[1] - 1
    member_B, column_B = index_B // length, index_B % length + 1
    ids_BT = ids_ST[member_B]
    row_B = torch.arange(len(index_B))
    label_B = ids_BT[row_B, column_B]
    ids_BT[row_B, column_B] = MASK
    return Rows(ids_BT, row_B, column_B, label_B, sentence_S[member_B])


def _causal_rows(ids_ST: Tensor, sentence_S: Tensor, index_B: Tensor) -> Rows:
    """One row for each of the sentences with these numbers, in which every token is scored."""
    ids_BT = ids_ST[index_B]
    rows, length = ids_BT.shape
    row_N = torch.arange(rows).repeat_interleave(length - 1)
    column_N = torch.arange(1, length).repeat(rows)
    return Rows(ids_BT, row_N, column_N, ids_BT[row_N, column_N], sentence_S[index_B][row_N])


def _accuracies(pairs: Sequence[MinimalPair], score_S: Tensor) -> MinimalPairScores:
    """The scores of good and bad sentences alternate."""
    good, bad = score_S[0::2], score_S[1::2]
    tied = (good == bad).double()
    by_uid: dict[str, list[float]] = defaultdict(list)
    for pair, won in zip(pairs, ((good > bad) + 0.5 * tied).tolist(), strict=True):
        by_uid[pair.uid].append(won)
    accuracy_by_uid = {uid: sum(won) / len(won) for uid, won in by_uid.items()}
    accuracy = sum(accuracy_by_uid.values()) / len(accuracy_by_uid)
    return MinimalPairScores(accuracy, accuracy_by_uid, len(pairs), tied.mean().item())
