"""The probability of texts under a feature grammar: the inside algorithm (Baker 1979) over sentences and discourse.

The inside probability of a symbol over a span of words is the sum over all its derivations. Sentences are parsed bottom
up, span by span; documents are then summed over all sequences of discourse states that can produce their sentences.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TypeAlias

from ltg_mdlm.data.synthetic.feature_grammar import START, FeatureGrammar, Symbol
from ltg_mdlm.data.synthetic.spelling import sentence_words, sentences

Node: TypeAlias = "Symbol | str | tuple[Symbol | str, ...]"
"""A symbol, a word, or the rest of a right-hand side after its first parts."""


class DocumentLikelihood:
    """Probabilities of sentences and documents under a grammar."""

    def __init__(self, grammar: FeatureGrammar) -> None:
        self.grammar = grammar
        self._pairs: dict[Node, dict[Node, dict[Node, float]]] = defaultdict(lambda: defaultdict(dict))
        """Probability by left part, right part and what they make together."""
        over: dict[Node, dict[Node, float]] = defaultdict(lambda: defaultdict(float))
        for symbol, rules in grammar.rules.items():
            if symbol.name in grammar.discourse:
                continue
            for rule in rules:
                if len(rule.parts) == 1:
                    over[rule.parts[0]][symbol] += rule.probability
                for start in range(len(rule.parts) - 1):
                    first, rest = rule.parts[start], rule.parts[start + 1 :]
                    whole: Node = rule.parts[start:] if start else symbol
                    into = self._pairs[first][rest if len(rest) > 1 else rest[0]]
                    into[whole] = 1.0 if start else into.get(whole, 0.0) + rule.probability

        @cache
        def above(node: Node) -> Mapping[Node, float]:
            """The node and all symbols that consist of it alone, with the summed probability of the chains of rules."""
            total: dict[Node, float] = defaultdict(float, {node: 1.0})
            for parent, probability in over.get(node, {}).items():
                for symbol, chain in above(parent).items():
                    total[symbol] += probability * chain
            return total

        self._above = above
        self.sentence = lru_cache(maxsize=50_000)(self._sentence)

    def _sentence(self, text: str) -> dict[Symbol, float]:
        """Probability of a sentence under every symbol that can produce it; empty for text that is no sentence."""
        words = sentence_words(text, self.grammar.vocabulary)
        chart: dict[tuple[int, int], dict[Node, float]] = {}
        for length in range(1, len(words) + 1):
            for start in range(len(words) - length + 1):
                end = start + length
                made: dict[Node, float] = defaultdict(float, {words[start]: 1.0} if length == 1 else {})
                for middle in range(start + 1, end):
                    right = chart[middle, end]
                    for left, left_probability in chart[start, middle].items():
                        followers = self._pairs.get(left, {})
                        for follower in followers.keys() & right.keys():
                            both = left_probability * right[follower]
                            for whole, probability in followers[follower].items():
                                made[whole] += both * probability
                cell: dict[Node, float] = defaultdict(float)
                for node, probability in made.items():
                    for symbol, chain in self._above(node).items():
                        cell[symbol] += probability * chain
                chart[start, end] = cell
        whole_text = chart.get((0, len(words)), {})
        return {symbol: whole_text[symbol] for symbol in self.grammar.sentences & whole_text.keys()}

    def accepts(self, text: str) -> bool:
        """Whether the text is a sentence of the grammar, with its spelling."""
        return bool(self.sentence(text))

    def log_probability(self, document: str) -> float:
        """log p of a document in nats, summed over its styles and states; -inf if the grammar cannot produce it."""
        said: list[Mapping[Symbol | str, float]] = []
        scale = 0.0
        for line in document.split("\n"):
            speaker, tab, rest = line.rpartition("\t")
            said += [{speaker: 1.0}] if tab else []
            for text in sentences(rest):
                by_symbol = self.sentence(text)
                if not by_symbol:
                    return -math.inf
                largest = max(by_symbol.values())  # scaled, because a product of many sentences underflows
                scale += math.log(largest)
                said.append({symbol: p / largest for symbol, p in by_symbol.items()})

        @cache
        def probability(state: Symbol, start: int) -> float:
            """Of everything from this position on."""
            total = 0.0
            for rule in self.grammar.rules[state]:
                product, position = rule.probability, start
                for part in rule.parts:
                    if isinstance(part, Symbol) and part.name in self.grammar.discourse:
                        product *= probability(part, position)
                        position = len(said)
                    elif position < len(said):
                        product *= said[position].get(part, 0.0)
                        position += 1
                    else:
                        product = 0.0
                    if not product:
                        break
                else:
                    total += product if position == len(said) else 0.0
            return total

        whole = probability(Symbol(START), 0)
        return math.log(whole) + scale if whole > 0 else -math.inf
