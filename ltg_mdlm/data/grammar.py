"""Text of the built-in corpus: short documents in the style of what is said and read to children.

A probabilistic grammar of English with agreement (verbs, reflexives, determiners), questions, negation, embedding and
pronouns that refer back, over a lexicon whose word classes follow Zipf's law. Words: `grammar_words`, `grammar_lexicon`;
phrases and clauses: `grammar_phrases`, `grammar_clauses`; texts: `grammar_talk`, `grammar_stories`.
"""

import random
from collections.abc import Callable, Iterator

from ltg_mdlm.data.grammar_clauses import Clauses
from ltg_mdlm.data.grammar_lexicon import Lexicon
from ltg_mdlm.data.grammar_phrases import Phrases
from ltg_mdlm.data.grammar_stories import PictureBook, Story
from ltg_mdlm.data.grammar_talk import Talk


def documents(lexicon: Lexicon, seed: int, stream: str) -> Iterator[str]:
    """Documents without end; the same for the same arguments in every process and Python version.

    Args:
        stream: names the part ("train", "valid"); parts of one seed are independent of each other.
    """
    # Seeding with a string hashes it with SHA-512, whatever PYTHONHASHSEED is.
    rng = random.Random(f"{seed}/{stream}")
    talk = Talk(Clauses(Phrases(lexicon, rng, owners=("my", "your"))))
    tale = Clauses(Phrases(lexicon, rng))
    diary = Clauses(Phrases(lexicon, rng, owners=("my", "our")))
    kinds: dict[Callable[[], str], float] = {
        talk.conversation: 3,
        lambda: Story(tale).tell(): 3,
        lambda: Story(diary, first_person=True).tell(): 1,
        PictureBook(tale).read: 3,
    }
    while True:
        yield tale.phrases.weighted(kinds)()
