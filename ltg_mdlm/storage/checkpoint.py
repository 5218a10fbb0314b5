"""Checkpoints of a run: each is complete or absent, is verified when it is read, and is written in the background.

Training waits only while its state is copied to main memory; a thread writes the copy.  The newest few checkpoints are
kept, and milestones, which hold weights only, are kept for ever.  Every byte is covered by a hash: those of the tensors
are in state.json, which has a digest of itself::

    checkpoints/step_0000100/   model, ema, optimizer, components (.safetensors), state.json
    checkpoints/latest          the name of the newest complete checkpoint
    checkpoints/next            while a checkpoint is published: its name, and the one that `latest` has until then
    checkpoints/chck_10M/       the weights after 10 million words: model, ema (.safetensors), state.json
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import Tensor

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import delete, reason_of, remove_leftovers, sync, temporary_name, write_text, written_folder
from ltg_mdlm.core.host_memory import HostBuffers
from ltg_mdlm.core.settings import parse_yaml, stored_config
from ltg_mdlm.data.sources import sha256_of
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.storage.tensor_files import load_tensors, write_tensors

FORMAT_VERSION = 1

STATE_FILE = "state.json"
"""Describes a checkpoint: step, words, origin, the size and hash of every other file, and a digest of all this."""

LATEST = "latest"
"""Names the checkpoint that the run resumes from."""

NEXT = "next"
"""Names a checkpoint and its predecessor.  If `latest` names the latter, and the former has appeared, that is used."""

DIGEST, DIGEST_OF = "digest", "digest_of"
"""The keys of the digest.  Two of them, so that damage of one name does not make a state.json look like an old one."""

_CANONICAL = "SHA-256 of this object without 'digest', as JSON with sorted keys, without white space, in ASCII"

COUNT = "count"
"""The entry of the averages' state that is not a weight: the number of updates."""

_PARTS = ("model", "ema", "optimizer", "components")

_MILESTONE_PARTS = ("model", "ema")

_MILLION = 1_000_000

_SPARE_BYTES = 16 * 2**20
"""Disk space that a checkpoint leaves free."""


class _WrittenFile(BaseModel):
    model_config = ConfigDict(strict=True)

    bytes: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Provider(BaseModel):
    model_config = ConfigDict(strict=True)

    plugin: str
    distribution: str
    version: str


class _StateFile(BaseModel):
    """The types of what readers use of a state.json.  Old versions wrote less; other keys are allowed."""

    model_config = ConfigDict(strict=True)

    format_version: int = Field(ge=1)
    step: int = Field(ge=0, lt=2**63)
    words_seen: int | None = Field(ge=0, lt=2**63)
    files: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+\.safetensors$")], _WrittenFile]
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    provenance: dict[str, _Provider] = Field(default_factory=dict)
    world_size: int = Field(1, ge=1)
    modes: list[Literal["masked", "causal"]] = Field(default_factory=list)
    predicts: Literal["same", "next"] = "same"
    block_length: int = Field(0, ge=0)
    tokenizer: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything that a process needs to resume training; tensors by name."""

    step: int
    """Number of steps done."""
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
    """Writes the `checkpoints` folder of a run.

    No other process may write there at the same time (`RunFolder.claim` ensures it).  If a write fails, there is a
    warning and the next step saves again, or `finish` repeats the write; the run ends with an error when that fails,
    too.
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
        require_folder: Callable[[], None] = lambda: None,
    ) -> None:
        """Writes nothing yet.

        Args:
            folder: created by `reserve`, or else by the first save
            every: number of steps between checkpoints
            keep: number of newest checkpoints to keep, besides the milestones
            by_words: whether to keep milestones
            about: added to every state.json
            writes: False on all ranks but the first, which only count words
            journal: a file that is forced to disk before a checkpoint appears, so that it is never behind a checkpoint
            saved: called with the step of every complete checkpoint, from the thread that wrote it
            require_folder: called before anything is written; raises UserError if the run folder is no longer this
                process's
        """
        self.folder = folder
        self._every, self._keep, self._by_words = every, keep, by_words
        self._about, self._writes, self._journal, self._saved = dict(about or {}), writes, journal, saved
        self._require_folder = require_folder
        # Words at the last save that is on disk, and at the last one that was started.
        self._words_on_disk = self._words_taken = 0
        self._buffers = {part: HostBuffers() for part in _PARTS}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copied: TrainingState | None = None  # what was written last, or is being written
        self._retrying = False

    def due(self, step: int, words_seen: int) -> bool:
        """Whether to save after `step` steps: every `every` steps, and at a milestone.  Equal on all ranks."""
        return step % self._every == 0 or bool(self._milestones(words_seen))

    @property
    def failed(self) -> bool:
        """Whether the last save could not be written, and is to be repeated; known to the first rank only."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def reserve(self, state: TrainingState) -> None:
        """Allocate the main memory for copies of the state, and try whether checkpoints can be written.

        So a run without enough memory or disk fails at its start.  Raises UserError if the disk is full or read-only.
        """
        if not self._writes:
            return
        self._copy(state)
        trial = temporary_name(self.folder / "trial")
        try:
            self._require_room(state)
            trial.write_bytes(bytes(4096))
            sync(trial)
            trial.unlink()
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {self.folder}: {reason_of(error)}"
                "\n  nothing saved is lost; correct this, then run the same command"
            ) from error

    def save(self, state: TrainingState) -> None:
        """Copy the state, then write it as a checkpoint, with the milestones since the last one, in the background.

        Waits for the previous write.  Raises UserError if two writes in a row failed; older checkpoints are intact.
        """
        if not self._writes:
            self._words_taken = state.words_seen
            return
        self._require_folder()
        problem = self._outcome()
        if problem is not None and self._retrying:
            raise problem
        if problem is not None:
            warnings.warn(f"{problem}\n  trying once more, at step {state.step}", stacklevel=2)
        self._retrying = problem is not None
        self._start_writing(self._copy(state))

    def finish(self) -> None:
        """Wait until the last save is on disk.  Raises UserError if two writes in a row failed."""
        problem = self._outcome()
        if problem is not None and self._copied is not None and not self._retrying:
            warnings.warn(f"{problem}\n  trying once more", stacklevel=2)
            self._start_writing(self._copied)
            problem = self._outcome()
        if problem is not None:
            raise problem

    def close(self) -> None:
        """Wait for the thread and ignore its outcome; for runs that end with another error."""
        self._thread.shutdown()

    def load(self, path: Path, *, verify: bool = True) -> TrainingState:
        """Read a checkpoint to resume from; its milestones count as saved.  Raises UserError as `load_checkpoint`."""
        state = load_checkpoint(path, verify=verify)
        self._words_on_disk = self._words_taken = state.words_seen
        return state

    def _copy(self, state: TrainingState) -> TrainingState:
        copies: dict[str, Any] = {part: self._buffers[part].copy(getattr(state, part)) for part in _PARTS}
        return replace(state, **copies)

    def _require_room(self, state: TrainingState) -> None:
        """Create the folder.  Raises OSError if that is not possible, or if the disk has no room for a checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        needed = sum(t.nbytes for part in _PARTS for t in getattr(state, part).values()) + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(f"it needs {needed / 2**20:,.0f} MiB of disk, {free / 2**20:,.0f} MiB are free")

    def _start_writing(self, copied: TrainingState) -> None:
        milestones = self._milestones(copied.words_seen)
        self._copied, self._words_taken = copied, copied.words_seen
        self._writing = self._thread.submit(self._write, copied, milestones)

    def _milestones(self, words_seen: int) -> list[str]:
        return milestones_crossed(self._words_taken, words_seen) if self._by_words else []

    def _outcome(self) -> UserError | None:
        """Wait for the current write; return its error if the disk caused one."""
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
        """The work of the thread.  Raises UserError if the disk is full or cannot be written."""
        final = self.folder / _step_name(state.step)
        try:
            self._require_folder()
            self._require_room(state)
            if self._journal is not None and self._journal.exists():
                sync(self._journal)
            for buffers in self._buffers.values():
                buffers.wait()
            parts = {part: getattr(state, part) for part in _PARTS}
            with written_folder(final, replace=True) as aside:
                _write_parts(aside, parts, {"step": state.step, "words_seen": state.words_seen, **self._about})
                self._require_folder()
                # Milestones appear before the step does: a run that resumes from the step would not cross them again.
                for name in milestones:
                    _publish_milestone(aside, self.folder / name)
                # Named before it appears, so that it is never complete and ignored; not if it replaces another one.
                with suppress(ValueError):  # without a name in `latest`, the newest one is used
                    if not final.exists() and (before := _read_latest(self.folder)):
                        write_text(self.folder / NEXT, f"{final.name}\n{before}\n")
            _write_latest(final)
            # Later steps were discarded when the run resumed from an earlier checkpoint.
            steps = _steps(self.folder)
            kept = set(sorted(step for step in steps if step <= state.step)[-self._keep :])
            for old in steps.keys() - kept:
                outdated = temporary_name(steps[old])
                steps[old].rename(outdated)
                delete(outdated)
            self._saved(state.step)
        except OSError as error:
            raise UserError(
                f"cannot write the checkpoint {final}: {error}"
                "\n  earlier checkpoints are intact; make room, then run the same command to resume from the newest"
            ) from error


def continue_from(checkpoint: Path, folder: Path) -> None:
    """Make a checkpoint the one that its run resumes from, if it is a step in the run's `folder` of checkpoints.

    Raises OSError.
    """
    if checkpoint.parent.resolve() == folder.resolve() and _STEP_NAME.fullmatch(checkpoint.name):
        _write_latest(folder / checkpoint.name)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `latest` in `folder` names, or else the newest undamaged one; None if there are none.

    Warns of damage.  Raises UserError if all are damaged, rather than start training from the beginning, or if the
    folder cannot be read.
    """
    try:
        steps = _steps(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {reason_of(error)}") from None
    paths = [steps[step] for step in sorted(steps, reverse=True)]
    problems = []
    try:
        latest = _read_latest(folder)
    except OSError as error:
        problems.append(f"{folder / 'latest'} is ignored: it cannot be read ({reason_of(error)})")
    except ValueError as error:
        problems.append(f"{folder / 'latest'} is ignored: {error}")
    else:
        if latest is not None:
            if newer := [path.name for path in paths if int(path.name[5:]) > int(latest[5:])]:
                text = f"{folder} has {', '.join(newer)}, but `latest` names the older {latest}, which is tried first"
                warnings.warn(text, stacklevel=3)
            paths = [folder / latest, *(path for path in paths if path.name != latest)]
    for problem in problems:
        warnings.warn(problem, stacklevel=3)
    for path in paths:
        if (found := damage(path)) is None:
            return path
        problems.append(f"the checkpoint {path} is skipped: {found}")
        warnings.warn(problems[-1], stacklevel=3)
    if problems:
        raise UserError("\n  ".join([f"{folder} has no readable checkpoint; delete it to start again", *problems]))
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`, which is its folder or the folder of a run, whose newest checkpoint is taken.

    Raises UserError if there is none, or if it is damaged.
    """
    try:
        is_checkpoint = (path / STATE_FILE).is_file()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from None
    if is_checkpoint:
        require_undamaged(path)
        return path
    found = newest_checkpoint(path / "checkpoints")
    if found is None:
        raise UserError(f"{path}: neither a checkpoint (no {STATE_FILE}) nor a run that has one (in checkpoints/)")
    return found


def read_about(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's state.json, without its digest.

    Raises UserError if it cannot be read, is not what was written, or has a newer format.
    """
    file = path / STATE_FILE
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)})") from None
    return parse_state(content, file)


def parse_state(content: bytes, file: Path) -> dict[str, Any]:
    """The content of a state.json, as `read_about`; `file` is named in errors."""
    try:
        about: dict[str, Any] = json.loads(content.decode())
        version = about["format_version"]
        if type(version) is int and version > FORMAT_VERSION:
            raise UserError(f"{file} has format version {version}, which this program does not know; update it")
        # State files of old versions have no digest.
        if (DIGEST in about or DIGEST_OF in about) and about.pop(DIGEST, None) != _digest(about):
            raise UserError(f"{file} is not what was written (its digest differs)")
        about.pop(DIGEST_OF, None)
        _StateFile.model_validate(about)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file} cannot be read ({where}: {first['msg']})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}: {error})") from None
    return about


def run_settings(folder: RunFolder) -> RunConfig | None:
    """The settings that the run was started with; None before they are written.

    If config.yaml is damaged, the settings in the newest undamaged checkpoint are used, with a warning.  It is also
    damaged if its last section, provenance, is missing; old versions wrote none, neither there nor in checkpoints.

    Raises UserError if config.yaml cannot be read, or is damaged and there is no such checkpoint.
    """
    try:
        text = folder.read_config()
        if text is None:
            return None
        values = parse_yaml(text, str(folder.config_file))
        if not isinstance(values, dict):
            raise UserError(f"{folder.config_file} must contain settings, not {type(values).__name__}")
        as_read = stored_config(values, folder.config_file)
        if "provenance" in values:
            return as_read
        problem = f"{folder.config_file} has no provenance, so its end is missing"
    except OSError as error:
        raise UserError(f"{folder.config_file} cannot be read: {reason_of(error)}") from None
    except UserError as error:
        as_read, problem = None, str(error)
    checkpoint = newest_checkpoint(folder.checkpoints)
    about = read_about(checkpoint) if checkpoint is not None else {}
    if as_read is not None and not about.get("provenance"):
        return as_read
    config = about.get("config")
    if checkpoint is None or not config:
        raise UserError(
            f"{problem}\n  no checkpoint has a copy of the settings; restore the file, or choose another --out"
        )
    settings = stored_config(config, checkpoint / "state.json")
    warnings.warn(f"{problem}\n  the settings in {checkpoint} are used instead", stacklevel=2)
    return settings


def damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were written."""
    try:
        about = read_about(path)
        if _STEP_NAME.fullmatch(path.name) and path.name != _step_name(about["step"]):
            return f"it is of step {about['step']} according to its {STATE_FILE}"
        for name, written in about["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != written["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {written['bytes']}"
            if sha256_of(file) != written["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or path} cannot be read ({reason_of(error)})"
    return None


def require_undamaged(path: Path) -> None:
    """Raises UserError if the files of a checkpoint are not as they were written."""
    if (problem := damage(path)) is not None:
        raise UserError(f"the checkpoint {path} is damaged: {problem}; choose another one, or the folder of its run")


def load_checkpoint(path: Path, *, verify: bool = True) -> TrainingState:
    """Read a checkpoint to the CPU.  `verify=False` skips the hashes, for a checkpoint that was just verified.

    Raises UserError if it is damaged, or a milestone, which has weights only.
    """
    if verify:
        require_undamaged(path)
    about = read_about(path)
    absent = [part for part in _PARTS if f"{part}.safetensors" not in about["files"]]
    if absent:
        raise UserError(
            f"{path} holds weights only (no {', '.join(absent)}), so training cannot be resumed from it;"
            " start a new run from it with run.init_from"
        )
    parts = {part: load_tensors(path / f"{part}.safetensors") for part in _PARTS}
    return TrainingState(step=about["step"], words_seen=about["words_seen"], **parts)


def load_weights(path: Path, *, averaged: bool = True) -> dict[str, Tensor]:
    """The model's state in a checkpoint or milestone; with `averaged`, averages replace the weights of the last step.

    Raises UserError if it cannot be read.
    """
    weights = load_tensors(path / "model.safetensors")
    if averaged:
        # The file also has the averages of the components' learned parts, which a trained model does not need.
        averages = load_tensors(path / "ema.safetensors")
        weights |= {name: average for name, average in averages.items() if name in weights}
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
    """Create the `checkpoints` folder of an imported run, with a single checkpoint of weights only.

    `words_seen` is None if it is unknown.  Raises OSError.
    """
    folder.mkdir()
    checkpoint = folder / _step_name(step)
    checkpoint.mkdir()
    _write_parts(checkpoint, {"model": model, "ema": ema}, {"step": step, "words_seen": words_seen, **about})
    _write_latest(checkpoint)


def _write_parts(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
    with ThreadPoolExecutor(len(parts)) as pool:
        paths = [folder / f"{part}.safetensors" for part in parts]
        files = pool.map(write_tensors, paths, parts.values())
        written = {path.name: facts for path, facts in zip(paths, files, strict=True)}
    content = {"format_version": FORMAT_VERSION, **about, "files": written}
    _write_state_file(folder, content)


def _write_state_file(folder: Path, content: Mapping[str, Any]) -> None:
    described = {**content, DIGEST_OF: _CANONICAL}
    text = json.dumps({**described, DIGEST: _digest(described)}, indent=2) + "\n"
    (folder / STATE_FILE).write_text(text, encoding="utf-8")


def _digest(content: Mapping[str, Any]) -> str:
    # As it is read back, where all keys are text.
    canonical = json.dumps(json.loads(json.dumps(content)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _publish_milestone(source: Path, final: Path) -> None:
    """Publish the weights of a checkpoint under another name; hard links share the disk blocks where possible."""
    about = read_about(source)
    about["files"] = {f"{part}.safetensors": about["files"][f"{part}.safetensors"] for part in _MILESTONE_PARTS}
    with written_folder(final, replace=True) as aside:
        for name in about["files"]:
            try:
                os.link(source / name, aside / name)
            except OSError:
                shutil.copyfile(source / name, aside / name)
        _write_state_file(aside, about)


_STEP_NAME = re.compile("step_([0-9]{7,})")


def _step_name(step: int) -> str:
    return f"step_{step:07d}"


def _read_latest(folder: Path) -> str | None:
    """The name in `latest`, or the one that `next` has for it; None if there is no `latest`.

    Raises OSError, and ValueError if `latest` does not name a checkpoint.
    """
    try:
        content = (folder / LATEST).read_bytes().strip()
    except FileNotFoundError:
        return None
    latest = content.decode(errors="replace")
    if not _STEP_NAME.fullmatch(latest):
        raise ValueError(f"it does not name a checkpoint ({content[:100]!r})")
    with suppress(OSError, ValueError):
        following, before = (folder / NEXT).read_text(encoding="utf-8").split()
        if before == latest and _STEP_NAME.fullmatch(following) and (folder / following).exists():
            return following
    return latest


def _write_latest(checkpoint: Path) -> None:
    """Name a checkpoint in `latest`.  Raises OSError."""
    write_text(checkpoint.with_name(LATEST), checkpoint.name + "\n")
    checkpoint.with_name(NEXT).unlink(missing_ok=True)


def _steps(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by step; other names are ignored.  Raises OSError."""
    if not folder.exists():
        return {}
    named = [(_STEP_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    found = {int(match[1]): path for match, path in named if match is not None and path.is_dir()}
    return {step: path for step, path in found.items() if path.name == _step_name(step)}
