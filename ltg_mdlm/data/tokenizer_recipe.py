"""The stack's byte-level BPE: how text is normalised and cut, and how the merges are learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ltg_mdlm.data.boundaries import join_units, plain_unit_ends
from ltg_mdlm.data.special_tokens import BOS, SPECIAL_TOKENS
from ltg_mdlm.data.unit_table import UnitTable

_WORDS_AND_SIGNS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LONGEST_TOKEN = 24  # bytes


def untrained_tokenizer() -> tokenizers.Tokenizer:
    """The stack's tokenizer without a vocabulary."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False, ignore_merges=True))
    lines = [normalizers.Replace(Regex("\n"), "\n "), normalizers.Replace(Regex(" *\n"), "\n")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(" "), normalizers.NFKC(), *lines])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS_AND_SIGNS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex(f".{{1,{_LONGEST_TOKEN}}}"), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Strip(" ", 1, 0), decoders.Replace("\n ", "\n")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return backend


def trained_definition(texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    """The JSON object of a tokenizer file, its merges learned from `texts`, which may be parts cut at safe places.

    The trainer counts words and looks at nothing else. It gets them ready-made, separated by spaces, which gives the
    same merges in half the time: most words are looked up, and not normalised and cut again.
    """
    counter = tokenizers.Tokenizer(models.BPE())
    counter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a pair seen once is no regularity
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    counter.train_from_iterator(_PreTokens().lines(texts), trainer)
    definition: dict[str, Any] = json.loads(untrained_tokenizer().to_str())
    learned = json.loads(counter.to_str())["model"]
    definition["model"] |= {"vocab": learned["vocab"], "merges": learned["merges"]}
    return definition


class _PreTokens:
    """The parts that the stack's pre-tokeniser cuts text into, in the byte alphabet, which has no blanks."""

    def __init__(self) -> None:
        self._backend = untrained_tokenizer()
        self._units = UnitTable(self._of_plain, self._of_other)

    def lines(self, texts: Iterable[str]) -> Iterator[str]:
        """One line for each text: its parts, separated by spaces."""
        return (" ".join(self._units.values(text)) for text in texts)

    def _cut(self, text: str) -> list[str]:
        normalised = self._backend.normalizer.normalize_str(text)
        return [part for part, _ in self._backend.pre_tokenizer.pre_tokenize_str(normalised)]

    def _of_plain(self, units: Sequence[str]) -> list[str]:
        parts = self._cut(join_units(units))
        ends = plain_unit_ends(units, np.array([len(part) for part in parts], np.int64))
        return [" ".join(parts[start:end]) for start, end in pairwise([0, *ends.tolist()])]

    def _of_other(self, units: Sequence[str]) -> list[str]:
        """The last part of a unit that ends a line is the space that the normaliser puts behind it."""
        parts = map(self._cut, units)
        return [" ".join(cut[:-1] if unit.endswith("\n") else cut) for unit, cut in zip(units, parts, strict=True)]
