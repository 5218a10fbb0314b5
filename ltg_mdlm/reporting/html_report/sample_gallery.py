"""Samples of models, with the order of unmasking, read from results or generated for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import parse_object
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.reporting.html_report.run_groups import Group, RunRecord, said
from ltg_mdlm.reporting.html_report.tables import MAIN, ambiguous
from ltg_mdlm.storage.run_folder import RunFolder

DRAWN_GROUPS = 6
"""Maximum number of prominent groups with samples, each of its first finished run."""


STEPS, LENGTH = 24, 48
"""Steps and tokens of samples that are generated for the report."""


@dataclass(frozen=True)
class Token:
    """A token of a sample."""

    text: str
    place: int
    """Forward pass that unmasked the token, from 1; 0 if it was given."""
    share: float
    """Fraction of the passes that were done by then."""


@dataclass(frozen=True)
class ShownSample:
    """A sample with the order in which it was unmasked."""

    sampler: str
    steps: int | None
    """Requested number of steps; None is one per token."""
    passes: int
    """Number of forward passes."""
    tokens: Sequence[Token]


@dataclass(frozen=True)
class GroupSamples:
    """Samples of the model of a group."""

    group: Group
    run: RunRecord
    source: str
    samples: Sequence[ShownSample]
    problem: str = ""
    """Why there are no samples."""


def samples_of(groups: Sequence[Group], results: Path | None, count: int) -> list[GroupSamples]:
    """`count` samples of each group, from the results of `eval generation` or else generated."""
    unclear = ambiguous(groups)
    found = []
    for group in groups[:DRAWN_GROUPS]:
        run = group.measured[0][0]
        folder = None if results is None or run.name in unclear else results / run.name / MAIN / "generation"
        found.append(_samples_of(group, run, folder, count))
    return found


def _samples_of(group: Group, run: RunRecord, folder: Path | None, count: int) -> GroupSamples:
    try:
        tokenizer = Tokenizer.read(RunFolder(run.row.folder).tokenizer_file)
        if folder is not None and (rows := _written(folder, count)):
            return GroupSamples(group, run, str(folder), [shown_sample(row, tokenizer) for row in rows])
        drawn = [shown_sample(row, tokenizer) for row in _drawn(run, count)]
        return GroupSamples(group, run, "generated for this report", drawn)
    except Exception as error:  # no checkpoint, damaged samples, a third-party plugin that has changed
        return GroupSamples(group, run, "", [], said(error))


def _written(folder: Path, count: int) -> list[dict[str, Any]]:
    """Samples of all sampling rules in turn; damaged lines are ignored."""
    ways: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(folder / "samples.jsonl"):
        ways.setdefault(f"{row['sampler']} {row['steps']}", []).append(row)
    turns = [rows[i] for i in range(count) for rows in ways.values() if i < len(rows)]
    return turns[:count]


def _rows(file: Path) -> Iterable[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return
    for line in lines:
        try:
            row = parse_object(line, file)
        except UserError:
            continue
        if row.keys() >= {"ids", "unmasked_at", "sampler", "steps"}:
            yield row


def _drawn(run: RunRecord, count: int) -> list[dict[str, Any]]:
    """Generate samples from the newest checkpoint of a run."""
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.inference.sampling import generate
    from ltg_mdlm.inference.sampling_rule import SamplingRule
    from ltg_mdlm.inference.trained_model import open_model

    trained = open_model(run.row.folder, Ranks.alone())  # other processes of torchrun do not take part
    rule = (
        SamplingRule(sampler="confidence", steps=STEPS)
        if "masked" in trained.modes
        else SamplingRule(sampler="autoregressive")
    )
    room = trained.model.config.max_position_embeddings - 1
    samples = generate(trained, rule, length=min(LENGTH, room), count=count)
    return [
        {"ids": sample.ids, "unmasked_at": sample.unmasked_at, "sampler": rule.sampler, "steps": rule.steps}
        for sample in samples
    ]


def shown_sample(row: Mapping[str, Any], tokenizer: Tokenizer) -> ShownSample:
    """The tokens of a sample as text, each with its pass. Raises an exception for a damaged row."""
    passes = 1 + max(map(int, row["unmasked_at"]), default=0)
    tokens = [
        Token(tokenizer.tokens[id_], at + 1, (at + 1) / passes)
        for id_, at in zip(row["ids"], row["unmasked_at"], strict=True)
    ]
    return ShownSample(str(row["sampler"]), row["steps"], passes, tokens)
