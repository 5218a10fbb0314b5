"""Records of evaluation files, minimal pairs, and the errors for bad ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import real_data

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import parse_object
from ltg_mdlm.data.records import (
    MinimalPair,
    only_file,
    read_minimal_pairs,
    read_records,
    read_table,
    write_minimal_pairs,
)


def test_the_rows_of_a_folder_are_read_file_by_file_with_their_lines(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"x": 3}\n', "utf-8")
    (tmp_path / "a.jsonl").write_text('\ufeff{"x": 1}\r\n\n{"x": 2}', "utf-8")
    (tmp_path / "notes.txt").write_text("no rows")
    records = read_records(tmp_path)
    assert [(record.file.name, record.line, record.count("x")) for record in records] == [
        ("a.jsonl", 1, 1),
        ("a.jsonl", 3, 2),
        ("b.jsonl", 1, 3),
    ]


@given(texts=st.lists(st.text(min_size=1).filter(lambda text: text.strip()), min_size=1))
def test_any_text_is_read_as_it_was_written(texts, tmp_path_factory):
    """Escaped or not: the line separators of Unicode in a string do not end a row."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    file.write_text("\n".join(lines), "utf-8")
    assert [record.text("text") for record in read_records(file)] == texts


@pytest.mark.parametrize(
    ("value", "method", "complaint"),
    [
        (None, "text", "x must be text, not None"),
        ("  ", "text", "x must be text, not '  '"),
        ("\ud800", "text", r"x must be text, not '\\ud800'"),
        (["a"], "texts", "x must be a list of at least 2 texts"),
        (["a", 1], "texts", "x must be a list of at least 2 texts"),
        (True, "count", "x must be a count, not True"),
        (-1, "count", "x must be a count, not -1"),
        ("1", "count", "x must be a count, not '1'"),
        (True, "number", "x must be a number"),
        ("many", "number", "x must be a number, not 'many'"),
        ("", "number", "x must be a number"),
        (10**400, "number", "x must be a number"),
        (float("inf"), "number", "x must be a number, not inf"),
        ("many", "number_or_missing", "x must be a number"),
        ({}, "label", "x must be text"),
        (False, "label", "x must be text"),
    ],
)
def test_a_value_of_the_wrong_kind_is_reported_with_file_and_line(tmp_path, value, method, complaint):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"x": "first"}) + "\n" + json.dumps({"x": value}) + "\n")
    record = read_records(file)[1]
    extra = {"texts": (2,), "label": ("default",)}.get(method, ())
    with pytest.raises(UserError, match=rf"^{file}:2: {complaint}"):
        getattr(record, method)("x", *extra)


def test_a_missing_key_is_reported_with_the_keys_of_the_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"sentense_good": "A.", "UID": 7}')
    (record,) = read_records(tmp_path)
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: sentence_good is missing \(keys of this row: sentense_good, UID\)"
    ):
        record.text("sentence_good")
    assert (record.label("UID", "?"), record.label("field", "none")) == ("7", "none")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no rows"),
        (b"\n \n", "no rows"),
        (b'{"a": 1}\n{"a": ', r"rows\.jsonl:2: not JSON"),
        (b'{"a": 1}\n["a"]', r"rows\.jsonl:2: expected a JSON object, not \['a'\]"),
        (b"[" * 100_000, r"rows\.jsonl:1: "),
        (b'{"a": "\xe9"}', r"rows\.jsonl: not UTF-8 text \(byte 7\)"),
    ],
)
def test_bad_files_are_user_errors(tmp_path, content, complaint):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_records(tmp_path / "rows.jsonl")


def test_a_folder_cannot_be_read_as_a_file(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be read"):
        read_records(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_records(tmp_path / "gone.jsonl")


def test_errors_of_a_whole_json_file_name_the_line(tmp_path):
    with pytest.raises(UserError, match=r"words\.json:3: not JSON"):
        parse_object('{"a": 1,\n"b": 2,\n}', tmp_path / "words.json")


def test_cells_of_a_table_are_text_or_numbers_or_missing(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text('word,length,rate\n"two\nlines",3,\nb,x,1.5\n', "utf-8")
    first, second = read_table(file)
    assert (first.text("word"), first.number("length"), str(first.number_or_missing("rate"))) == (
        "two\nlines",
        3,
        "nan",
    )
    assert (second.line, second.number_or_missing("rate")) == (4, 1.5)
    with pytest.raises(UserError, match=r"table\.csv:4: length must be a number, not 'x'"):
        second.number("length")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "no rows"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n3\n", r"table\.csv:3: the row and the header have different lengths"),
        ("a,b\n1,2,3\n", r"table\.csv:2: the row and the header have different lengths"),
        ('a,b\n"1"x,2\n', r"table\.csv:2: not CSV"),
    ],
)
def test_bad_tables_are_user_errors(tmp_path, content, complaint):
    (tmp_path / "table.csv").write_text(content, "utf-8")
    with pytest.raises(UserError, match=complaint):
        read_table(tmp_path / "table.csv")


def test_the_only_file_with_a_suffix_is_found(tmp_path):
    with pytest.raises(UserError, match=r"expected one \.csv file, found none"):
        only_file(tmp_path, ".csv")
    (tmp_path / "a.csv").touch()
    assert only_file(tmp_path, ".csv") == only_file(tmp_path / "a.csv", ".csv") == tmp_path / "a.csv"
    (tmp_path / "b.csv").touch()
    with pytest.raises(UserError, match=r"found a\.csv, b\.csv"):
        only_file(tmp_path, ".csv")


DOGS = {"sentence_good": "The dogs run.", "sentence_bad": "The dogs runs.", "UID": "agreement", "field": "morphology"}


def write_rows(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def test_pairs_are_read_as_they_were_written(tmp_path):
    pairs = [
        MinimalPair("The dogs run.", "The dogs runs.", "agreement", "morphology", "sva"),
        MinimalPair("A ü", "B", "x"),
    ]
    write_minimal_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_minimal_pairs(tmp_path / "pairs.jsonl") == pairs


def test_a_row_without_uid_has_the_name_of_its_file(tmp_path):
    write_rows(tmp_path / "b.jsonl", DOGS)
    write_rows(tmp_path / "a.jsonl", {"sentence_good": "Is it?", "sentence_bad": "It is?"}, "")
    (tmp_path / "readme.txt").write_text("not pairs")
    assert [pair.uid for pair in read_minimal_pairs(tmp_path)] == ["a", "agreement"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ({"sentence_good": "A dog."}, "sentence_bad"),
        ({**DOGS, "sentence_good": 3}, "sentence_good"),
        ({**DOGS, "sentence_bad": " "}, "sentence_bad"),
    ],
)
def test_a_bad_row_is_reported_with_its_file_and_line(tmp_path, row, complaint):
    path = write_rows(tmp_path / "pairs.jsonl", DOGS, row)
    with pytest.raises(UserError, match=rf"pairs\.jsonl:2: .*{complaint}"):
        read_minimal_pairs(path)


def test_files_without_pairs_are_user_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.jsonl").write_bytes(b'{"sentence_good": "\xe9"}')
    for name, complaint in (("empty", "no rows"), ("gone.jsonl", "no such file"), ("latin.jsonl", "UTF-8")):
        with pytest.raises(UserError, match=complaint):
            read_minimal_pairs(tmp_path / name)


def test_blimp_and_its_supplement_are_read():
    folder = real_data("babylm_eval_2025", "fast_eval")
    blimp = read_minimal_pairs(folder / "blimp_fast")
    assert len({pair.uid for pair in blimp}) == 67
    assert all(pair.field and pair.term for pair in blimp)
    assert {pair.uid for pair in read_minimal_pairs(folder / "supplement_fast")} == {
        "hypernym",
        "qa_congruence_easy",
        "qa_congruence_tricky",
        "subject_aux_inversion",
        "turn_taking",
    }


def test_a_number_with_thousands_of_digits_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": ' + "9" * 5000 + "}\n")
    with pytest.raises(UserError, match=r"a.jsonl:2: not JSON that can be read: .*digits"):
        read_records(path)
