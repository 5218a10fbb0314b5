"""Models of this package in lm-eval, the LM Evaluation Harness (https://github.com/EleutherAI/lm-evaluation-harness).

Needs lm-eval (`pip install "ltg-mdlm[harness]"`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window
from rich.markup import escape
from rich.table import Table

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_errors, write_text
from ltg_mdlm.core.network_errors import is_network_error
from ltg_mdlm.data.tokenizer import BOS
from ltg_mdlm.evaluation.result_folders import model_facts
from ltg_mdlm.evaluation.tasks import require_number
from ltg_mdlm.inference.exported_tokenizer import write_tokenizer
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.texts import Encoded
from ltg_mdlm.inference.trained_model import TrainedModel

to_json = partial(json.dumps, default=handle_non_serializable, ensure_ascii=False)

Loaded = TypeVar("Loaded")

_NO_TEXT = "generates text, but eval harness only scores given text\n  leave it out; ltg-mdlm generate draws samples"


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A trained model for `lm_eval.simple_evaluate`, scored by a rule of `ltg_mdlm.inference.scoring`.

    As in the multilingual track of BabyLM (`hf-bos`), every text has one `<s>` in front and no other special tokens,
    and lm-eval itself splits context and continuation: the scored tokens are those after as many tokens as the context
    has on its own.  Contexts that do not fit lose their beginning.

    Under torchrun, every rank must make the same calls, and gets all results.

    Args:
        trained: the model.
        rule: how texts are scored; normalisation is left to the tasks.
        ranks: the processes of this program.
        greedy_tasks: names of the tasks that ask whether greedy decoding gives the continuation, which takes a second
            pass; None for all.  Only causal scores answer it; see `require_supported`.

    Raises UserError for a score that does not fit the model.
    """

    def __init__(
        self, trained: TrainedModel, rule: ScoringRule, ranks: Ranks, *, greedy_tasks: Collection[str] | None = None
    ) -> None:
        super().__init__()
        assert rule.normalise == "none"
        self.trained, self.rule = trained, rule
        self._score = LikelihoodScorer(trained, rule, ranks, show_progress=True)
        self._greedy_tasks = greedy_tasks
        self._limit = trained.model.config.max_position_embeddings

    @property
    def eot_token_id(self) -> int:
        """`<s>`, which also separates documents in training."""
        return BOS

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """`<s>` and the tokens of the text, whatever lm-eval says about special tokens."""
        return [BOS, *self.trained.tokenizer.encode(string)]

    def get_model_info(self) -> dict[str, Any]:
        """The model and the rule, for the results."""
        rule = self.rule
        facts = {"score": rule.score, "time": rule.time, "rate": rule.rate, "draws": rule.draws, "mask_seed": rule.seed}
        return {"model_source": "ltg_mdlm", **model_facts(self.trained), **facts}

    def fingerprint(self) -> str:
        """A hash of the checkpoint and the rule, by which scores of different models can be told apart."""
        facts = {"source": str(self.trained.source.resolve()), **self.get_model_info()}
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score of each continuation given its context, and whether greedy decoding gives it (False if not asked).

        The requests of one document are scored with common random numbers.  Raises UserError for a continuation that
        has no tokens of its own or does not fit, and for a score that is not a number.
        """
        self._instances = requests
        scored: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scored

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        encoded = [self._encoded(*request) for request in requests]
        following = iter(encoded)
        groups = [
            [next(following) for _ in group]
            for _, group in groupby(self._instances, lambda instance: (instance.task_name, instance.doc_id))
        ]
        totals = [score.log_likelihood for score in chain.from_iterable(self._score.score_encoded(groups))]
        for total, ((context, continuation), _, _) in zip(totals, requests, strict=True):
            require_number(total, context + continuation)
        greedy = [False] * len(encoded)
        if self.rule.causal:
            asking = [
                index
                for index, instance in enumerate(self._instances)
                if self._greedy_tasks is None or instance.task_name in self._greedy_tasks
            ]
            if asking:
                answers = self._score.greedy([encoded[index] for index in asking])
                for index, answer in zip(asking, answers, strict=True):
                    greedy[index] = answer
        return list(zip(totals, greedy, strict=True))

    def _encoded(self, texts: tuple[str, str], context: list[int], continuation: list[int]) -> Encoded:
        if not continuation:
            raise UserError(
                f"cannot score {texts[1][:80]!r} after {texts[0][-80:]!r}: no token belongs to it alone"
                "\n  the boundary lies within a token; begin the continuation with the space before it"
            )
        if len(continuation) >= self._limit:
            raise UserError(
                f"cannot score {texts[1][:80]!r}: it has {len(continuation)} tokens; at most {self._limit - 1} fit this"
                " model"
            )
        before = context[1:][max(len(context) + len(continuation) - self._limit, 0) :]
        return Encoded((BOS, *before, *continuation), 1 + len(before))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score of each whole text.

        A text that does not fit is split into windows that do not overlap.  Each begins with `<s>` and, except for the
        first, one token of context; the last window has as much context as fits.
        """
        windows: list[list[Encoded]] = []
        for (text,) in (request.args for request in requests):
            pairs = get_rolling_token_windows(self.trained.tokenizer.encode(text), BOS, self._limit - 2, context_len=1)
            windows.append([])
            for context, predicted in map(make_disjoint_window, pairs):
                before = context if windows[-1] else context[1:]  # the context of the first window is `<s>`
                windows[-1].append(Encoded((BOS, *before, *predicted), 1 + len(before)))
        scores = iter(self._score.score_encoded([[window] for window in chain.from_iterable(windows)]))
        totals = [sum(next(scores)[0].log_likelihood for _ in text) for text in windows]
        for total, request in zip(totals, requests, strict=True):
            require_number(total, request.args[0])
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not supported: raises UserError."""
        raise UserError(f"{requests[0].task_name}: {_NO_TEXT}")


def require_supported(tasks: Mapping[str, Any], rule: ScoringRule) -> set[str]:
    """The tasks that ask whether greedy decoding gives a continuation.

    Args:
        tasks: lm-eval's tasks by name.
        rule: how texts will be scored.

    Raises UserError for tasks that need generated text, or greedy decoding under a score that has no order of tokens.
    """
    if generating := sorted(name for name, task in tasks.items() if task.OUTPUT_TYPE == "generate_until"):
        raise UserError(f"{', '.join(generating)}: {_NO_TEXT}")
    counting = {"loglikelihood": "acc", "multiple_choice": "exact_match"}
    greedy = {
        name
        for name, task in tasks.items()
        if counting.get(task.OUTPUT_TYPE) in getattr(task, "_metric_fn_list", ("acc", "exact_match"))
    }
    if greedy and not rule.causal:
        raise UserError(
            f"{', '.join(sorted(greedy))}: counts continuations that greedy decoding from left to right gives, which"
            f" --score {rule.score} does not have\n  leave these tasks out, or use --score causal if the model was"
            " trained on causal rows"
        )
    return greedy


@contextmanager
def task_tokenizer(trained: TrainedModel) -> Iterator[None]:
    """Within the context, tasks that load a tokenizer with `transformers` get that of the model.

    Tasks of the multilingual track find it through environment variables. Values that are set are kept.
    """
    with TemporaryDirectory(prefix="ltg-mdlm-tokenizer-") as folder:
        write_tokenizer(trained.tokenizer, trained.model.config.max_position_embeddings, Path(folder))
        ours = [name for name in ("HANZI_TOKENIZER", "GLOBAL_PIQA_TOKENIZER") if name not in os.environ]
        os.environ.update(dict.fromkeys(ours, folder))
        try:
            yield
        finally:
            for name in ours:
                del os.environ[name]


class TaskFolder:
    """The tasks of lm-eval in one folder, without those that come with lm-eval."""

    def __init__(self, folder: Path) -> None:
        """Reads the index of the folder."""
        without_override_warnings()
        self._folder = folder
        self._manager = TaskManager(include_path=str(folder), include_defaults=False)

    def evaluate(self, name: str, model: HarnessModel) -> dict[str, Any]:
        """lm-eval's results of a task or group without examples in the prompt, with a sample for every question.

        Raises MissingData if the data cannot be had, and UserError for tasks that cannot be loaded or scored.
        """
        if name not in self._manager.all_tasks:
            raise MissingData(f"{self._folder}: there is no task {name}")
        loaded = _load(partial(self._manager.load, [name]))
        require_supported(loaded["tasks"], model.rule)
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        with redirect_stdout(sys.stderr):
            results: dict[str, Any] = lm_eval.evaluate(model, loaded, log_samples=True)
        return results


class MissingData(UserError):
    """The data of a task are neither here nor can they be downloaded."""


def without_override_warnings() -> None:
    """Tasks of a given folder replace those of lm-eval with the same names without a warning for each."""
    logging.getLogger("lm_eval.tasks._index").setLevel(logging.ERROR)


def load_tasks(settings: Any) -> tuple[Any, dict[str, dict[str, Any]]]:
    """lm-eval's task manager and the tasks and groups that the settings name, with their data.

    Args:
        settings: an `EvaluatorConfig` of lm-eval.

    Raises UserError for names that do not exist, and for tasks or data that cannot be loaded.
    """
    without_override_warnings()

    def load() -> tuple[Any, dict[str, dict[str, Any]]]:
        manager = settings.process_tasks(settings.metadata)
        return manager, manager.load(settings.tasks)

    task_manager, loaded = _load(load)
    if not loaded["tasks"]:
        raise UserError(f"--tasks {' '.join(map(str, settings.tasks))}: no tasks in it")
    return task_manager, {"groups": {}, "group_map": {}, **loaded}


def _load(load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns; its exceptions are raised as MissingData or another UserError."""
    try:
        return load()
    except Exception as error:  # of lm-eval, datasets, yaml or the code of a task
        problem = f"lm-eval cannot load the tasks: {type(error).__name__}: {error}\n  "
        names = {kind.__name__ for kind in type(error).__mro__}
        if "DatasetNotFoundError" in names or is_network_error(error) or "OfflineModeIsEnabled" in names:
            raise MissingData(
                f"{problem}the data of a task are loaded from the Hugging Face Hub: check the connection; for gated"
                " data, accept the conditions there and run `hf auth login`; offline, copy the folder of HF_HOME from a"
                " machine where the command has run"
            ) from error
        if str(error).startswith("Tasks not found"):
            advice = "`lm-eval ls tasks` lists the names; --include_path DIR adds the tasks in a folder"
        elif isinstance(error, ModuleNotFoundError):
            advice = f"the code of the task needs another package: pip install {error.name}"
        else:
            advice = "check the YAML file of the task, and the data files that it names"
        raise UserError(problem + advice) from error


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write results as lm-eval does: `results_<time>.json`, and `samples_<task>_<time>.jsonl` for logged samples.

    Removes the samples from `results`.  Raises UserError if a file cannot be written.
    """
    stamp = datetime.now().isoformat().replace(":", "-")
    samples = results.pop("samples", None) or {}
    texts = {
        f"samples_{task}_{stamp}.jsonl": "".join(f"{to_json(row)}\n" for row in rows) for task, rows in samples.items()
    }
    texts[f"results_{stamp}.json"] = to_json(results, indent=2) + "\n"
    with write_errors(folder, "; choose another folder with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
    return folder / f"results_{stamp}.json"


def results_table(results: Mapping[str, Any]) -> Table:
    """One row per task or group and metric."""
    table = Table("task", "shots", "questions", "metric", "value", "standard error", box=None, pad_edge=False)
    for name, figures in results["results"].items():
        count = results["n-samples"].get(name, {}).get("effective", "-")
        for key, value in figures.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):  # the name of the task and the like
                continue
            error = figures.get(f"{metric}_stderr,{kind}")
            shown = (f"{x:.4f}" if isinstance(x, float) else "-" for x in (value, error))
            label = metric if kind == "none" else f"{metric} ({kind})"
            table.add_row(escape(name), str(results["n-shot"].get(name, "-")), str(count), escape(label), *shown)
    return table
