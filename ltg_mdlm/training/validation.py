"""Validation on held-out text: the objective, accuracies, a likelihood bound, and minimal pairs.

All results are a function of (seed, weights): rows, masks and noise are the same at every validation, so differences
between two validations come from the model.  Validation never changes the training state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from ltg_mdlm.core.batch import IGNORE, Batch, Step, labels_for
from ltg_mdlm.core.components import CorpusStatistics
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.data.records import MinimalPair
from ltg_mdlm.inference.choices import answer, pair_questions
from ltg_mdlm.inference.likelihood import block_sums, estimate_bound
from ltg_mdlm.inference.texts import Scorer, standard_error
from ltg_mdlm.model.cross_entropy import weighted_cross_entropy
from ltg_mdlm.model.visibility import block_of, block_visibility
from ltg_mdlm.storage.metrics_file import PAIRS
from ltg_mdlm.training.recipe import DenoisingLoss, Recipe, padded_count

FREQUENT_SHARE = 0.5
"""Frequent token types: the fewest that cover this share of the training tokens."""

RARE_SHARE = 0.9
"""Rare token types: all except the fewest that cover this share of the training tokens."""


class Validator:
    """Evaluates the model on fixed rows, of which every rank holds a share."""

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
        floor: float | None = None,
    ) -> None:
        """Every rank must call it.

        Args:
            loss: model and objective
            recipe: components of the run
            batches: rows of this rank
            statistics: counts over the training split
            rows: number of rows of all ranks
            draws: mask draws per row for the likelihood bound, an even number
            seed: of masks and noise
            tokens_per_byte: of the held-out text
            ranks: processes of the run
            floor: -log p of the held-out text under the process that generated it, in nats per token; None if unknown
        """
        self._loss, self._recipe, self._device = loss, recipe, ranks.device
        # Corpus positions belong to the training split; held-out tokens have none.
        self._batches = [replace(b, position_BT=torch.full_like(b.position_BT, -1)) for b in batches]
        self._rows, self._draws, self._seed = rows, draws, seed
        self._tokens_per_byte = tokens_per_byte
        self._sum_over_ranks = ranks.sum_over_ranks
        self._frequent_V, self._rare_V = (types_V.to(ranks.device) for types_V in frequent_and_rare(statistics))
        rare_count_V = statistics.token_count_V.cpu() * self._rare_V.cpu()
        self._of_text = {"valid/accuracy_rare_chance": float(rare_count_V.max() / rare_count_V.sum().clamp(min=1))}
        self._unigram_nll_V = unigram_nll(statistics)
        self._of_text["valid/unigram"] = unigram_cross_entropy(self._unigram_nll_V, batches, ranks.sum_over_ranks)
        if floor is not None:
            self._of_text["valid/floor"] = floor

    def __call__(self, progress: float, epoch: float) -> dict[str, float]:
        """`valid/...` metrics, equal on every rank.  Every rank must call it."""
        step = Step(seed=self._seed, step=0, progress=progress, epoch=epoch, rows=self._rows, training=False)
        with evaluating(self._loss):
            step = self._recipe.begin(step, self._device)
            metrics = self._objective(step)
            if step.causal_R is not None and bool(step.causal_R.any()):
                metrics["valid/causal_nll"] = self._causal_nll()
            if self._recipe.own_visibility:
                return metrics | self._of_text
            bound = estimate_bound(
                self._batches,
                self._masked_nll,
                rows=self._rows,
                draws=self._draws,
                seed=self._seed,
                baseline_V=self._unigram_nll_V,
                block_length=self._recipe.components.masking.block_length,
                sum_over_ranks=self._sum_over_ranks,
            )
        return metrics | {
            "valid/bound": bound.nats_per_token,
            "valid/bound_standard_error": bound.standard_error,
            **self._of_text,
            "valid/bits_per_byte": bound.bits_per_byte(self._tokens_per_byte),
        }

    def _objective(self, step: Step) -> dict[str, float]:
        """The training objective, its value as a bound if it is one, and accuracies if there are masked positions."""
        groups = len(self._recipe.components.objective.group_names)
        terms_K = torch.zeros(groups, device=self._device)
        denominators_K = torch.zeros(groups, device=self._device)
        counts = torch.zeros(10, dtype=torch.float64, device=self._device)
        for micro_batch in (view for batch in self._batches for view in self._recipe.corrupt(batch, step)):
            batch, corrupted = micro_batch.batch, micro_batch.corrupted
            share_K = self._recipe.denominators([micro_batch])
            output = self._loss(micro_batch, share_K.clamp(min=1), step)
            terms_K += output.terms_K
            denominators_K += share_K
            label_N, masked_N = output.supervised.label_N, ~output.supervised.causal_N
            frequent_N, rare_N = masked_N & self._frequent_V[label_N], masked_N & self._rare_V[label_N]
            counts += torch.stack(
                [
                    (output.correct_N & masked_N).sum().double(),
                    masked_N.sum().double(),
                    (output.correct_N & frequent_N).sum().double(),
                    frequent_N.sum().double(),
                    (output.correct_N & rare_N).sum().double(),
                    rare_N.sum().double(),
                    (output.nll_N * masked_N).sum().double(),
                    (batch.maskable_BT & ~corrupted.causal_B.unsqueeze(1)).sum().double(),
                    self._recipe.components.objective.constant(batch, corrupted),
                    counts.new_full((), self._recipe.own_visibility),
                ]
            )
        terms_K, denominators_K = self._sum_over_ranks(terms_K), self._sum_over_ranks(denominators_K)
        correct, masked, frequent_correct, frequent, rare_correct, rare, nll, maskable, constant, own_visibility = (
            self._sum_over_ranks(counts).tolist()
        )
        self._recipe.own_visibility |= own_visibility > 0  # a rank may have no rows
        metrics = {
            "valid/loss": float((terms_K / denominators_K.clamp(min=torch.finfo(torch.float32).tiny)).sum()),
        }
        if masked:
            metrics |= {"valid/masked_nll": nll / masked, "valid/accuracy": correct / masked}
        if frequent:
            metrics["valid/accuracy_frequent"] = frequent_correct / frequent
        if rare:
            metrics["valid/accuracy_rare"] = rare_correct / rare
        if self._recipe.is_bound and step.causal_R is None:
            metrics[f"valid/training_{self._recipe.bound_name}"] = (float(terms_K.sum()) + constant) / max(maskable, 1)
        return metrics

    def _causal_nll(self) -> float:
        """Nats per maskable token with all rows read from left to right: an exact -log p, not a bound."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        has_conditioning = self._recipe.components.time_conditioning.active
        for batch in self._batches:
            causal_B = torch.ones_like(batch.row_B, dtype=torch.bool)
            labels_BT = labels_for(batch, torch.zeros_like(batch.maskable_BT), causal_B, "same")
            conditioning_B = torch.zeros_like(batch.row_B).float() if has_conditioning else None
            nll_B = self._nll(batch.ids_BT, batch, labels_BT, causal_B, conditioning_B)
            sums += torch.stack([nll_B.sum(), batch.maskable_BT.sum().double()])
        nll, tokens = self._sum_over_ranks(sums)
        return float(nll / tokens.clamp(min=1))

    def _masked_nll(self, batch: Batch, masked_BT: Tensor, rate_B: Tensor) -> Tensor:
        """float64[B], or float64[B, C] with blocks: summed -log p of the masked tokens, all from one forward pass."""
        parts = self._recipe.components
        causal_B = torch.zeros_like(batch.row_B, dtype=torch.bool)
        labels_BT = labels_for(batch, masked_BT, causal_B, parts.masking.predicts)
        input_BT = batch.ids_BT.masked_fill(masked_BT, parts.masking.mask_id)
        conditioning_B = parts.time_conditioning.value_for_rate(rate_B)
        return self._nll(input_BT, batch, labels_BT, causal_B, conditioning_B, parts.masking.block_length)

    def _nll(
        self,
        input_BT: Tensor,
        batch: Batch,
        labels_BT: Tensor,
        causal_B: Tensor,
        conditioning_B: Tensor | None,
        block_length: int = 0,
    ) -> Tensor:
        """float64[B]: summed -log p of the labels of each row.

        With a `block_length`, float64[B, C]: those of each block, given the tokens of `batch` in all earlier blocks.
        """
        model, visibility, context_BT = self._loss.model, None, None
        if block_length:
            visibility = block_visibility(batch.document_BT, block_length).with_clean_copy()
            context_BT = batch.ids_BT
        with self._loss.autocast(self._device):
            hidden_BTD = model(input_BT, batch.document_BT, causal_B, conditioning_B, visibility, context_BS=context_BT)
            row_N, column_N = (labels_BT != IGNORE).nonzero(as_tuple=True)
            index_N = row_N * labels_BT.shape[1] + column_N
            positions = padded_count(len(index_N), self._loss.position_multiple(self._device), labels_BT.numel())
            index_M = F.pad(index_N, (0, positions - len(index_N)))
            result = weighted_cross_entropy(
                model.head(hidden_BTD.flatten(0, 1)[index_M]),
                model.output_weight_VD,
                model.output_bias_V,
                labels_BT[row_N, column_N],
                torch.ones_like(row_N, dtype=torch.float32),
            )
        nll_N = result.nll_N.double()
        if block_length:
            nll_BT = torch.zeros(input_BT.shape, dtype=torch.float64, device=input_BT.device)
            nll_BT[row_N, column_N] = nll_N
            return block_sums(nll_BT, block_of(batch.document_BT, block_length))
        nll_B = torch.zeros(input_BT.shape[0], dtype=torch.float64, device=input_BT.device)
        return nll_B.index_add_(0, row_N, nll_N)


class PairValidator:
    """Accuracy on minimal pairs: how often the acceptable sentence has the higher score, averaged over phenomena.

    Scores are computed in float32 even if training uses bf16, whose rounding makes ties.
    """

    def __init__(self, loss: DenoisingLoss, pairs: Sequence[MinimalPair], scorer: Scorer) -> None:
        self._loss, self._scorer = loss, scorer
        self._questions = pair_questions(pairs)

    def __call__(self) -> dict[str, float]:
        """Accuracies and standard errors, equal on every rank: of all pairs, and of each phenomenon.

        Every rank must call it.
        """
        with evaluating(self._loss):
            scores = self._scorer([question.candidates for question in self._questions])
        correct: dict[str, list[float]] = defaultdict(list)
        for question, scored in zip(self._questions, scores, strict=True):
            correct[question.uid].append(answer(question, scored).correct)
        errors = {uid: standard_error(values) for uid, values in correct.items()}
        metrics = {
            "valid/minimal_pairs": fmean(map(fmean, correct.values())),
            "valid/minimal_pairs_standard_error": math.hypot(*errors.values()) / len(errors),
        }
        for uid, values in correct.items():
            metrics |= {f"{PAIRS}{uid}": fmean(values), f"{PAIRS}{uid}_standard_error": errors[uid]}
        return metrics


@contextmanager
def evaluating(loss: DenoisingLoss) -> Iterator[None]:
    """Evaluation mode without gradients inside the block.

    Compiled layers run uncompiled: validation has too many shapes and too few forward passes to compile for.
    """
    was_training = loss.training
    loss.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if loss.compiled else nullcontext():
            yield
    finally:
        loss.train(was_training)


def frequent_and_rare(statistics: CorpusStatistics) -> tuple[Tensor, Tensor]:
    """bool[V] each: the frequent and the rare token types of the training split."""
    count_V = statistics.token_count_V.double().cpu()
    order_V = count_V.argsort(descending=True, stable=True)
    # Tokens of all types that are more frequent, as a share of all tokens.
    before_V = torch.empty_like(count_V)
    before_V[order_V] = count_V[order_V].cumsum(0) - count_V[order_V]
    share_V = before_V / count_V.sum().clamp(min=1)
    return share_V < FREQUENT_SHARE, share_V >= RARE_SHARE


def unigram_nll(statistics: CorpusStatistics) -> Tensor:
    """float64[V]: -log of the add-one-smoothed training frequency of every token type, in nats."""
    count_V = statistics.token_count_V.double().cpu() + 1
    return -(count_V / count_V.sum()).log()


def unigram_cross_entropy(nll_V: Tensor, batches: Sequence[Batch], sum_over_ranks: Callable[[Tensor], Tensor]) -> float:
    """Nats per maskable token of a model that predicts every token with its unigram probability."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        nll_N = nll_V[batch.ids_BT[batch.maskable_BT].cpu()]
        sums += torch.stack([nll_N.sum(), torch.tensor(float(len(nll_N)), dtype=torch.float64)])
    nll, tokens = sum_over_ranks(sums).tolist()
    return float(nll / max(tokens, 1))
