"""Where text is found: paths, folders, dataset folders and `hf://` datasets.

`readers.read_pieces` reads them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import files_below
from ltg_mdlm.data.dataset_splits import chosen_names
from ltg_mdlm.data.hub_dataset import HUB_PREFIX, fetch_dataset
from ltg_mdlm.data.text_files import KNOWN_SUFFIXES, TextFile, sniffed, text_file, text_names


def find_sources(paths: Iterable[str | Path], split: str = "train") -> list[TextFile]:
    """The files with text among `paths`; folders are searched recursively, in alphabetical order.

    A path is a file, a folder, or a dataset of the Hub: `hf://owner/name[@revision]`. A folder or a dataset with
    several splits gives the files of `split`, or of another one that is appended after a colon: `folder:validation`,
    `hf://owner/name:config/test`. The format of a file without a suffix is detected from its content.

    Raises:
        UserError: a path that does not exist, a file of an unknown kind, a folder without text, a split that does not
            exist, a file that is given twice, or no path at all.
    """
    found: dict[Path, TextFile] = {}
    for path in map(str, paths):
        for file in _files_of(path, split):
            place = file.path.absolute() if file.origin else file.path.resolve()  # the cache of the Hub has links
            if place in found:
                raise UserError(f"{file.name}: given twice; leave one out")
            found[place] = file
    if not found:
        raise UserError("no text files given")
    return list(found.values())


def _files_of(given: str, split: str) -> list[TextFile]:
    if given.startswith(HUB_PREFIX):
        return fetch_dataset(given, split)
    path, wanted = Path(given), ""
    if not path.exists() and ":" in given:
        before, _, wanted = given.rpartition(":")
        path = Path(before) if Path(before).is_dir() else path
    if path.is_dir():
        return _files_in_folder(path, split, wanted)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_file():
        raise UserError(f"{path}: not a regular file")
    return [text_file(path) or sniffed(path)]


def _files_in_folder(folder: Path, split: str, wanted: str) -> list[TextFile]:
    """The files of a folder: without `wanted` all, unless its README or all their names divide it in splits."""
    names = sorted(path.relative_to(folder).as_posix() for path in files_below(folder))
    readable = text_names(names)
    if not readable:
        raise UserError(f"{folder}: no text files in this folder ({KNOWN_SUFFIXES})")
    readme = folder / "README.md"
    text = readme.read_text("utf-8", errors="replace") if readme.is_file() else ""
    chosen = chosen_names(readable, text, wanted, split, str(folder))
    if len(chosen) < len(readable):
        print(f"{folder}: {len(chosen)} of {len(readable)} files belong to the split", file=sys.stderr)
    return [file for name in chosen if (file := text_file(folder / name))]


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
