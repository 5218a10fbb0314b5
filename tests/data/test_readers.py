"""Tables, JSON, archives and compressed files give the same documents, and what is wrong in them is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import documents, small_tokenizer

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data import encode, readers
from ltg_mdlm.data.boundaries import cut
from ltg_mdlm.data.encode import Encoder
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.readers import Piece, Reading, read_pieces
from ltg_mdlm.data.sources import find_sources
from ltg_mdlm.data.text_files import source_names
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.data.words import WordUnit

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

DOCUMENTS = documents(40)
KINDS = ["talk", "wiki"] * 20


def write_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("kind", "text"), *zip(KINDS, DOCUMENTS, strict=True)])


def write_arrow(path: Path, new_writer: str) -> None:
    table = pyarrow.table({"text": DOCUMENTS, "kind": KINDS})
    with pyarrow.OSFile(str(path), "wb") as file, getattr(pyarrow.ipc, new_writer)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def rows() -> list[dict[str, str]]:
    return [{"text": text, "kind": kind} for text, kind in zip(DOCUMENTS, KINDS, strict=True)]


WRITERS = {
    "a.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, rows()))),
    "a.json": lambda path: path.write_text(json.dumps(rows(), indent=1)),
    "a.csv": write_csv,
    "A.TSV": lambda path: write_csv(path, "\t"),
    "a.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(rows()), path, row_group_size=11),
    "a.arrow": lambda path: write_arrow(path, "new_file"),
    "a.feather": lambda path: write_arrow(path, "new_stream"),
}
"""A writer of the same rows in each format."""


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents_and_sources(tmp_path, name, monkeypatch):
    monkeypatch.setattr(readers, "_BLOCK_CHARACTERS", 100)
    monkeypatch.setattr(readers, "_BATCH_BYTES", 300)
    path = tmp_path / name
    WRITERS[name](path)
    (file,) = find_sources([path])
    found = list(read_pieces(file, Reading(source_field="kind")))
    assert found == [Piece(text, True, kind) for text, kind in zip(DOCUMENTS, KINDS, strict=True)]
    assert [piece.text for piece in read_pieces(file)] == DOCUMENTS


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_without_a_suffix_is_recognised_by_its_content(tmp_path, name):
    WRITERS[name](tmp_path / name)
    (tmp_path / name).rename(tmp_path / "corpus")
    if name == "a.feather":  # a stream begins with nothing that only an Arrow stream begins with
        with pytest.raises(UserError, match="unknown kind of file"):
            find_sources([tmp_path / "corpus"])
        return
    (file,) = find_sources([tmp_path / "corpus"])
    assert [piece.text for piece in read_pieces(file)] == DOCUMENTS


COMPRESS = {".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("known", [True, False])
def test_compressed_files_are_read_by_suffix_or_content(tmp_path, suffix, known):
    path = tmp_path / (f"a.TXT{suffix.upper()}" if known else "a")
    path.write_bytes(COMPRESS[suffix]("\n\n".join(DOCUMENTS).encode()))
    (file,) = find_sources([path])
    assert [piece.text for piece in read_pieces(file)] == DOCUMENTS


def test_a_zstandard_file_with_a_long_window_is_read(tmp_path):
    """As `zstd --long=28` writes it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # does not write the size
    text = "\n\n".join(DOCUMENTS).encode()
    (tmp_path / "a.txt.zst").write_bytes(compressor.compress(text) + compressor.flush())
    assert [piece.text for piece in read_pieces(tmp_path / "a.txt.zst")] == DOCUMENTS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_truncated_compressed_file_is_damaged(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix]("\n\n".join(documents(2000)).encode())[:-20])
    with pytest.raises(UserError, match=rf"a.txt{suffix}: damaged or not {suffix}"):
        list(read_pieces(path))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_truncated_compressed_file_without_a_suffix_is_damaged(tmp_path, suffix):
    (tmp_path / "a").write_bytes(COMPRESS[suffix]("\n\n".join(DOCUMENTS).encode())[:-10])
    with pytest.raises(UserError, match=f"a: damaged or not {suffix}"):
        find_sources([tmp_path / "a"])


def zip_of(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, member in members.items():
            packed.writestr(name, member)
    return content.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        path.write_bytes(zip_of(members))
        return path
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as packed_tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed_tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_an_archive_has_the_documents_of_its_files_which_are_sources(tmp_path, suffix):
    members = {
        "data/childes.train": b"a b\n\nc",
        "data/wiki.jsonl.gz": gzip.compress(b'"d"'),
        "LICENSE": b"not text",
        "data/._wiki.train": b"not text",
        "./talk.train": b"e",
        "data/.cache/x.parquet": b"not text",
        "data/dataset_info.json": b"not documents",
        "notes.docx": zip_of({"word/document.txt": b"not a document"}),
    }
    path = archive(tmp_path / f"all{suffix}", members)
    (file,) = find_sources([path])
    expected = [
        Piece("a b", True, "childes"),
        Piece("c", True, "childes"),
        Piece("d", True, "wiki"),
        Piece("e", True, "talk"),
    ]
    assert list(read_pieces(file)) == expected


def test_names_that_are_not_utf8_become_sources_that_can_be_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    (file,) = find_sources([archive(tmp_path / "a.tar", {name: b"a"})])
    assert list(read_pieces(file)) == [Piece("a", True, r"caf\udce9")]
    for folder, file_name in ((tmp_path, name), (tmp_path / name.removesuffix(".txt"), "train.txt")):
        folder.mkdir(exist_ok=True)
        (folder / file_name).write_text("a")
        assert source_names(find_sources([folder / file_name])) == [r"caf\udce9"]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_a_torn_archive_is_damaged(tmp_path, suffix):
    content = np.random.default_rng(0).bytes(20_000).hex().encode()
    path = archive(tmp_path / f"all{suffix}", {"a.txt": content, "b.txt": content})
    path.write_bytes(path.read_bytes()[:-15_000])
    with pytest.raises(UserError, match=f"all{suffix}.*: damaged|cannot be read"):
        list(read_pieces(path))


def test_a_parquet_file_in_an_archive_must_be_unpacked(tmp_path):
    path = archive(tmp_path / "all.zip", {"a.parquet": b"PAR1"})
    with pytest.raises(UserError, match=r"all.zip/a.parquet: unpack the archive first"):
        list(read_pieces(path))


def table(path: Path, **columns: object) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,kind\nx\n", r"a.csv, row 1 \(line 2\): 1 columns, not 2"),
        ("a.csv", 'text,kind\nx,y\n"never closed,z\n', r"a.csv, row 2 \(line \d\): not CSV: unexpected end of data"),
        ("a.csv", "body,kind\nx,y\n", "has no column 'text'; its columns are: body, kind\n  name the one"),
        ("a.csv", "text,text\nx,y\n", "has 2 columns 'text'; rename all but one"),
        ("a.csv", "", "has no column 'text'"),
        ("a.csv", b"text,kind\nx,y\n\xff,y\n", "a.csv, line 3: not UTF-8"),
        ("a.json", '[{"text": "a"}, {"text": "b"', "a.json, element 2: not JSON"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "element 2: not JSON: no comma"),
        ("a.json", '[{"text": "a"},', "the JSON array does not end; the file is cut short"),
        ("a.json", '[{"text": "a"}, 3]', "element 2: neither a JSON string nor an object"),
        ("a.json", '[{"text": "a"}, {"text": ["b"]}]', r"element 2: 'text' is \['b'\], which is not text"),
        ("a.json", '["a"]\n["b"]', "a.json: there is more after the end of the JSON array"),
        ("a.json", '["a"]' + "\n" * 70_000 + "x", "there is more after the end"),
        ("a.json", '\n\n"a"\n3', "a.json, line 4: neither a JSON string"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: damaged or not Parquet"),
        ("a.arrow", b"ARROW1 and no more", "a.arrow: damaged or not Arrow"),
        ("a.arrow", b"", "a.arrow: damaged or not Arrow|cannot be read"),
        ("a.parquet.gz", b"", "decompress it first"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        list(read_pieces(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '"one"\n"' + "a " * 500 + '"\n', "a.jsonl, line 2: more than 400 characters; is this text?"),
        ("a.csv", "text,kind" + "," * 1000, "a.csv, line 1: more than 400 characters"),
        ("a.csv", "text,kind\na,b\n" + "a " * 500 + ",c\n", "a.csv, line 3: more than 400 characters"),
        ("a.csv", 'text,kind\na,b\n"' + 'a\n","' * 500, r"a.csv, line \d+: a row of more than 400 characters"),
    ],
)
def test_a_line_that_would_fill_the_memory_is_refused(tmp_path, name, content, message, monkeypatch):
    monkeypatch.setattr(readers, "_LONGEST_ELEMENT", 400)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    with pytest.raises(UserError, match=message.replace(name, f"{name}.gz")):
        list(read_pieces(tmp_path / f"{name}.gz"))


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.parquet", "a.txt"])
def test_text_without_a_place_to_cut_is_refused_in_every_format(tmp_path, name):
    """The tokenizer aborts the process for such a text."""
    text = "x" * (6 * readers.PIECE_CHARACTERS)
    if name == "a.parquet":
        table(tmp_path / name, text=["one", text])
    else:
        content = {"a.json": json.dumps(["one", text]), "a.csv": f"text\none\n{text}\n", "a.txt": f"one\n\n{text}\n\n"}
        (tmp_path / name).write_text(content[name])
    place = {"a.json": ", element 2", "a.csv": r", row 2 \(line 3\)", "a.parquet": ", row 2", "a.txt": ""}[name]
    with pytest.raises(UserError, match=rf"{name}{place}: [\d,]+ characters without a blank or punctuation"):
        list(read_pieces(tmp_path / name))


def test_columns_that_do_not_hold_text_are_refused(tmp_path):
    with pytest.raises(UserError, match="the column 'text' holds int64, not text; name another one with --text-field"):
        list(read_pieces(table(tmp_path / "a.parquet", text=[1, 2])))
    with pytest.raises(UserError, match="has no column 'kind'; its columns are: text"):
        list(read_pieces(table(tmp_path / "b.parquet", text=["a"]), Reading(source_field="kind")))
    with pytest.raises(UserError, match=r"row 2: no name of a source in the field 'kind' \(--source-field\)"):
        list(
            read_pieces(table(tmp_path / "c.parquet", text=["a", "b"], kind=["x", None]), Reading(source_field="kind"))
        )


def test_text_that_is_not_utf8_in_a_column_is_named_with_its_row(tmp_path):
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(),
        2,
        [None, pyarrow.py_buffer(np.array([0, 1, 3], np.int32).tobytes()), pyarrow.py_buffer(b"a\xff\xfe")],
    )
    with pytest.raises(UserError, match="row 2: not UTF-8"):
        list(read_pieces(table(tmp_path / "a.parquet", text=bad)))


def integers(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


@pytest.mark.parametrize("new_writer", ["new_file", "new_stream"])
@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("string", integers(0, 20, 40), integers(0, 20, 999)),
        ("string_view", integers(20) + b"bbbb" + integers(0, 20), integers(20) + b"bbbb" + integers(7, 20)),
    ],
)
def test_an_arrow_file_with_an_offset_out_of_bounds_is_damaged(tmp_path, kind, right, wrong, new_writer):
    """Reading such an offset can kill the process."""
    path = tmp_path / "a.arrow"
    columns = pyarrow.table({"text": pyarrow.array(["a" * 20, "b" * 20], getattr(pyarrow, kind)())})
    with pyarrow.OSFile(str(path), "wb") as file, getattr(pyarrow.ipc, new_writer)(file, columns.schema) as writer:
        writer.write_table(columns)
    content = path.read_bytes()
    assert content.count(right) == 1
    path.write_bytes(content.replace(right, wrong))
    with pytest.raises(UserError, match=r"a.arrow: damaged or not Arrow: .*(out of bounds|only 1 data buffers)"):
        list(read_pieces(path))


def test_text_that_is_not_utf8_in_an_arrow_file_is_named_with_its_row(tmp_path):
    path = tmp_path / "a.arrow"
    write_arrow(path, "new_file")
    content = path.read_bytes()
    path.write_bytes(content.replace(DOCUMENTS[8].encode(), b"\xff" + DOCUMENTS[8].encode()[1:], 1))
    with pytest.raises(UserError, match=r"a.arrow, row 9: not UTF-8"):
        list(read_pieces(path))


def test_a_null_is_refused_with_its_row_or_skipped(tmp_path):
    path = table(tmp_path / "a.parquet", text=["a", None, "", "b"])
    with pytest.raises(UserError, match=r"a.parquet, row 2: 'text' is null; .*--skip-nulls"):
        list(read_pieces(path))
    (tmp_path / "b.json").write_text('["a", null, "b"]\n')
    with pytest.raises(UserError, match=r"b.json, element 2: 'text' is null; .*--skip-nulls"):
        list(read_pieces(tmp_path / "b.json"))
    for file in (path, tmp_path / "b.json"):
        assert [piece.text for piece in read_pieces(file, Reading(skip_nulls=True))] == ["a", "b"]


def test_dictionary_columns_and_other_text_fields_are_read(tmp_path):
    body = pyarrow.array(["one", "two", "one"]).dictionary_encode()
    path = table(tmp_path / "a.parquet", body=body, text=[1, 2, 3])
    assert [piece.text for piece in read_pieces(path, Reading(text_field="body"))] == ["one", "two", "one"]


def test_cleaning_changes_the_text_only_as_asked(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufb01ne\x00 te\u00adxt\u200b\t１\n\n\x00\n\nb", "utf-8")
    assert [piece.text for piece in read_pieces(path)] == ["\ufb01ne\x00 te\u00adxt\u200b\t１", "\x00", "b"]
    cleaned = read_pieces(path, Reading(nfkc=True, drop_controls=True))
    assert [piece.text for piece in cleaned] == ["fine text\t1", "b"]


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.json"])
def test_memory_does_not_grow_with_the_file(tmp_path, name, monkeypatch):
    """40 MB of text in one row group; the memory of pyarrow is counted by itself."""
    text = "seven little words are repeated here and " * 100
    path = tmp_path / name
    if name == "a.parquet":
        parquet.write_table(pyarrow.table({"text": [f"{i} {text}" for i in range(10_000)]}), path)
    elif name == "a.csv":
        path.write_text("text\n" + "".join(f"{i} {text}\n" for i in range(10_000)))
    else:
        path.write_text(json.dumps([f"{i} {text}" for i in range(10_000)]))
    arrow_before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    count = arrow_peak = 0
    for _ in read_pieces(path):
        count += 1
        arrow_peak = max(arrow_peak, pyarrow.total_allocated_bytes() - arrow_before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 20e6
    assert arrow_peak < 20e6


CHINESE = st.lists(st.sampled_from("同样的力量大小不，。！？、：“a1 \n"), min_size=50, max_size=400).map("".join)
THAI = st.lists(st.sampled_from("ภาษาไทยเ็นง่าย,.! "), min_size=50, max_size=200).map("".join)


@given(st.one_of(CHINESE, THAI), st.integers(5, 40))
def test_pieces_of_text_without_blanks_have_the_tokens_of_the_whole(text, limit):
    tokenizer = chinese_tokenizer()
    pieces = list(readers._rows_to_pieces(iter([readers._Row(text, "", "")]), Reading(), limit))
    assert Encoder(tokenizer).encode(pieces).ids_N.tolist() == tokenizer.encode(text.strip())


@given(st.one_of(CHINESE, THAI), st.integers(5, 40))
def test_long_units_that_are_divided_have_the_tokens_of_the_whole(text, longest):
    tokenizer, text = chinese_tokenizer(), text.strip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "_LONGEST_UNIT", longest)
        for unit in (None, WordUnit("characters")):
            encoded = Encoder(tokenizer, unit).encode([Piece(text, True), Piece(text, True)])
            assert encoded.ids_N.tolist() == tokenizer.encode(text) * 2
            words = len(text.split()) if unit is None else sum(not c.isspace() for c in text)
            assert encoded.words_P.tolist() == [words] * 2


@given(CHINESE, st.integers(5, 40))
def test_joints_divide_chinese_text_where_there_is_punctuation(text, limit):
    parts = list(cut(text, limit, joints=True))
    assert "".join(parts) == text
    for before, after in pairwise(parts):
        assert before[-1] in " \n" or after[0] in "，。！？、：“"


def chinese_tokenizer(made: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006
    """A tokenizer with tokens of several Chinese and Thai letters."""
    if not made:
        made.append(Tokenizer.train(["同样的力量，大小不同。ภาษาไทย ง่าย"] * 5, 400))
    return made[0]


def test_chinese_text_of_any_length_is_read_in_pieces(tmp_path):
    path = tmp_path / "zho.txt"
    path.write_text("同样的力量，大小不同。" * 500_000, "utf-8")
    pieces = list(read_pieces(path))
    assert max(len(piece.text) for piece in pieces) <= readers.PIECE_CHARACTERS
    assert [piece.joined for piece in pieces] == [False] + [True] * (len(pieces) - 1)
    assert sum(len(piece.text) for piece in pieces) == 5_500_000
    table(tmp_path / "zho.parquet", text=[path.read_text("utf-8")])
    assert list(read_pieces(tmp_path / "zho.parquet")) == pieces


@pytest.mark.parametrize("cleaning", [{}, {"nfkc": True, "drop_controls": True}])
def test_corpora_from_all_formats_are_identical(tmp_path, cleaning):
    """The same fingerprint, although the files differ."""
    small_tokenizer().save(tmp_path / "tokenizer.json")
    options = {"tokenizer": tmp_path / "tokenizer.json", "progress": False, **cleaning}
    prints = set()
    for name, write in WRITERS.items():
        write(tmp_path / name)
        corpus = prepare_corpus([tmp_path / name], tmp_path / f"corpus-{name}", **options)
        prints.add(corpus.description["fingerprint"])
        assert corpus.train.source_names == (name[0],)
    (tmp_path / "a.txt").write_text("\n\n".join(DOCUMENTS))
    plain = prepare_corpus([tmp_path / "a.txt"], tmp_path / "plain", **options)
    prints.add(plain.description["fingerprint"])
    assert len(prints) == 2  # A.TSV is the source "A"
