"""Encoding of text: token ids, and how many words of the text begin in each token.

The tokenizer of the stack is asked only for units of text that have not been seen before (`boundaries`); a table holds
the tokens of the others. On 48 MB of BabyLM text this encodes 5.3 MB/s per core; the library alone, given whole
documents (`encode_batch_fast`), encodes 1.7 MB/s. Other tokenizers encode whole documents.

`EncoderPool` encodes in several processes: plain child processes, which import only this module and its imports.
`multiprocessing` would import the main module of the caller in each of them, and torch with it.

Suffixes: N tokens, P pieces of text, U units, W words; a trailing 1 means one more, as in bounds.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.boundaries import cut, split_units
from ltg_mdlm.data.readers import Piece
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.data.words import WHITESPACE, WordUnit

_CODE = np.dtype(np.uint32)
"""Type of a token in the table: 256 * id + (words that begin here)."""

_MAX_WORDS = 255
"""Words that begin in one token; more are not counted."""

_TABLE_UNITS = 1 << 18
"""Units in the table, at which it is emptied."""

_LONGEST_UNIT = 1 << 11
"""Characters of a unit that is encoded at once, if it can be divided."""

_TABLE_CHARACTERS = 64
"""Longer units are not kept in the table: they rarely occur again, and would need much memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Tokens of some pieces of text, back to back."""

    ids_N: NDArray[np.unsignedinteger]
    word_start_N: NDArray[np.uint8]
    """Words whose first character is in the token; 0 or 1 for the unit whitespace."""
    tokens_P: NDArray[np.int64]
    """Tokens of each piece."""
    words_P: NDArray[np.int64]
    """Words that begin in each piece."""
    opens_P: NDArray[np.bool_]
    """The piece is the first of its document."""
    text_bytes: int
    """Size of the text in UTF-8."""
    source_P: tuple[str, ...] = ()
    """Name of the source of each piece that opens a document."""


class Encoder:
    """Encodes pieces of text in one process, with a table of the units seen so far."""

    def __init__(self, tokenizer: Tokenizer, unit: WordUnit | None = None) -> None:
        """`unit` is the unit of words, by default whitespace."""
        self._unit = unit or WordUnit(WHITESPACE)
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend
        self._token_text = tokenizer.token_text
        self._by_units = tokenizer.cuts_at_spaces
        self._id_type = id_type(tokenizer.vocab_size)
        self._table: dict[str, bytes] = {}

    def encode(self, pieces: Sequence[Piece]) -> Encoded:
        """Encode pieces in the order of the text. Only the stack's tokenizer may be given parts of documents."""
        units_P = [split_units(piece.text) if self._by_units else [piece.text] for piece in pieces]
        if len(self._table) > _TABLE_UNITS:
            self._table.clear()
        new = list(set(chain.from_iterable(units_P)).difference(self._table))
        if self._by_units:  # the library would need a kilobyte for each character of a text without blanks
            long = [unit for unit in new if len(unit) > _LONGEST_UNIT]
            self._table.update((unit, self._encode_at_joints(unit, joined=False)) for unit in long)
            new = [unit for unit in new if len(unit) <= _LONGEST_UNIT]
        self._table.update(zip(new, self._encode_units(new), strict=True))
        codes = [b"".join(map(self._table.__getitem__, units)) for units in units_P]
        for p, piece in enumerate(pieces):
            if piece.joined:
                first, *rest = units_P[p]
                codes[p] = self._encode_at_joints(first, joined=True) + b"".join(map(self._table.__getitem__, rest))
        for unit in set(chain.from_iterable(units_P)):
            if len(unit) > _TABLE_CHARACTERS:
                del self._table[unit]

        code_N = np.frombuffer(b"".join(codes), _CODE)
        word_start_N = (code_N & _MAX_WORDS).astype(np.uint8)
        end_P = np.cumsum([len(code) // _CODE.itemsize for code in codes], dtype=np.int64)
        words_N1 = np.concatenate([[0], np.cumsum(word_start_N, dtype=np.int64)])
        return Encoded(
            ids_N=(code_N >> 8).astype(self._id_type),
            word_start_N=word_start_N,
            tokens_P=np.diff(end_P, prepend=0),
            words_P=np.diff(words_N1[end_P], prepend=0),
            opens_P=np.array([piece.opens_document for piece in pieces], bool),
            text_bytes=sum(len(piece.text.encode()) for piece in pieces),
            source_P=tuple(piece.source for piece in pieces),
        )

    def _encode_units(self, units: Sequence[str]) -> list[bytes]:
        """Tokens of each unit as `_CODE`. One call of the library is much faster than one for each unit."""
        encoding = self._backend.encode(units, is_pretokenized=True, add_special_tokens=False)
        id_N = np.array(encoding.ids, np.int64)
        unit_N = np.array(encoding.word_ids, np.int64)
        bound_U1 = np.searchsorted(unit_N, np.arange(len(units) + 1))
        start_U, end_U = bound_U1[:-1], bound_U1[1:]
        if self._by_units:  # the space that the normaliser puts after a line break belongs to the next unit
            end_U = end_U - np.array([unit.endswith("\n") for unit in units], bool)
        if self._unit.is_whitespace:
            word_start_N = self._token_text.word_starts(id_N, np.diff(unit_N, prepend=-1) > 0)
            # NFKC turns some characters into white space, as in "don´t", which is still one word of the text.
            words_N1 = np.concatenate([[0], np.cumsum(word_start_N)])
            words_U = np.array([len(unit.split()) for unit in units], np.int64)
            for u in np.flatnonzero(words_N1[end_U] - words_N1[start_U] != words_U).tolist():
                offsets = self._backend.encode(units[u], add_special_tokens=False).offsets[: end_U[u] - start_U[u]]
                end_of_token = np.array([end for _, end in offsets], np.int64)
                word_start_N[start_U[u] : end_U[u]] = word_starts_by_offsets(units[u], end_of_token)
            count_N = word_start_N.astype(np.int64)
        else:
            end_of_token = np.array([end for _, end in encoding.offsets], np.int64)  # in their unit
            count_N = np.zeros(len(id_N), np.int64)
            for unit, start, end in zip(units, start_U.tolist(), end_U.tolist(), strict=True):
                count_N[start:end] = words_in_tokens(self._unit.starts(unit), end_of_token[start:end])

        code = ((id_N << 8) | count_N).astype(_CODE)
        return [code[start:end].tobytes() for start, end in zip(start_U.tolist(), end_U.tolist(), strict=True)]

    def _encode_at_joints(self, unit: str, *, joined: bool) -> bytes:
        """Tokens of a unit that is divided at joints, as `_CODE`; with `joined` it continues the unit before it."""
        first, *rest = cut(unit, _LONGEST_UNIT, joints=True)
        code = self._encode_joined(first) if joined else self._encode_units([first])[0]
        return code + b"".join(map(self._encode_joined, rest))

    def _encode_joined(self, unit: str) -> bytes:
        """Tokens of a unit that continues the unit before it, as `_CODE`."""
        encoding = self._tokenizer.without_space.encode(unit, add_special_tokens=False)
        count = len(encoding.ids) - unit.endswith("\n")
        id_N = np.array(encoding.ids, np.int64)[:count]
        starts = self._unit.starts(unit)
        if self._unit.is_whitespace and starts:
            starts = starts[1:]  # its first characters are the rest of a word
        count_N = words_in_tokens(starts, np.array([end for _, end in encoding.offsets], np.int64)[:count])
        return ((id_N << 8) | count_N).astype(_CODE).tobytes()


def words_in_tokens(start_W: Sequence[int], end_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[N]: words that begin in each token, which ends before character `end_N`; at most 255."""
    if not len(end_N):
        return np.zeros(0, np.int64)
    token_W = np.searchsorted(np.maximum.accumulate(end_N), np.array(start_W, np.int64), side="right")
    count_N = np.bincount(np.minimum(token_W, len(end_N) - 1), minlength=len(end_N))
    return np.minimum(count_N, _MAX_WORDS)


def word_starts_by_offsets(text: str, end_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[N]: the first character of a word is in this token, which ends before character `end_N` of `text`.

    One token is marked for each word. If several words begin in a token, the next unmarked tokens stand for the others,
    or the last unmarked tokens before it. If there are more words than tokens, all tokens are marked; this does not
    happen with a byte-level vocabulary.
    """
    first_W = np.array([match.start() for match in re.finditer(r"\S+", text)], np.int64)[: len(end_N)]
    count = len(first_W)
    order_W = np.arange(count)
    token_W = np.searchsorted(np.maximum.accumulate(end_N), first_W, side="right")
    token_W = np.maximum.accumulate(token_W - order_W) + order_W
    token_W = np.minimum(token_W, len(end_N) - count + order_W)
    return np.isin(np.arange(len(end_N)), token_W)


def id_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest type for token ids on disk."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class EncoderPool:
    """A context that encodes batches of text in several processes, or in this process if there is only one worker."""

    def __init__(self, tokenizer: Tokenizer, tokenizer_file: Path, workers: int, unit: WordUnit | None = None) -> None:
        """`tokenizer_file` is where `tokenizer` is saved; the workers read it there."""
        self._tokenizer = tokenizer
        self._unit = unit or WordUnit(WHITESPACE)
        self._tokenizer_file = tokenizer_file
        self._workers = workers
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> EncoderPool:
        if self._workers > 1:
            # An empty entry of PYTHONPATH, and the one that `python -c` puts first, mean the current folder. It holds
            # data, and a file `numpy.py` there must not be executed. The option -P exists only from Python 3.11 on.
            own_paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            paths = [str(Path(__file__).parents[2]), *filter(None, own_paths)]
            code = f"import sys; sys.path[:] = filter(None, sys.path); from {__name__} import serve; serve()"
            one_thread = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            environment = {**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(paths)}
            command = [sys.executable, "-c", code, str(self._tokenizer_file), self._unit.name]
            self._processes = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
                for _ in range(self._workers)
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if kind is not None:
                process.kill()
            process.communicate()

    def encode(self, batches: Iterable[list[Piece]]) -> Iterator[Encoded]:
        """Encode batches in their order. One batch per worker is in memory.

        Raises:
            UserError: a worker died.
        """
        if not self._processes:
            yield from map(Encoder(self._tokenizer, self._unit).encode, batches)
            return
        try:
            batches = iter(batches)
            busy: deque[subprocess.Popen[bytes]] = deque()
            for process, batch in zip(self._processes, batches, strict=False):
                _send(process, batch)
                busy.append(process)
            for batch in batches:
                process = busy.popleft()
                encoded = _receive(process)
                _send(process, batch)
                busy.append(process)
                yield encoded
            yield from map(_receive, busy)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise UserError("an encoding process died (out of memory?); try again with fewer workers") from error


def _send(process: subprocess.Popen[bytes], batch: list[Piece]) -> None:
    assert process.stdin is not None
    pickle.dump(batch, process.stdin, pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()


def _receive(process: subprocess.Popen[bytes]) -> Encoded:
    assert process.stdout is not None
    encoded = pickle.load(process.stdout)
    assert isinstance(encoded, Encoded)
    return encoded


def serve() -> None:
    """The worker: encode batches from standard input. Its arguments are the tokenizer file and the unit of words."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes the pipe
    encoder = Encoder(Tokenizer.read(sys.argv[1]), WordUnit.named(sys.argv[2]))
    while True:
        try:
            batch = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(encoder.encode(batch), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        sys.stdout.buffer.flush()
