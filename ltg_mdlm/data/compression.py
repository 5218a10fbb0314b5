"""Decompressed bytes of files: gzip, Zstandard, xz and bzip2, and the members of zip and tar archives.

Everything is read as a stream. Damage is detected, including truncation.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import zstandard

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")

ARCHIVES = {".zip": "", ".tar": "", ".tgz": ".gz", ".txz": ".xz", ".tbz2": ".bz2"}
"""Suffixes of archives, and the compression that they imply."""

DAMAGE = (
    EOFError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    zstandard.ZstdError,
)
"""Exceptions from reading a damaged file; a damaged bzip2 file is an OSError without a number."""

_BUFFER = 1 << 17

_SIGNATURES = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ\0": ".xz", b"BZh": ".bz2"}


def compression_of(start: bytes) -> str:
    """The compression of a file by its first bytes; empty if there is none."""
    return next((suffix for signature, suffix in _SIGNATURES.items() if start.startswith(signature)), "")


def decompressed(file: IO[bytes], compression: str) -> IO[bytes]:
    """The decompressed bytes of an open file; reading them may raise one of `DAMAGE`."""
    if compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=file), _BUFFER)
    if compression == ".zst":
        return io.BufferedReader(_ZstdFile(file), _BUFFER)
    if compression == ".xz":
        return io.BufferedReader(lzma.LZMAFile(file), _BUFFER)
    if compression == ".bz2":
        return io.BufferedReader(bz2.BZ2File(file), _BUFFER)
    return file


@contextmanager
def opened(path: Path, compression: str = "", advance: Callable[[int], None] | None = None) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file; `advance` is called with the bytes that are read from the disk."""
    with path.open("rb") as file:
        counted = file if advance is None else io.BufferedReader(_CountedFile(file, advance), _BUFFER)
        yield decompressed(counted, compression)


def archive_members(
    path: Path, compression: str, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and bytes of every regular file in an archive, in its order. Each must be read before the next is asked for.

    Nothing is unpacked to the disk. Raises RuntimeError for a member that needs a password.
    """
    with path.open("rb") as file:
        start = file.read(262)
    # is_zipfile reads the end of a file, so it also accepts a tar archive whose last member is a zip file.
    if not is_tar(start) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as member:
                        yield entry.filename, member
                    if advance is not None:
                        advance(entry.compress_size)
        return
    with opened(path, compression, advance) as raw, tarfile.open(fileobj=raw, mode="r|") as archive_stream:
        for info in archive_stream:
            if info.isreg() and (stream := archive_stream.extractfile(info)) is not None:
                # The member of a stream does not even say that it cannot be searched, which TextIOWrapper asks.
                yield info.name, io.BufferedReader(_CountedFile(stream, lambda _: None), _BUFFER)
        while raw.read(_BUFFER):  # a truncated compressed file is noticed at its end only
            pass


def is_tar(start: bytes) -> bool:
    """Whether a file that begins with these bytes (at least 262) is a tar archive."""
    return start[257:262] == b"ustar"


class _CountedFile(io.RawIOBase):
    """A file that reports how much of it is read."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self._file, self._advance = file, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._advance(count)
        return int(count)


class _ZstdFile(io.RawIOBase):
    """All frames of a Zstandard file. The reader of the `zstandard` package does not notice a truncated file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # of `zstd --ultra --long=31`
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
