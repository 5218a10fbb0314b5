"""Files that hold text: what each is, by its name or its first bytes, and the source that it is."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.compression import ARCHIVES, COMPRESSIONS, DAMAGE, compression_of, is_tar, opened
from ltg_mdlm.data.dataset_splits import SHARD, split_called

KINDS = {
    **dict.fromkeys((".txt", ".train", ".dev", ".test"), "text"),
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
    **dict.fromkeys(ARCHIVES, "archive"),
}
"""What a file is, by its suffix."""

KNOWN_SUFFIXES = (
    "text .txt .train .dev .test, JSON .jsonl .json .ndjson, tables .csv .tsv .parquet .arrow .feather, archives .zip"
    f" .tar, also compressed as {' '.join(COMPRESSIONS)}"
)

_NO_DOCUMENTS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "requirements.txt"}
"""Files of dataset folders that are not text, although their suffix says so."""

_SNIFFED_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file with documents."""

    path: Path
    kind: str
    """text, json, csv, parquet, arrow or archive"""
    compression: str = ""
    """Suffix of the compression, or empty"""
    name: str = ""
    """The name that the user knows: the path, or `owner/name/file` of a dataset of the Hub"""
    origin: str = ""
    """`owner/name@commit` of a dataset of the Hub"""


def text_names(names: Iterable[str]) -> list[str]:
    """The names that say that a file holds text."""
    visible = (name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts))
    return [name for name in visible if kind_of(name) and PurePosixPath(name).name not in _NO_DOCUMENTS]


def kind_of(name: str) -> tuple[str, str] | None:
    """Kind and compression of a file by its suffixes, in any case; None if they say nothing."""
    path = PurePosixPath(name.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    suffix = PurePosixPath(path.stem).suffix if compression else path.suffix
    if kind := KINDS.get(suffix):
        return kind, compression or ARCHIVES.get(suffix, "")
    return None


def text_file(path: Path) -> TextFile | None:
    """The file, if its suffix is known."""
    known = kind_of(path.name)
    return TextFile(path, *known, name=str(path)) if known else None


def sniffed(path: Path) -> TextFile:
    """A file without a suffix, by its first bytes. Raises UserError if it has another suffix or they are not text."""
    unknown = f"{path}: unknown kind of file; known are {KNOWN_SUFFIXES}"
    if path.suffix:
        raise UserError(unknown)
    with path.open("rb") as file:
        start = file.read(_SNIFFED_BYTES)
    if start.startswith(b"PAR1"):
        return TextFile(path, "parquet", name=str(path))
    if start.startswith(b"ARROW1"):
        return TextFile(path, "arrow", name=str(path))
    if start.startswith(b"PK\x03\x04") or is_tar(start):
        return TextFile(path, "archive", name=str(path))
    if compression := compression_of(start):
        try:
            with opened(path, compression) as raw:
                start = raw.read(_SNIFFED_BYTES)
        except (*DAMAGE, OSError) as error:
            raise UserError(f"{path}: damaged or not {compression}: {error}") from error
        if is_tar(start):
            return TextFile(path, "archive", compression, name=str(path))
    text = start.decode("utf-8-sig", errors="ignore")
    if b"\0" in start or len(text.encode()) < len(start) - 8:  # a character may be cut, and there may be a mark
        raise UserError(unknown)
    line = text.strip().partition("\n")[0]
    if re.match(r'\s*\[\s*["{]', text) or (line[:1] in ("{", '"') and _is_json(line)):
        return TextFile(path, "json", compression, name=str(path))
    for separator in ",\t":
        if "text" in (columns := next(csv.reader([line], delimiter=separator), [])) and len(columns) > 1:
            return TextFile(path, "csv", compression, name=str(path))
    return TextFile(path, "text", compression, name=str(path))


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), str | dict)
    except ValueError:
        return False


def source_names(files: Sequence[TextFile]) -> list[str]:
    """The name of the source that each file is, if the documents themselves do not say.

    It is the name of the file without its suffixes, so that `childes.train.gz` and `childes.dev` are both `childes`.
    A file that is named after its split, such as `train-00000-of-00002.parquet`, has the name of its folder or dataset.
    Files of one name in different folders are named with as many of their folders as it takes to tell them apart.
    """
    parts = []
    for file in files:
        folders = list(file.path.resolve().parts[1:-1])
        if file.origin:
            folders = [*file.origin.partition("@")[0].split("/"), *PurePosixPath(file.name).parts[2:-1]]
        name = SHARD.sub("", stem_of(file.path.name))
        while folders and (split_called(name) or name.lower() == "data"):
            name = folders.pop()
        parts.append(tuple(map(_printable, (*folders, name))))
    names = []
    for own in parts:
        others = {other for other in parts if other[-1] == own[-1]} - {own}
        length = 1
        while any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names


def stem_of(name: str) -> str:
    """The name of a file without the suffixes that say what it is: `childes` for `childes.train.txt.gz`."""
    while (suffix := os.path.splitext(name)[1].lower()) in KINDS or suffix in COMPRESSIONS:
        name = name[: -len(suffix)]
    return _printable(name)


def _printable(name: str) -> str:
    """The name with codes for the bytes that are not UTF-8, so that it can be written to a file."""
    return name.encode(errors="backslashreplace").decode()
