"""A rule file with features as a weighted context-free grammar.

`english.grammar` explains the notation at its beginning. Every rule is expanded once for each assignment of values to
its features, so that agreement is part of the symbols ("Who[f, sg]"), and sampling and parsing need no unification.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import product
from typing import NamedTuple, TypeAlias

from ltg_mdlm.data.synthetic.spelling import gerund_of, past_of, plural_of, third_person_of

START = "Document"
"""The symbol of all documents."""

Binding: TypeAlias = Mapping[str, str]
"""Values of the variables of a rule."""


class Symbol(NamedTuple):
    """A category with the values of all its features, in the alphabetical order of the features."""

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """A category as written in a rule: each feature has a value, a variable (`?num`) or another value (`-?num`).

    `place` counts the items of this name in the rule, so that a minimal pair can refer to them.
    """

    name: str
    terms: Mapping[str, str]
    place: int = 0

    def term(self, feature: str) -> str:
        """The term of a feature; a variable of its own if the rule leaves it open."""
        return self.terms.get(feature, f"?{self.name}{self.place}.{feature}")


Part: TypeAlias = Item | str
"""An item, or a word."""


@dataclass(frozen=True)
class Rule:
    """An expanded rule. `key` identifies what was chosen, whatever the values of the features of its left-hand side."""

    symbol: Symbol
    parts: tuple[Symbol | str, ...]
    probability: float
    key: tuple[object, ...]
    template: Template
    binding: Binding


@dataclass(frozen=True, eq=False)
class Template:
    """A rule as written."""

    left: Item
    parts: tuple[Part, ...]
    weight: float
    line: int


class Mistake(NamedTuple):
    """A minimal pair of a phenomenon: a rule, and its right-hand side with a mistake."""

    uid: str
    field: str
    term: str
    template: Template
    parts: tuple[Part, ...]


class FeatureGrammar:
    """The expanded rules of a rule file.

    Attributes:
        rules: rules of each symbol, with probabilities that sum to one
        mistakes: minimal pairs, in the order of the file
        discourse: names of the symbols of documents and their continuations
        sentences: symbols of sentences, which are those that the rules of documents mention
        speakers: beginnings of lines in conversations, such as "*MOT:"
        vocabulary: all words
    """

    def __init__(self, text: str, exponent: float = 1.0) -> None:
        """Read the content of a rule file; `exponent` is the Zipf exponent of the words of each category.

        Raises ValueError for a line that cannot be read, and for a rule that can never be used.
        """
        self._exponent = exponent
        self._features: dict[str, dict[str, float]] = {}
        self.mistakes: list[Mistake] = []
        self.discourse: set[str] = set()
        templates = list(self._templates(text))
        self._features_of: dict[str, list[str]] = defaultdict(list)
        for template in templates:
            known = self._features_of[template.left.name]
            known[:] = sorted({*known, *template.left.terms})
        self.rules = self._expanded(templates)
        of_documents = {
            p for s, of in self.rules.items() if s.name in self.discourse for rule in of for p in rule.parts
        }
        of_sentences = {
            p for s, of in self.rules.items() if s.name not in self.discourse for rule in of for p in rule.parts
        }
        self.sentences = {p for p in of_documents if isinstance(p, Symbol) and p.name not in self.discourse}
        self.speakers = sorted(part for part in of_documents if isinstance(part, str))
        self.vocabulary = {part for part in of_sentences if isinstance(part, str)}

    def symbol(self, item: Item, binding: Binding, other: Binding | None = None) -> Symbol:
        """The symbol of an item. `other` has the values that a `-?x` stands for."""

        def value(term: str) -> str:
            if term.startswith("-"):
                return (other or {})[term[2:]]
            return binding[term[1:]] if term.startswith("?") else term

        return Symbol(item.name, tuple(value(item.term(feature)) for feature in self._features_of[item.name]))

    def _templates(self, text: str) -> Iterator[Template]:
        """The rules in the file, words included."""
        last: Template | None = None
        for number, line in _logical_lines(text):
            kind, _, rest = line.partition(" ")
            try:
                if kind == "feature":
                    name, _, values = rest.partition("=")
                    weighted = (value.split(":") for value in values.split())
                    self._features[name.strip()] = {value: float(weight) for value, weight in weighted}
                elif kind in ("word", "noun", "verb"):
                    left, words = rest.split(":")
                    yield from self._lexicon(kind, left, words, number)
                elif kind == "!":
                    about, right = rest.split(":")
                    uid, area, term = about.split()
                    assert last is not None
                    self.mistakes.append(Mistake(uid, area, term, last, self._parts(right)[0]))
                else:
                    left, arrow, right = re.split(r"\s+(->|=>)\s+", line)
                    parts, weight = self._parts(right)
                    last = Template(self._item(left), parts, weight, number)
                    if arrow == "=>":
                        self.discourse.add(last.left.name)
                    yield last
            except (ValueError, TypeError, AssertionError, IndexError):
                raise ValueError(f"rule file, line {number}: cannot be read: {line}") from None

    def _parts(self, text: str) -> tuple[tuple[Part, ...], float]:
        """Items and quoted words, and the weight after them."""
        seen: dict[str, int] = defaultdict(int)
        parts: list[Part] = []
        *tokens, last = re.findall(r'"[^"]+"|\d[\d.]*|\w+(?:\[[^\]]*\])?', text)
        weight = float(last) if last[0].isdigit() else 1.0
        for token in tokens if last[0].isdigit() else [*tokens, last]:
            if token.startswith('"'):
                parts.append(token[1:-1])
            else:
                name = token.partition("[")[0]
                parts.append(self._item(token, seen[name]))
                seen[name] += 1
        return tuple(parts), weight

    def _item(self, text: str, place: int = 0) -> Item:
        found = re.fullmatch(r"(\w+)(?:\[(.*)\])?", text.strip())
        assert found is not None
        terms = {}
        for term in filter(None, re.split(r",\s*", found[2] or "")):
            name, _, value = term.partition("=")
            sign, name = ("-", name[1:]) if name.startswith("-") else ("", name)
            terms[name] = value or f"{sign}?{name}"
            assert name in self._features
        return Item(found[1], terms, place)

    def _lexicon(self, kind: str, left: str, words: str, line: int) -> Iterator[Template]:
        """A template for every form of every word, of which the weight falls with the rank."""
        item = self._item(left)
        varied = {"noun": "num", "verb": "form"}.get(kind) or next(
            (name for name, term in item.terms.items() if term == f"?{name}" and "/" in words), None
        )
        for rank, entry in enumerate(words.split(), 1):
            forms = _forms(kind, entry.split("/"))
            values = list(self._features[varied]) if varied is not None else [""]
            if len(values) != len(forms):
                raise ValueError(entry)
            for value, form in zip(values, forms, strict=True):
                terms = {**item.terms, varied: value} if varied is not None else item.terms
                yield Template(
                    Item(item.name, terms), tuple(form.split("_")), rank**-self._exponent, line * 1000 + rank
                )

    def _expanded(self, templates: Sequence[Template]) -> dict[Symbol, list[Rule]]:
        rules: dict[Symbol, list[Rule]] = defaultdict(list)
        for template in templates:
            for rule in self._instances(template):
                rules[rule.symbol].append(rule)
        count, rules = 0, dict(rules)
        while count != (
            count := sum(map(len, rules.values()))
        ):  # drops rules without words, as for the plural of a name
            rules = {
                symbol: kept
                for symbol, of_symbol in rules.items()
                if (kept := [r for r in of_symbol if all(isinstance(p, str) or p in rules for p in r.parts)])
            }
        used = {rule.template for of_symbol in rules.values() for rule in of_symbol}
        if unused := [template for template in templates if template not in used]:
            raise ValueError(f"rule file, line {unused[0].line}: can never be used: {unused[0].left.name} -> ...")
        totals = {symbol: sum(rule.probability for rule in of_symbol) for symbol, of_symbol in rules.items()}
        return {s: [replace(r, probability=r.probability / totals[s]) for r in of] for s, of in rules.items()}

    def _instances(self, template: Template) -> Iterator[Rule]:
        """A rule for every assignment of values to the variables."""
        items = [template.left, *(part for part in template.parts if isinstance(part, Item))]
        domains: dict[str, dict[str, float]] = {}
        for item in items:
            for feature in self._features_of[item.name]:
                term = item.term(feature)
                if "?" in term:
                    name = term.lstrip("-?")
                    domains.setdefault(name, self._features.get(name, self._features[feature]))
        left = {template.left.term(feature).lstrip("-?") for feature in self._features_of[template.left.name]}
        free = sorted(domains.keys() - left)
        negated = sorted({t[2:] for item in items for t in item.terms.values() if t.startswith("-")})
        for values in product(*domains.values()):
            binding = dict(zip(domains, values, strict=True))
            for others in product(*([v for v in domains[name] if v != binding[name]] for name in negated)):
                other = dict(zip(negated, others, strict=True))
                weight = template.weight
                for name in free:
                    weight *= domains[name][binding[name]] / sum(domains[name].values())
                key = (template.line, *(f"{name}={binding[name]}" for name in free))
                parts = self.instance(template.parts, binding, other)
                yield Rule(self.symbol(template.left, binding), parts, weight, key, template, binding)

    def instance(self, parts: Iterable[Part], binding: Binding, other: Binding) -> tuple[Symbol | str, ...]:
        """The symbols and words of some parts."""
        return tuple(part if isinstance(part, str) else self.symbol(part, binding, other) for part in parts)


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """(number, text) of the lines without comments; an indented line continues the one before it."""
    found: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not (content := line.strip()) or content.startswith("#"):
            continue
        if line[0].isspace() and not content.startswith("!") and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {content}")
        else:
            found.append((number, content))
    return found


def _forms(kind: str, given: list[str]) -> list[str]:
    """The forms of a word; of a verb: base, present singular and plural, past, participle, gerund."""
    base = given[0]
    if kind == "noun":
        return [base, given[1] if len(given) > 1 else plural_of(base)]
    if kind == "verb":
        past = given[1] if len(given) > 1 else past_of(base)
        return [base, third_person_of(base), base, past, given[2] if len(given) > 2 else past, gerund_of(base)]
    return given


@cache
def english(exponent: float = 1.0) -> FeatureGrammar:
    """The grammar of the built-in corpus."""
    text = resources.files("ltg_mdlm.data.synthetic").joinpath("english.grammar").read_text("utf-8")
    return FeatureGrammar(text, exponent)
