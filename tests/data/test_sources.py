"""Reading documents from text files."""

import gzip
import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import documents, write_text

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data import readers
from ltg_mdlm.data.readers import Piece, Reading, read_pieces
from ltg_mdlm.data.sources import find_sources
from ltg_mdlm.data.text_files import TextFile, source_names


def texts_of(path: Path, limit: int | None = readers.PIECE_CHARACTERS, **reading) -> list[str]:
    """The documents of a file, joined from their pieces."""
    texts: list[str] = []
    for piece in read_pieces(path, Reading(**reading), limit=limit):
        if piece.opens_document:
            texts.append(piece.text)
        else:
            texts[-1] += piece.text
    return texts


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", [".txt", ".train", ".dev", ".jsonl"])
def test_every_format_and_compression_gives_the_same_documents(tmp_path, suffix, compression):
    expected = documents(30)
    plain = "\n".join(map(json.dumps, expected)) if suffix == ".jsonl" else "\n\n".join(expected)
    path = write(tmp_path / f"text{suffix}{compression}", COMPRESS[compression](plain.encode()))
    assert texts_of(path) == expected


@pytest.mark.parametrize(
    "content",
    ["a b\nc\n\nd\n", "\ufeff\n \n\na b\nc\n \t \n\n\nd", "a b\r\nc\r\n\r\nd\r\n", "  a b\nc  \n\n\t\n\n d \n\n\n"],
)
def test_blank_lines_separate_documents_for_all_line_breaks_and_margins(tmp_path, content):
    assert texts_of(write(tmp_path / "a.txt", content)) == ["a b\nc", "d"]


def test_a_json_line_is_a_string_or_an_object_with_a_text(tmp_path):
    path = write(tmp_path / "a.jsonl", '"one\\n\\ntwo"\n\n{"text": " three\\r\\nfour ", "id": 7}\n')
    assert texts_of(path) == ["one\n\ntwo", "three\nfour"]


def test_headings_are_deleted_and_separate_documents_only_when_asked(tmp_path):
    path = write(tmp_path / "a.train", "= = = A title = = =\nfirst\n= = = B = = = \nsecond = = = x\n= = = C = = =")
    assert texts_of(path, drop_headings=True) == ["first", "second = = = x"]
    assert texts_of(path) == ["= = = A title = = =\nfirst\n= = = B = = = \nsecond = = = x\n= = = C = = ="]


TEXT = st.text(st.sampled_from("ab. \n\t\r´\u3000é字"), max_size=200)


@given(TEXT, st.integers(1, 20), st.integers(3, 30), st.booleans())
def test_blocks_and_pieces_never_change_the_documents(tmp_path_factory, text, block, limit, drop):
    """Compared with splitting the whole text at once."""
    text = text.replace("b", "\n= = = h = = =\n") if drop else text
    path = write(tmp_path_factory.mktemp("text") / "a.txt", text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = ["" if drop and line == "= = = h = = =" else line for line in lines]
    paragraphs = "\n".join(line if line.strip() else "" for line in lines).split("\n\n")
    expected = [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_BLOCK_CHARACTERS", block)
        patch.setattr(readers, "_LONGEST_UNBROKEN", 1000)
        assert texts_of(path, drop_headings=drop, limit=limit) == expected


def test_a_long_line_is_read_in_pieces_with_little_memory(tmp_path):
    """Such as text8, a corpus of one line."""
    path = write(tmp_path / "line.txt", "seven little words are repeated here and " * 500_000)
    tracemalloc.start()
    pieces = [len(piece.text) for piece in read_pieces(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(pieces) == path.stat().st_size - 1
    assert max(pieces) <= readers.PIECE_CHARACTERS
    assert peak < path.stat().st_size


def test_a_file_without_any_blank_is_refused(tmp_path):
    path = write(tmp_path / "blob.txt", "x" * 6_000_000)
    with pytest.raises(UserError, match=r"blob.txt: .* characters without a blank or punctuation"):
        list(read_pieces(path))


@pytest.mark.parametrize("compression", COMPRESS)
def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path, compression):
    content = COMPRESS[compression]("å\n\nb\n".encode() * 1000 + b"caf\xe9\nrest\n")
    path = write(tmp_path / f"latin.txt{compression}", content)
    with pytest.raises(UserError, match=r"latin.txt.*, line 3001: not UTF-8"):
        list(read_pieces(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 2: not JSON"),
        (b"[1, 2]", "line 2: neither a JSON string nor"),
        (b"17", "line 2: neither a JSON string nor"),
        (b'{"txt": "a"}', "line 2: the object has no 'text'; its fields are: txt"),
        (b'{"text": null}', "line 2: 'text' is null; correct the row"),
        (b'"\\ud800"', "line 2: half a surrogate pair"),
        (b'"\xff"', "line 2: not UTF-8"),
        (b"[" * 100_000, "line 2: not JSON that can be read: .*recursion"),
        (b"9" * 5000, "line 2: (not JSON that can be read: .*digits|neither a JSON string)"),
    ],
)
def test_a_bad_json_line_is_named_with_its_number(tmp_path, line, message):
    path = write(tmp_path / "bad.jsonl", b'"fine"\n' + line + b'\n"fine"\n')
    with pytest.raises(UserError, match=f"bad.jsonl, {message}"):
        list(read_pieces(path))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut short", "not compressed", "empty", "flipped"])
def test_damaged_compression_is_noticed(tmp_path, compression, damage):
    whole = COMPRESS[compression]("\n\n".join(documents(2000)).encode())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    content = {"cut short": whole[: len(whole) // 2], "not compressed": b"text\n", "empty": b"", "flipped": flipped}
    path = write(tmp_path / f"a.txt{compression}", bytes(content[damage]))
    if (compression, damage) == (".gz", "empty"):
        assert list(read_pieces(path)) == []  # gunzip also accepts an empty file
        return
    with pytest.raises(UserError, match=f"a.txt{compression}: (damaged|cannot be read)|not UTF-8"):
        list(read_pieces(path))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_concatenated_compressed_files_are_read_to_the_end(tmp_path, compression):
    compress = COMPRESS[compression]
    path = write(tmp_path / f"a.txt{compression}", compress(b"a\n\n") + compress(b"") + compress(b"b\n"))
    assert list(read_pieces(path)) == [Piece("a", True), Piece("b", True)]


def test_folders_are_searched_in_order_and_other_files_in_them_are_ignored(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/z.train.gz", "a.txt", "README.md", ".hidden.txt", "c.jsonl.zst"):
        write(tmp_path / name, "")
    found = [str(file.path.relative_to(tmp_path)) for file in find_sources([tmp_path])]
    assert found == ["a.txt", "b/z.train.gz", "c.jsonl.zst"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "no such file or folder"),
        ("page.html", r"unknown kind of file; known are text \.txt"),
        ("folder", "no text files in this folder"),
    ],
)
def test_a_path_that_is_not_a_text_file_is_refused(tmp_path, name, message):
    write(tmp_path / "page.html", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{name}: {message}"):
        find_sources([tmp_path / name])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a.txt: not a regular file"):
        find_sources([tmp_path / "a.txt"])


def test_linked_folders_are_searched_and_links_back_are_not_followed(tmp_path):
    for name in ("train", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    (tmp_path / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "train")
    assert [file.path.name for file in find_sources([tmp_path / "train"])] == ["elsewhere.txt", "train.txt"]


def test_a_link_does_not_take_the_place_of_a_split(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    (tmp_path / "current").symlink_to(tmp_path / "train")
    assert [file.path for file in find_sources([tmp_path])] == [tmp_path / "train" / "a.txt"]


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setattr("os.scandir", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied", str(path))))
    with pytest.raises(PermissionError):
        find_sources([tmp_path])


def test_a_file_given_twice_is_refused(tmp_path):
    path = write_text(tmp_path / "a.txt", ["x"])
    with pytest.raises(UserError, match=r"a.txt: given twice"):
        find_sources([path, tmp_path])


@given(st.text(st.sampled_from("ab \n\ufeff"), max_size=30), st.integers(1, 5))
def test_byte_order_marks_at_the_beginning_of_lines_are_dropped(text, block):
    """Files that were concatenated have them inside; blocks of any size give the same documents."""
    expected = _without_marks(text)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_BLOCK_CHARACTERS", block)
        marked, clean = (write(Path(folder) / f"{i}.txt", part) for i, part in enumerate((text, expected)))
        assert texts_of(marked) == texts_of(clean)
        lines = write(Path(folder) / "a.jsonl", "\ufeff" + json.dumps("x" + text) + "\n\ufeff" + json.dumps("y"))
        assert texts_of(lines) == [_without_marks("x" + text).strip(), "y"]


def _without_marks(text: str) -> str:
    return "\n".join(line.lstrip("\ufeff") for line in text.split("\n"))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["train/childes.train", "train/wiki.train.gz"], ["childes", "wiki"]),
        (["zho/train.jsonl", "nld/train.jsonl", "en.txt"], ["zho", "nld", "en"]),
        (["a/b/x.txt", "c/b/x.txt", "x.txt"], ["a/b/x", "c/b/x", "here/x"]),
        (["x.txt", "x.jsonl"], ["x", "x"]),
        (["v1.2.train"], ["v1.2"]),
    ],
)
def test_sources_are_named_after_their_files(files, names, tmp_path):
    assert source_names([TextFile(tmp_path / "here" / file, "text") for file in files]) == names
