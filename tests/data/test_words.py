"""Words are counted in one unit, in the text and in the tokens of the corpus alike."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import documents, small_tokenizer

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data import prepare
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.encode import Encoder
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.readers import Piece
from ltg_mdlm.data.words import WordUnit, terms_of

MIXED = ["De fiets is rood.\n自行车是红色的，很快。", "a b", "在北京 we eat", "  ", "don´t"]


@pytest.mark.parametrize(
    ("unit", "text", "starts"),
    [
        ("whitespace", " a bc\n字字。 d", [1, 3, 6, 10]),
        ("characters", "a bc\n字", [0, 2, 3, 5]),
        ("characters/3", "a bc\n字", [0, 2, 3, 5]),
    ],
)
def test_words_begin_where_the_unit_says(unit, text, starts):
    assert WordUnit.named(unit).starts(text) == starts


def test_jieba_segments_only_words_with_chinese_characters():
    jieba = pytest.importorskip("jieba")
    unit = WordUnit.named("jieba")
    text = "我来到北京清华大学。 De auto's zijn"
    segments = list(jieba.cut("我来到北京清华大学。"))
    assert unit.count(text) == len(segments) + 3
    bounds = [*unit.starts(text), len(text)]
    assert [text[a:b] for a, b in pairwise(bounds)][: len(segments) - 1] == segments[:-1]


@pytest.mark.parametrize("name", ["words", "characters/0", "characters/x", "Jieba"])
def test_an_unknown_unit_is_refused(name):
    with pytest.raises(UserError, match=f"--words {name}: no such unit of words; there are whitespace, characters"):
        WordUnit.named(name)


@given(st.lists(st.text(st.sampled_from("ab ,´字\n"), max_size=40), min_size=1, max_size=8))
def test_the_characters_of_a_text_are_the_words_of_its_tokens(texts):
    encoded = Encoder(small_tokenizer(), WordUnit("characters")).encode([Piece(text, True) for text in texts])
    assert encoded.words_P.tolist() == [sum(not c.isspace() for c in text) if text else 0 for text in texts]


def made(tmp_path, name: str, unit: str, workers: int = 1) -> Corpus:
    small_tokenizer().save(tmp_path / "tokenizer.json")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*MIXED, *documents(30)])), "utf-8")
    return prepare_corpus(
        [tmp_path / "a.jsonl"],
        tmp_path / name,
        tokenizer=tmp_path / "tokenizer.json",
        words=unit,
        workers=workers,
        progress=False,
    )


@pytest.mark.parametrize("every", [1, 2, 7])
def test_every_nth_character_of_the_split_is_a_word_of_the_corpus(tmp_path, every, monkeypatch):
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 60)
    monkeypatch.setattr(prepare, "_BYTES_PER_WORKER", 1)
    corpus = made(tmp_path, "corpus", f"characters/{every}", workers=2)
    texts = [text for text in [*MIXED, *documents(30)] if text.strip()]
    end_D = np.cumsum([sum(not c.isspace() for c in text) for text in texts]) // every
    assert corpus.word_unit == f"characters/{every}"
    assert corpus.train.words.tolist() == np.diff(end_D, prepend=0).tolist()
    assert corpus.train.words_between(corpus.train.offsets).tolist() == corpus.train.words.tolist()
    tokens = np.arange(corpus.train.num_tokens + 1)
    assert corpus.train.words_between(tokens).tolist() == corpus.train.words_N.tolist()
    assert "words counted by characters" in corpus.describe()
    assert corpus.verify()


def test_another_unit_is_another_corpus(tmp_path):
    first = made(tmp_path, "first", "whitespace")
    assert first.train.num_words == sum(len(text.split()) for text in [*MIXED, *documents(30)])
    assert first.description["fingerprint"] != made(tmp_path, "second", "characters").description["fingerprint"]
    with pytest.raises(UserError, match="contains another corpus \\(different words\\)"):
        made(tmp_path, "first", "characters")


def test_terms_leave_out_punctuation_and_separate_scripts_without_blanks():
    assert terms_of("Don't, 我来。well-known１ ไทย") == ["don", "t", "我", "来", "well", "known1", *"ไทย"]
