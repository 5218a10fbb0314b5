"""The evaluations that a submission to the multilingual track needs: tasks of lm-eval, MECO and fine-tuning.

Needs lm-eval (`pip install "ltg-mdlm[harness]"`) where there are tasks of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.records import read_table
from ltg_mdlm.evaluation.multilingual_submission import (
    ZERO_SHOT,
    Language,
    MultilingualData,
    ZeroShotTask,
    meco_parts,
)
from ltg_mdlm.evaluation.result_folders import to_json, write_folder
from ltg_mdlm.evaluation.submission_work import Job, SubmissionWork, Worker, hash_of_files
from ltg_mdlm.evaluation.tasks import Skip
from ltg_mdlm.inference.exported_folder import MAIN
from ltg_mdlm.inference.texts import Scorer, Text

if TYPE_CHECKING:
    from ltg_mdlm.evaluation.lm_eval_adapter import TaskFolder

_MECO_LANGUAGES: dict[Language, str] = {"eng": "en", "nld": "du", "zho": "ch_s"}
"""As the stimuli call them."""

_TASK_COST = 1e6
"""Cost of a task of lm-eval, whose data are not known before they are loaded, in bytes of text."""


class MultilingualWork(SubmissionWork):
    """The jobs of the multilingual track; arguments are those of `SubmissionWork`, the data, and the languages."""

    def __init__(self, *arguments: Any, data: MultilingualData, languages: Sequence[Language], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._data, self._languages = data, languages
        self._without_data: set[str] = set()
        self._hash = cache(partial(hash_of_files, tasks=True))

    @cached_property
    def _tasks(self) -> TaskFolder:
        from ltg_mdlm.evaluation.lm_eval_adapter import TaskFolder

        assert self._data.tasks is not None
        return TaskFolder(self._data.tasks)

    def _list_jobs(self) -> Iterator[Job]:
        """The jobs that may have data, checkpoint by checkpoint; data of the Hub are loaded when a job runs."""
        for revision in (MAIN, *(milestone.name for milestone in self.milestones)):
            if self._data.tasks:
                for language in self._languages:
                    yield from (self._zero_shot(revision, task) for task in ZERO_SHOT[language])
            for part, part_language in meco_parts(self._languages).items():
                if file := self._data.stimuli(part):
                    yield self._meco(revision, part, part_language, file)
            if revision == MAIN:
                yield from map(self._finetuning, self._data.finetuning(self._languages))

    def _place(self, revision: str, task: str) -> Path:
        return self.folder / revision / "harness" / self._backend / task

    def _zero_shot(self, revision: str, task: ZeroShotTask) -> Job:
        folder = self._place(revision, task.name)
        assert self._data.tasks is not None
        request = self._request(revision, task.name, self._data.tasks)

        def run() -> None:
            from ltg_mdlm.evaluation.lm_eval_adapter import HarnessModel, MissingData
            from ltg_mdlm.evaluation.lm_eval_adapter import to_json as lm_eval_json

            if task.name in self._without_data:
                raise Skip("its data are missing")
            model = HarnessModel(self._open(revision), self._rule, self._alone, greedy_tasks=())
            try:
                results = self._tasks.evaluate(task.name, model)
            except MissingData as error:
                self._without_data.add(task.name)
                raise Skip(str(error)) from None
            files = {"results.json": lm_eval_json(results["results"], indent=2)}
            if task.hidden:
                rows = results["samples"][task.name]
                files["samples.jsonl"] = "".join(f"{lm_eval_json(row)}\n" for row in rows)
            write_folder(folder, files | {"summary.json": to_json(request, indent=2)})

        return Job(revision, task.name, folder, _TASK_COST, run, request)

    def _meco(self, revision: str, part: str, language: Language | None, file: Path) -> Job:
        folder, request = self._place(revision, part), self._request(revision, part, file)

        def run() -> None:
            surprisals = word_surprisals(file, language and _MECO_LANGUAGES[language], self._scorer(revision))
            files = {"predictions.json": json.dumps(surprisals), "summary.json": to_json(request, indent=2)}
            write_folder(folder, files)

        return Job(revision, part, folder, float(file.stat().st_size), run, request)

    def run(self, worker: Worker, say: Callable[[str], None]) -> list[str]:
        """As in `SubmissionWork`; a task whose data cannot be had is left out, and no failure."""
        if not self._data.tasks:
            return super().run(worker, say)
        try:
            from ltg_mdlm.evaluation.lm_eval_adapter import task_tokenizer
        except ImportError:
            raise UserError('--track multilingual needs lm-eval\n  pip install "ltg-mdlm[harness]"') from None
        with task_tokenizer(self._trained):
            return super().run(worker, say)


def word_surprisals(file: Path, language: str | None, scorer: Scorer) -> dict[str, float]:
    """Surprisals in nats of the words of MECO, each after the text before it, by `<text>:<number of the word>`.

    Args:
        file: table with the columns lang (if there is one), itemid, wordnum and FullTextMarked, in which the word is
            between asterisks.
        language: value of lang of the rows that are scored; None for all.
        scorer: scores continuations.

    Raises UserError with the line number for a row that has no marked word.
    """
    texts: dict[str, Text] = {}
    for record in read_table(file, delimiter="\t"):
        if language and record.label("lang", "") != language:
            continue
        before, *rest = record.text("FullTextMarked").split("*")
        if len(rest) < 2 or not rest[0]:
            raise record.error("FullTextMarked", "a text with a word between asterisks")
        # The number of a word that occurs twice, hyphenated and whole, is that of the first.
        texts.setdefault(f"{record.number('itemid'):g}:{record.number('wordnum'):g}", Text(before, rest[0]))
    if not texts:
        raise UserError(f"{file}: no words of language {language}")
    scores = scorer([[text] for text in texts.values()])
    return {key: -score.log_likelihood for key, (score,) in zip(texts, scores, strict=True)}
