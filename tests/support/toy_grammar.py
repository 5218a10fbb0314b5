"""A small rule file for tests, with everything that the notation has, and its documents by enumeration."""

from ltg_mdlm.data.synthetic.feature_grammar import START, Symbol
from ltg_mdlm.data.synthetic.spelling import sentence_text

FINITE = """
# comment
feature num = sg:2 pl:1
feature neg = no:1 yes:1
feature form = base:1 sg:1 pl:1 past:1 part:1 ger:1
Document => Short[num] 3
Document => Long[num] 1
Short[num] => Fact[num]
Long[num] => "*A:" Fact[num] "*B:" Reply[num] Short[num]
Fact[num] -> Who[num] Does[num] "."       2
  ! agreement morphology verbs: Who[num] Does[-num] "."
Fact[num] -> "the" Animal[num] Near "the" Animal[-num] Does[num] "."
Fact[num] -> "the" "old" Animal[num] Does[num] "."
  ! order syntax word_order: "the" Animal[num] "old" Does[num] "."
Reply -> "no" "."
Reply[num] -> Does[num] Some[neg] "?"
Who[num] -> "the" Animal[num]
Who[num=sg] -> Name
Does[num=sg] -> Verb[form=sg]
Does[num=pl] -> Verb[form=pl]
noun Animal: ape fish/fish
verb Verb: run/ran/run
  fish
word Name: Ann
word Near: by next_to
word Some[neg]: some/any
"""

RECURSIVE = FINITE.replace("Short[num] => Fact[num]", "Short[num] => Fact[num] 2\nShort[num] => Fact[num] Short[num] 1")


def derivations(grammar, symbol):
    """(words, probability) of every derivation of a phrase, where a part of a document is (speaker or sentence)."""
    for rule in grammar.rules[symbol]:
        found = [((), rule.probability)]
        for part in rule.parts:
            if isinstance(part, Symbol):
                ends = list(derivations(grammar, part))
                if part in grammar.sentences:
                    ends = [((sentence_text(words),), p) for words, p in ends]
            else:
                ends = [((part,), 1.0)]
            found = [(start + end, p * q) for start, p in found for end, q in ends]
        yield from found


def all_documents(grammar):
    """{text: probability} of a grammar with finitely many documents."""
    texts = {}
    for units, probability in derivations(grammar, Symbol(START)):
        text = ""
        for unit in units:
            if unit.startswith("*"):
                text += f"\n{unit}\t" if text else f"{unit}\t"
            else:
                text += unit if not text or text.endswith("\t") else f" {unit}"
        texts[text] = texts.get(text, 0.0) + probability
    return texts
