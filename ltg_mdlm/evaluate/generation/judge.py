"""How likely another model, which reads from left to right, finds a text."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ltg_mdlm.distributed import Ranks
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.evaluate.texts import Text, TextScore
from ltg_mdlm.export.folder import has_revisions, is_exported
from ltg_mdlm.progress import count_progress
from ltg_mdlm.trained_model import TrainedModel, open_model


class Judge(ABC):
    """Scores texts."""

    name: str
    source: Path

    @abstractmethod
    def scores(self, texts: Sequence[str]) -> list[TextScore]:
        """Log-likelihood of every text, all of its tokens behind the token that begins a text.

        Raises UserError for a text that has no tokens, or too many for the judge.
        """


class TrainedJudge(Judge):
    """A model of this trainer with causal rows."""

    def __init__(self, trained: TrainedModel) -> None:
        """Raises UserError for a model that was not trained on causal rows."""
        if "causal" not in trained.modes:
            raise UserError(
                f"--judge {trained.source}: a judge reads from left to right, and this model was trained on masked rows"
                " only\n  give a model trained with causal rows (--plugin gpt_bert), or a Hugging Face folder"
            )
        self.name, self.source = trained.name, trained.source
        self._scorer = LikelihoodScorer(trained, ScoringRule(score="causal"), Ranks.alone(), show_progress=True)

    def scores(self, texts: Sequence[str]) -> list[TextScore]:
        """As every judge."""
        return [score for (score,) in self._scorer([[Text("", text)] for text in texts])]


class HuggingFaceJudge(Judge):
    """A causal language model in a folder of `transformers`; nothing is downloaded, no code in the folder is run."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Raises UserError without `transformers`, or for a folder that it cannot open as a causal model."""
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise UserError(
                f"--judge {folder}: models of Hugging Face need transformers: pip install 'ltg-mdlm[judge]'"
            ) from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"--judge {folder}: not a causal model that transformers opens: {error}") from error
        self.name, self.source = folder.resolve().name, folder
        self._model: Any = model.to(device).eval().requires_grad_(False)
        self._device = device
        tokenizer = self._tokenizer
        self._first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if self._first is None:
            raise UserError(f"--judge {folder}: its tokenizer has no token that texts begin with (bos or eos)")

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> list[TextScore]:
        """As every judge; one text at a time."""
        scored = []
        with count_progress("judging texts", len(texts)) as advance:
            for text in texts:
                scored.append(self._score(text))
                advance(1)
        return scored

    def _score(self, text: str) -> TextScore:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if not ids or (limit is not None and len(ids) >= limit):
            raise UserError(f"judge {self.name}: cannot score {text[:80]!r}: {len(ids)} tokens, 1 to {limit} fit")
        ids_T = torch.tensor([[self._first, *ids]], device=self._device)
        logits_TV = self._model(ids_T).logits[0, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits_TV, ids_T[0, 1:], reduction="none").double().sum()
        return TextScore(-nll.item(), len(ids))


def open_judge(path: Path, device: torch.device) -> Judge:
    """The judge in a run folder, checkpoint, exported folder or folder of `transformers`; `device` is for the latter.

    Raises UserError if there is none, or it does not read from left to right.
    """
    if not path.exists():
        raise UserError(f"--judge {path}: no such folder")
    if _is_hugging_face(path):
        return HuggingFaceJudge(path, device)
    return TrainedJudge(open_model(path))


def _is_hugging_face(path: Path) -> bool:
    if has_revisions(path) or is_exported(path):
        return False
    try:
        return "model_type" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def perplexities(texts: Sequence[str], scores: Sequence[TextScore]) -> dict[str, float]:
    """Of all texts together: per judge's token, and per word, which judges with other tokenizers can be compared by.

    Words are runs without white space.  A text without words or tokens has no part in it.
    """
    nats = -math.fsum(score.log_likelihood for score in scores)
    words, tokens = sum(len(text.split()) for text in texts), sum(score.tokens for score in scores)
    return {"perplexity_per_word": _perplexity(nats, words), "perplexity_per_token": _perplexity(nats, tokens)}


def _perplexity(nats: float, count: int) -> float:
    if not count:
        return math.nan
    return math.exp(nats / count) if nats / count < 700 else math.inf
