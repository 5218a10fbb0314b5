"""Scorers whose scores are known, in place of a model."""

from collections.abc import Callable, Sequence

from ltg_mdlm.inference.texts import NextWord, Text, TextScore


class TableScorer:
    """Log-likelihoods and surprisals by functions of the text; remembers what it was asked."""

    def __init__(
        self,
        log_likelihood: Callable[[Text], float] = lambda text: -float(len(text.completion)),
        surprisal: Callable[[NextWord], float] = lambda word: float(len(word.word)),
    ) -> None:
        self.log_likelihood = log_likelihood
        self.surprisal = surprisal
        self.asked: list[Text] = []
        self.words: list[NextWord] = []

    def __call__(self, groups: Sequence[Sequence[Text]]) -> list[list[TextScore]]:
        self.asked.extend(text for group in groups for text in group)
        return [[TextScore(self.log_likelihood(text), len(text.completion.split())) for text in g] for g in groups]

    def surprisals(self, words: Sequence[NextWord]) -> list[float]:
        self.words.extend(words)
        return [self.surprisal(word) for word in words]
