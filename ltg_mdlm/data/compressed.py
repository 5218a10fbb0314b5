"""Plain, gzip and Zstandard files opened alike; damage is noticed, a cut-off file too."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import zstandard

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
