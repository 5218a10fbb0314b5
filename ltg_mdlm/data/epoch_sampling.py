"""Mixtures and curricula: how often each piece is in an epoch, and when.

Every epoch keeps its number of rows, so that steps are known before training begins. Its pieces are chosen first, then
packed like those of any other epoch (`RowPlan.order_of`). docs/slots.md has the mathematics.

Suffixes: G sources, P pieces of a row plan, D documents, I pieces chosen for an epoch, J points in time.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.random import shuffled
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.packing import EpochOrder, RowPlan

_GOLDEN = (5**0.5 - 1) / 2
"""Fractional parts of its multiples are evenly spread over [0, 1) in every range of multiples."""

_POINTS = 257
"""Points of an epoch at which weights that change are evaluated."""

_SURPLUS = 0.002
"""Share of its rows that an epoch may be packed with in excess; they are left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """Weights of the sources: how often a document is seen, relative to documents of other sources."""

    start_G: NDArray[np.float64]
    end_G: NDArray[np.float64]
    """Weights change linearly from `start_G` to `end_G` over training."""

    @property
    def changes(self) -> bool:
        return not np.array_equal(self.start_G, self.end_G)

    def rates(self, size_G: NDArray[np.int64], done_J: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64[G, J]: how often a piece of each source is seen per epoch, after a share `done_J` of training.

        `size_G` is how much of an epoch a source takes if every piece is seen once. The rates are proportional to the
        weights, and the sources take as much together as without weights.
        """
        weight_GJ = self.start_G[:, None] * (1 - done_J) + self.end_G[:, None] * done_J
        # Without BLAS, whose sums differ between processors.
        rates: NDArray[np.float64] = weight_GJ * size_G.sum() / (size_G[:, None] * weight_GJ).sum(0)
        return rates


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochSampling:
    """The epochs of a training with a mixture, a curriculum, or both.

    With `difficulty_D`, the documents of each epoch are in the order of their difficulty. With `over_training`, the
    documents are cut into as many parts as there are epochs, from easy to hard; each part is one epoch, and its
    documents are in random order and repeated to fill it.
    """

    split: Split
    schedule: BatchSchedule
    seed: int
    mixture: Mixture | None = None
    difficulty_D: NDArray[np.float64] | None = None
    over_training: bool = False
    _seen_G: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict, init=False)
    """By stage and epoch: how often a piece of each source is seen before the epoch, in expectation."""

    def order(self, stage: int, epoch: int) -> EpochOrder:
        """Pieces and rows of an epoch, a function of (seed, stage, epoch)."""
        plan, key = self.schedule.stages[stage].plan, (self.seed, stage, epoch)
        if self.over_training:
            expected_P = self._part(stage, epoch)
            phase_P = _phases(plan, np.zeros(len(expected_P), np.int64), *key)
            piece_I = pieces_for(plan, np.zeros_like(expected_P), expected_P, phase_P)[0]
            return plan.order_of(piece_I, *key)
        piece_I, time_I = np.arange(len(plan.size_P)), None
        if self.mixture is not None:
            piece_I, time_I = self._mixed(stage, epoch)
        if self.difficulty_D is not None:
            # Pieces of equal difficulty are in random order.
            time_I = quantiles(self.difficulty_D[plan.pieces.document_P], plan.size_P, *key)[piece_I]
        return plan.order_of(piece_I, *key, time_I=time_I)

    def words_seen(self) -> dict[str, int]:
        """Words of each source that the whole training sees; those of unknown sources under an empty name."""
        names = self.split.source_names or ("",)
        seen_G = np.zeros(len(names))
        for stage, of_stage in enumerate(self.schedule.stages):
            plan = of_stage.plan
            source_P = plan.source_P if plan.source_P is not None else np.zeros(len(plan.size_P), np.int16)
            for epoch in range(-(-of_stage.rows // plan.rows)):
                order = self.order(stage, epoch)
                rows = min(of_stage.rows - epoch * plan.rows, plan.rows)
                piece_I = order.piece_C[: order.bound_R1[rows]]
                seen_G += np.bincount(source_P[piece_I], plan.words_P[piece_I], minlength=len(names))
        return {name: int(words) for name, words in zip(names, seen_G, strict=True)}

    @property
    def digest(self) -> str:
        """Hash of what the order depends on and the settings do not contain: the difficulties."""
        return hashlib.sha256(b"" if self.difficulty_D is None else self.difficulty_D.tobytes()).hexdigest()

    def _mixed(self, stage: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """The pieces of an epoch by their weights, and when in the epoch each should come if the weights change."""
        assert self.mixture is not None
        plan = self.schedule.stages[stage].plan
        source_P, sources = plan.source_P, len(self.split.source_names)
        assert source_P is not None
        phase_P = _phases(plan, source_P, self.seed, stage)
        mass_G = np.bincount(source_P, _mass(plan), minlength=sources).astype(np.int64)
        self._seen_G.setdefault((stage, 0), np.zeros(sources))
        # The number of times that a piece was seen is rounded over all epochs, not in each: a source of weight 1/3 is
        # seen once in three epochs. So the epochs before this one are counted first.
        first = max(number for number in range(epoch + 1) if (stage, number) in self._seen_G)
        for number in range(first, epoch + 1):
            seen_G = self._seen_G[stage, number]
            rate_GJ = self.mixture.rates(mass_G, self._done(stage, number + np.linspace(0, 1, _POINTS)))
            share_GJ = np.concatenate([np.zeros((sources, 1)), (rate_GJ[:, 1:] + rate_GJ[:, :-1]).cumsum(1)], 1)
            share_GJ /= 2 * (_POINTS - 1)  # by the trapezoidal rule, exact if the weights do not change
            expected_G = share_GJ[:, -1]
            piece_I, scale = pieces_for(plan, seen_G[source_P], expected_G[source_P], phase_P)
            self._seen_G[stage, number + 1] = seen_G + scale * expected_G
        if not self.mixture.changes:
            return piece_I, None
        time_I = np.empty(len(piece_I))
        for g in range(sources):
            own_I = np.flatnonzero(source_P[piece_I] == g)
            even_I = (shuffled(len(own_I), self.seed, stage, epoch, 3, g) + 0.5) / max(len(own_I), 1)
            time_I[own_I] = np.interp(even_I * expected_G[g], share_GJ[g], np.linspace(0, 1, _POINTS))
        return piece_I, time_I

    def _part(self, stage: int, epoch: int) -> NDArray[np.float64]:
        """float64[P]: how often each piece is seen in an epoch that trains on one part of the documents."""
        plan, epochs = self.schedule.stages[stage].plan, self.schedule.stages[stage].epochs
        assert self.difficulty_D is not None
        score_D = self.difficulty_D
        if len(self.schedule.stages) > 1:
            # Each stage cuts the documents into different pieces. If each broke ties on its own, a document could be
            # in another part in every stage, and be seen too often or never.
            order_D = np.lexsort((shuffled(len(score_D), self.seed, 6), score_D))
            score_D = order_D.argsort().astype(np.float64)  # the rank of every document
        quantile_P = quantiles(score_D[plan.pieces.document_P], _mass(plan), self.seed, stage)
        first, last = self._done(stage, np.array([epoch, min(epoch + 1, epochs)]))
        is_part_P = (first <= quantile_P) & (quantile_P < last)
        if not is_part_P.any():  # a part smaller than a piece
            is_part_P[np.abs(quantile_P - (first + last) / 2).argmin()] = True
        return np.where(is_part_P, self.schedule.epoch(self.schedule.max_steps), 0.0)

    def _done(self, stage: int, epoch_J: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of all epochs of the training that is done after `epoch_J` epochs of a stage, at most 1."""
        earlier = sum(other.epochs for other in self.schedule.stages[:stage])
        return np.minimum((earlier + epoch_J) / self.schedule.epoch(self.schedule.max_steps), 1)


def pieces_for(
    plan: RowPlan, seen_P: NDArray[np.float64], expected_P: NDArray[np.float64], phase_P: NDArray[np.float64]
) -> tuple[NDArray[np.int64], float]:
    """The pieces of an epoch, in which piece p is expected `expected_P` times, and the factor by which it really is.

    Systematic sampling: a piece is taken floor(seen + expected + phase) - floor(seen + phase) times, so its number of
    times over all epochs is rounded only once. `expected_P` is scaled until the pieces fill the rows of an epoch.
    """

    def taken(scale: float) -> NDArray[np.int64]:
        count_P = np.floor(seen_P + scale * expected_P + phase_P) - np.floor(seen_P + phase_P)
        return np.repeat(np.arange(len(count_P)), count_P.astype(np.int64))

    scale, too_small, too_large = 1.0, 0.0, np.inf
    for attempt in itertools.count():
        piece_I = taken(scale)
        rows = plan.rows_of(piece_I) if len(piece_I) else 0
        if plan.rows <= rows <= plan.rows * (1 + _SURPLUS) + 1:
            return piece_I, scale
        if rows < plan.rows:
            too_small = scale
        else:
            too_large = scale
        if too_large - too_small < too_large * 1e-6:  # the number of rows jumps, so that no scale fits better
            break
        # The rows are nearly proportional to the scale; bisection ends the search in any case.
        scale *= plan.rows / max(rows, plan.rows / 2)
        if not too_small < scale < too_large or (attempt > 2 and np.isfinite(too_large)):
            scale = (too_small + too_large) / 2
    return taken(too_large), too_large


def quantiles(value_P: NDArray[np.float64], size_P: NDArray[Any], *key: int) -> NDArray[np.float64]:
    """float64[P]: the share of all tokens in pieces of smaller values, with equal values in random order."""
    order_P = np.lexsort((shuffled(len(value_P), *key, 4), value_P))
    before_P = np.cumsum(size_P[order_P], dtype=np.float64)
    quantile_P = np.empty(len(value_P))
    quantile_P[order_P] = (before_P - size_P[order_P] / 2) / before_P[-1]
    return quantile_P


def _mass(plan: RowPlan) -> NDArray[np.int64]:
    """int64[P]: how much of an epoch a piece takes: its positions, or one row if every piece has its own."""
    return np.ones(len(plan.size_P), np.int64) if plan.one_document else plan.size_P.astype(np.int64)


def _phases(plan: RowPlan, group_P: NDArray[Any], *key: int) -> NDArray[np.float64]:
    """float64[P] in [0, 1): phases of systematic sampling, evenly spread over the sizes of every group."""
    phase_P = np.empty(len(plan.size_P))
    order_P = np.lexsort((shuffled(len(phase_P), *key, 5), plan.size_P, group_P))
    phase_P[order_P] = np.arange(1, len(phase_P) + 1) * _GOLDEN % 1
    return phase_P


def read_scores(path: Path, documents: int) -> NDArray[np.float64]:
    """float64[D]: the numbers of a file, one for every document in the order of the corpus.

    The file is a NumPy array (`.npy`), or text with one number per line.

    Raises:
        UserError: the file cannot be read, or it does not contain one finite number for each of the `documents`.
    """
    try:
        if path.suffix == ".npy":
            scores = np.load(path, allow_pickle=False)
            if scores.ndim != 1 or scores.dtype.kind not in "fiu":
                raise UserError(
                    f"{path}: an array {scores.dtype}{list(scores.shape)}, not one number for each document"
                )
            score_D = scores.astype(np.float64)
        else:
            lines = path.read_text("utf-8").splitlines()
            score_D = np.empty(len(lines))
            for number, line in enumerate(lines, 1):
                try:
                    score_D[number - 1] = float(line)
                except ValueError:
                    raise UserError(f"{path}, line {number}: {line.strip()[:50]!r} is not a number") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(score_D) != documents:
        raise UserError(f"{path}: {len(score_D):,} numbers for {documents:,} training documents")
    if len(wrong := np.flatnonzero(~np.isfinite(score_D))):
        raise UserError(f"{path}: the number of document {wrong[0] + 1:,} is {score_D[wrong[0]]}, not finite")
    return np.asarray(score_D, np.float64)
