"""Whether samples are text of the built-in grammar: a ground truth that no other corpus has."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ltg_mdlm.data.synthetic.document_likelihood import DocumentLikelihood
from ltg_mdlm.data.synthetic.feature_grammar import english
from ltg_mdlm.data.synthetic.spelling import sentences

_SENTENCE_ENDS = (".", "?", "!")


class GrammarVerdict(NamedTuple):
    """Which sentences of a sample the grammar can produce."""

    sentences: tuple[str, ...]
    """The complete sentences"""
    accepted: tuple[bool, ...]
    """One per sentence"""
    fragment: str
    """The end of the sample that the length cut off; it is not judged"""

    @property
    def rejected(self) -> list[str]:
        """The ungrammatical sentences."""
        return [sentence for sentence, accepted in zip(self.sentences, self.accepted, strict=True) if not accepted]

    def to_json(self) -> dict[str, Any]:
        """The content of samples.jsonl."""
        return {"sentences": len(self.sentences), "rejected": self.rejected, "fragment": self.fragment}


def judge_grammar(samples: Sequence[str], ended: Sequence[bool]) -> list[GrammarVerdict]:
    """A verdict for every sample, sentence by sentence, without regard to the order of sentences.

    `ended` marks the samples that the model ended, so that nothing was cut off.
    """
    likelihood = DocumentLikelihood(english())
    parts = [split_sample(text, complete) for text, complete in zip(samples, ended, strict=True)]
    return [GrammarVerdict(tuple(found), tuple(map(likelihood.accepts, found)), fragment) for found, fragment in parts]


def split_sample(text: str, complete: bool = False) -> tuple[list[str], str]:
    """The sentences of a sample, and the fragment at its end.

    The first sentence counts, because samples start at the beginning of a document. In dialogue, a speaker of the
    corpus before the tab is removed; anything else before a tab stays part of the sentence, which the grammar then
    rejects. The text after the last full stop, question mark or exclamation mark is a fragment, unless the sample is
    `complete`.
    """
    lines = [re.sub(rf"^({'|'.join(map(re.escape, english().speakers))})\t", "", line) for line in text.split("\n")]
    found = [sentence for line in lines if line for sentence in sentences(line)]
    if found and not complete and not found[-1].endswith(_SENTENCE_ENDS):
        return found[:-1], found[-1]
    return found, ""


def acceptance(verdicts: Sequence[GrammarVerdict]) -> Mapping[str, float]:
    """Share of grammatical sentences, and share of samples without an ungrammatical one; NaN if there are none.

    Samples without a complete sentence are left out.
    """
    judged = [verdict.accepted for verdict in verdicts if verdict.accepted]
    count = sum(map(len, judged))
    return {
        "grammatical_sentences": sum(map(sum, judged)) / count if count else math.nan,
        "grammatical_samples": sum(map(all, judged)) / len(judged) if judged else math.nan,
        "sentences": count,
    }
