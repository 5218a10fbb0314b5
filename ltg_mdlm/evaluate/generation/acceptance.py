"""Which sentences of samples the grammar of the built-in corpus can produce: ground truth that no other corpus has."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ltg_mdlm.data.grammar_recogniser import Recogniser, sentences
from ltg_mdlm.data.grammar_talk import SPEAKERS
from ltg_mdlm.progress import count_progress

_SPEAKER = re.compile(rf"\*(?:{'|'.join(sorted(SPEAKERS))}):\t")
_ENDS = (".", "?", "!")


class Verdict(NamedTuple):
    """What the grammar says of a sample."""

    sentences: tuple[str, ...]
    """Those that are complete"""
    accepted: tuple[bool, ...]
    """Of each"""
    fragment: str
    """What the length cut off at the end: not judged"""

    def to_json(self) -> dict[str, Any]:
        """As samples.jsonl has it."""
        return {"sentences": len(self.sentences), "rejected": self.rejected, "fragment": self.fragment}

    @property
    def rejected(self) -> list[str]:
        """The sentences that the grammar cannot produce."""
        return [said for said, accepted in zip(self.sentences, self.accepted, strict=True) if not accepted]


class Grammar:
    """Judges samples, sentence by sentence; how sentences follow each other is not judged."""

    def __init__(self) -> None:
        """Takes some seconds."""
        self._recogniser = Recogniser()

    def judge(self, samples: Sequence[str], ended: Sequence[bool], *, progress: bool = False) -> list[Verdict]:
        """A verdict for every sample; `ended` says which were ended by the model, so that nothing was cut off."""
        verdicts = []
        with count_progress("asking the grammar", len(samples), show=progress) as advance:
            for text, complete in zip(samples, ended, strict=True):
                verdicts.append(self._verdict(text, complete))
                advance(1)
        return verdicts

    def _verdict(self, text: str, complete: bool) -> Verdict:
        said, fragment = split_sample(text, complete)
        return Verdict(tuple(said), tuple(map(self._recogniser.accepts, said)), fragment)


def split_sample(text: str, complete: bool = False) -> tuple[list[str], str]:
    """The sentences of a sample, and what is left at its end.

    The first sentence counts, since samples begin where documents do.  A speaker of the corpus before the tab of a line
    of talk is left out; anything else before a tab is part of the sentence, which the grammar then rejects.  The text
    behind the last full stop, question mark or exclamation mark is a fragment, unless the sample is `complete`.
    """
    lines = [_SPEAKER.sub("", line, count=1) if _SPEAKER.match(line) else line for line in text.split("\n")]
    said = [sentence for line in lines if line for sentence in sentences(line)]
    if said and not complete and not said[-1].endswith(_ENDS):
        return said[:-1], said[-1]
    return said, ""


def acceptance(verdicts: Sequence[Verdict]) -> Mapping[str, float]:
    """Shares of sentences, and of samples with at least one sentence, of which none is rejected; NaN of nothing."""
    judged = [verdict.accepted for verdict in verdicts if verdict.accepted]
    return {
        "grammatical_sentences": _share([accepted for sample in judged for accepted in sample]),
        "grammatical_samples": _share([all(sample) for sample in judged]),
        "sentences": sum(map(len, judged)),
    }


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks) if marks else math.nan
