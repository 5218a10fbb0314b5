"""From text to token ids, with a mark on every token in which a word of the text begins.

Suffixes: N tokens, P pieces of text.

Encoding on all cores: one small process per core, fed through pipes.

Plain child processes rather than `multiprocessing`: they import nothing but this package's light modules (no torch,
whatever the caller has loaded), and forking is safe from programs with threads.
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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.boundaries import UnitTable, join_units, plain_unit_ends
from ltg_mdlm.data.sources import Piece
from ltg_mdlm.data.tokenizer import Tokenizer

_CODE = np.dtype(np.uint32)  # 2 * id + (a word begins here)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Tokens of some pieces of text, back to back."""

    ids_N: NDArray[np.unsignedinteger]
    word_start_N: NDArray[np.bool_]
    """A word's first character is in this token."""
    tokens_P: NDArray[np.int64]
    """Tokens of each piece."""
    words_P: NDArray[np.int64]
    """Words that begin in each piece; their sum is the number of marked tokens."""
    opens_P: NDArray[np.bool_]
    """The piece is the first of its document."""
    text_bytes: int
    """Size of the text in UTF-8."""


class Encoder:
    """Encodes text; for the stack's own tokenizer by looking up units (`boundaries`), which is much faster."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = tokenizer.backend
        self._text = tokenizer.token_text
        self._by_units = tokenizer.cuts_at_spaces
        self._units = UnitTable(self._encode_joined, self._encode_each)
        self.id_type = id_type(tokenizer.vocab_size)

    def encode(self, pieces: Sequence[Piece]) -> Encoded:
        """Encode pieces in the order of the text; long documents in pieces need the stack's tokenizer."""
        codes = [self._encode_piece(piece.text) for piece in pieces]
        code_N = np.frombuffer(b"".join(codes), _CODE)
        word_start_N = (code_N & 1).astype(bool)
        tokens_P = np.array([len(code) // _CODE.itemsize for code in codes], np.int64)
        begun_N1 = np.concatenate([[0], np.cumsum(word_start_N)])
        end_P = np.cumsum(tokens_P)
        return Encoded(
            ids_N=(code_N >> 1).astype(self.id_type),
            word_start_N=word_start_N,
            tokens_P=tokens_P,
            words_P=begun_N1[end_P] - begun_N1[end_P - tokens_P],
            opens_P=np.array([piece.opens_document for piece in pieces], bool),
            text_bytes=sum(len(piece.text.encode()) for piece in pieces),
        )

    def _encode_piece(self, text: str) -> bytes:
        if not self._by_units:
            return self._encode_each([text])[0]
        return b"".join(self._units.values(text))

    def _encode_joined(self, units: Sequence[str]) -> list[bytes]:
        """The codes of plain units, tokenised as one text: several times faster than one by one."""
        (encoding,) = self._backend.encode_batch_fast([join_units(units)], add_special_tokens=False)
        id_N = np.array(encoding.ids, np.int64)
        end_P = plain_unit_ends(units, self._text.length_V[id_N])
        return self._codes_of(id_N, end_P)

    def _encode_each(self, texts: Sequence[str]) -> list[bytes]:
        """The codes of any texts, tokenised one by one."""
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = [self._without_last_blank(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]
        id_N = np.fromiter(chain.from_iterable(ids), np.int64)
        codes = self._codes_of(id_N, np.cumsum([len(piece) for piece in ids], dtype=np.int64))
        return [self._checked(text, code) for text, code in zip(texts, codes, strict=True)]

    def _without_last_blank(self, text: str, ids: list[int]) -> list[int]:
        """A unit that ends a line: the blank that the normaliser puts behind it belongs to the next unit."""
        return ids[:-1] if self._by_units and text.endswith("\n") else ids

    def _codes_of(self, id_N: NDArray[np.int64], end_P: NDArray[np.int64]) -> list[bytes]:
        """Cut tokens into pieces that end at `end_P`, each the beginning of a word or text."""
        first_N = np.zeros(len(id_N) + 1, bool)
        first_N[0] = True
        first_N[end_P] = True
        word_start_N = self._text.word_starts(id_N, first_N[:-1])
        code = ((id_N << 1) | word_start_N).astype(_CODE).tobytes()
        bounds = [0, *(end_P * _CODE.itemsize).tolist()]
        return [code[start:end] for start, end in pairwise(bounds)]

    def _checked(self, text: str, code: bytes) -> bytes:
        """Mark words by the tokens' offsets where normalisation changed white space, as in "don´t" -> "don ́t"."""
        code_N = np.frombuffer(code, _CODE)
        if np.count_nonzero(code_N & 1) == len(text.split()):
            return code
        ends = [end for _, end in self._backend.encode(text, add_special_tokens=False).offsets]
        word_start_N = word_starts_by_offsets(text, np.array(ends[: len(code_N)]))
        return bytes((code_N >> 1 << 1 | word_start_N).astype(_CODE).tobytes())


def word_starts_by_offsets(text: str, end_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[N]: a word's first character is in this token, which ends before character `end_N` of `text`.

    One mark per word: a word whose token is marked already takes the next free one, or the last free one before.
    A text with more words than tokens (no byte-level vocabulary has one) has every token marked.
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


Pieces = list[Piece]


_AHEAD = 2  # batches in flight per worker


_PACKAGE_ROOT = Path(__file__).parents[2]


_COMMAND = [sys.executable, "-c", "from ltg_mdlm.data.encode import serve; serve()"]


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EncoderPool:
    """A context in which batches of text are encoded by several processes; in this process if there is one only."""

    def __init__(self, tokenizer: Tokenizer, tokenizer_file: Path, workers: int) -> None:
        """`tokenizer_file` is where `tokenizer` is saved; workers read it there."""
        self._tokenizer = tokenizer
        self._file = tokenizer_file
        self._count = workers
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> EncoderPool:
        if self._count > 1:
            self._processes = [_start(self._file) for _ in range(self._count)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if kind is not None:
                process.kill()
            process.communicate()

    def encode(self, batches: Iterable[Pieces]) -> Iterator[Encoded]:
        """Encode batches, in their order; only a few are held in memory."""
        if not self._processes:
            yield from map(Encoder(self._tokenizer).encode, batches)
            return
        idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self._processes:
            idle.put(process)
        waiting: deque[Future[Encoded]] = deque()
        with ThreadPoolExecutor(self._count) as threads:
            for batch in batches:
                waiting.append(threads.submit(_encode_in, idle, batch))
                if len(waiting) >= _AHEAD * self._count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _start(tokenizer_file: Path) -> subprocess.Popen[bytes]:
    paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    one_thread = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    _send(process.stdin, str(tokenizer_file))
    return process


def _encode_in(idle: SimpleQueue[subprocess.Popen[bytes]], batch: Pieces) -> Encoded:
    process = idle.get()
    try:
        _send(process.stdin, batch)
        assert process.stdout is not None
        encoded = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
        raise UserError("an encoding process died (out of memory?); try again with fewer workers") from error
    finally:
        idle.put(process)
    assert isinstance(encoded, Encoded)
    return encoded


def _send(pipe: IO[bytes] | None, message: object) -> None:
    assert pipe is not None
    pickle.dump(message, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def serve() -> None:
    """The worker's side: read the tokenizer's path, then answer batches until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes the pipe
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    encoder = Encoder(Tokenizer.read(pickle.load(requests)))
    while True:
        try:
            batch = pickle.load(requests)
        except EOFError:
            return
        _send(answers, encoder.encode([Piece(*piece) for piece in batch]))
