"""Documents drawn from a feature grammar."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate

from ltg_mdlm.data.synthetic.feature_grammar import START, FeatureGrammar, Rule, Symbol
from ltg_mdlm.data.synthetic.spelling import sentence_text


class DocumentGenerator:
    """Draws from a grammar; the same for the same seed in every process and Python version."""

    def __init__(self, grammar: FeatureGrammar, seed: str) -> None:
        self.grammar = grammar
        self.random = random.Random(seed)
        self._cumulative = {
            symbol: list(accumulate(rule.probability for rule in rules)) for symbol, rules in grammar.rules.items()
        }

    def draw(self, symbol: Symbol) -> Rule:
        """A rule of a symbol."""
        rules = self.grammar.rules[symbol]
        return rules[min(bisect(self._cumulative[symbol], self.random.random()), len(rules) - 1)]

    def words(self, symbol: Symbol) -> list[str]:
        """The words of a sentence or phrase."""
        return [
            word for part in self.draw(symbol).parts for word in ([part] if isinstance(part, str) else self.words(part))
        ]

    def documents(self) -> Iterator[tuple[str, str]]:
        """(style, text) of documents without end; the style is the name of the symbol that replaced the start."""
        while True:
            (style,) = self.draw(Symbol(START)).parts
            state, text = style, ""
            while isinstance(state, Symbol):
                *said, state = (*self.draw(state).parts, "")
                if said and isinstance(said[-1], Symbol) and said[-1].name in self.grammar.discourse:
                    state = said.pop()
                for part in said:
                    if isinstance(part, str):
                        text += f"\n{part}\t" if text else f"{part}\t"
                    else:
                        text += ("" if not text or text.endswith("\t") else " ") + sentence_text(self.words(part))
            yield (style.name if isinstance(style, Symbol) else style).lower(), text
