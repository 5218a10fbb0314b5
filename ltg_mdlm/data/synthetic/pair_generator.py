"""Minimal pairs of the phenomena in the rule file, in the format of BLiMP (Warstadt et al. 2020, arXiv 1912.00582).

A pair is one derivation with and without the mistake: both sentences make the same choices at the same places, so that
they have the same words except for the forms and places that the mistake changes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ltg_mdlm.data.records import MinimalPair
from ltg_mdlm.data.synthetic.document_generator import DocumentGenerator
from ltg_mdlm.data.synthetic.feature_grammar import Item, Mistake, Part, Rule, Symbol
from ltg_mdlm.data.synthetic.spelling import sentence_text, sentences

_DRAWS_PER_PAIR = 50

Path: TypeAlias = tuple[object, ...]
"""Names and numbers of the items from the sentence to a phrase in it."""

Contrast: TypeAlias = tuple[str, str]
"""A good sentence and its bad counterpart."""


@dataclass
class Choices:
    """Choices of rules and words, which derivations of the same sentence with other features repeat where they can."""

    generator: DocumentGenerator
    made: dict[tuple[Path, Symbol], Rule] = field(default_factory=dict)
    first: dict[Path, tuple[object, ...]] = field(default_factory=dict)

    def rule(self, symbol: Symbol, path: Path) -> Rule:
        """The rule of a phrase: the one chosen before for this symbol, else for other features, else a new one."""
        if (path, symbol) not in self.made:
            alike = [rule for rule in self.generator.grammar.rules[symbol] if rule.key == self.first.get(path)]
            self.made[path, symbol] = rule = alike[0] if alike else self.generator.draw(symbol)
            self.first.setdefault(path, rule.key)
        return self.made[path, symbol]

    def words(self, symbols: Sequence[Symbol | str], parts: Sequence[Part], path: Path = ()) -> Iterator[str]:
        """The words of a right-hand side, given expanded (`symbols`) and as written (`parts`)."""
        for symbol, part in zip(symbols, parts, strict=True):
            if isinstance(part, Item) and isinstance(symbol, Symbol):
                below = (*path, part.name, part.place)
                rule = self.rule(symbol, below)
                yield from self.words(rule.parts, rule.template.parts, below)
            else:
                assert isinstance(part, str)
                yield part


def minimal_pairs(
    generator: DocumentGenerator, allowed: Callable[[Contrast], bool], per_phenomenon: int = 100
) -> list[MinimalPair]:
    """Pairs of all phenomena, all different; the same for the same arguments.

    A phenomenon has `per_phenomenon` pairs, or some more that complete a set; fewer if too few are `allowed`.
    """
    phenomena: Mapping[str, list[Mistake]] = defaultdict(list)
    for mistake in generator.grammar.mistakes:
        phenomena[mistake.uid].append(mistake)
    pairs = []
    for mistakes in phenomena.values():
        chosen: dict[Contrast, Mistake] = {}
        for _ in range(_DRAWS_PER_PAIR * per_phenomenon):
            contrasts = balanced_set(generator, mistakes)
            if all(good != bad and (good, bad) not in chosen and allowed((good, bad)) for good, bad in contrasts):
                chosen |= contrasts
            if len(chosen) >= per_phenomenon:
                break
        pairs += [MinimalPair(good, bad, of.uid, of.field, of.term) for (good, bad), of in chosen.items()]
    return pairs


def balanced_set(generator: DocumentGenerator, mistakes: Sequence[Mistake]) -> dict[Contrast, Mistake]:
    """Pairs of a phenomenon whose good and bad sentences have the same words together; empty if this attempt failed.

    Where the mistake is another value of a feature: a pair for each of two values. Else a pair for each rule.
    """
    choices, grammar = Choices(generator), generator.grammar
    mistake = generator.random.choice(mistakes)
    broken = {
        term.removeprefix("-?")
        for part in mistake.parts
        if isinstance(part, Item)
        for term in part.terms.values()
        if term.startswith("-")
    }
    found: dict[Contrast, Mistake] = {}
    for one in [mistake] if broken else mistakes:
        rules = [rule for of_symbol in grammar.rules.values() for rule in of_symbol if rule.template is one.template]
        (rule,) = generator.random.choices(rules, weights=[rule.probability for rule in rules])
        twins = [rule]
        if broken:
            others = [r for r in rules if {key for key in r.binding if r.binding[key] != rule.binding[key]} == broken]
            if not others:
                return {}
            twins += generator.random.choices(others, weights=[rule.probability for rule in others])
        for twin, opposite in zip(twins, reversed(twins), strict=True):
            words = []
            for parts in (one.template.parts, one.parts):
                symbols = grammar.instance(parts, twin.binding, opposite.binding)
                if any(isinstance(symbol, Symbol) and symbol not in grammar.rules for symbol in symbols):
                    return {}
                words.append(sentence_text(list(choices.words(symbols, parts))))
            found[words[0], words[1]] = one
    return found


def new_with_known_words(documents: Iterable[str]) -> Callable[[Contrast], bool]:
    """Whether every word of a contrast is in a training text, and neither of its sentences is."""
    lines = (line.split("\t")[-1] for text in documents for line in text.split("\n"))
    seen = {sentence for line in lines for sentence in sentences(line)}
    known = {word for sentence in seen for word in _words(sentence)}
    return lambda contrast: seen.isdisjoint(contrast) and known.issuperset(_words(" ".join(contrast)))


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())
