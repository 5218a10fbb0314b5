"""Checkpoints: complete or absent, checked when read, a few kept, and milestones by words seen kept for ever.

Training waits while the state is copied to main memory; a thread writes the copy.

checkpoints/step_0000100/   model, ema, optimizer, components (.safetensors), state.json
checkpoints/latest          the name of the newest complete one
checkpoints/chck_10M/       model, ema (.safetensors), state.json
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import remove_leftovers, sync, temporary_name, write_text, written_folder
from ltg_mdlm.core.host_memory import HostBuffers
from ltg_mdlm.storage.tensor_files import load_tensors, sha256, write_tensors

FORMAT_VERSION = 1


STATE_FILE = "state.json"


_PARTS = ("model", "ema", "optimizer", "components")


_MILESTONE_PARTS = ("model", "ema")


_SPARE_BYTES = 16 * 2**20


_MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything a process needs to go on where another one stopped; tensors by name."""

    step: int
    """steps done"""
    words_seen: int
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    components: Mapping[str, Tensor] = field(default_factory=dict)


def milestones_crossed(before: int, after: int) -> list[str]:
    """Names of the word counts in (`before`, `after`]: every 1M to 10M, every 10M to 100M, every 100M to 1000M."""
    millions = [*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)]
    return [f"chck_{m}M" for m in millions if before < m * _MILLION <= after]


class Checkpoints:
    """The `checkpoints` folder of a run, which the caller must be the only one to write in (`RunFolder` sees to it).

    A save that fails is warned about and repeated at the next step; a second failure in a row ends the run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        keep: int,
        by_words: bool = True,
        about: Mapping[str, Any] | None = None,
        writes: bool = True,
        journal: Path | None = None,
        saved: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Nothing is written yet.

        Args:
            folder: made when it is needed
            every: steps between checkpoints
            keep: how many of the newest are kept, beside the milestones
            by_words: whether to keep milestones
            about: goes into every state.json, beside step and words
            writes: False leaves the disk alone, on other ranks than the first
            journal: a file that is forced to disk before a checkpoint appears, so that no checkpoint is ahead of it
            saved: called with the step of every checkpoint that is complete, from the thread that wrote it
        """
        self.folder = folder
        self._every, self._keep, self._by_words = every, keep, by_words
        self._about, self._writes, self._journal, self._saved = dict(about or {}), writes, journal, saved
        self._words_on_disk = self._words_taken = 0
        self._buffers = {part: HostBuffers() for part in _PARTS}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._repeating = False

    def due(self, step: int, words_seen: int) -> bool:
        """Whether to save the state after `step` steps: every so many, when a milestone was crossed, or once more."""
        return step % self._every == 0 or bool(self._milestones(words_seen)) or self._has_failed()

    def reserve(self, state: TrainingState) -> None:
        """Take the main memory for a copy of the state now: a run that lacks it fails at its start."""
        if self._writes:
            self._copy(state)

    def save(self, state: TrainingState) -> None:
        """Copy the state, and write a checkpoint and the milestones crossed since the last one, in the background.

        Waits for a write that is still under way.  Raises UserError, with the older checkpoints untouched, if two
        writes in a row failed.
        """
        if not self._writes:
            self._words_taken = state.words_seen
            return
        problem = self._outcome()
        if problem is not None and self._repeating:
            raise problem
        if problem is not None:
            warnings.warn(f"{problem}\n  trying once more, at step {state.step}", stacklevel=2)
        self._repeating = problem is not None
        milestones = self._milestones(state.words_seen)
        self._words_taken = state.words_seen
        self._writing = self._thread.submit(self._write, self._copy(state), milestones)

    def finish(self) -> None:
        """Wait until the last save is on disk.  Raises UserError if it is not."""
        if (problem := self._outcome()) is not None:
            raise problem

    def close(self) -> None:
        """Wait for the thread, whatever comes of it; for runs that end by an error of their own."""
        self._thread.shutdown()

    def load(self, path: Path, *, verify: bool = True) -> TrainingState:
        """Read a checkpoint; milestones before it count as saved.  Raises UserError if it is damaged or incomplete."""
        state = load_checkpoint(path, verify=verify)
        self._words_on_disk = self._words_taken = state.words_seen
        return state

    def _copy(self, state: TrainingState) -> TrainingState:
        copies: dict[str, Any] = {part: self._buffers[part].copy(getattr(state, part)) for part in _PARTS}
        return replace(state, **copies)

    def _has_failed(self) -> bool:
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def _outcome(self) -> UserError | None:
        """Wait for the write under way; its failure, if the disk is to blame."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except UserError as error:
            self._words_taken = self._words_on_disk
            return error
        self._words_on_disk = self._words_taken
        return None

    def _write(self, state: TrainingState, milestones: list[str]) -> None:
        """The work of the thread.  Raises UserError."""
        final = self.folder / f"step_{state.step:07d}"
        try:
            self._make_room(state)
            if self._journal is not None and self._journal.exists():
                sync(self._journal)
            for buffers in self._buffers.values():
                buffers.wait()
            with written_folder(final, replace=True) as aside:
                _write_state(aside, state, self._about)
                # Before the step itself appears: a run resumed from it would not cross the milestone again.
                for name in milestones:
                    _publish_milestone(aside, self.folder / name)
            write_text(self.folder / "latest", final.name + "\n")
            self._prune(state.step)
            self._saved(state.step)
        except OSError as error:
            raise _not_written(final, str(error)) from error

    def _milestones(self, words_seen: int) -> list[str]:
        return milestones_crossed(self._words_taken, words_seen) if self._by_words else []

    def _make_room(self, state: TrainingState) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        needed = sum(t.nbytes for part in _PARTS for t in getattr(state, part).values()) + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            reason = f"it needs {needed / 2**20:,.0f} MiB of disk, {free / 2**20:,.0f} MiB are free"
            raise _not_written(self.folder / f"step_{state.step:07d}", reason)

    def _prune(self, step: int) -> None:
        """Keep the newest; steps beyond the one just saved belong to a past that was given up by going back."""
        steps = _steps(self.folder)
        kept = {s for s in steps if s <= step}
        kept = set(sorted(kept)[-self._keep :])
        for old in steps.keys() - kept:
            doomed = temporary_name(steps[old])
            steps[old].rename(doomed)
            shutil.rmtree(doomed)


def newest_checkpoint(folder: Path) -> Path | None:
    """What `latest` in `folder` names, else the newest undamaged step; None if there is none.  Warns on the way.

    Raises UserError if there are checkpoints and all of them are damaged: to begin again would be no small thing.
    """
    problems = []
    for path in _candidates(folder):
        problem = damage(path)
        if problem is None:
            return path
        problems.append(f"the checkpoint {path} is passed over: {problem}")
        warnings.warn(problems[-1], stacklevel=3)
    if problems:
        raise UserError(
            "\n  ".join([f"{folder} has no checkpoint that can be read; delete it to begin again", *problems])
        )
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means: its folder, or a run's folder, whose newest one is taken.

    Raises UserError if there is none.
    """
    if (path / STATE_FILE).is_file():
        return path
    found = newest_checkpoint(path / "checkpoints")
    if found is None:
        raise UserError(f"{path}: neither a checkpoint (no {STATE_FILE}) nor a run that has one (in checkpoints/)")
    return found


def damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were written."""
    try:
        files = read_about(path)["files"]
    except UserError as error:
        return str(error)
    for name, written in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != written["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {written['bytes']}"
        if sha256(file) != written["sha256"]:
            return f"{name} is not what was written (its SHA-256 differs)"
    return None


def read_about(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's state.json.  Raises UserError if it cannot be read or is too new."""
    file = path / STATE_FILE
    try:
        about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = int(about["format_version"])
        if version <= FORMAT_VERSION and about.keys() >= {"step", "words_seen", "files"}:
            return about
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{file} cannot be read ({reason})") from None
    raise UserError(f"{file} has format version {version}, which this program does not know; update it")


def require_undamaged(path: Path) -> None:
    """Raises UserError if the files of a checkpoint are not as they were written."""
    if (problem := damage(path)) is not None:
        raise UserError(f"the checkpoint {path} is damaged: {problem}; choose another with --resume PATH")


def load_checkpoint(path: Path, *, verify: bool = True) -> TrainingState:
    """Read a checkpoint to the CPU; `verify` unless it was just found undamaged.

    Raises UserError if it is damaged, or a milestone, which has weights only.
    """
    if verify:
        require_undamaged(path)
    about = read_about(path)
    absent = [part for part in _PARTS if f"{part}.safetensors" not in about["files"]]
    if absent:
        raise UserError(
            f"{path} holds weights only ({', '.join(absent)} are not kept), so training cannot go on from it;"
            " start a new run from it with run.init_from"
        )
    parts = {part: load_tensors(path / f"{part}.safetensors") for part in _PARTS}
    return TrainingState(step=about["step"], words_seen=about["words_seen"], **parts)


def load_weights(path: Path, *, averaged: bool = True) -> dict[str, Tensor]:
    """The model's state in a checkpoint or milestone, with the averages in place of the last step's weights.

    Raises UserError if it cannot be read.
    """
    weights = load_tensors(path / "model.safetensors")
    if averaged:
        weights |= load_tensors(path / "ema.safetensors")
        weights.pop(COUNT, None)
    return weights


def write_weights(
    folder: Path,
    *,
    step: int,
    words_seen: int | None,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> None:
    """Make a run's folder of checkpoints with a single one, of weights only, as imported runs have it.

    `words_seen` is None where nobody knows.  Raises OSError.
    """
    folder.mkdir()
    checkpoint = folder / f"step_{step:07d}"
    checkpoint.mkdir()
    _write_parts(checkpoint, {"model": model, "ema": ema}, {"step": step, "words_seen": words_seen, **about})
    write_text(folder / "latest", checkpoint.name + "\n")


def _not_written(path: Path, reason: str) -> UserError:
    return UserError(
        f"cannot write the checkpoint {path}: {reason}"
        "\n  those before it are complete; make room, then run the same command to go on from the newest"
    )


def _write_state(folder: Path, state: TrainingState, about: Mapping[str, Any]) -> None:
    parts = {part: getattr(state, part) for part in _PARTS}
    _write_parts(folder, parts, {"step": state.step, "words_seen": state.words_seen, **about})


def _write_parts(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
    with ThreadPoolExecutor(len(parts)) as pool:
        paths = [folder / f"{part}.safetensors" for part in parts]
        files = pool.map(write_tensors, paths, parts.values())
        written = {path.name: facts for path, facts in zip(paths, files, strict=True)}
    content = {"format_version": FORMAT_VERSION, **about, "files": written}
    (folder / STATE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _publish_milestone(source: Path, final: Path) -> None:
    """The weights of a checkpoint under another name, sharing its disk blocks where the file system can."""
    about = json.loads((source / STATE_FILE).read_text(encoding="utf-8"))
    names = [f"{part}.safetensors" for part in _MILESTONE_PARTS]
    about["files"] = {name: about["files"][name] for name in names}
    with written_folder(final, replace=True) as aside:
        for name in names:
            _link(source / name, aside / name)
        (aside / STATE_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _candidates(folder: Path) -> Iterator[Path]:
    """Checkpoints in the order of preference."""
    latest = folder / "latest"
    named = folder / latest.read_text(encoding="utf-8").strip() if latest.is_file() else None
    if named is not None:
        yield named
    steps = _steps(folder)
    yield from (steps[step] for step in sorted(steps, reverse=True) if steps[step] != named)


def _steps(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by step."""
    return {int(path.name.removeprefix("step_")): path for path in folder.glob("step_*") if path.name[5:].isdigit()}


COUNT = "count"
"""The one entry of the state that is no weight: the number of updates."""
