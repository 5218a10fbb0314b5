"""Whether the grammar of the built-in corpus can produce a sentence: exactly, and by its own generator.

All ways of the generator are gone once, with slots instead of phrases (`grammar_slotted`), and the sentences that
come out are kept as patterns: "Is ... ...?", "There are two ...".  A sentence is looked up among the patterns, the
ways behind those that match are gone again with the phrases that can be seen in the sentence, and it is accepted if it
comes out, letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeAlias, cast

from ltg_mdlm.data.synthetic.grammar_books import PictureBook
from ltg_mdlm.data.synthetic.grammar_derivation import Derivation, Later, Parts, Sight, Slot
from ltg_mdlm.data.synthetic.grammar_phrases import NounPhrase
from ltg_mdlm.data.synthetic.grammar_slots import DETERMINER, MARK, REST, TAIL
from ltg_mdlm.data.synthetic.grammar_slotted import SlotClauses, SlotLexicon, SlotPhrases, SlotStory, SlotTalk
from ltg_mdlm.data.synthetic.grammar_talk import contracted, expanded

Unit: TypeAlias = Callable[[], Iterable[str]]
"""Draws a few texts that belong together: an exchange, an event, a line of a picture book."""


_ANY, _PERHAPS = "\x04", "\x05"


_NOUN_PHRASE = re.compile(f"\x02(\\d+){DETERMINER}\x03 \x02\\1{REST}\x03")


_TAIL = re.compile(f" \x02\\d+{TAIL}\x03")


_GLUED = re.compile(f"[\\w'-]*{_ANY}[\\w'-]*")


_ARTICLE = re.compile(rf"\b([aA])(\\ {_ANY})")


_WORD = re.compile(r"[\w'-]+")


_BETWEEN = re.compile(r"(?<=[.?!]) ")


_KNOWN_SENTENCES = 1 << 16


@dataclass(frozen=True, slots=True)
class Plan:
    """A way of the generator on which a sentence of some pattern comes out.

    Attributes:
        unit: which unit's way.
        place: number of the sentence among those of the unit.
        way: the generator's choices.
        shown: parts of the slots that the sentence shows.
        first: the slot of the noun phrase that the sentence begins with.
        needs: these slots, but for those that depend on how others are filled, by number.
    """

    unit: Unit
    place: int
    way: tuple[int, ...]
    shown: dict[int, Parts]
    first: int | None
    needs: tuple[int, ...]


class _ComesOut(Exception):
    """The sentence does."""


class Recogniser:
    """Decides about sentences.  Making one takes seconds; it does not depend on the frequencies of words."""

    def __init__(self) -> None:
        self._derivation = Derivation()
        self._lexicon = SlotLexicon()
        self._patterns: dict[frozenset[str], dict[re.Pattern[str], list[Plan]]] = {}
        self._needs: list[tuple[Slot, Parts]] = []
        self._numbers: dict[Hashable, int] = {}
        self._known_needs: dict[int, bool] = {}
        talked = frozenset(self._exchanges())
        for literals, pattern, plan in self._distinct_plans([*talked, *self._sights(), *self._events()]):
            self._patterns.setdefault(literals, {}).setdefault(pattern, []).append(plan)
        self._talked = talked
        self.accepts = lru_cache(_KNOWN_SENTENCES)(self._accepts)

    def _accepts(self, text: str) -> bool:
        plain = expanded(text)
        if plain == text:
            return self._comes_out(text, lambda _: True)
        # What is said may be contracted, and then is so wherever it can be.
        return contracted(plain) == text and self._comes_out(plain, self._talked.__contains__)

    def _comes_out(self, text: str, allowed: Callable[[Unit], bool]) -> bool:
        sight = Sight(text, self._lexicon.forms)
        self._derivation.look_at(sight)
        self._known_needs = {}
        words = frozenset(_WORD.findall(text))
        for literals, patterns in self._patterns.items():
            if literals <= words:
                for pattern, plans in patterns.items():
                    if pattern.fullmatch(text) and any(self._leads_to(text, p) for p in plans if allowed(p.unit)):
                        return True
        return False

    def _leads_to(self, text: str, plan: Plan) -> bool:
        if not all(map(self._met, plan.needs)):
            return False

        def run() -> None:
            self._derivation.begin()
            if _sentences_of(plan.unit())[plan.place] == text:
                raise _ComesOut

        try:
            self._derivation.follow(run, plan.way, plan.shown, plan.first)
        except _ComesOut:
            return True
        return False

    def _met(self, need: int) -> bool:
        if need not in self._known_needs:
            slot, parts = self._needs[need]
            self._known_needs[need] = bool(self._derivation.fillings(slot, parts))
        return self._known_needs[need]

    def _number(self, slot: Slot, parts: Parts) -> int:
        number = self._numbers.setdefault((slot.call, slot.features, parts), len(self._numbers))
        if number == len(self._needs):
            self._needs.append((slot, parts))
        return number

    def _distinct_plans(self, units: Iterable[Unit]) -> Iterator[tuple[frozenset[str], re.Pattern[str], Plan]]:
        known: set[Hashable] = set()
        patterns: dict[str, tuple[frozenset[str], re.Pattern[str]]] = {}
        for unit in units:
            for way, slots, texts in self._ways(unit):
                for place, text in enumerate(texts):
                    shown = _shown(text)
                    essence = _essence(text, shown, slots)
                    if essence not in known:
                        known.add(essence)
                        if text not in patterns:
                            patterns[text] = _literals(text), _pattern(text)
                        needs = tuple(
                            self._number(slots[n], parts)
                            for n, parts in shown.items()
                            if _stands_alone(slots[n], shown)
                        )
                        yield *patterns[text], Plan(unit, place, way, shown, _first(text), needs)

    def _ways(self, unit: Unit) -> list[tuple[tuple[int, ...], list[Slot], list[str]]]:
        derivation = self._derivation

        def run() -> tuple[tuple[int, ...], list[Slot], list[str]]:
            derivation.begin()
            texts = _sentences_of(unit())
            return derivation.way, derivation.slots, texts

        return derivation.outcomes(run)

    # All that is ever drawn: see `grammar.documents`.

    def _clauses(self, *owners: str, past: bool) -> SlotClauses:
        return SlotClauses(SlotPhrases(self._lexicon, self._derivation, owners), past=past)

    def _exchanges(self) -> Iterator[Unit]:
        talk = SlotTalk(self._clauses("my", "your", past=False))
        for exchange in talk.exchanges:
            yield partial(_exchanged, exchange, talk)

    def _sights(self) -> Iterator[Unit]:
        for kind in PictureBook(self._clauses(past=False)).kinds:
            yield partial(_seen, kind)

    def _events(self) -> Iterator[Unit]:
        for owners, first_person in (((), False), (("my", "our"), True)):
            clauses = self._clauses(*owners, past=True)
            story = SlotStory(clauses, first_person=first_person)
            for event in (story.opening, *story.events(), story.ending):
                yield partial(_told, clauses, first_person, event.__name__)


def _exchanged(exchange: Callable[[NounPhrase], list[str]], talk: SlotTalk) -> list[str]:
    return exchange(cast(NounPhrase, Later(talk.topic)))


def _seen(kind: Callable[[], str]) -> list[str]:
    return [kind()]


def _told(clauses: SlotClauses, first_person: bool, event: str) -> list[str]:
    told: list[str] = getattr(SlotStory(clauses, first_person=first_person), event)()
    return told


def sentences(text: str) -> list[str]:
    """The sentences of a line: each ends with a full stop, question mark or exclamation mark before a blank."""
    return _BETWEEN.split(text)


def _sentences_of(texts: Iterable[str]) -> list[str]:
    return [sentence for text in texts for sentence in sentences(text)]


def _shown(text: str) -> dict[int, Parts]:
    parts: dict[int, set[str]] = {}
    for found in MARK.finditer(text):
        parts.setdefault(int(found[1]), set()).add(found[2])
    return {slot: frozenset(these) for slot, these in parts.items()}


def _first(text: str) -> int | None:
    found = MARK.match(text)
    return int(found[1]) if found and found[2] in (DETERMINER, REST) else None


def _essence(text: str, shown: dict[int, Parts], slots: Sequence[Slot]) -> Hashable:
    """Equal for ways on which the same sentences come out: slots are numbered by their order in the sentence."""
    order = {slot: str(i) for i, slot in enumerate(shown)}
    renumbered = MARK.sub(lambda found: f"\x02{order[int(found[1])]}{found[2]}\x03", text)
    return renumbered, tuple(
        (slots[slot].call, slots[slot].features, tuple(order.get(on) for on in slots[slot].depends_on))
        for slot in shown
    )


def _stands_alone(slot: Slot, shown: dict[int, Parts]) -> bool:
    return not any(on in shown for on in slot.depends_on)


def _without_marks(text: str) -> str:
    text = _NOUN_PHRASE.sub(_ANY, text)
    return _GLUED.sub(_ANY, MARK.sub(_ANY, _TAIL.sub(_PERHAPS, text)))


def _literals(text: str) -> frozenset[str]:
    """The words that a sentence has whatever fills its slots."""
    return frozenset(_WORD.findall(_without_marks(text))) - {"a", "A"}


def _pattern(text: str) -> re.Pattern[str]:
    escaped = _ARTICLE.sub(r"\1n?\2", re.escape(_without_marks(text)))
    return re.compile(escaped.replace(_ANY, ".+").replace(_PERHAPS, "(?: .+)?"))
