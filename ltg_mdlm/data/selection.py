"""Which documents of a split are kept: duplicates, documents that share text with evaluation data, and a budget.

A `Selection` is given the text once, and then says for every document whether it is kept. What it keeps in memory
grows with the number of documents: about 100 bytes for each, and 1 KB if near-duplicates are searched.

Suffixes: D documents, S sources.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import did_you_mean
from ltg_mdlm.data.readers import Piece
from ltg_mdlm.data.word_sequences import SharedNgrams
from ltg_mdlm.data.words import WordUnit, terms_of

BYTES_PER_WORD = 5.46
"""UTF-8 bytes of an English word and the blank after it: 5,330,137 / 976,633 in the BabyLM-2024 sample of 1M words."""

BYTE_PREMIUMS = {"eng": 1.0, "nld": 1.051606, "zho": 0.935966}
"""Bytes that a text takes, relative to its English translation, for the languages of the challenge (Arnett et al. 2024,
A Bit of a Problem: Measurement Disparities in Dataset Sizes across Languages)."""

_SHINGLE = 5
"""Terms of the overlapping sequences by which near-duplicates are recognised."""

_PERMUTATIONS = 128


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on the size of the training text, in English words or their equivalent in other languages.

    The equivalent of a text is its bytes / (its byte premium * `BYTES_PER_WORD`); English text, and text of an unknown
    language, is counted in words.
    """

    words: int
    premiums: Mapping[str, float] = field(default_factory=dict)
    """Byte premium by source; the key "" is for all others"""

    def size(self, source: str, words: float, text_bytes: int) -> float:
        """The size of a text in words of English."""
        premium = self.premiums.get(source, self.premiums.get("", 1.0))
        return words if premium == 1 else text_bytes / (premium * BYTES_PER_WORD)


def premiums_of(languages: list[str]) -> dict[str, float]:
    """Byte premium by source from options such as `zho`, `SOURCE=nld` or `SOURCE=1.23`.

    Raises:
        UserError: a language without a known premium.
    """
    premiums: dict[str, float] = {}
    for option in languages:
        source, _, language = option.rpartition("=")
        if source in premiums:
            raise UserError(
                f"--language {option}: there already is one for {source or 'all other sources'}; write SOURCE=LANGUAGE"
            )
        code = language.lower().partition("_")[0]
        try:
            premiums[source] = BYTE_PREMIUMS[code] if code in BYTE_PREMIUMS else float(language)
        except ValueError:
            raise UserError(
                f"--language {option}: the byte premium of {language!r} is not known here; known: "
                f"{', '.join(BYTE_PREMIUMS)}\n  give the number itself, as in --language 1.25, from the table of"
                " https://github.com/catherinearnett/byte-premium-tool"
            ) from None
        if not 0 < premiums[source] < 100:
            raise UserError(f"--language {option}: a byte premium must be greater than 0 and less than 100")
    return premiums


@dataclass(frozen=True, slots=True)
class Choice:
    """What is left out of a split."""

    duplicates: bool = False
    """Documents that are equal to an earlier one"""
    near_duplicates: float | None = None
    """Documents whose shingles have at least this Jaccard similarity with those of an earlier one"""
    evaluation: SharedNgrams | None = None
    """Documents that share an n-gram with evaluation data"""
    budget: Budget | None = None
    """Limit on the size"""

    @property
    def is_everything(self) -> bool:
        return not (self.duplicates or self.near_duplicates or self.evaluation or self.budget)


class Selection:
    """Collects what decides which documents are kept.

    Attributes:
        left_out: after `decide`, documents and words that were left out, by reason
        room: after `decide`, the size in the unit of the budget of documents that are kept in part, by number; at most
            one of each source
        size: after `decide`, the size of what is kept, in the unit of the budget
    """

    def __init__(self, choice: Choice, unit: WordUnit) -> None:
        self._choice, self._unit = choice, unit
        self._words, self._bytes, self._source = array("q"), array("q"), array("l")
        self._number_of_source: dict[str, int] = {}
        self._reason = bytearray()
        self._hashes: set[bytes] = set()
        self._digest = hashlib.blake2b(digest_size=16)
        self._last_terms: list[str] = []
        self._deduplicator: Any = None
        self._minhash: Any = None
        if choice.near_duplicates is not None:
            self._deduplicator = _rensa().RMinHashDeduplicator(
                threshold=choice.near_duplicates, num_perm=_PERMUTATIONS, use_lsh=True, seed=1
            )
        self.left_out: dict[str, dict[str, int]] = {}
        self.room: dict[int, float] = {}
        self.size = 0.0

    def add(self, piece: Piece) -> None:
        """The next piece of the text."""
        if piece.opens_document:
            self._close()
            self._words.append(0)
            self._bytes.append(0)
            self._source.append(self._number_of_source.setdefault(piece.source, len(self._number_of_source)))
            self._reason.append(0)
            self._digest = hashlib.blake2b(digest_size=16)
            self._last_terms, self._minhash = [], None
        self._words[-1] += self._unit.count(piece.text)
        data = piece.text.encode()
        self._bytes[-1] += len(data)
        if self._choice.duplicates:
            self._digest.update(data)
        if self._deduplicator is not None:
            terms = self._last_terms + terms_of(piece.text)
            self._last_terms = terms[-(_SHINGLE - 1) :]
            shingles = [" ".join(terms[i : i + _SHINGLE]) for i in range(max(1, len(terms) - _SHINGLE + 1))]
            if terms:
                self._minhash = self._minhash or _rensa().RMinHash(num_perm=_PERMUTATIONS, seed=1)
                self._minhash.update(shingles)
        if self._choice.evaluation is not None:
            self._choice.evaluation.add(piece)

    def _close(self) -> None:
        """Decide about the last document, as far as the documents before it matter."""
        if not self._reason:
            return
        if self._choice.duplicates:
            digest = self._digest.digest()
            if digest in self._hashes:
                self._reason[-1] = 1
            self._hashes.add(digest)
        if (
            self._deduplicator is not None
            and self._minhash is not None
            and not self._reason[-1]
            and not self._deduplicator.add(str(len(self._reason)), self._minhash)
        ):
            self._reason[-1] = 2

    def decide(self) -> NDArray[np.bool_]:
        """bool[D]: whether each document is kept.

        Raises UserError for a byte premium of a source that the text does not have.
        """
        self._close()
        reason_D = np.frombuffer(self._reason, np.uint8).copy()
        if self._choice.evaluation is not None:
            self._choice.evaluation.finish()
            found = np.array(sorted(self._choice.evaluation.found), np.int64)
            reason_D[found[reason_D[found] == 0]] = 3
        sources = list(self._number_of_source)
        columns = zip(self._source, self._words, self._bytes, strict=True)
        budget = self._choice.budget or Budget(0)
        if unknown := budget.premiums.keys() - {"", *sources}:
            name = min(unknown)
            listed = ", ".join(sorted(sources))
            raise UserError(f"--language {name}=...: no such source{did_you_mean(name, sources)}\n  sources: {listed}")
        every = self._unit.every
        size_D = np.array([budget.size(sources[s], words / every, size) for s, words, size in columns])
        fresh_D = reason_D == 0
        if self._choice.budget is not None and (total := size_D[fresh_D].sum()) > budget.words:
            source_D = np.array(self._source)
            for source in range(len(sources)):
                chosen = np.flatnonzero(fresh_D & (source_D == source))
                share = budget.words / total
                out = chosen[~within_share(size_D[chosen], share)]
                reason_D[out] = 4
                rest = share * size_D[chosen].sum() - size_D[chosen].sum() + size_D[out].sum()
                if len(larger := out[size_D[out] > rest]):
                    self.room[int(larger[0])] = float(rest)
                    reason_D[larger[0]] = 0
        words_D = np.array(self._words) / every
        names = {1: "duplicates", 2: "near_duplicates", 3: "evaluation_data", 4: "budget"}
        for number, name in names.items():
            if (out_D := reason_D == number).any():
                self.left_out[name] = {"documents": int(out_D.sum()), "words": int(words_D[out_D].sum())}
        for number, room in self.room.items():
            counts = self.left_out.setdefault("budget", {"documents": 0, "words": 0})
            counts["words"] += int(words_D[number] * (1 - room / size_D[number]))
            size_D[number] = room
        kept_D: NDArray[np.bool_] = reason_D == 0
        self.size = float(size_D[kept_D].sum())
        return kept_D

    def shorten(self, piece: Piece, room: float) -> tuple[Piece, float]:
        """The whole words of a piece that have room, and the room after them."""
        assert self._choice.budget is not None
        end = 0
        for match in re.finditer(r"\S*\s*", piece.text):
            words = self._unit.count(match[0]) / self._unit.every
            size = self._choice.budget.size(piece.source, words, len(match[0].encode()))
            if size > room:
                return piece._replace(text=piece.text[:end].rstrip()), 0.0
            end, room = match.end(), room - size
        return piece, room

    def describe(self) -> dict[str, Any]:
        """What was left out, and the size of the rest in words of English, for corpus.json."""
        return {"left_out": self.left_out, **({"budget_size": round(self.size)} if self._choice.budget else {})}


def within_share(size_D: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """bool[D]: documents with at most `share` of the whole size, evenly spread and never ahead of their share."""
    kept_D = np.zeros(len(size_D), bool)
    allowed = 0.0
    for number, size in enumerate(size_D.tolist()):
        allowed += share * size
        if size <= allowed:
            kept_D[number] = True
            allowed -= size
    return kept_D


def _rensa() -> Any:
    try:
        import rensa
    except ImportError:
        raise UserError('--drop-near-duplicates needs the package rensa\n  pip install "ltg-mdlm[data]"') from None
    return rensa
