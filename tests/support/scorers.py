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

    def __call__(self, groups: Sequence[Sequence[Text]], *, per_token: bool = False) -> list[list[TextScore]]:
        self.asked.extend(text for group in groups for text in group)
        return [[self._score(text, per_token) for text in group] for group in groups]

    def _score(self, text: Text, per_token: bool) -> TextScore:
        words = len(text.completion.split())
        return TextScore(self.log_likelihood(text) / (words if per_token else 1), words)

    def surprisals(self, words: Sequence[NextWord]) -> list[float]:
        self.words.extend(words)
        return [self.surprisal(word) for word in words]
