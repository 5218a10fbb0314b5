"""Log-likelihoods of texts under a trained model, exact where that is possible and bounded where it is not.

pll     masked pseudo-log-likelihood: every token masked in turn (Salazar et al. 2020, arXiv 1910.14659)
mntp    the same for models that predict a masked token one position earlier
causal  log-likelihood of models with causal rows
bound   minus the diffusion bound (negative ELBO under uniform masking), by Monte Carlo

Suffixes: B rows, T tokens per row, N predicted tokens, S texts, J draws, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltg_mdlm.distributed import Ranks
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.denoiser import Denoiser
from ltg_mdlm.evaluate.encoding import Encoded, encode_next_words, encode_texts, pieces
from ltg_mdlm.evaluate.mask_draws import draw_masks
from ltg_mdlm.evaluate.rows import Rows, causal_rows, masked_at_random, masked_from_here, masked_in_turn
from ltg_mdlm.evaluate.texts import NextWord, Text, TextScore
from ltg_mdlm.progress import count_progress

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
    """Scores groups of texts with a model; see `ltg_mdlm.evaluate.texts.Scorer`.

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
