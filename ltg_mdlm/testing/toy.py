"""Inputs for tests of components: a small vocabulary, batches, steps and mask rates, a corpus and minimal pairs.

Ids 0 to 15 are control tokens, as in real vocabularies. Ordinary token types follow. All checks of the conformance kit,
also those that train, use this one vocabulary, so that a file that a plugin needs can be made for it: from the corpus
in `corpus_folder()`, whose tokenizer is `tokenizer()`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltg_mdlm.core.batch import Batch, Noise, Step
from ltg_mdlm.core.components import CorpusStatistics, CorpusView, RunContext
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_errors, written_folder
from ltg_mdlm.core.row_order import RowTable
from ltg_mdlm.data.corpus import FORMAT, Corpus
from ltg_mdlm.data.corpus_view import TrainingText
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.records import MinimalPair, write_minimal_pairs
from ltg_mdlm.data.synthetic.builtin import MINIMAL_PAIRS, default_cache_dir
from ltg_mdlm.data.tokenizer import BOS, MASK, NUM_SPECIAL, PAD, SPECIAL_TOKENS, Tokenizer, untrained_tokenizer

VOCAB = 48
"""Number of token types, with the control tokens."""

LETTERS = "abcdefghijklmnop"
"""The ordinary types are ` a`, which begins a word, `-a`, which continues one, ` b`, `-b`, and so on."""

CORPUS_VERSION = 2
"""Increases with every change of the toy corpus, so that an old one in the cache is not used."""

POSITIONS = 6000
"""Positions of the toy corpus, which has a few more tokens; the tokens of large batches share them."""


def context(vocab_size: int = VOCAB, **changes: Any) -> RunContext:
    """The context of a run of 100 steps in one process. Every second ordinary type begins a word.

    Another `vocab_size` than that of `tokenizer()` is for tests of single components.
    """
    special_V = torch.arange(vocab_size) < NUM_SPECIAL
    is_toy = vocab_size == VOCAB
    ordinary = [f"{' ' if i % 2 == 0 else ''}t{i}" for i in range(NUM_SPECIAL, vocab_size)]
    values = RunContext(
        seed=0,
        max_steps=100,
        seq_len=128,
        vocab_size=vocab_size,
        hidden_size=8,
        mask_id=MASK,
        special_V=special_V,
        tokens_V=tuple(tokenizer().tokens) if is_toy else (*SPECIAL_TOKENS, *ordinary),
        word_start_V=~special_V & (torch.arange(vocab_size) % 2 == 0),
        num_positions=POSITIONS,
        device=torch.device("cpu"),
        rank=0,
        world_size=1,
        sum_over_ranks=lambda x: x,
        corpus=corpus_view() if is_toy else None,
        tokenizer_fingerprint=tokenizer().fingerprint if is_toy else "",
    )
    return dataclasses.replace(values, **changes)


@cache
def tokenizer() -> Tokenizer:
    """The tokenizer of the toy vocabulary; it encodes words such as `a-b-b` in a text without line breaks."""
    words = [text for letter in LETTERS for text in (f"Ġ{letter}", f"-{letter}")]
    definition = json.loads(untrained_tokenizer().to_str())
    definition["model"] |= {"vocab": {token: i for i, token in enumerate([*SPECIAL_TOKENS, *words])}, "merges": []}
    return Tokenizer(definition)


def corpus_folder() -> Path:
    """The prepared toy corpus, with minimal pairs: written on first use, and kept in the user's cache.

    Its documents have 5 to 60 tokens, drawn independently with Zipf frequencies.
    """
    key = hashlib.sha256(repr((CORPUS_VERSION, FORMAT)).encode()).hexdigest()[:12]
    folder = default_cache_dir() / f"toy-{key}"
    if not folder.exists():
        try:
            _make_corpus(folder)
        except UserError:
            if not folder.exists():  # otherwise another process has made it in the meantime
                raise
    return folder


def _make_corpus(folder: Path) -> None:
    with (
        write_errors(folder, "; set XDG_CACHE_HOME to a folder that can be written"),
        written_folder(folder) as aside,
    ):
        tokenizer().save(aside / "tokenizer.given.json")
        for name, seed, documents in (("often", 1, 140), ("rarely", 3, 60), ("valid", 2, 20)):
            text = "\n\n".join(tokenizer().decode(ids) for ids in _documents(documents, seed))
            (aside / f"{name}.txt").write_text(text + "\n", "utf-8")
        prepare_corpus(
            [aside / "often.txt", aside / "rarely.txt"],
            aside / "prepared",
            valid=[aside / "valid.txt"],
            tokenizer=aside / "tokenizer.given.json",
            workers=1,
            progress=False,
        )
        write_minimal_pairs(aside / MINIMAL_PAIRS, minimal_pairs())
        for part in (aside / "prepared").iterdir():
            part.rename(aside / part.name)
        (aside / "prepared").rmdir()


def _documents(count: int, seed: int) -> list[list[int]]:
    """Documents that begin with the beginning of a word, as `Tokenizer.encode` of their text does."""
    generator = np.random.default_rng(seed)
    share_V = zipfian_counts().numpy() / zipfian_counts().sum().item()
    documents = [generator.choice(VOCAB, generator.integers(5, 61), p=share_V).tolist() for _ in range(count)]
    return [[first - first % 2, *others] for first, *others in documents]


def minimal_pairs() -> list[MinimalPair]:
    """Two phenomena with eight pairs each: a word is repeated or not, and a word has two parts or three."""
    pairs = list(zip(LETTERS[:8], LETTERS[8:], strict=True))
    repeated = [MinimalPair(f"{a} {b} {a}", f"{a} {b} {b}", "repeated_word") for a, b in pairs]
    parts = [MinimalPair(f"{a}-{b} {b}", f"{a}-{b}-{b} {b}", "word_parts") for a, b in pairs]
    return [*repeated, *parts]


def minimal_pairs_file() -> Path:
    """The minimal pairs in a file, for plugins with an option for one."""
    return corpus_folder() / MINIMAL_PAIRS


@cache
def corpus_view() -> CorpusView:
    """The training split of the toy corpus, as `RunContext.corpus`; its documents are from two sources."""
    return TrainingText(Corpus.open(corpus_folder()))


def row_table(rows: int = 40, pieces: int = 3) -> RowTable:
    """The rows of an epoch: whole documents of a toy corpus, one to `pieces` of them per row."""
    corpus = corpus_view()
    assert corpus.source_D is not None
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
        position_BT=torch.where(has_place_BT, place_BT % POSITIONS, -1),
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
