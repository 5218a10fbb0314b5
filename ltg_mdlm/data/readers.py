"""Documents from files: text with blank lines between documents, JSON, CSV, Parquet and Arrow, and archives of these.

Files are read as streams in bounded memory. Errors are reported with the file and the line or row.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.boundaries import cut
from ltg_mdlm.data.compression import COMPRESSIONS, DAMAGE, archive_members, decompressed, opened
from ltg_mdlm.data.text_files import TextFile, kind_of, stem_of, text_file, text_names

PIECE_CHARACTERS = 1 << 20
"""A longer document comes in pieces of about this size."""

_BLOCK_CHARACTERS = 1 << 20
"""Text is read in blocks of this size."""

_LONGEST_UNBROKEN = 4 * PIECE_CHARACTERS
"""Longest run of characters in which there is no place to cut."""

_LONGEST_ELEMENT = 1 << 27
"""Characters of the longest row of a CSV file, of the longest line of JSON, and of the longest element of an array."""

_BATCH_BYTES = 4 << 20
"""Rows of columnar files are read in batches of about this size."""

_MARKS = re.compile(r"^\ufeff+", re.MULTILINE)
_INNER_MARKS = re.compile(r"(?<=\n)\ufeff+")
"""Byte order marks at the beginning of lines; the second one for text that begins inside a line."""

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_CONTROLS = re.compile("[\\x00-\\x08\\x0e-\\x1b\\x7f-\\x84\\x86-\\x9f\\xad\u200b\u2060\ufeff]")
_HEADING = re.compile(r"^= = = .* = = =[^\S\n]*\n", re.MULTILINE)

Advance = Callable[[int], None]


class Piece(NamedTuple):
    """A document or a part of a long one. The parts of a document are consecutive and concatenate to it."""

    text: str
    opens_document: bool
    source: str = ""
    """Name of the document's source, which only the first of its pieces must have."""
    joined: bool = False
    """It continues the piece before it without a blank or a line break between them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read from files."""

    text_field: str = "text"
    """Column, or field of JSON objects, with the text"""
    source_field: str | None = None
    """Column, or field of JSON objects, with the name of the document's source"""
    drop_headings: bool = False
    """Delete lines like `= = = Title = = =` of text files; they separate documents"""
    skip_nulls: bool = False
    """Leave out rows whose text is null, instead of refusing them"""
    nfkc: bool = False
    """Normalise the text by NFKC"""
    drop_controls: bool = False
    """Delete control characters other than white space, soft hyphens and spaces of no width"""

    def clean(self, text: str) -> str:
        """The text of a document or a part of one, cleaned as these settings say."""
        if self.drop_controls:
            text = _CONTROLS.sub("", text)
        return unicodedata.normalize("NFKC", text) if self.nfkc else text


_DEFAULT = Reading()


def read_pieces(
    file: TextFile | Path,
    reading: Reading = _DEFAULT,
    *,
    limit: int | None = PIECE_CHARACTERS,
    advance: Advance | None = None,
) -> Iterator[Piece]:
    """The documents of one file in order, without white space around them; empty documents are skipped.

    In text files blank lines separate documents. A JSON file has one document per line, or is an array of documents: a
    document is a string, or an object with a text. A table has one document per row. All conventions for line breaks
    are read as a newline. Byte order marks at the beginning of a line are dropped: files that were concatenated have
    them inside. An archive has the documents of all its files; each of them is a source.

    Args:
        file: the file
        reading: what is read from it
        limit: a document with more characters comes in several pieces; None for never
        advance: called with the number of bytes of the file that were read

    Raises:
        UserError: text that is not UTF-8, invalid JSON or CSV, a missing column, a null, a document without
            `source_field`, a damaged file, or millions of characters without a place to cut. The message names the
            line or row where there is one.
    """
    if isinstance(file, Path):
        file = text_file(file) or TextFile(file, "text", name=str(file))
    where = file.name or str(file.path)
    if file.kind in ("parquet", "arrow"):
        if file.compression:
            raise UserError(f"{where}: decompress it first; columnar files are compressed inside")
        read = _parquet_rows if file.kind == "parquet" else _arrow_rows
        with _read_errors(where, file.kind):
            yield from _rows_to_pieces(read(file.path, where, reading, advance), reading, limit)
    elif file.kind == "archive":
        with _read_errors(where, "an archive"):
            for name, member in archive_members(file.path, file.compression, advance):
                yield from _archived_pieces(f"{where}/{name}", name, member, reading, limit)
    else:
        with (
            _read_errors(where, file.compression or file.path.suffix, lambda: opened(file.path, file.compression)),
            opened(file.path, file.compression, advance) as raw,
        ):
            yield from _stream_pieces(file.kind, raw, where, reading, limit)


def _archived_pieces(where: str, name: str, member: IO[bytes], reading: Reading, limit: int | None) -> Iterator[Piece]:
    """The documents of a file in an archive, whose name is their source; none of files that hold no text."""
    if not text_names([name]):
        return
    kind, compression = kind_of(name) or ("", "")
    if kind in ("parquet", "arrow", "archive"):
        raise UserError(f"{where}: unpack the archive first; such files cannot be read inside it")
    with _read_errors(where, compression):
        for piece in _stream_pieces(kind, decompressed(member, compression), where, reading, limit):
            yield piece if piece.source else piece._replace(source=stem_of(name.rpartition("/")[2]))


def _stream_pieces(kind: str, raw: IO[bytes], where: str, reading: Reading, limit: int | None) -> Iterator[Piece]:
    newline = "" if kind == "csv" else None
    with io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as text:
        if kind == "text":
            yield from _text_pieces(where, text, reading, limit)
        else:
            rows = _csv_rows(text, where, reading) if kind == "csv" else _json_rows(text, where, reading)
            yield from _rows_to_pieces(rows, reading, limit)


@contextmanager
def _read_errors(where: str, kind: str, reopen: Callable[[], Any] | None = None) -> Iterator[None]:
    """Turn the exceptions of a file that cannot be read into messages; `reopen` gives its bytes again."""
    try:
        yield
    except UnicodeDecodeError as error:
        line = ""
        if reopen is not None:
            with reopen() as raw:
                lines = enumerate(raw, 1)
                line = f", line {next((i for i, text in lines if text.decode(errors='ignore').encode() != text), 0)}"
        raise UserError(f"{where}{line}: not UTF-8; convert the file first") from error
    except DAMAGE as error:
        raise UserError(f"{where}: damaged or not {kind}: {error}") from error
    except RuntimeError as error:  # zipfile, for an archive with a password or an unknown compression
        raise UserError(f"{where}: cannot be read: {error}") from error
    except OSError as error:
        if error.errno is None and kind in COMPRESSIONS:
            raise UserError(f"{where}: damaged or not {kind}: {error}") from error
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from error


class _Row(NamedTuple):
    """A document of a file that is not plain text."""

    text: str
    source: str
    """Its source, or empty"""
    place: str
    """The file and the line, row or element, for messages"""


def _rows_to_pieces(rows: Iterator[_Row], reading: Reading, limit: int | None) -> Iterator[Piece]:
    for text, source, place in rows:
        text = _MARKS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
        text = reading.clean(text).strip()
        if limit is None or len(text) <= limit:
            if text:
                yield Piece(text, True, source)
            continue
        before = " "
        for i, part in enumerate(cut(text, limit, joints=True)):
            _require_broken(part, place)
            yield Piece(part, i == 0, source, not before.endswith((" ", "\n")))
            before = part


def _text_pieces(where: str, text: IO[str], reading: Reading, limit: int | None) -> Iterator[Piece]:
    rest, opens, joined, at_line_start = "", True, False, True
    while True:
        block = text.read(_BLOCK_CHARACTERS)
        without_marks = (_MARKS if at_line_start else _INNER_MARKS).sub("", block)
        at_line_start = without_marks.endswith("\n") if without_marks else at_line_start
        rest += without_marks if block else "\n\n"  # the end of the file ends a document
        if reading.drop_headings:
            rest = _HEADING.sub("\n", rest)
        *documents, rest = _BLANK_LINES.split(rest)
        for document in map(reading.clean, documents):
            if document := document.strip() if opens else document.rstrip():
                yield Piece(document, opens, joined=joined)
            opens, joined = True, False
        if not block:
            return
        if limit and len(rest) > limit:
            if reading.drop_headings:  # the last line is not complete, and may become a heading
                last_line = rest.rfind("\n") + 1
                *parts, uncut = cut(rest[:last_line], limit, after="\n")
                rest = uncut + rest[last_line:]
            else:
                *parts, rest = cut(rest, limit, joints=True)
            for part in parts:
                cleaned = reading.clean(part)
                if cleaned := cleaned.lstrip() if opens else cleaned:
                    yield Piece(cleaned, opens, joined=joined)
                    opens, joined = False, not part.endswith((" ", "\n"))
            _require_broken(rest, where, "a line break" if reading.drop_headings else "a blank or punctuation")


def _require_broken(part: str, where: str, place: str = "a blank or punctuation") -> None:
    """Raise UserError for text that `cut` cannot divide and that is too long for the tokenizer."""
    if len(part) > _LONGEST_UNBROKEN:
        raise UserError(f"{where}: {len(part):,} characters without {place}; is this text?")


def _row(value: Any, source: Any, where: str, reading: Reading) -> _Row | None:
    """A document whose text and source have these values. None for a null that is left out."""
    field = reading.text_field
    if value is None:
        if reading.skip_nulls:
            return None
        raise UserError(f"{where}: {field!r} is null; correct the row, or leave such rows out with --skip-nulls")
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} is {value!r:.60}, which is not text; name another one with --text-field")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair, which is not text") from error
    if reading.source_field is None:
        return _Row(value, "", where)
    if not (isinstance(source, str) and source.strip() and source.isprintable()):
        raise UserError(f"{where}: no name of a source in the field {reading.source_field!r} (--source-field)")
    return _Row(value, source.strip(), where)


def _json_rows(text: IO[str], where: str, reading: Reading) -> Iterator[_Row]:
    start, line = text.read(1), 1
    while start and (start.isspace() or start == "\ufeff"):
        line += start == "\n"
        start = text.read(1)
    values = _json_array(start, text, where) if start == "[" else _json_lines(start, line, text, where)
    for place, value in values:
        source = None
        if isinstance(value, dict):
            if reading.text_field not in value:
                fields = ", ".join(map(str, value))
                raise UserError(
                    f"{place}: the object has no {reading.text_field!r}; its fields are: {fields:.200}"
                    "\n  name the one with the text with --text-field"
                )
            value, source = value[reading.text_field], value.get(reading.source_field)
        elif value is not None and not isinstance(value, str):
            raise UserError(f'{place}: neither a JSON string nor an object with a "{reading.text_field}" string')
        if row := _row(value, source, place, reading):
            yield row


def _lines(text: IO[str], where: str, first_line: int) -> Iterator[str]:
    """The lines of a file. Raises UserError for a line that could fill the memory, as in a small compressed file."""
    for number in itertools.count(first_line):
        line = text.readline(_LONGEST_ELEMENT + 1)
        if len(line) > _LONGEST_ELEMENT:
            raise UserError(f"{where}, line {number}: more than {_LONGEST_ELEMENT:,} characters; is this text?")
        if not line:
            return
        yield line


def _json_lines(start: str, first_line: int, text: IO[str], where: str) -> Iterator[tuple[str, Any]]:
    """Place and value of every line that is not blank. `start` was read before; it begins the line `first_line`."""
    for number, line in enumerate(_lines(text, where, first_line), first_line):
        line = (start + line if number == first_line else line).lstrip("\ufeff")
        if line and not line.isspace():
            place = f"{where}, line {number}"
            yield place, _parsed(json.loads, line, place)


def _json_array(start: str, text: IO[str], where: str) -> Iterator[tuple[str, Any]]:
    """Place and value of every element of an array, of which only the element and the rest of a block are in memory."""
    decode, buffer, at, number = json.JSONDecoder().raw_decode, start, 1, 1
    block = _BLOCK_CHARACTERS

    def more() -> bool:
        nonlocal buffer, at, block
        added = text.read(block)
        buffer, at = buffer[at:] + added, 0
        return bool(added)

    expected = ""  # between elements: a comma
    while True:
        while at >= len(buffer) or buffer[at] in " \t\r\n":
            if at < len(buffer):
                at += 1
            elif not more():
                raise UserError(f"{where}: the JSON array does not end; the file is cut short")
        character = buffer[at]
        if character == "]":
            rest = buffer[at + 1 :]
            while not rest.strip(" \t\r\n\ufeff"):
                if not (rest := text.read(_BLOCK_CHARACTERS)):
                    return
            raise UserError(
                f"{where}: there is more after the end of the JSON array"
                "\n  write a single array, or one document per line"
            )
        if expected and character != expected:
            raise UserError(f"{where}, element {number}: not JSON: no comma after the element before it")
        if expected:
            at, expected = at + 1, ""
            continue
        place = f"{where}, element {number}"
        while True:
            try:
                value, end = decode(buffer, at)
                break
            except json.JSONDecodeError as error:
                block = max(_BLOCK_CHARACTERS, len(buffer))  # an element of many blocks is not decoded once per block
                if len(buffer) > _LONGEST_ELEMENT or not more():
                    raise UserError(f"{place}: not JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: not JSON that can be read: {error}") from error
        at, number, expected = end, number + 1, ","
        yield place, value


def _parsed(parse: Callable[[str], Any], line: str, place: str) -> Any:
    try:
        return parse(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, thousands of brackets
        raise UserError(f"{place}: not JSON that can be read: {error}") from error


def _csv_rows(text: IO[str], where: str, reading: Reading) -> Iterator[_Row]:
    """The rows below a line with the names of the columns; a tab separates them if that line has one."""
    csv.field_size_limit(_LONGEST_ELEMENT)
    header = next(_lines(text, where, 1), "")
    row_characters = 0

    def lines() -> Iterator[str]:
        nonlocal row_characters
        for number, line in enumerate(_lines(text, where, 2), 2):
            row_characters += len(line)
            if row_characters > _LONGEST_ELEMENT:  # cells in quotation marks may have any number of lines
                raise UserError(f"{where}, line {number}: a row of more than {_LONGEST_ELEMENT:,} characters")
            yield line

    rows = csv.reader(lines(), delimiter="\t" if "\t" in header else ",", strict=True)
    columns = next(csv.reader([header], delimiter="\t" if "\t" in header else ","), [])
    index = [_column(name, columns, where) for name in (reading.text_field, reading.source_field) if name is not None]
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            row_characters = 0
            if not row:
                continue
            place = f"{where}, row {number} (line {rows.line_num + 1})"
            if len(row) != len(columns):
                raise UserError(f"{place}: {len(row)} columns, not {len(columns)} as in the first line")
            if found := _row(row[index[0]], row[index[-1]], place, reading):
                yield found
    except csv.Error as error:
        raise UserError(
            f"{where}, row {number + 1} (line {rows.line_num + 1}): not CSV: {error}"
            "\n  is a quotation mark missing, or not doubled inside a quoted cell?"
        ) from error


def _column(name: str, columns: list[str], where: str) -> int:
    if columns.count(name) > 1:
        raise UserError(f"{where}: has {columns.count(name)} columns {name!r}; rename all but one")
    if name not in columns:
        raise UserError(
            f"{where}: has no column {name!r}; its columns are: {', '.join(columns):.300}"
            "\n  name the one with the text with --text-field, and the one with the source with --source-field"
        )
    return columns.index(name)


def _arrow_module(where: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f'{where}: reading it needs pyarrow\n  pip install "ltg-mdlm[data]"') from None
    return pyarrow


def _parquet_rows(path: Path, where: str, reading: Reading, advance: Advance | None) -> Iterator[_Row]:
    arrow = _arrow_module(where)
    from pyarrow import parquet

    size = path.stat().st_size
    try:
        # Without a buffer a whole column of a row group is read at once.
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = _text_columns(file.schema_arrow, where, reading)
            rows, groups = file.metadata.num_rows, range(file.metadata.num_row_groups)
            total = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            batch_rows = max(1, min(1 << 16, _BATCH_BYTES * rows // max(total, 1)))
            first = 0
            for batch in file.iter_batches(batch_rows, columns=names, use_threads=False):
                _require_valid(batch, arrow)
                yield from _batch_rows(batch, names, first, where, reading)
                first += batch.num_rows
                if advance is not None:
                    advance(size * batch.num_rows // max(rows, 1))
    except arrow.ArrowException as error:
        raise UserError(f"{where}: damaged or not Parquet: {error}") from error
    except OSError as error:
        if error.errno is None:  # pages that are cut short or that cannot be decompressed
            raise UserError(f"{where}: damaged or not Parquet: {error}") from error
        raise


def _arrow_rows(path: Path, where: str, reading: Reading, advance: Advance | None) -> Iterator[_Row]:
    arrow = _arrow_module(where)
    try:
        with arrow.memory_map(str(path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            table = arrow.ipc.open_file(mapped) if is_file else arrow.ipc.open_stream(mapped)
            names = _text_columns(table.schema, where, reading)
            batches = (table.get_batch(i) for i in range(table.num_record_batches)) if is_file else iter(table)
            first = 0
            for batch in batches:
                chosen = batch.select(names)
                _require_valid(chosen, arrow)
                step = max(1, _BATCH_BYTES * batch.num_rows // max(chosen.nbytes, 1))
                for start in range(0, batch.num_rows, step):
                    yield from _batch_rows(chosen.slice(start, step), names, first + start, where, reading)
                first += batch.num_rows
                if advance is not None and is_file:
                    advance(path.stat().st_size // table.num_record_batches)
    except arrow.ArrowException as error:
        raise UserError(f"{where}: damaged or not Arrow: {error}") from error
    except OSError as error:
        if error.errno is None:
            raise UserError(f"{where}: damaged or not Arrow: {error}") from error
        raise


def _text_columns(schema: Any, where: str, reading: Reading) -> list[str]:
    """The columns to read. Raises UserError if one is missing or does not hold text."""
    names = [name for name in (reading.text_field, reading.source_field) if name is not None]
    for name in names:
        kind = schema.field(_column(name, schema.names, where)).type
        value = kind.value_type if "dictionary" in str(kind) else kind
        if str(value) not in ("string", "large_string", "string_view"):
            raise UserError(f"{where}: the column {name!r} holds {value}, not text; name another one with --text-field")
    return list(dict.fromkeys(names))


def _require_valid(batch: Any, arrow: Any) -> None:
    """Raise ArrowException if an offset or an index of a damaged file is out of bounds.

    pyarrow does not check them when it reads: the process could be killed. `_batch_rows` finds text that is not UTF-8.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except arrow.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise


def _batch_rows(batch: Any, names: list[str], first: int, where: str, reading: Reading) -> Iterator[_Row]:
    try:
        columns = [batch.column(name).to_pylist() for name in names]
    except UnicodeDecodeError as error:
        bad = next(row for row in range(batch.num_rows) if not _is_utf8(batch, names, row))
        raise UserError(f"{where}, row {first + bad + 1}: not UTF-8; write the file again") from error
    for number, (text, source) in enumerate(zip(columns[0], columns[-1], strict=True), first + 1):
        if row := _row(text, source, f"{where}, row {number}", reading):
            yield row


def _is_utf8(batch: Any, names: list[str], row: int) -> bool:
    try:
        for name in names:
            batch.column(name)[row].as_py()
    except UnicodeDecodeError:
        return False
    return True
