"""Documents from text files: text with blank lines between documents, or JSON lines; plain, gzip or Zstandard.

Files are read as streams in bounded memory. Damaged files are detected, including truncated ones.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import zstandard

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.boundaries import cut

TEXT_SUFFIXES = (".train", ".dev", ".test", ".txt")
JSON_SUFFIXES = (".jsonl",)
COMPRESSED_SUFFIXES = (".gz", ".zst")

PIECE_CHARACTERS = 1 << 20
"""A longer document comes in pieces of about this size."""

_BLOCK_CHARACTERS = 1 << 20
"""Text is read in blocks of this size."""

_LONGEST_UNBROKEN = 4 * PIECE_CHARACTERS
"""Longest run of characters in which there is no place to cut."""

_MARKS = re.compile(r"^\ufeff+", re.MULTILINE)
_INNER_MARKS = re.compile(r"(?<=\n)\ufeff+")
"""Byte order marks at the beginning of lines; the second one for text that begins inside a line."""

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_HEADING = re.compile(r"^= = = .* = = =[^\S\n]*\n", re.MULTILINE)

_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)
"""Exceptions from reading a damaged compressed file."""


class Piece(NamedTuple):
    """A document or a part of a long one. The parts of a document are consecutive and concatenate to it."""

    text: str
    opens_document: bool
    source: str = ""
    """Name of the document's source, which only the first of its pieces must have."""


def find_sources(paths: Iterable[str | Path]) -> list[Path]:
    """The text files among `paths`; folders are searched recursively, in alphabetical order.

    Raises:
        UserError: a path that does not exist, a file with an unknown suffix, a folder without text files, a file that
            is given twice, or no path at all.
    """
    suffixes = f"{', '.join(TEXT_SUFFIXES + JSON_SUFFIXES)}, each also with {' or '.join(COMPRESSED_SUFFIXES)}"
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and _format_of(p) and not p.name.startswith("."))
            if not files:
                raise UserError(f"{path}: no text files in this folder ({suffixes})")
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder")
        elif not path.is_file():
            raise UserError(f"{path}: not a regular file")
        elif not _format_of(path):
            raise UserError(f"{path}: unknown kind of file; text files end in {suffixes}")
        else:
            files = [path]
        for file in files:
            if file.resolve() in found:
                raise UserError(f"{file}: given twice; leave one out")
            found[file.resolve()] = file
    if not found:
        raise UserError("no text files given")
    return list(found.values())


def _format_of(path: Path) -> str | None:
    """The suffix without that of the compression; None if the file is not a text file."""
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix
    return suffix if suffix in TEXT_SUFFIXES + JSON_SUFFIXES else None


def source_names(files: Sequence[Path]) -> list[str]:
    """The name of the source that each file is, if the documents themselves do not say.

    It is the name of the file without its suffixes, so that `childes.train.gz` and `childes.dev` are both `childes`.
    Files of one name in different folders are named with as many of their folders as it takes to tell them apart.
    """
    parts = []
    for file in files:
        name = Path(file.stem).stem if file.suffix in COMPRESSED_SUFFIXES else file.stem
        parts.append((*file.resolve().parts[1:-1], name))
    names = []
    for own in parts:
        others = {other for other in parts if other[-1] == own[-1]} - {own}
        length = 1
        while any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names


def sha256_of(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal. Raises UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def read_pieces(
    path: Path, *, drop_headings: bool = False, limit: int | None = PIECE_CHARACTERS, source_field: str | None = None
) -> Iterator[Piece]:
    """The documents of one file in order, without white space around them; empty documents are skipped.

    A `.jsonl` file has one document per line: a JSON string, or an object with a "text" string. In the other formats
    blank lines separate documents. All conventions for line breaks are read as a newline. Byte order marks at the
    beginning of a line are dropped: files that were concatenated have them inside.

    Args:
        path: the file
        drop_headings: delete lines like `= = = Title = = =` of text formats; they separate documents
        limit: a document with more characters comes in several pieces; None for never
        source_field: field of the JSON objects with the name of the document's source

    Raises:
        UserError: text that is not UTF-8, invalid JSON, a document without `source_field`, a damaged compressed file,
            or millions of characters without white space. The message names the line where there is one.
    """
    with _open_text(path) as text:
        if _format_of(path) in JSON_SUFFIXES:
            for document, source in _json_documents(path, text, source_field):
                parts = cut(document, limit) if limit else [document]
                yield from (Piece(part, i == 0, source) for i, part in enumerate(parts) if part)
        else:
            yield from _text_pieces(path, text, drop_headings, limit)


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    try:
        with _open_decompressed(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as text:
            yield text
    except UnicodeDecodeError as error:
        with _open_decompressed(path) as raw:
            lines = enumerate(raw, 1)
            number = next((i for i, line in lines if line.decode(errors="ignore").encode() != line), 0)
        raise UserError(f"{path}, line {number}: not UTF-8; convert the file first") from error
    except _DAMAGE as error:
        raise UserError(f"{path}: damaged or not {path.suffix}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _json_documents(path: Path, lines: IO[str], source_field: str | None) -> Iterator[tuple[str, str]]:
    """Text and source of every document; the source is empty without `source_field`."""
    for number, line in enumerate(lines, 1):
        line = line.lstrip("\ufeff")
        if not line or line.isspace():
            continue
        try:
            value = json.loads(line)
            document = value["text"] if isinstance(value, dict) else value
            document.encode()
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error.msg} (column {error.colno})") from error
        except UnicodeEncodeError as error:
            raise UserError(f"{path}, line {number}: half a surrogate pair, which is not text") from error
        except (ValueError, RecursionError) as error:  # a number with thousands of digits, thousands of brackets
            raise UserError(f"{path}, line {number}: not JSON that can be read: {error}") from error
        except (KeyError, AttributeError) as error:
            raise UserError(
                f'{path}, line {number}: neither a JSON string nor an object with a "text" string'
            ) from error
        source = ""
        if source_field is not None:
            named = value.get(source_field) if isinstance(value, dict) else None
            if not (isinstance(named, str) and named.strip() and named.isprintable()):
                raise UserError(
                    f"{path}, line {number}: no name of a source in the field {source_field!r} (--source-field)"
                )
            source = named.strip()
        yield _MARKS.sub("", document.replace("\r\n", "\n").replace("\r", "\n")).strip(), source


def _text_pieces(path: Path, text: IO[str], drop_headings: bool, limit: int | None) -> Iterator[Piece]:
    rest, opens, at_line_start = "", True, True
    while True:
        block = text.read(_BLOCK_CHARACTERS)
        without_marks = (_MARKS if at_line_start else _INNER_MARKS).sub("", block)
        at_line_start = without_marks.endswith("\n") if without_marks else at_line_start
        rest += without_marks if block else "\n\n"  # the end of the file ends a document
        if drop_headings:
            rest = _HEADING.sub("\n", rest)
        *documents, rest = _BLANK_LINES.split(rest)
        for document in documents:
            if document := document.strip() if opens else document.rstrip():
                yield Piece(document, opens)
            opens = True
        if not block:
            return
        if limit and len(rest) > limit:
            if drop_headings:  # the last line is not complete, and may become a heading
                last_line = rest.rfind("\n") + 1
                *parts, uncut = cut(rest[:last_line], limit, after="\n")
                rest = uncut + rest[last_line:]
            else:
                *parts, rest = cut(rest, limit)
            for part in parts:
                yield Piece(part.lstrip() if opens else part, opens)
                opens = False
            if len(rest) > _LONGEST_UNBROKEN:
                blank = "line break" if drop_headings else "blank"
                raise UserError(f"{path}: {len(rest):,} characters without a {blank}; is this text?")


def _open_decompressed(path: Path) -> io.BufferedReader:
    """The decompressed bytes of a file, by its suffix; reading them may raise one of `_DAMAGE`."""
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(path), 1 << 17)
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdFile(path), 1 << 17)
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """All frames of a Zstandard file. The reader of the `zstandard` package does not notice a truncated file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._inside_frame = True  # an empty file is not a Zstandard file
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._pending:
            compressed = self._frame.unused_data if self._frame.eof else b""
            compressed = compressed or self._file.read(1 << 16)
            if not compressed:
                if self._inside_frame:
                    raise EOFError("the file ends inside a frame")
                return 0
            if self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._pending = self._frame.decompress(compressed)
            self._inside_frame = not self._frame.eof
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
