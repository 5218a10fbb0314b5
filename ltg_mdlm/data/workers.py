"""Encoding on all cores: one small process per core, fed through pipes.

Plain child processes rather than `multiprocessing`: they import nothing but this package's light modules (no torch,
whatever the caller has loaded), and forking is safe from programs with threads.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO

from ltg_mdlm.data.encode import Encoded, Encoder
from ltg_mdlm.data.sources import Piece
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.errors import UserError

Pieces = list[Piece]

_AHEAD = 2  # batches in flight per worker
_PACKAGE_ROOT = Path(__file__).parents[2]
_COMMAND = [sys.executable, "-c", "from ltg_mdlm.data.workers import serve; serve()"]


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
