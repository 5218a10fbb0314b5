"""Treebanks whose tags can be learnt, because they depend on the word only."""

import random

from ltg_mdlm.evaluation.finetune_tasks import TREEBANKS

WORDS = {"dog": "NOUN", "runs": "VERB", "the": "DET", "unbelievable": "ADJ", ".": "PUNCT"}


def line(number, word, tag):
    return "\t".join([str(number), word, "_", tag, *"______"])


def conllu(count, seed):
    """Sentences of words whose tag is a function of the word, as text in CoNLL-U."""
    rng = random.Random(seed)
    blocks = []
    for i in range(count):
        words = rng.choices(list(WORDS), k=rng.randint(1, 6))
        lines = [line(number, word, WORDS[word]) for number, word in enumerate(words, 1)]
        blocks.append("\n".join([f"# sent_id = {i}", *lines, ""]))
    return "\n".join([*blocks, ""])


def write_treebanks(folder, languages=("en", "nl"), sizes=(30, 5, 5)):
    folder.mkdir(parents=True, exist_ok=True)
    for language in languages:
        for part, count in zip(("train", "dev", "test"), sizes, strict=True):
            file = folder / f"{TREEBANKS[language]}-ud-{part}.conllu"
            file.write_text(conllu(count, f"{language} {part}"), "utf-8")
    return folder
