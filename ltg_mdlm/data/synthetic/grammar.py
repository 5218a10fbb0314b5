"""Text of the built-in corpus: short documents in the style of what is said and read to children.

A probabilistic grammar of English with agreement (verbs, reflexives, determiners), questions, negation, embedding
and pronouns that refer back, over a lexicon whose word classes follow Zipf's law. Words: `grammar_words`,
`grammar_lexicon`; phrases and clauses: `grammar_phrases`, `grammar_clauses`, `grammar_frames`; texts: `grammar_talk`,
`grammar_stories`, `grammar_books`; sentences with one mistake: `grammar_pairs`; and whether a sentence is one of the
grammar: `grammar_recogniser`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ltg_mdlm.data.synthetic.grammar_books import PictureBook
from ltg_mdlm.data.synthetic.grammar_chance import Chance
from ltg_mdlm.data.synthetic.grammar_frames import Clauses
from ltg_mdlm.data.synthetic.grammar_lexicon import Lexicon
from ltg_mdlm.data.synthetic.grammar_phrases import Phrases
from ltg_mdlm.data.synthetic.grammar_stories import Story
from ltg_mdlm.data.synthetic.grammar_talk import Talk


def documents(lexicon: Lexicon, seed: int, stream: str) -> Iterator[str]:
    """The texts of `styled_documents`."""
    return (text for _, text in styled_documents(lexicon, seed, stream))


def styled_documents(lexicon: Lexicon, seed: int, stream: str) -> Iterator[tuple[str, str]]:
    """(style, text) of documents without end; the same for the same arguments in every process and Python version.

    The styles are "talk", "book", "story" and "diary".

    Args:
        stream: names the part ("train", "valid"); parts of one seed are independent of each other.
    """
    chance = Chance(f"{seed}/{stream}")
    told = Phrases(lexicon, chance)
    tale = Clauses(told, past=True)
    diary = Clauses(Phrases(lexicon, chance, owners=("my", "our")), past=True)
    talk = Talk(Clauses(Phrases(lexicon, chance, owners=("my", "your")), past=False))
    book = PictureBook(Clauses(told, past=False))
    styles: dict[tuple[str, Callable[[], str]], float] = {
        ("talk", talk.conversation): 3,
        ("book", book.read): 3,
        ("story", lambda: Story(tale).tell()): 3,
        ("diary", lambda: Story(diary, first_person=True).tell()): 1,
    }
    while True:
        style, write = chance.weighted(styles)
        yield style, write()
