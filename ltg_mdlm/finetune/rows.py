"""Pairs of texts as rows of tokens, and rows as the batches of a forward pass.

Suffixes: B rows, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ltg_mdlm.data.special_tokens import BOS, PAD
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.finetune.tasks import Example

_SEPARATORS = 2
"""`<s>` before either text."""


@dataclass(frozen=True)
class Rows:
    """The examples of one file, as the model reads them.

    Attributes:
        ids: tokens of every row: `<s> first <s> second`.
        labels: class of every row.
        truncated: how many rows were cut to fit.
    """

    ids: list[list[int]]
    labels: list[int]
    truncated: int

    def __len__(self) -> int:
        return len(self.ids)


class MicroBatch(NamedTuple):
    """Rows of one forward pass, padded to the longest of them."""

    ids_BT: Tensor
    document_BT: Tensor
    """0, and -1 at padding"""
    label_B: Tensor
    row_B: Tensor
    """which rows of the file these are"""


def encode(examples: Sequence[Example], tokenizer: Tokenizer, seq_len: int) -> Rows:
    """Tokens of pairs of texts, cut to `seq_len` as `truncate` does."""
    firsts, seconds = (
        [code.ids for code in tokenizer.backend.encode_batch(texts, add_special_tokens=False)]
        for texts in ([e.first for e in examples], [e.second for e in examples])
    )
    room = seq_len - _SEPARATORS
    ids, truncated = [], 0
    for first, second in zip(firsts, seconds, strict=True):
        kept_first, kept_second = truncate(len(first), len(second), room)
        ids.append([BOS, *first[:kept_first], BOS, *second[:kept_second]])
        truncated += kept_first + kept_second < len(first) + len(second)
    return Rows(ids, [example.label for example in examples], truncated)


def truncate(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept: the longer one loses its end first (`longest_first` of `tokenizers`)."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (short, room - short) if first <= second else (room - short, short)


def micro_batches(rows: Rows, chosen: Iterable[int], token_budget: int, device: torch.device) -> Iterator[MicroBatch]:
    """The chosen rows by length, in as many parts as keep each, padded, within `token_budget` (or at one row)."""
    part: list[int] = []
    for row in sorted(chosen, key=lambda row: len(rows.ids[row])):
        if part and (len(part) + 1) * len(rows.ids[row]) > token_budget:
            yield _micro_batch(rows, part, device)
            part = []
        part.append(row)
    if part:
        yield _micro_batch(rows, part, device)


def _micro_batch(rows: Rows, part: Sequence[int], device: torch.device) -> MicroBatch:
    longest = max(len(rows.ids[row]) for row in part)
    ids_BT = torch.tensor([rows.ids[row] + [PAD] * (longest - len(rows.ids[row])) for row in part])
    length_B = torch.tensor([len(rows.ids[row]) for row in part])
    document_BT = -(torch.arange(longest) >= length_B[:, None]).int()
    label_B = torch.tensor([rows.labels[row] for row in part])
    return MicroBatch(*(x.to(device) for x in (ids_BT, document_BT, label_B, torch.tensor(part))))
