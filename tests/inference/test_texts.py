"""Which tokens of a text are scored, in languages with and without blanks."""

import math
import unicodedata
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltg_mdlm.data.tokenizer import BOS, Tokenizer
from ltg_mdlm.inference.texts import Text, encode_texts, standard_error


@cache
def tokenizer() -> Tokenizer:
    """A tokenizer with tokens of several Chinese letters, and of Dutch words."""
    chinese, dutch = "我喜欢喝茶。他喜欢喝咖啡，也喜欢喝水。", "De jongen leest een boek. Het meisje leest."
    return Tokenizer.train([chinese, dutch] * 4, 420)


@pytest.mark.parametrize(
    ("prefix", "completion"),
    [
        ("我喜欢", "喝茶。"),
        ("他喜欢喝", "咖啡，也喜欢"),
        ("De jongen leest", " een boek."),
        ("De jongen lee", "st een boek."),
        ("", "我喜欢喝茶。"),
        ("我", "Ａ１喝"),
    ],
)
def test_the_scored_tokens_are_those_of_the_official_offsets(prefix, completion):
    """As in the official pipeline: offsets of the whole text with special tokens, `end > len(prefix)`."""
    (encoded,) = encode_texts(tokenizer(), [Text(prefix, completion)], limit=128)
    official = tokenizer().backend.encode(prefix + completion, add_special_tokens=True)
    expected = [i for i, (_, end) in zip(official.ids, official.offsets, strict=True) if end > len(prefix)]
    assert list(encoded.ids) == official.ids
    assert list(encoded.ids[encoded.start :]) == expected


LETTERS = st.sampled_from("我喜欢喝茶咖啡。，")


@given(st.text(LETTERS, max_size=12), st.text(LETTERS, min_size=1, max_size=12))
def test_scored_tokens_of_chinese_are_all_that_reach_beyond_the_prefix(prefix, completion):
    """Compared with the bytes of the tokens, of which the first is the space that the normaliser adds."""
    (encoded,) = encode_texts(tokenizer(), [Text(prefix, completion)], limit=128)
    end, scored = -1, 0
    for token in encoded.ids[1:]:
        end += int(tokenizer().token_text.length_V[token])
        scored += end > len(unicodedata.normalize("NFKC", prefix).encode()) or (end == 0 and not prefix)
    assert encoded.ids[0] == BOS
    assert encoded.scored == scored


def test_a_likelihood_that_is_no_number_has_no_standard_error():
    assert math.isnan(standard_error([1.0, math.nan]))
    assert standard_error([1.0, 3.0]) == 1.0
