"""One error, with file and line, for everything that can be wrong with a JSON file."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import parse_object, read_object

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | FINITE | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@settings(max_examples=50)
@given(content=st.dictionaries(st.text(), VALUES), escaped=st.booleans())
def test_an_object_is_read_as_it_was_written(content, escaped, tmp_path_factory):
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_text(json.dumps(content, ensure_ascii=escaped), "utf-8")
    assert read_object(file) == content


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"a\.json:1: not JSON"),
        (b'{"a": 1,\n"b": 2', r"a\.json:2: not JSON"),
        (b'{"a": 1,\n"b": 2,\n"a": 3}', r"a\.json:3: the key 'a' is given twice"),
        (b'{"a": {"b": 1, "b": 2},\n"c": {"b": 3}}', r"a\.json: the key 'b' is given twice"),
        (b'{"a": ' + b"[" * 100_000, r"a\.json:1: JSON nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", r"a\.json:1: JSON nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"a\.json:1: .* a number has too many digits"),
        (b'{"a": [' + b"9" * 400 + b"]}", r"a\.json: 'a' is a number of more than 64 bits"),
        (b'{"a": {"b": 1e999}}', r"a\.json: 'b' must be a finite number, not inf"),
        (b'{"a": NaN}', r"a\.json: 'a' must be a finite number, not nan"),
        (b'{"a": "\\ud800"}', r"a\.json: 'a' has text with half a surrogate pair"),
        (b'{"\\udfff": 1}', r"a\.json: '\\udfff' has text with half a surrogate pair"),
        (b'{"a": "\xe9"}', r"a\.json: not UTF-8 text \(byte 7\)"),
        ('{"a": 1}'.encode("utf-16"), r"a\.json: not UTF-8 text"),
        (b"[1]", r"a\.json:1: expected a JSON object, not \[1\]"),
    ],
)
def test_whatever_is_wrong_is_one_error_that_names_the_file(tmp_path, content, complaint):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_object(file)


@given(content=st.binary() | st.text('{}[]\\",:01e-uUdD8aNI\n ').map(str.encode))
def test_no_content_raises_anything_else(content, tmp_path_factory):
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_bytes(content)
    with contextlib.suppress(UserError):
        assert isinstance(read_object(file), dict)


def test_the_line_of_a_row_is_that_of_its_file(tmp_path):
    with pytest.raises(UserError, match=r"rows\.jsonl:7: the key 'x' is given twice"):
        parse_object('{"x": 1, "x": 1}', tmp_path / "rows.jsonl", 7)
