"""Inputs for tests of components: a small vocabulary, a corpus, rows of an epoch, batches, steps and mask rates.

Ids 0 to 15 are control tokens, as in real vocabularies. Ordinary token types follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltg_mdlm.core.batch import Batch, Noise, Step
from ltg_mdlm.core.components import CorpusStatistics, CorpusView, RunContext
from ltg_mdlm.core.row_order import RowTable
from ltg_mdlm.data.corpus_view import count_ngrams
from ltg_mdlm.data.tokenizer import BOS, MASK, NUM_SPECIAL, PAD, SPECIAL_TOKENS

VOCAB = 48
"""Number of token types, with the control tokens."""

POSITIONS = 65536
"""Number of tokens of the corpus from which the rows are taken."""


def context(vocab_size: int = VOCAB, **changes: Any) -> RunContext:
    """The context of a run of 100 steps in one process on a `ToyCorpus`. Every second ordinary type begins a word."""
    special_V = torch.arange(vocab_size) < NUM_SPECIAL
    ordinary = [f"{' ' if i % 2 == 0 else ''}t{i}" for i in range(NUM_SPECIAL, vocab_size)]
    values = RunContext(
        seed=0,
        max_steps=100,
        seq_len=128,
        vocab_size=vocab_size,
        hidden_size=8,
        mask_id=MASK,
        special_V=special_V,
        tokens_V=(*SPECIAL_TOKENS, *ordinary),
        word_start_V=~special_V & (torch.arange(vocab_size) % 2 == 0),
        num_positions=POSITIONS,
        device=torch.device("cpu"),
        rank=0,
        world_size=1,
        sum_over_ranks=lambda x: x,
        corpus=ToyCorpus(vocab_size),
    )
    return dataclasses.replace(values, **changes)


class ToyCorpus(CorpusView):
    """A training split of `POSITIONS` Zipf-distributed tokens, in documents of 5 to 60 tokens from two sources."""

    source_D: NDArray[np.int16]

    def __init__(self, vocab_size: int = VOCAB) -> None:
        generator = np.random.default_rng(0)
        rank = generator.zipf(1.5, POSITIONS) - 1
        self.tokens = (NUM_SPECIAL + rank % (vocab_size - NUM_SPECIAL)).astype(np.uint16)
        bounds = np.cumsum(generator.integers(5, 61, POSITIONS // 5))
        self.offset_D1 = np.concatenate([[0], bounds[bounds < POSITIONS - 5], [POSITIONS]])
        self.source_D = (np.arange(len(self.offset_D1) - 1) % 3 == 0).astype(np.int16)
        self.source_names = ("often", "rarely")

    def ngram_counts(self, n: int) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64]]:
        """(ids[K, n], count[K]): the different n-grams within documents, sorted by their ids, and their occurrences."""
        ids, count = zip(*count_ngrams(self.tokens, self.offset_D1, n), strict=True)
        return np.concatenate(ids), np.concatenate(count)


def row_table(rows: int = 40, pieces: int = 3, corpus: ToyCorpus | None = None) -> RowTable:
    """The rows of an epoch: whole documents of a toy corpus, one to `pieces` of them per row."""
    corpus = corpus or ToyCorpus()
    bound_R1 = np.concatenate([[0], np.cumsum(np.arange(rows) % pieces + 1)])
    start_D, length_D = corpus.offset_D1[:-1], np.diff(corpus.offset_D1)
    word_N1 = np.concatenate([[0], np.cumsum(corpus.tokens % 2 == 0)])
    documents = slice(0, bound_R1[-1])
    return RowTable(
        count=rows,
        seq_len=pieces * (1 + int(length_D.max())),
        bound_R1=bound_R1,
        start_P=start_D[documents],
        length_P=length_D[documents].astype(np.int32),
        words_P=np.diff(word_N1[corpus.offset_D1])[documents],
        source_P=corpus.source_D[documents],
    )


def zipfian_counts() -> Tensor:
    """int64[V]: counts proportional to 1 / rank in an order independent of the ids, with ties and types of count 0."""
    count_V = torch.zeros(VOCAB, dtype=torch.int64)
    order = torch.randperm(VOCAB - NUM_SPECIAL, generator=torch.Generator().manual_seed(1)) + NUM_SPECIAL
    count_V[order] = 1000 // torch.arange(1, VOCAB - NUM_SPECIAL + 1)
    count_V[order[-3:]] = 0
    return count_V


def statistics(count_V: Tensor) -> CorpusStatistics:
    """Corpus statistics with the given counts."""
    return CorpusStatistics(token_count_V=count_V, num_tokens=int(count_V.sum()), num_words=int(count_V.sum()))


def batch_of(rows: Sequence[Sequence[Sequence[int]]], columns: int, first_row: int = 0) -> Batch:
    """A batch of rows, each a list of documents of ids, with `<s>` before every document, padded to `columns`."""
    shape = (len(rows), columns)
    ids_BT, document_BT = torch.full(shape, PAD), torch.full(shape, -1, dtype=torch.int32)
    for b, documents in enumerate(rows):
        end = 0
        for number, tokens in enumerate(documents):
            start, end = end, end + 1 + len(tokens)
            ids_BT[b, start:end] = torch.tensor([BOS, *tokens])
            document_BT[b, start:end] = number
        assert end <= columns
    has_place_BT = (document_BT >= 0) & (ids_BT != BOS)
    place_BT = has_place_BT.flatten().cumsum(0).view(shape) - 1 + first_row * columns
    return Batch(
        ids_BT=ids_BT,
        document_BT=document_BT,
        position_BT=torch.where(has_place_BT, place_BT, -1),
        maskable_BT=ids_BT >= NUM_SPECIAL,
        row_B=torch.arange(first_row, first_row + len(rows)),
    )


def text_rows(rows: int, columns: int, seed: int = 0) -> list[list[list[int]]]:
    """Rows for `batch_of`: documents of 5 to 60 Zipf-distributed tokens that nearly fill `columns` columns."""
    generator = torch.Generator().manual_seed(seed)
    share_V = zipfian_counts().double()
    made = []
    for _ in range(rows):
        documents, left = [], columns
        while left > 6:
            length = min(int(torch.randint(5, 61, (), generator=generator)), left - 1)
            documents.append(torch.multinomial(share_V, length, replacement=True, generator=generator).tolist())
            left -= length + 1
        made.append(documents)
    return made


def text_batch(rows: int, columns: int, seed: int = 0) -> Batch:
    """A batch of documents of 5 to 60 Zipf-distributed tokens, with little padding."""
    return batch_of(text_rows(rows, columns, seed), columns)


def rows_of(batch: Batch, index: Tensor | slice) -> Batch:
    """The selected rows of a batch, as a micro-batch."""
    return batch.map(lambda value: value[index])


def step_for(batch: Batch, **changes: Any) -> Step:
    """A step in the middle of training whose global batch ends with the last row of `batch`."""
    rows = int(batch.row_B.max()) + 1
    values = {"seed": 0, "step": 40, "progress": 0.4, "epoch": 4.5, "rows": rows, **changes}
    return Step(**values)


def noise_at(rate: float | Tensor, batch: Batch) -> Noise:
    """Noise with one mask rate for all rows, or one for each row, and slope 1."""
    rate_B = torch.as_tensor(rate, dtype=torch.float64).expand(len(batch.row_B)).clone()
    return Noise(t_B=rate_B.clone(), rate_B=rate_B, slope_B=torch.ones_like(rate_B))


def no_causal(batch: Batch) -> Tensor:
    """bool[B]: every row is masked."""
    return torch.zeros_like(batch.row_B, dtype=torch.bool)
