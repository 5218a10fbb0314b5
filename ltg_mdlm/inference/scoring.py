"""The rows that a model has to see for the scores of texts, all of one length: nothing is padded.

Suffixes: S texts, R rows, T tokens per row, N predicted tokens, J draws.

Random masks for the diffusion bound of single texts, with common random numbers for texts that are compared.

Suffixes: P pairs of draws, J = 2 P draws, L scored tokens, T tokens per row.

Log-likelihoods of texts under a trained model, exact where that is possible and bounded where it is not.

pll     masked pseudo-log-likelihood: every token masked in turn (Salazar et al. 2020, arXiv 1910.14659)
mntp    the same for models that predict a masked token one position earlier
causal  log-likelihood of models with causal rows
bound   minus the diffusion bound (negative ELBO under uniform masking), by Monte Carlo

Suffixes: B rows, T tokens per row, N predicted tokens, S texts, J draws, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import count_progress
from ltg_mdlm.data.tokenizer import MASK
from ltg_mdlm.inference.texts import Encoded, NextWord, Text, TextScore, encode_next_words, encode_texts, pieces
from ltg_mdlm.inference.trained_model import Denoiser


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one length, and the tokens to predict in them, in the order of the rows."""

    ids_RT: Tensor
    rate_R: Tensor
    """float32: the share of the row's tokens, `<s>` aside, that is masked"""
    row_N: Tensor
    column_N: Tensor
    """Where the token stood"""
    label_N: Tensor
    target_N: Tensor
    """The sum that its log-likelihood belongs to"""
    weight_N: Tensor
    """float64: what it counts for there"""

    def batches(self, tokens: int) -> Iterator[Rows]:
        """The same in batches of at most so many tokens, but of at least one row."""
        count = max(1, tokens // self.ids_RT.shape[1])
        starts = torch.arange(0, len(self.ids_RT), count)
        places = [*torch.searchsorted(self.row_N, starts).tolist(), len(self.row_N)]
        for start, first, last in zip(starts.tolist(), places, places[1:], strict=False):
            yield Rows(
                ids_RT=self.ids_RT[start : start + count],
                rate_R=self.rate_R[start : start + count],
                row_N=self.row_N[first:last] - start,
                column_N=self.column_N[first:last],
                label_N=self.label_N[first:last],
                target_N=self.target_N[first:last],
                weight_N=self.weight_N[first:last],
            )

    def without_repetitions(self) -> Rows:
        """Rows that are equal become one; the two sentences of a minimal pair often differ in a single token."""
        ids_RT, place_R = torch.unique(self.ids_RT, dim=0, return_inverse=True)
        rate_R = torch.empty(len(ids_RT)).scatter_(0, place_R, self.rate_R)  # equal rows have equally many masks
        row_N, order_N = place_R[self.row_N].sort(stable=True)
        return Rows(
            ids_RT=ids_RT,
            rate_R=rate_R,
            row_N=row_N,
            column_N=self.column_N[order_N],
            label_N=self.label_N[order_N],
            target_N=self.target_N[order_N],
            weight_N=self.weight_N[order_N],
        )


def causal_rows(texts: Sequence[Encoded], target_S: Tensor) -> Rows:
    """One row per text, in which every scored token is predicted."""
    ids_ST, scored_ST = _stack(texts)
    row_N, column_N = scored_ST.nonzero(as_tuple=True)
    return Rows(
        ids_RT=ids_ST,
        rate_R=torch.zeros(len(ids_ST)),
        row_N=row_N,
        column_N=column_N,
        label_N=ids_ST[row_N, column_N],
        target_N=target_S[row_N],
        weight_N=torch.ones_like(row_N, dtype=torch.float64),
    )


def masked_in_turn(texts: Sequence[Encoded], target_S: Tensor) -> Rows:
    """One row for every scored token, in which it alone is masked (Salazar et al. 2020, arXiv 1910.14659)."""
    ids_ST, scored_ST = _stack(texts)
    text_N, column_N = scored_ST.nonzero(as_tuple=True)
    masked_NT = torch.zeros(len(text_N), ids_ST.shape[1], dtype=torch.bool)
    masked_NT[torch.arange(len(text_N)), column_N] = True
    weight_N = torch.ones_like(text_N, dtype=torch.float64)
    return _masked(ids_ST[text_N], masked_NT, target_S[text_N], weight_N).without_repetitions()


def masked_from_here(texts: Sequence[Encoded], target_S: Tensor) -> Rows:
    """One row per text, in which everything scored is masked and its first token predicted."""
    ids_ST, scored_ST = _stack(texts)
    row_S = torch.arange(len(ids_ST))
    column_S = scored_ST.int().argmax(1)
    return Rows(
        ids_RT=ids_ST.masked_fill(scored_ST, MASK),
        rate_R=scored_ST.sum(1) / (ids_ST.shape[1] - 1),
        row_N=row_S,
        column_N=column_S,
        label_N=ids_ST[row_S, column_S],
        target_N=target_S,
        weight_N=torch.ones_like(row_S, dtype=torch.float64),
    )


def masked_at_random(texts: Sequence[Encoded], target_SJ: Tensor, masked_SJT: Tensor) -> Rows:
    """One row for every text and draw; of k masked among L scored tokens, each counts L / k, as in the bound.

    Draws with one target are averaged.
    """
    ids_ST, scored_ST = _stack(texts)
    masked_RT, target_R = masked_SJT.flatten(0, 1), target_SJ.flatten()
    scored_R = scored_ST.sum(1).double().repeat_interleave(masked_SJT.shape[1])
    weight_R = scored_R / masked_RT.sum(1) / target_R.bincount()[target_R]
    ids_RT = ids_ST.repeat_interleave(masked_SJT.shape[1], dim=0)
    return _masked(ids_RT, masked_RT, target_R, weight_R).without_repetitions()


def _masked(ids_RT: Tensor, masked_RT: Tensor, target_R: Tensor, weight_R: Tensor) -> Rows:
    row_N, column_N = masked_RT.nonzero(as_tuple=True)
    return Rows(
        ids_RT=ids_RT.masked_fill(masked_RT, MASK),
        rate_R=masked_RT.sum(1) / (ids_RT.shape[1] - 1),
        row_N=row_N,
        column_N=column_N,
        label_N=ids_RT[row_N, column_N],
        target_N=target_R[row_N],
        weight_N=weight_R[row_N],
    )


def _stack(texts: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """(ids [S, T], bool [S, T]: scored)"""
    ids_ST = torch.tensor([text.ids for text in texts])
    start_S = torch.tensor([text.start for text in texts])
    return ids_ST, torch.arange(ids_ST.shape[1]) >= start_S[:, None]


Draws = NDArray[np.float64]


def draw_masks(group: Sequence[Encoded], draws: int, seed: Sequence[int]) -> list[NDArray[np.bool_]]:
    """bool[J, T] for every text of a group: draw j masks k of the L scored tokens, with k uniform over 1 .. L.

    The draws are stratified over k.  Draws j and J - 1 - j are complementary: k and L + 1 - k tokens, the first and the
    last of one random order (see `ltg_mdlm.inference.likelihood`).  Texts of a group share the strata and, where their
    completions begin or end alike, the order.  `draws` is even; `seed` identifies the group.
    """
    assert draws % 2 == 0
    random = np.random.default_rng(seed)
    t_P = (np.arange(draws // 2) + random.random(draws // 2)) / draws
    masks = []
    for text, key_PL in zip(
        group, order_keys([text.ids[text.start :] for text in group], len(t_P), random), strict=True
    ):
        place_PL = key_PL.argsort(axis=1).argsort(axis=1)
        first_P1 = (t_P * text.scored).astype(np.int64)[:, None] + 1
        mask_JT = np.zeros((draws, len(text.ids)), dtype=np.bool_)
        mask_JT[: len(t_P), text.start :] = place_PL < first_P1
        mask_JT[len(t_P) :, text.start :] = (place_PL >= first_P1 - 1)[::-1]
        masks.append(mask_JT)
    return masks


def order_keys(completions: Sequence[tuple[int, ...]], pairs: int, random: np.random.Generator) -> list[Draws]:
    """float[P, L] for every completion, whose order is the order of masking; equal for tokens that correspond.

    Tokens correspond by their place from the left; if lengths differ, those of the common beginning and of the common
    end do.
    """
    longest = max(map(len, completions))
    left, right = random.random((2, pairs, longest))
    if all(len(ids) == longest for ids in completions):
        return [left] * len(completions)
    front = common_prefix(completions)
    back = common_prefix([ids[front:][::-1] for ids in completions])
    keys = []
    for ids in completions:
        own = random.random((pairs, len(ids) - front - back))
        keys.append(np.concatenate([left[:, :front], own, right[:, longest - back :]], axis=1))
    return keys


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


Score = Literal["pll", "mntp", "causal", "bound"]


Time = Literal["zero", "constant", "fraction"]


Normalise = Literal["none", "tokens"]


TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 131072}


_SCORED_AT_ONCE = 2048


@dataclass(frozen=True, kw_only=True)
class ScoringRule:
    """How a text is scored."""

    score: Score = "pll"
    time: Time = "fraction"
    """The mask rate that a conditioned model is told: 0, `rate`, or the share of the row that is masked."""
    rate: float | None = None
    """Goes with `time` constant."""
    draws: int | None = None
    """Masks per text for `bound`, an even number; None: as many as the longest text of a group has tokens, so that it
    costs what `pll` costs."""
    seed: int = 0
    """Of the masks."""
    normalise: Normalise = "none"
    """Divide by the number of scored tokens."""
    tokens_per_batch: int | None = None
    """None: what suits the device."""

    def __post_init__(self) -> None:
        """Raises UserError for an odd number of draws, and for settings that would have no effect."""
        if (self.rate is not None) != (self.time == "constant"):
            raise UserError(f"--time {self.time}: --rate goes with --time constant, and only with it")
        if self.draws is not None and self.score != "bound":
            raise UserError(f"--score {self.score}: --draws goes with --score bound only")
        if self.draws is not None and self.draws % 2:
            raise UserError(f"--draws {self.draws}: give an even number, since masks come in complementary pairs")

    @property
    def causal(self) -> bool:
        """Whether rows are read from left to right."""
        return self.score == "causal"

    def told_rate(self, masked_B: Tensor) -> Tensor:
        """float32[B]: the mask rate that rows with these shares of masked tokens are said to have."""
        if self.time == "fraction":
            return masked_B
        return torch.full_like(masked_B, self.rate or 0.0)


def default_score(denoiser: Denoiser) -> Score:
    """The exact score that fits how a model was trained."""
    if "masked" not in denoiser.modes:
        return "causal"
    return "mntp" if denoiser.predicts == "next" else "pll"


def scoring_rule(denoiser: Denoiser, score: Score | Literal["auto"], **settings: Any) -> ScoringRule:
    """The rule with these settings; `auto` is the exact score that fits the model."""
    return ScoringRule(score=default_score(denoiser) if score == "auto" else score, **settings)


def require_fit(denoiser: Denoiser, rule: ScoringRule) -> None:
    """Raises UserError for a score that this model's objective cannot give."""
    mode, fitting = ("causal", "causal") if rule.causal else ("masked", default_score(denoiser))
    if mode not in denoiser.modes:
        raise UserError(
            f"--score {rule.score} needs a model trained on {mode} rows; this one saw only"
            f" {' and '.join(sorted(denoiser.modes))} rows\n  use --score {default_score(denoiser)}"
        )
    if rule.score in ("pll", "mntp") and rule.score != fitting:
        where = "one position earlier" if denoiser.predicts == "next" else "at their own position"
        raise UserError(
            f"--score {rule.score} does not fit this model, which predicts masked tokens {where}"
            f"\n  use --score {fitting}"
        )


class _Sum(NamedTuple):
    """A text to score, and where its sums lie: one, or one per pair of draws."""

    text: Encoded
    first: int
    masked_JT: np.ndarray[tuple[int, int], np.dtype[np.bool_]] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """What texts must share to be stacked: length and number of draws."""
        return len(self.text.ids), 0 if self.masked_JT is None else len(self.masked_JT)

    @property
    def size(self) -> int:
        return 1 if self.masked_JT is None else len(self.masked_JT) // 2


Build = Callable[[Sequence[Encoded], Tensor], Rows]


class LikelihoodScorer:
    """Scores groups of texts with a model; see `ltg_mdlm.inference.texts.Scorer`.

    Rows are of exactly equal length, so nothing is padded; the vocabulary is visited at scored positions only; equal
    rows are computed once. Sums are in float64, so that ties come from the model only.
    """

    def __init__(self, denoiser: Denoiser, rule: ScoringRule, ranks: Ranks, *, show_progress: bool = False) -> None:
        """Raises UserError for a score that the model cannot give."""
        require_fit(denoiser, rule)
        self.denoiser, self.rule = denoiser, rule
        self._ranks, self._show_progress = ranks, show_progress and ranks.is_main
        self._limit = denoiser.model.config.max_position_embeddings

    def __call__(self, groups: Sequence[Sequence[Text]]) -> list[list[TextScore]]:
        """One score per text; every rank must call it.  Raises UserError for a text that does not fit the model."""
        encoded = encode_texts(self.denoiser.tokenizer, [text for group in groups for text in group], self._limit)
        ends = list(accumulate(map(len, groups)))
        members = [encoded[end - len(group) : end] for group, end in zip(groups, ends, strict=True)]
        scores = iter(self._bounds(members) if self.rule.score == "bound" else self._log_likelihoods(encoded))
        return [[self._normalised(next(scores)) for _ in group] for group in groups]

    def surprisals(self, words: Sequence[NextWord]) -> list[float]:
        """Of the tokens of each word given its context, added up, as official pipelines measure it (see `pieces`).

        A masked row has three masks behind the context, of which the first is predicted: a single one would say that
        the text ends there.
        """
        behind = 0 if self.rule.causal else 2
        parts = [pieces(self.denoiser.tokenizer, word) for word in words]
        flat = [part for parts_of_word in parts for part in parts_of_word]
        encoded = encode_next_words(self.denoiser.tokenizer, flat, self._limit, behind)
        values = iter(self._sum_each(encoded, causal_rows if self.rule.causal else masked_from_here))
        return [-sum(next(values) for _ in parts_of_word) for parts_of_word in parts]

    def _normalised(self, score: TextScore) -> TextScore:
        if self.rule.normalise == "none":
            return score
        per_token = tuple(sample / score.tokens for sample in score.samples)
        return TextScore(score.log_likelihood / score.tokens, score.tokens, per_token)

    def _log_likelihoods(self, encoded: Sequence[Encoded]) -> list[TextScore]:
        totals = self._sum_each(encoded, causal_rows if self.rule.causal else masked_in_turn)
        return [TextScore(total, text.scored) for total, text in zip(totals, encoded, strict=True)]

    def _sum_each(self, encoded: Sequence[Encoded], build: Build) -> list[float]:
        """Log-likelihood of every text, in the rows that `build` makes; equal texts are looked at once."""
        place = {text: i for i, text in enumerate(dict.fromkeys(encoded))}
        sums = [_Sum(text, i) for text, i in place.items()]
        totals = self._total(sums, lambda share: build([s.text for s in share], torch.tensor([s.first for s in share])))
        return [totals[place[text]] for text in encoded]

    def _bounds(self, groups: Sequence[Sequence[Encoded]]) -> list[TextScore]:
        """Every text under the masks that its group shares."""
        sums: list[_Sum] = []
        first = 0
        for index, group in enumerate(groups):
            longest = max(text.scored for text in group)
            draws = self.rule.draws or longest + longest % 2
            for text, masked_JT in zip(group, draw_masks(group, draws, (self.rule.seed, index)), strict=True):
                sums.append(_Sum(text, first, masked_JT))
                first += draws // 2
        totals = self._total(sums, _drawn_rows)
        return [_estimate(totals[s.first : s.first + s.size], s.text.scored) for s in sums]

    @torch.no_grad()
    def _total(self, sums: Sequence[_Sum], build: Callable[[Sequence[_Sum]], Rows]) -> list[float]:
        """All sums, over all ranks."""
        device = self.denoiser.device
        total = torch.zeros(sum(s.size for s in sums), dtype=torch.float64, device=device)
        tokens = self.rule.tokens_per_batch or TOKENS_PER_BATCH[device.type]
        shares = self._shares(sums)
        with count_progress("scoring texts", sum(map(len, shares)), show=self._show_progress) as advance:
            for share in shares:
                for batch in build(share).batches(tokens):
                    log_likelihood_N = self._log_likelihood(batch)
                    total.index_add_(0, batch.target_N.to(device), log_likelihood_N * batch.weight_N.to(device))
                advance(len(share))
        return cast(list[float], self._ranks.sum_over_ranks(total).tolist())

    def _shares(self, sums: Sequence[_Sum]) -> list[list[_Sum]]:
        """This rank's share of the texts of every shape."""
        by_shape: dict[tuple[int, int], list[_Sum]] = defaultdict(list)
        for item in sums:
            by_shape[item.shape].append(item)
        rank, world_size = self._ranks.rank, self._ranks.world_size
        # Each shape is dealt from another rank on, so that no rank gets all the surplus texts.
        shares = [by_shape[shape][(rank + i) % world_size :: world_size] for i, shape in enumerate(sorted(by_shape))]
        return [share for share in shares if share]

    def _log_likelihood(self, rows: Rows) -> Tensor:
        """float64[N]: of the masked tokens, or of each token given those before it."""
        denoiser, rule, device = self.denoiser, self.rule, self.denoiser.device
        causal_B = torch.ones(len(rows.ids_RT), dtype=torch.bool, device=device) if rule.causal else None
        value_B = denoiser.value(rule.told_rate(rows.rate_R).to(device), rule.causal)
        hidden_BTD = denoiser.model(rows.ids_RT.to(device), causal_B=causal_B, value_B=value_B)
        shift = 1 if rule.causal or denoiser.predicts == "next" else 0
        hidden_ND = hidden_BTD[rows.row_N.to(device), rows.column_N.to(device) - shift]
        return -self._cross_entropy(hidden_ND, rows.label_N.to(device)).double()

    def _cross_entropy(self, hidden_ND: Tensor, label_N: Tensor) -> Tensor:
        """float32[N]. Logits take by far the most memory, so only some positions have theirs at any time."""
        model = self.denoiser.model
        parts = zip(torch.split(hidden_ND, _SCORED_AT_ONCE), torch.split(label_N, _SCORED_AT_ONCE), strict=True)
        return torch.cat([cross_entropy(model.logits(model.head(h)).float(), y, reduction="none") for h, y in parts])


def _drawn_rows(sums: Sequence[_Sum]) -> Rows:
    masked_SJT = torch.from_numpy(np.stack([s.masked_JT for s in sums if s.masked_JT is not None]))
    place_J = torch.arange(masked_SJT.shape[1])
    pair_J = torch.minimum(place_J, place_J.flip(0))
    first_S = torch.tensor([s.first for s in sums])
    return masked_at_random([s.text for s in sums], first_S[:, None] + pair_J, masked_SJT)


def _estimate(samples: Sequence[float], tokens: int) -> TextScore:
    # With one token, every draw masks it: nothing is random.
    return TextScore(sum(samples) / len(samples), tokens, tuple(samples) if tokens > 1 else ())
