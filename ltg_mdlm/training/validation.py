"""What a model is worth on held-out text: the objective, a likelihood bound, and accuracies.

Everything here is a function of (seed, weights): the same rows, masks and noise at every validation, so that
differences between two of them come from the model.  Nothing here touches training state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltg_mdlm.core.batch import IGNORE, Batch, Step, labels_for
from ltg_mdlm.core.components import CorpusStatistics
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.data.records import MinimalPair
from ltg_mdlm.inference.choices import accuracy_of, pair_questions
from ltg_mdlm.inference.likelihood import estimate_bound
from ltg_mdlm.inference.texts import Scorer
from ltg_mdlm.model.cross_entropy import weighted_cross_entropy
from ltg_mdlm.training.recipe import DenoisingLoss, Recipe

FREQUENT_SHARE = 0.5
"""Frequent token types: the fewest that cover this share of the training tokens."""


RARE_SHARE = 0.9
"""Rare token types: all beyond the fewest that cover this share."""


@dataclass(frozen=True)
class FrequencyClasses:
    """bool[V] membership of the frequent and of the rare token types."""

    frequent_V: Tensor
    rare_V: Tensor

    @staticmethod
    def of(statistics: CorpusStatistics, device: torch.device) -> FrequencyClasses:
        """Split the vocabulary by cumulated training frequency."""
        count_V = statistics.token_count_V.double().cpu()
        order_V = count_V.argsort(descending=True, stable=True)
        before_V = torch.empty_like(count_V)
        before_V[order_V] = count_V[order_V].cumsum(0) - count_V[order_V]
        share_V = before_V / count_V.sum().clamp(min=1)
        return FrequencyClasses((share_V < FREQUENT_SHARE).to(device), (share_V >= RARE_SHARE).to(device))


def unigram_nll(statistics: CorpusStatistics) -> Tensor:
    """float64[V]: -log of the add-one-smoothed training frequency of every token type, in nats."""
    count_V = statistics.token_count_V.double().cpu() + 1
    return -(count_V / count_V.sum()).log()


def unigram_cross_entropy(nll_V: Tensor, batches: Sequence[Batch], sum_over_ranks: Callable[[Tensor], Tensor]) -> float:
    """Nats per maskable token of the rows when context is ignored."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        nll_N = nll_V[batch.ids_BT[batch.maskable_BT].cpu()]
        sums += torch.stack([nll_N.sum(), torch.tensor(float(len(nll_N)), dtype=torch.float64)])
    nll, tokens = sum_over_ranks(sums).tolist()
    return float(nll / max(tokens, 1))


class Validator:
    """Evaluates the model on fixed rows; each rank holds a share of them."""

    def __init__(
        self,
        loss: DenoisingLoss,
        recipe: Recipe,
        batches: Sequence[Batch],
        statistics: CorpusStatistics,
        *,
        rows: int,
        draws: int,
        seed: int,
        tokens_per_byte: float,
        ranks: Ranks,
    ) -> None:
        self._loss, self._recipe, self._device = loss, recipe, ranks.device
        self._conditioned = recipe.components.time_conditioning.active
        # Corpus positions belong to the training split; held-out tokens have no history.
        self._batches = [replace(b, position_BT=torch.full_like(b.position_BT, -1)) for b in batches]
        self._classes = FrequencyClasses.of(statistics, ranks.device)
        self._rows, self._draws, self._seed = rows, draws, seed
        self._tokens_per_byte = tokens_per_byte
        self._sum = ranks.sum_over_ranks
        self._unigram_V = unigram_nll(statistics)
        self._unigram = unigram_cross_entropy(self._unigram_V, batches, ranks.sum_over_ranks)

    def __call__(self, progress: float, epoch: float) -> dict[str, float]:
        """`valid/...` metrics; every rank must call it, and gets the same values."""
        step = Step(seed=self._seed, step=0, progress=progress, epoch=epoch, rows=self._rows)
        with evaluating(self._loss):
            step = self._recipe.begin(step, self._device)
            metrics = self._objective(step)
            if step.causal_R is not None and bool(step.causal_R.any()):
                metrics["valid/causal_nll"] = self._causal_nll(step)
            bound = estimate_bound(
                self._batches,
                self._row_nll,
                rows=self._rows,
                draws=self._draws,
                seed=self._seed,
                baseline_V=self._unigram_V,
                sum_over_ranks=self._sum,
            )
        metrics["valid/bound"] = bound.nats_per_token
        metrics["valid/bound_standard_error"] = bound.standard_error
        metrics["valid/unigram"] = self._unigram
        metrics["valid/bits_per_byte"] = bound.bits_per_byte(self._tokens_per_byte)
        return metrics

    def _objective(self, step: Step) -> dict[str, float]:
        """The training objective, the bound that it is (if it is one), and accuracies over the masked positions."""
        objective = self._recipe.components.objective
        groups = len(objective.group_names)
        terms_K = torch.zeros(groups, device=self._device)
        denominators_K = torch.zeros(groups, device=self._device)
        counts = torch.zeros(8, dtype=torch.float64, device=self._device)
        for batch in self._batches:
            micro_batch = self._recipe.corrupt(batch, step)
            share_K = self._recipe.denominators([micro_batch])
            output = self._loss(micro_batch, share_K.clamp(min=1), step)
            terms_K += output.terms_K
            denominators_K += share_K
            supervised = output.supervised
            masked_N = ~supervised.causal_N
            counts += torch.stack(
                [
                    *_hits(output.correct_N, masked_N),
                    *_hits(output.correct_N, masked_N & self._classes.frequent_V[supervised.label_N]),
                    *_hits(output.correct_N, masked_N & self._classes.rare_V[supervised.label_N]),
                    (output.nll_N * masked_N).sum().double(),
                    (batch.maskable_BT & ~micro_batch.corrupted.causal_B.unsqueeze(1)).sum().double(),
                ]
            )
        terms_K, denominators_K = self._sum(terms_K), self._sum(denominators_K)
        correct, total, frequent, num_frequent, rare, num_rare, nll, maskable = self._sum(counts).tolist()
        loss = float((terms_K / denominators_K.clamp(min=1)).sum())
        metrics = {
            "valid/loss": loss,
            "valid/masked_nll": nll / max(total, 1),
            "valid/accuracy": correct / max(total, 1),
            "valid/accuracy_frequent": frequent / max(num_frequent, 1),
            "valid/accuracy_rare": rare / max(num_rare, 1),
        }
        if self._recipe.is_bound and step.causal_R is None:
            metrics["valid/training_bound"] = float(terms_K.sum()) / max(maskable, 1)
        return metrics

    def _causal_nll(self, step: Step) -> float:
        """Nats per maskable token with every row read left to right: an exact -log p, not a bound."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for batch in self._batches:
            causal_B = torch.ones_like(batch.row_B, dtype=torch.bool)
            labels_BT = labels_for(batch, torch.zeros_like(batch.maskable_BT), causal_B, "same")
            value_B = torch.zeros_like(batch.row_B).float() if self._conditioned else None
            nll_B = self._nll(batch.ids_BT, batch, labels_BT, causal_B, value_B)
            sums += torch.stack([nll_B.sum(), batch.maskable_BT.sum().double()])
        nll, tokens = self._sum(sums)
        return float(nll / tokens.clamp(min=1))

    def _row_nll(self, batch: Batch, masked_BT: Tensor, rate_B: Tensor) -> Tensor:
        """float64[B]: -log p of each row's masked tokens, all predicted at once."""
        masking = self._recipe.components.masking
        causal_B = torch.zeros_like(batch.row_B, dtype=torch.bool)
        labels_BT = labels_for(batch, masked_BT, causal_B, masking.predicts)
        input_BT = batch.ids_BT.masked_fill(masked_BT, masking.mask_id)
        value_B = self._recipe.components.time_conditioning.value_for_rate(rate_B)
        return self._nll(input_BT, batch, labels_BT, causal_B, value_B)

    def _nll(
        self, input_BT: Tensor, batch: Batch, labels_BT: Tensor, causal_B: Tensor, value_B: Tensor | None
    ) -> Tensor:
        model = self._loss.model
        with self._loss.autocast(self._device):
            hidden_BTD = model(input_BT, batch.document_BT, causal_B, value_B)
            row_N, column_N = (labels_BT != IGNORE).nonzero(as_tuple=True)
            result = weighted_cross_entropy(
                model.head(hidden_BTD[row_N, column_N]),
                model.output_weight_VD,
                model.output_bias_V,
                labels_BT[row_N, column_N],
                torch.ones_like(row_N, dtype=torch.float32),
            )
        nll_B = torch.zeros(input_BT.shape[0], dtype=torch.float64, device=input_BT.device)
        return nll_B.index_add_(0, row_N, result.nll_N.double())


class PairValidator:
    """The share of minimal pairs in which the acceptable sentence is the likelier one, on average over phenomena.

    In float32, whatever the training's precision: coarser numbers make ties.
    """

    def __init__(self, loss: DenoisingLoss, pairs: Sequence[MinimalPair], scorer: Scorer) -> None:
        self._loss, self._scorer = loss, scorer
        self._questions = pair_questions(pairs)

    def __call__(self) -> dict[str, float]:
        """`valid/minimal_pairs`; every rank must call it, and gets the same value."""
        with evaluating(self._loss):
            scores = self._scorer([question.candidates for question in self._questions])
        return {"valid/minimal_pairs": accuracy_of(self._questions, scores)}


def _hits(correct_N: Tensor, among_N: Tensor) -> tuple[Tensor, Tensor]:
    return (correct_N & among_N).sum().double(), among_N.sum().double()


@contextmanager
def evaluating(loss: DenoisingLoss) -> Iterator[None]:
    """Evaluation mode without gradients, restored afterwards; uncompiled, since shapes are many and passes few."""
    was_training = loss.training
    loss.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if loss.compiled else nullcontext():
            yield
    finally:
        loss.train(was_training)
