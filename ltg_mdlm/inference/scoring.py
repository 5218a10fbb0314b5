"""Log-likelihoods of texts under a trained model: exact where that is possible, else bounded.

pll     masked pseudo-log-likelihood: every token masked in turn (Salazar et al. 2020, arXiv 1910.14659)
mntp    the same for models that predict a masked token one position earlier
causal  log-likelihood under a model that was trained on causal rows
bound   minus the diffusion bound (negative ELBO under uniform masking), estimated by Monte Carlo

In a model with blocks, a masked token is predicted from its own block and the earlier ones.  The bound is the sum of
those of the blocks, each with all earlier blocks unmasked (`ltg_mdlm.inference.likelihood`).

Shapes: S texts, R rows, B rows of a batch, T tokens per row, N predicted tokens, L scored tokens of a text, J mask
draws, P = J / 2 pairs of draws, D width, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, takewhile
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.machine import scaled_to_memory
from ltg_mdlm.core.terminal import share_progress
from ltg_mdlm.data.tokenizer import MASK
from ltg_mdlm.inference.likelihood import block_sums
from ltg_mdlm.inference.texts import Encoded, NextWord, Text, TextScore, encode_next_words, encode_texts, pieces
from ltg_mdlm.inference.trained_model import Denoiser
from ltg_mdlm.model.visibility import block_of, block_visibility

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 131072}
"""Tokens per forward pass by default, for each type of device; fewer on GPUs of less than 40 GB."""

_POSITIONS_AT_ONCE = 2048
"""Positions whose logits are in memory at the same time; logits take by far the most memory."""

_FULL_MEMORY = 40e9
"""Bytes of GPU memory for which the default number of tokens is chosen."""

Score = Literal["pll", "mntp", "causal", "bound"]

Time = Literal["zero", "constant", "fraction"]

Normalise = Literal["none", "tokens"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ScoringRule:
    """How a text is scored.

    Raises UserError for an odd number of draws, and for settings that would have no effect.
    """

    score: Score = "pll"
    time: Time = "fraction"
    """The mask rate that a model is conditioned on: 0, `rate`, or the masked share of the row."""
    rate: float | None = None
    """Mask rate for time="constant"."""
    draws: int | None = None
    """Masks per text for score="bound", an even number.  None uses as many masks as the longest text of a group has
    tokens, so that it costs as much as "pll"."""
    seed: int = 0
    """Seed of the masks."""
    normalise: Normalise = "none"
    """"tokens" divides the score by the number of scored tokens."""
    tokens_per_batch: int | None = None
    """Tokens per forward pass; None uses a value that suits the device."""

    def __post_init__(self) -> None:
        if (self.rate is not None) != (self.time == "constant"):
            raise UserError(f"--time {self.time}: --rate goes with --time constant, and only with it")
        if self.draws is not None and self.score != "bound":
            raise UserError(f"--score {self.score}: --draws goes with --score bound only")
        if self.draws is not None and self.draws % 2:
            raise UserError(f"--draws {self.draws}: must be an even number, because masks come in complementary pairs")

    @property
    def causal(self) -> bool:
        """Whether rows are causal."""
        return self.score == "causal"

    def conditioning_rate(self, masked_B: Tensor) -> Tensor:
        """float32[B]: the mask rates to condition on, for rows with these shares of masked tokens."""
        if self.time == "fraction":
            return masked_B
        return torch.full_like(masked_B, self.rate or 0.0)


def default_tokens_per_batch(device: torch.device) -> int:
    """Tokens per forward pass if the rule names none."""
    return scaled_to_memory(TOKENS_PER_BATCH[device.type], device, _FULL_MEMORY)


def scoring_rule(denoiser: Denoiser, score: Score | Literal["auto"], **settings: Any) -> ScoringRule:
    """The rule with these settings; "auto" is the exact score that fits the model."""
    return ScoringRule(score=default_score(denoiser) if score == "auto" else score, **settings)


def default_score(denoiser: Denoiser) -> Score:
    """The exact score that fits the training of a model."""
    if "masked" not in denoiser.modes:
        return "causal"
    return "mntp" if denoiser.predicts == "next" else "pll"


def require_fit(denoiser: Denoiser, rule: ScoringRule) -> None:
    """Raises UserError for a score that does not fit the training of the model."""
    mode, fitting = ("causal", "causal") if rule.causal else ("masked", default_score(denoiser))
    if mode not in denoiser.modes:
        raise UserError(
            f"--score {rule.score} needs a model trained on {mode} rows; this one was trained only on"
            f" {' and '.join(sorted(denoiser.modes))} rows\n  use --score {default_score(denoiser)}"
        )
    if rule.score in ("pll", "mntp") and rule.score != fitting:
        where = "one position earlier" if denoiser.predicts == "next" else "at their own position"
        raise UserError(
            f"--score {rule.score} does not fit this model, which predicts masked tokens {where}"
            f"\n  use --score {fitting}"
        )


TokenMeasure = Callable[[Tensor, Tensor], Tensor]
"""(logits float32[N, V], token ids int64[N]) -> [N]."""


def log_likelihood(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    """float32[N] log-probabilities of the tokens."""
    return -cross_entropy(logits_NV, label_N, reduction="none")


def is_not_likeliest(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    """bool[N]: whether another token has a higher probability."""
    return logits_NV.argmax(dim=1) != label_N


class LikelihoodScorer:
    """Scores groups of texts with a model; see `ltg_mdlm.inference.texts.Scorer`.

    The rows of a batch have exactly the same length, so there is no padding.  Logits are computed at scored positions
    only, and equal rows are computed once.  Sums are float64, so that rounding does not cause ties.

    Raises UserError for a score that does not fit the model.
    """

    def __init__(self, denoiser: Denoiser, rule: ScoringRule, ranks: Ranks, *, show_progress: bool = False) -> None:
        require_fit(denoiser, rule)
        self.denoiser, self.rule = denoiser, rule
        self._ranks, self._show_progress = ranks, show_progress and ranks.is_main
        self._limit = denoiser.model.config.max_position_embeddings

    def __call__(self, groups: Sequence[Sequence[Text]], *, per_token: bool = False) -> list[list[TextScore]]:
        """One score per text; every rank must call it.  Raises UserError for a text that does not fit the model."""
        encoded = encode_texts(self.denoiser.tokenizer, [text for group in groups for text in group], self._limit)
        ends = accumulate(map(len, groups))
        rows = [encoded[end - len(group) : end] for group, end in zip(groups, ends, strict=True)]
        return self.score_encoded(rows, per_token=per_token)

    def score_encoded(self, groups: Sequence[Sequence[Encoded]], *, per_token: bool = False) -> list[list[TextScore]]:
        """One score per tokenised text that fits the model; every rank must call it."""
        encoded = [text for group in groups for text in group]
        if self.rule.score == "bound":
            scores = self._bounds(groups)
        else:
            totals = self._log_likelihoods(encoded, causal_rows if self.rule.causal else rows_masked_in_turn)
            scores = [TextScore(total, text.scored) for total, text in zip(totals, encoded, strict=True)]
        if per_token or self.rule.normalise == "tokens":
            scores = [
                TextScore(s.log_likelihood / s.tokens, s.tokens, tuple(x / s.tokens for x in s.samples)) for s in scores
            ]
        following = iter(scores)
        return [[next(following) for _ in group] for group in groups]

    def surprisals(self, words: Sequence[NextWord]) -> list[float]:
        """Surprisal in nats of each word, summed over its tokens as in the official pipelines (see `pieces`).

        In masked rows, three masks follow the context, and the first one is predicted.  With a single mask, the row
        would say that the text ends after it.
        """
        parts_of_word = [pieces(self.denoiser.tokenizer, word) for word in words]
        parts = [part for parts in parts_of_word for part in parts]
        encoded = encode_next_words(self.denoiser.tokenizer, parts, self._limit, 0 if self.rule.causal else 2)
        values = iter(self._log_likelihoods(encoded, causal_rows if self.rule.causal else rows_masked_to_the_end))
        return [-sum(next(values) for _ in parts) for parts in parts_of_word]

    def greedy(self, encoded: Sequence[Encoded]) -> list[bool]:
        """Whether greedy decoding of a causal model gives each completion; every rank must call it."""
        assert self.rule.causal
        return [count == 0 for count in self._log_likelihoods(encoded, causal_rows, is_not_likeliest)]

    def _log_likelihoods(
        self, encoded: Sequence[Encoded], build: RowBuilder, of_token: TokenMeasure = log_likelihood
    ) -> list[float]:
        """Sum of `of_token` over every text in the rows that `build` makes; equal texts are computed once."""
        index = {text: i for i, text in enumerate(dict.fromkeys(encoded))}
        totals = self._sums([_Request(text, i) for text, i in index.items()], build, of_token)
        return [totals[index[text]] for text in encoded]

    def _bounds(self, groups: Sequence[Sequence[Encoded]]) -> list[TextScore]:
        """The bound of every text, with one estimate per pair of masks; the texts of a group share random numbers."""
        requests: list[_Request] = []
        first = 0
        for number, group in enumerate(groups):
            longest = max(text.scored for text in group)
            draws = self.rule.draws or longest + longest % 2
            masks = draw_masks(group, draws, (self.rule.seed, number), self.denoiser.block_length)
            for text, masked_JT in zip(group, masks, strict=True):
                requests.append(_Request(text, first, masked_JT))
                first += draws // 2
        totals = self._sums(requests, partial(rows_masked_at_random, block_length=self.denoiser.block_length))
        scores = []
        for request in requests:
            samples = totals[request.first : request.first + request.num_sums]
            tokens = request.text.scored
            # With a single token, every draw masks it, and the score is exact.
            scores.append(TextScore(sum(samples) / len(samples), tokens, tuple(samples) if tokens > 1 else ()))
        return scores

    @torch.no_grad()
    def _sums(
        self, requests: Sequence[_Request], build: RowBuilder, of_token: TokenMeasure = log_likelihood
    ) -> list[float]:
        """All sums of log-likelihoods, or of another measure, that are requested; the ranks share the work."""
        by_shape: dict[tuple[int, int], list[_Request]] = defaultdict(list)
        for request in requests:
            by_shape[request.shape].append(request)
        # Every shape starts at another rank, so that no rank gets all remainders.
        rank, world_size = self._ranks.rank, self._ranks.world_size
        shares = [by_shape[shape][(rank + i) % world_size :: world_size] for i, shape in enumerate(sorted(by_shape))]
        device = self.denoiser.device
        total = torch.zeros(sum(r.num_sums for r in requests), dtype=torch.float64, device=device)
        tokens = self.rule.tokens_per_batch or default_tokens_per_batch(device)
        # In tokens of the rows, since long texts, which come last, have most of them.
        costs = [sum(len(r.text.ids) * r.num_rows(build) for r in share) for share in shares]
        with share_progress("scoring texts", sum(costs), show=self._show_progress) as advance:
            for share, cost in zip(shares, costs, strict=True):
                if not share:
                    continue
                rows = build(share)
                for batch in rows.batches(tokens):
                    value_N = self._forward(batch, of_token)
                    total.index_add_(0, batch.sum_N.to(device), value_N * batch.weight_N.to(device))
                    advance(cost * len(batch.ids_RT) // len(rows.ids_RT))
        return cast(list[float], self._ranks.sum_over_ranks(total).tolist())

    def _forward(self, rows: Rows, of_token: TokenMeasure) -> Tensor:
        """float64[N] values of masked tokens, or in causal rows of each token given those before it."""
        denoiser, rule, device = self.denoiser, self.rule, self.denoiser.device
        model = denoiser.model
        causal_B = torch.ones(len(rows.ids_RT), dtype=torch.bool, device=device) if rule.causal else None
        conditioning_B = denoiser.value(rule.conditioning_rate(rows.rate_R).to(device), rule.causal)
        blocks: dict[str, Any] = {}
        if denoiser.block_length and not rule.causal:
            blocks["visibility"] = block_visibility(torch.zeros_like(rows.ids_RT, device=device), denoiser.block_length)
            if rows.clean_RT is not None:
                blocks["visibility"] = blocks["visibility"].with_clean_copy()
                blocks["context_BS"] = rows.clean_RT.to(device)
        hidden_BTD = model(rows.ids_RT.to(device), causal_B=causal_B, conditioning_B=conditioning_B, **blocks)
        shift = 1 if rule.causal or denoiser.predicts == "next" else 0
        hidden_ND = hidden_BTD[rows.row_N.to(device), rows.column_N.to(device) - shift]
        chunks = zip(
            torch.split(hidden_ND, _POSITIONS_AT_ONCE),
            torch.split(rows.label_N.to(device), _POSITIONS_AT_ONCE),
            strict=True,
        )
        return torch.cat([of_token(model.logits(model.head(h)).float(), label) for h, label in chunks]).double()


class _Request(NamedTuple):
    """A text to score, and the index of its sums: one sum, or one per pair of draws."""

    text: Encoded
    first: int
    masked_JT: Mask | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Length and number of draws; texts of equal shape can be stacked."""
        return len(self.text.ids), 0 if self.masked_JT is None else len(self.masked_JT)

    @property
    def num_sums(self) -> int:
        return 1 if self.masked_JT is None else len(self.masked_JT) // 2

    def num_rows(self, build: RowBuilder) -> int:
        """Rows that `build` makes of the text, before equal rows are merged."""
        if self.masked_JT is not None:
            return len(self.masked_JT)
        return self.text.scored if build is rows_masked_in_turn else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Model inputs of one length, and the tokens to predict in them, in the order of the rows."""

    ids_RT: Tensor
    rate_R: Tensor
    """float32: masked share of the row's tokens without `<s>`."""
    row_N: Tensor
    column_N: Tensor
    """Position of the token, wherever it is predicted."""
    label_N: Tensor
    sum_N: Tensor
    """Index of the sum that the token's log-likelihood is added to."""
    weight_N: Tensor
    """float64: weight of the token in the sum."""
    clean_RT: Tensor | None = None
    """The rows without masks, which the model sees in place of earlier blocks; None if it sees these as they are."""

    def batches(self, tokens: int) -> Iterator[Rows]:
        """Split into batches of at most `tokens` tokens, but of at least one row."""
        columns = self.ids_RT.shape[1] * (1 if self.clean_RT is None else 2)
        count = max(1, tokens // columns)
        starts = torch.arange(0, len(self.ids_RT), count)
        bounds = [*torch.searchsorted(self.row_N, starts).tolist(), len(self.row_N)]
        for start, first, last in zip(starts.tolist(), bounds, bounds[1:], strict=False):
            of_batch = slice(start, start + count)
            row_n = self.row_N[first:last] - start
            clean_RT = None if self.clean_RT is None else self.clean_RT[of_batch]
            yield self._with_tokens(self.ids_RT[of_batch], clean_RT, self.rate_R[of_batch], row_n, slice(first, last))

    def without_duplicates(self) -> Rows:
        """Merge equal rows; the two sentences of a minimal pair often differ in a single token."""
        both_RX = self.ids_RT if self.clean_RT is None else torch.cat([self.ids_RT, self.clean_RT], dim=1)
        both_RX, unique_R = torch.unique(both_RX, dim=0, return_inverse=True)
        ids_RT, *clean = both_RX.split(self.ids_RT.shape[1], dim=1)
        rate_R = torch.empty(len(ids_RT)).scatter_(0, unique_R, self.rate_R)  # equal rows have equally many masks
        row_N, order_N = unique_R[self.row_N].sort(stable=True)
        return self._with_tokens(ids_RT, clean[0] if clean else None, rate_R, row_N, order_N)

    def _with_tokens(
        self, ids_RT: Tensor, clean_RT: Tensor | None, rate_R: Tensor, row_N: Tensor, which_N: slice | Tensor
    ) -> Rows:
        return Rows(
            ids_RT=ids_RT,
            rate_R=rate_R,
            row_N=row_N,
            column_N=self.column_N[which_N],
            label_N=self.label_N[which_N],
            sum_N=self.sum_N[which_N],
            weight_N=self.weight_N[which_N],
            clean_RT=clean_RT,
        )


RowBuilder = Callable[[Sequence[_Request]], Rows]


def causal_rows(requests: Sequence[_Request]) -> Rows:
    """One row per text, in which every scored token is predicted."""
    ids_ST, scored_ST, sum_S = _stack(requests)
    return _rows(ids_ST, torch.zeros_like(scored_ST), scored_ST, sum_S, torch.ones_like(sum_S))


def rows_masked_in_turn(requests: Sequence[_Request]) -> Rows:
    """One row per scored token, in which only this token is masked (Salazar et al. 2020, arXiv 1910.14659)."""
    ids_ST, scored_ST, sum_S = _stack(requests)
    text_R, column_R = scored_ST.nonzero(as_tuple=True)
    masked_RT = torch.arange(ids_ST.shape[1]) == column_R[:, None]
    return _rows(ids_ST[text_R], masked_RT, masked_RT, sum_S[text_R], torch.ones_like(text_R)).without_duplicates()


def rows_masked_to_the_end(requests: Sequence[_Request]) -> Rows:
    """One row per text, in which all scored tokens are masked and the first one is predicted."""
    ids_ST, scored_ST, sum_S = _stack(requests)
    return _rows(ids_ST, scored_ST, scored_ST & (scored_ST.cumsum(1) == 1), sum_S, torch.ones_like(sum_S))


def rows_masked_at_random(requests: Sequence[_Request], block_length: int = 0) -> Rows:
    """One row per text and draw.  Of k masked tokens among L scored ones, each has the weight L / k, as in the bound.

    The two draws of a pair are averaged in one sum.  With blocks, k and L are those of the token's block.
    """
    ids_ST, scored_ST, sum_S = _stack(requests)
    masked_SJT = torch.from_numpy(
        np.stack([request.masked_JT for request in requests if request.masked_JT is not None])
    )
    draws = masked_SJT.shape[1]
    draw_J = torch.arange(draws)
    sum_R = (sum_S[:, None] + torch.minimum(draw_J, draw_J.flip(0))).flatten()
    masked_RT, ids_RT = masked_SJT.flatten(0, 1), ids_ST.repeat_interleave(draws, dim=0)
    if block_length:
        scored_RT = scored_ST.repeat_interleave(draws, dim=0)
        block_RT = block_of(torch.zeros_like(ids_RT), block_length)
        scored_RC, masked_RC = block_sums(scored_RT, block_RT), block_sums(masked_RT, block_RT)
        weight_RT = (scored_RC.double() / masked_RC.clamp(min=1) / 2).gather(1, block_RT.long())
        rows = _rows(ids_RT, masked_RT, masked_RT, sum_R, torch.ones_like(sum_R))
        rows = replace(rows, weight_N=weight_RT[rows.row_N, rows.column_N], clean_RT=ids_RT)
        return rows.without_duplicates()
    weight_R = scored_ST.sum(1).double().repeat_interleave(draws) / masked_RT.sum(1) / 2
    return _rows(ids_RT, masked_RT, masked_RT, sum_R, weight_R).without_duplicates()


def _stack(requests: Sequence[_Request]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids int64[S, T], scored tokens bool[S, T] and indices of the first sums int64[S] of texts of one length."""
    ids_ST = torch.tensor([request.text.ids for request in requests])
    start_S1 = torch.tensor([[request.text.start] for request in requests])
    return ids_ST, torch.arange(ids_ST.shape[1]) >= start_S1, torch.tensor([request.first for request in requests])


def _rows(ids_RT: Tensor, masked_RT: Tensor, predicted_RT: Tensor, sum_R: Tensor, weight_R: Tensor) -> Rows:
    row_N, column_N = predicted_RT.nonzero(as_tuple=True)
    return Rows(
        ids_RT=ids_RT.masked_fill(masked_RT, MASK),
        rate_R=masked_RT.sum(1) / (ids_RT.shape[1] - 1),
        row_N=row_N,
        column_N=column_N,
        label_N=ids_RT[row_N, column_N],
        sum_N=sum_R[row_N],
        weight_N=weight_R[row_N].double(),
    )


def draw_masks(group: Sequence[Encoded], draws: int, seed: Sequence[int], block_length: int = 0) -> list[Mask]:
    """bool[J, T] for every text of a group: draw j masks k of the L scored tokens, with k uniform over 1 .. L.

    The draws are stratified over k.  Draws j and J - 1 - j are complementary: they mask k and L + 1 - k tokens, the
    first and the last ones in one random order (see `ltg_mdlm.inference.likelihood`).  The texts of a group share the
    strata and, where their completions begin or end alike, the order.  `draws` is even; `seed` identifies the group.
    With a `block_length`, this holds for the scored tokens of each block.
    """
    assert draws % 2 == 0
    random = np.random.default_rng(seed)
    pairs = draws // 2
    t_P = (np.arange(pairs) + random.random(pairs)) / draws
    masks = []
    keys = order_keys([text.ids[text.start :] for text in group], pairs, random)
    for text, key_PL in zip(group, keys, strict=True):
        mask_JT = np.zeros((draws, len(text.ids)), dtype=np.bool_)
        size = block_length or len(text.ids)
        for block in range(text.start // size * size, len(text.ids), size):
            start, stop = max(block, text.start), min(block + size, len(text.ids))
            rank_PL = key_PL[:, start - text.start : stop - text.start].argsort(axis=1).argsort(axis=1)
            first_P1 = (t_P * (stop - start)).astype(np.int64)[:, None] + 1
            mask_JT[:pairs, start:stop] = rank_PL < first_P1
            mask_JT[pairs:, start:stop] = (rank_PL >= first_P1 - 1)[::-1]
        masks.append(mask_JT)
    return masks


def order_keys(
    completions: Sequence[tuple[int, ...]], pairs: int, random: np.random.Generator
) -> list[NDArray[np.float64]]:
    """float64[P, L] for every completion: tokens are masked in the order of their keys.

    Matching tokens have equal keys.  Tokens match if they have the same index.  In completions of different lengths,
    the tokens of the common prefix and of the common suffix match.
    """
    longest = max(map(len, completions))
    left, right = random.random((2, pairs, longest))
    if all(len(ids) == longest for ids in completions):
        return [left] * len(completions)
    prefix = _common_prefix(completions)
    suffix = _common_prefix([ids[prefix:][::-1] for ids in completions])
    keys = []
    for ids in completions:
        own = random.random((pairs, len(ids) - prefix - suffix))
        keys.append(np.concatenate([left[:, :prefix], own, right[:, longest - suffix :]], axis=1))
    return keys


def _common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))
