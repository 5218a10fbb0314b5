"""Encoding by units has the tokens of the library, and marks the tokens in which words begin."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.corpora import documents, small_tokenizer

from ltg_mdlm.data import encode
from ltg_mdlm.data.boundaries import NORMALISED_TO_SPACE, WHITE_SPACE, cut, split_units
from ltg_mdlm.data.encode import Encoder, word_starts_by_offsets
from ltg_mdlm.data.readers import Piece
from ltg_mdlm.data.tokenizer import Tokenizer

CHARACTERS = "ab.'-1 \n\t\x0b\x1c\x85\xa0¨´é\u0301\u0345字\u2028\u3000ﬁﬁ㎡\u1680\u180e\u200b😀<>/_"
NASTY = st.text(st.sampled_from(CHARACTERS + "   \n\n"), max_size=40) | st.text(max_size=20)
ENCODER = Encoder(small_tokenizer())


def visible(text: str) -> str:
    """The text as `sources` yields it: stripped, with newlines only."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


@settings(max_examples=600)
@given(st.lists(NASTY, min_size=1, max_size=5))
@example(["´a", "b ´a"])
@example(["a \x1c b", "a\n\n\nb\n c"])
@example(["<mask> a", "a\n<s>"])
def test_units_have_the_tokens_of_the_whole_text(texts):
    """Also in later texts, whose units are in the table."""
    for text in filter(None, map(visible, texts)):
        encoded = ENCODER.encode([Piece(text, True)])
        assert encoded.ids_N.tolist() == small_tokenizer().encode(text)
        assert encoded.text_bytes == len(text.encode())


@settings(max_examples=300)
@given(NASTY.filter(visible), st.integers(2, 12))
def test_pieces_of_a_long_document_have_its_tokens_and_words(text, limit):
    text = visible(text)
    parts = list(cut(text, limit))
    encoded = ENCODER.encode([Piece(part, i == 0) for i, part in enumerate(parts)])
    assert "".join(parts) == text
    assert encoded.ids_N.tolist() == small_tokenizer().encode(text)
    assert encoded.tokens_P.sum() == len(encoded.ids_N)
    assert encoded.opens_P.tolist() == [True] + [False] * (len(parts) - 1)


@settings(max_examples=300)
@given(NASTY.filter(visible))
def test_the_marked_tokens_are_as_many_as_the_words(text):
    encoded = ENCODER.encode([Piece(visible(text), True)])
    words = len(text.split())
    assert encoded.word_start_N.sum() == encoded.words_P.sum() == words


@given(st.text(st.sampled_from("ab.'1é字 \n\t"), max_size=40).filter(visible))
def test_a_token_is_marked_when_it_brings_a_new_word(text):
    """Compared with the number of words in every prefix of the text."""
    text = visible(text)
    encoded = ENCODER.encode([Piece(text, True)])
    texts = small_tokenizer().token_text.bytes_V
    words = [len(b"".join(texts[i] for i in encoded.ids_N[:n]).split()) for n in range(len(encoded.ids_N) + 1)]
    assert encoded.word_start_N.tolist() == np.diff(words).astype(bool).tolist()


def test_a_character_that_normalises_to_a_space_begins_no_word():
    """The normaliser turns ´ into a space and a combining accent; the text still has two words."""
    encoded = ENCODER.encode([Piece("the don´t", True)])
    tokens = [small_tokenizer().vocabulary[i] for i in encoded.ids_N]
    marked = [token for token, starts in zip(tokens, encoded.word_start_N, strict=True) if starts]
    assert marked == ["Ġthe", "Ġdon"]


def test_words_that_share_a_token_are_credited_to_its_neighbours():
    assert word_starts_by_offsets("a b c d", np.array([1, 5, 6, 7])).tolist() == [True, True, True, True]
    assert word_starts_by_offsets("a b c", np.array([4, 5])).tolist() == [True, True]
    assert word_starts_by_offsets("aaaa b", np.array([1, 2, 4, 6])).tolist() == [True, False, False, True]


def test_the_size_of_the_table_of_units_changes_nothing(monkeypatch):
    pieces = [Piece(text, True) for text in documents(40)]
    expected = ENCODER.encode(pieces)
    monkeypatch.setattr(encode, "_TABLE_UNITS", 3)
    monkeypatch.setattr(encode, "_TABLE_CHARACTERS", 2)
    encoder = Encoder(small_tokenizer())
    found = [encoder.encode([piece]) for piece in pieces]
    assert np.concatenate([one.ids_N for one in found]).tolist() == expected.ids_N.tolist()
    assert [int(one.words_P[0]) for one in found] == expected.words_P.tolist()


def test_the_table_does_not_keep_long_units():
    """Otherwise text without spaces, such as Chinese, would fill the memory."""
    encoder = Encoder(small_tokenizer())
    encoder.encode([Piece("字" * 5000 + "\nab " + "x" * 5000, True)])
    assert set(encoder._table) == {"ab"}


def test_the_characters_that_are_white_space_before_or_after_normalisation_are_known():
    characters = list(map(chr, range(0x110000)))
    blank = {character for character in characters if character.isspace()}
    normalised = {character: unicodedata.normalize("NFKC", character) for character in characters}
    assert set(WHITE_SPACE) == blank | {"\u180e"}
    assert set(NORMALISED_TO_SPACE) == {c for c in characters if normalised[c][0].isspace()} - blank
    assert {c for c in characters if normalised[c][-1].isspace()} == blank


def test_units_end_at_spaces_and_line_breaks_between_visible_characters():
    assert split_units("a cat.\nIt  sat \n\tso ´b c") == ["a", "cat.\n", "It  sat \n\tso ´b", "c"]
    assert split_units("a cat.\n") == ["a", "cat.\n"]
    assert split_units("a cat. ") == ["a", "cat."]


@given(NASTY, NASTY)
def test_units_give_back_their_text(left, right):
    text = visible(f"{left} {right}")
    assert " ".join(split_units(text)).replace("\n ", "\n") == text.replace("\n ", "\n")


@pytest.mark.parametrize(
    "text",
    ["x" * 300_000, "字" * 100_000, "\U0001f600\u200d" * 50_000, "´\u3000" * 50_000 + "x", "a \n" * 50_000 + "b"],
    ids=["letters", "ideographs", "emoji", "blanks that are no cuts", "blank line ends"],
)
def test_very_long_text_without_a_place_to_cut_has_the_tokens_of_the_library(text):
    encoded = ENCODER.encode([Piece(text, True)])
    assert encoded.ids_N.tolist() == small_tokenizer().encode(text)
    assert encoded.word_start_N.sum() == len(text.split())


@pytest.mark.parametrize("normalizer", [None, {"type": "Lowercase"}, {"type": "StripAccents"}])
def test_a_tokenizer_with_other_rules_is_asked_for_the_whole_text(normalizer):
    definition = json.loads(json.dumps(small_tokenizer().definition))
    definition["normalizer"] = normalizer
    definition["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    tokenizer = Tokenizer(definition)
    for text in ["Two dogs\n ran  away", "x", "é \u0301 Ω", *documents(5)]:
        encoded = Encoder(tokenizer).encode([Piece(text, True)])
        assert encoded.ids_N.tolist() == tokenizer.encode(text)
        assert encoded.word_start_N.sum() == min(len(text.split()), len(encoded.ids_N))
