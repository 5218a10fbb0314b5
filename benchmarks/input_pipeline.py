"""Speed and memory from text to batches.

    python benchmarks/input_pipeline.py FILES... [--tokenizer FILE] [--workers N]

The script prepares the text in a temporary folder, packs it at several row lengths, and reads an epoch of batches in
one process. Memory is the sampled peak of resident memory, of this process and of this process with its workers.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.prepare import prepare_corpus

SEQ_LENS = (128, 256, 512)
BATCH_TOKENS = 1024 * 128
MICRO_BATCH_TOKENS = 64 * 128


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """A list that contains the seconds of wall time and of processor time when the context has ended."""

    def cpu() -> float:
        """Processor time of this process and of the children that it has waited for."""
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    seconds: list[float] = []
    start = time.perf_counter(), cpu()
    yield seconds
    seconds += [time.perf_counter() - start[0], cpu() - start[1]]


class PeakMemory:
    """A context that samples the resident memory of this process and its children (Linux)."""

    def __init__(self) -> None:
        self.own_mib = self.all_mib = 0.0
        self._done = Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
            own, *others = map(resident_mib, ["self", *children])
            self.own_mib = max(self.own_mib, own)
            self.all_mib = max(self.all_mib, own + sum(others))


def resident_mib(process: str) -> float:
    """Resident memory of a process; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * resource.getpagesize() / 2**20


def measure_prepare(options: argparse.Namespace, out: Path) -> Corpus:
    """Prepare a corpus, and print speed and memory."""
    with PeakMemory() as memory, stopwatch() as seconds:
        corpus = prepare_corpus(
            options.files, out, tokenizer=options.tokenizer, workers=options.workers, progress=False
        )
    size = corpus.train.text_bytes / 1e6
    wall, cpu = seconds
    print(corpus.describe())
    print(
        f"prepare: {size:.1f} MB in {wall:.1f} s; per core {size / cpu:.1f} MB/s; "
        f"memory {memory.own_mib:.0f} MiB, with workers {memory.all_mib:.0f} MiB"
    )
    return corpus


def measure_packing(split: Split, seq_len: int) -> None:
    """Print the share of tokens in the rows, and the speed of planning and of shuffling them."""
    from ltg_mdlm.data.packing import RowPlan

    with stopwatch() as planning:
        plan = RowPlan(split, seq_len, packing="documents_packed", end_of_document=False)
    with stopwatch() as shuffling:
        plan.order(0)
    pieces = len(plan.pieces.start_P)
    print(
        f"packing, T {seq_len}: {plan.rows:,} rows, {plan.non_pad_share:.3%} tokens; "
        f"{pieces / planning[0] / 1e6:.1f} M pieces/s planned, {pieces / shuffling[0] / 1e6:.1f} M pieces/s shuffled"
    )


def measure_loader(split: Split, seq_len: int) -> None:
    """Print the tokens per second of the batches of an epoch. torch is imported here, after `prepare` is measured."""
    from ltg_mdlm.data.batch_schedule import BatchSchedule
    from ltg_mdlm.data.row_loader import RowLoader

    steps = max(split.num_tokens // BATCH_TOKENS, 1)
    rows = BATCH_TOKENS // seq_len
    schedule = BatchSchedule.plan(split, stages=[(0.0, seq_len)], global_batch_rows=rows, max_steps=steps)
    loader = RowLoader(split, schedule, seed=0, micro_batch_rows=MICRO_BATCH_TOKENS // seq_len)
    with stopwatch() as seconds:
        for step in range(steps):
            loader.micro_batches(step)
    speed = loader.tokens_seen(steps - 1) / seconds[0]
    print(f"loader, T {seq_len}: {speed / 1e6:.1f} M tokens/s without padding, over {steps} steps")


def main() -> None:
    """Measure all parts on the given files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = measure_prepare(options, Path(folder) / "corpus")
        for seq_len in SEQ_LENS:
            measure_packing(corpus.train, seq_len)
        for seq_len in SEQ_LENS:
            measure_loader(corpus.train, seq_len)


if __name__ == "__main__":
    main()
