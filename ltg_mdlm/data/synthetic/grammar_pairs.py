"""Minimal pairs of the built-in corpus: drawn for every phenomenon, and chosen so that no sentence was trained on.

The idea and the file format are those of BLiMP (Warstadt et al. 2020, arXiv 1912.00582).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ltg_mdlm.data.records import MinimalPair
from ltg_mdlm.data.synthetic.grammar_chance import Chance
from ltg_mdlm.data.synthetic.grammar_frames import Clauses
from ltg_mdlm.data.synthetic.grammar_lexicon import Lexicon
from ltg_mdlm.data.synthetic.grammar_phenomena import Contrast, Phenomena, Phenomenon
from ltg_mdlm.data.synthetic.grammar_phrases import Phrases

_DRAWS_PER_PAIR = 20


@dataclass(frozen=True, slots=True)
class Attested:
    """What a training text holds.

    Attributes:
        sentences: every sentence, as written.
        words: every word, in lower case and without punctuation.
    """

    sentences: frozenset[str]
    words: frozenset[str]

    @classmethod
    def in_text(cls, documents: Iterable[str]) -> Attested:
        """Read the documents of a text."""
        sentences: set[str] = set()
        for document in documents:
            for line in document.splitlines():
                sentences.update(re.split(r"(?<=[.?!]) ", line.split("\t")[-1]))
        return cls(frozenset(sentences), frozenset(word for said in sentences for word in _words(said)))

    def allows(self, contrast: Contrast) -> bool:
        """Whether every word was seen, and neither sentence was."""
        return not self.sentences.intersection(contrast) and self.words.issuperset(_words(" ".join(contrast)))


def minimal_pairs(lexicon: Lexicon, seed: int, attested: Attested, per_phenomenon: int = 100) -> list[MinimalPair]:
    """Pairs of all phenomena, all different; the same for the same arguments.

    A phenomenon has `per_phenomenon` pairs, or one more that completes a twin; fewer if a short text has too few words.
    """
    phrases = Phrases(lexicon, Chance(f"{seed}/pairs"))
    return [
        MinimalPair(good, bad, phenomenon.uid, phenomenon.field, phenomenon.term)
        for phenomenon in Phenomena(Clauses(phrases, past=False)).all
        for good, bad in _chosen(phenomenon, attested, per_phenomenon)
    ]


def _chosen(phenomenon: Phenomenon, attested: Attested, count: int) -> list[Contrast]:
    chosen: dict[Contrast, None] = {}
    for _ in range(_DRAWS_PER_PAIR * count):
        balanced = phenomenon.draw()
        if all(attested.allows(contrast) and contrast not in chosen for contrast in balanced):
            chosen.update(dict.fromkeys(balanced))
        if len(chosen) >= count:
            break
    return list(chosen)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())
