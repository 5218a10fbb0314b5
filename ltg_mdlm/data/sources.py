"""Documents from text files: blank-line separated text or JSON lines, plain or compressed, in bounded memory.

Plain, gzip and Zstandard files opened alike; damage is noticed, a cut-off file too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import zstandard

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data import sources as compressed
from ltg_mdlm.data.boundaries import cut

TEXT_SUFFIXES = (".train", ".dev", ".test", ".txt")


JSON_SUFFIXES = (".jsonl",)


PIECE_CHARACTERS = 1 << 20
"""A longer document is handed on in pieces of about this size."""


_BLOCK_CHARACTERS = 1 << 20


_LONGEST_UNBROKEN = 4 * PIECE_CHARACTERS


_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


_HEADING = re.compile(r"^= = = .* = = =[^\S\n]*\n", re.MULTILINE)


class Piece(NamedTuple):
    """A document, or part of a long one; the parts of a document follow each other and concatenate to it."""

    text: str
    opens_document: bool


def find_sources(paths: Iterable[str | Path]) -> list[Path]:
    """The text files among `paths`, folders searched recursively in alphabetical order.

    Raises UserError for a path that does not exist, a file whose suffix says nothing about its format, a folder
    without text files, a file that is named twice, and no path at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        found.extend(_sources_of(path))
    seen: set[Path] = set()
    for path in found:
        if path.resolve() in seen:
            raise UserError(f"{path}: given twice; leave one out")
        seen.add(path.resolve())
    if not found:
        raise UserError("no text files given")
    return found


def _sources_of(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _format_of(p) and not p.name.startswith("."))
        if not files:
            raise UserError(f"{path}: no text files in this folder ({_known_suffixes()})")
        return files
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not _format_of(path):
        raise UserError(f"{path}: unknown kind of file; text files end in {_known_suffixes()}")
    return [path]


def _format_of(path: Path) -> str | None:
    """The suffix without compression, None when it is not a text file's."""
    suffix = Path(path.stem).suffix if path.suffix in compressed.SUFFIXES else path.suffix
    return suffix if suffix in TEXT_SUFFIXES + JSON_SUFFIXES else None


def _known_suffixes() -> str:
    return f"{', '.join(TEXT_SUFFIXES + JSON_SUFFIXES)}, each also with {' or '.join(compressed.SUFFIXES)}"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_pieces(path: Path, *, drop_headings: bool = False, limit: int | None = PIECE_CHARACTERS) -> Iterator[Piece]:
    """The documents of one file, in order, without blank space around them; empty ones are left out.

    A `.jsonl` file holds one document per line, a JSON string or an object with a "text" string. In the other
    formats blank lines separate documents. Line breaks of any convention become a newline.

    `drop_headings` deletes lines like `= = = Title = = =` (text formats), which then separate documents.
    `limit` is the size in characters above which a document comes in several pieces, None for never.

    Raises UserError, with the line where there is one, for text that is not UTF-8, invalid JSON, damaged
    compression, and text that goes on for millions of characters without a blank.
    """
    with _open_text(path) as text:
        if _format_of(path) in JSON_SUFFIXES:
            documents = (_pieces_of(document, limit) for document in _json_documents(path, text))
            yield from (piece for document in documents for piece in document)
        else:
            yield from _trimmed(_text_pieces(path, text, drop_headings, limit))


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    try:
        with compressed.open_decompressed(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as text:
            yield text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {_undecodable_line(path)}: not UTF-8; convert the file first") from error
    except compressed.DAMAGE as error:
        raise UserError(f"{path}: damaged or not {path.suffix}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _undecodable_line(path: Path) -> int:
    with compressed.open_decompressed(path) as raw:
        return next((number for number, line in enumerate(raw, 1) if not _is_utf8(line)), 0)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_documents(path: Path, lines: IO[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            value = json.loads(line)
            document = value["text"] if isinstance(value, dict) else value
            document.encode()
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error.msg} (column {error.colno})") from error
        except UnicodeEncodeError as error:
            raise UserError(f"{path}, line {number}: half a surrogate pair, which is not text") from error
        except (KeyError, AttributeError) as error:
            raise UserError(
                f'{path}, line {number}: neither a JSON string nor an object with a "text" string'
            ) from error
        yield document.replace("\r\n", "\n").replace("\r", "\n")


def _pieces_of(document: str, limit: int | None) -> Iterator[Piece]:
    document = document.strip()
    if document:
        parts = cut(document, limit) if limit else iter([document])
        for i, part in enumerate(parts):
            yield Piece(part, i == 0)


def _text_pieces(path: Path, text: IO[str], drop_headings: bool, limit: int | None) -> Iterator[Piece]:
    """The documents with the blank space around them, in pieces; some may be empty."""
    rest, opens = "", True
    while block := text.read(_BLOCK_CHARACTERS):
        rest += block
        if drop_headings:
            rest = _HEADING.sub("\n", rest)
        *documents, rest = _BLANK_LINES.split(rest)
        for document in documents:
            yield Piece(document, opens)
            opens = True
        if limit and len(rest) > limit:
            *parts, rest = _cut_lines(rest, limit) if drop_headings else cut(rest, limit)
            for part in parts:
                yield Piece(part, opens)
                opens = False
            if len(rest) > _LONGEST_UNBROKEN:
                blank = "line break" if drop_headings else "blank"
                raise UserError(f"{path}: {len(rest):,} characters without a {blank}; is this text?")
    if drop_headings:
        rest = _HEADING.sub("\n", rest + "\n")
    for document in _BLANK_LINES.split(rest):
        yield Piece(document, opens)
        opens = True


def _cut_lines(text: str, limit: int) -> Iterator[str]:
    """Cut between lines, but not behind the last whole line: the line that begins there may become a heading."""
    begun = text.rfind("\n") + 1
    *parts, last = cut(text[:begun], limit, behind="\n")
    yield from parts
    yield last + text[begun:]


def _trimmed(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Strip each document; a piece in its middle is cut next to visible characters already."""
    previous: Piece | None = None
    for piece in pieces:
        if previous is not None:
            yield from _end_trimmed(previous, closes=piece.opens_document)
        previous = piece._replace(text=piece.text.lstrip()) if piece.opens_document else piece
    if previous is not None:
        yield from _end_trimmed(previous, closes=True)


def _end_trimmed(piece: Piece, *, closes: bool) -> Iterator[Piece]:
    text = piece.text.rstrip() if closes else piece.text
    if text:
        yield Piece(text, piece.opens_document)


SUFFIXES = (".gz", ".zst")


DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)
"""What reading a damaged file raises."""


def open_decompressed(path: Path) -> io.BufferedReader:
    """The decompressed bytes of a file, by its suffix; reading them may raise one of `DAMAGE`."""
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(path), 1 << 17)
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdFile(path), 1 << 17)
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """All frames of a Zstandard file (the package's own reader takes a cut-off file for a complete one)."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._inside_frame = True  # an empty file is no Zstandard file
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
