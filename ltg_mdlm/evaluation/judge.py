"""Judges: causal language models that measure the likelihood of texts, and their similarity to other texts.

Shape suffixes: S texts, T tokens, V vocabulary, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.core.terminal import count_progress
from ltg_mdlm.data.tokenizer import BOS
from ltg_mdlm.inference.exported_folder import CONFIG_FILE, MODEL_TYPE
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.texts import Text, TextScore
from ltg_mdlm.inference.trained_model import TrainedModel, open_model


class Judge(ABC):
    """Reads texts, each one independently."""

    name: str
    source: Path
    device: torch.device
    limit: int | None
    """Maximum number of tokens, including the first token; None for no limit."""

    @abstractmethod
    def scores(self, texts: Sequence[str]) -> list[TextScore]:
        """Log-likelihood of every text, given the first token.

        Raises UserError for a text without tokens, or with too many tokens.
        """

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The token that begins every text, followed by the tokens of this text."""

    @abstractmethod
    def hidden(self, ids_1T: Tensor) -> Tensor:
        """float [T, D]: the last hidden states of one text."""

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [S, D]: the last hidden state at the last token of every text; for an empty text, at the first token.

        Raises UserError for a text with too many tokens.
        """
        found = []
        with count_progress("reading texts", len(texts)) as advance:
            for text in texts:
                ids_1T = torch.tensor([self.require_fit(text, self.encode(text))], device=self.device)
                found.append(self.hidden(ids_1T)[-1].float().cpu())
                advance(1)
        return torch.stack(found).numpy()

    def require_fit(self, text: str, ids: list[int]) -> list[int]:
        """The ids of a text. Raises UserError if there are too many."""
        if self.limit is not None and len(ids) > self.limit:
            raise UserError(
                f"judge {self.name}: cannot read {text[:80]!r}: it has {len(ids) - 1} tokens;"
                f" at most {self.limit - 1} fit this model"
            )
        return ids


class TrainedJudge(Judge):
    """A model of this trainer with causal rows."""

    def __init__(self, trained: TrainedModel) -> None:
        """Raises UserError for a model that was not trained on causal rows."""
        if "causal" not in trained.modes:
            raise UserError(
                f"--judge {trained.source}: a judge must be causal, and this model was trained on masked rows only\n"
                "  give a model trained with causal rows (--plugin gpt_bert), or a Hugging Face folder"
            )
        self.name, self.source, self.device = trained.name, trained.source, trained.device
        self.limit = trained.model.config.max_position_embeddings
        self._trained = trained
        self._scorer = LikelihoodScorer(trained, ScoringRule(score="causal"), Ranks.alone(), show_progress=True)

    def scores(self, texts: Sequence[str]) -> list[TextScore]:
        """See `Judge.scores`."""
        return [score for (score,) in self._scorer([[Text("", text)] for text in texts])]

    def encode(self, text: str) -> list[int]:
        """See `Judge.encode`."""
        return [BOS, *self._trained.tokenizer.encode(text)]

    def hidden(self, ids_1T: Tensor) -> Tensor:
        """See `Judge.hidden`."""
        causal_B = torch.ones(1, dtype=torch.bool, device=self.device)
        conditioning_B = self._trained.value(torch.zeros(1, device=self.device), causal=True)
        hidden_1TD: Tensor = self._trained.model(ids_1T, causal_B=causal_B, conditioning_B=conditioning_B)
        return hidden_1TD[0]


class HuggingFaceJudge(Judge):
    """A causal language model in a folder of `transformers`. Nothing is downloaded; no code in the folder is run."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Raises UserError without `transformers`, and for a folder without a causal model."""
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
            raise UserError(f"--judge {folder}: not a causal model that transformers can open: {error}") from error
        self.name, self.source, self.device = folder.resolve().name, folder, device
        # Always float32: versions of transformers differ in whether they keep the precision of the saved weights.
        self._model: Any = model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self.limit = getattr(self._model.config, "max_position_embeddings", None)
        tokenizer = self._tokenizer
        self._first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if self._first is None:
            raise UserError(f"--judge {folder}: its tokenizer has no token that begins a text (bos or eos)")
        self._require_causal()

    @torch.no_grad()
    def _require_causal(self) -> None:
        """transformers also opens bidirectional models, such as BERT, as causal models: test whether it is one."""
        other = 0 if self._first else 1
        one_TV, other_TV = (self._logits([self._first, self._first, last]) for last in (self._first, other))
        if not torch.allclose(one_TV[:-1], other_TV[:-1], rtol=1e-4, atol=1e-4):
            raise UserError(
                f"--judge {self.source}: a judge must be causal, and the predictions of this model depend on later"
                " tokens\n  give a causal model"
            )

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> list[TextScore]:
        """See `Judge.scores`; one text at a time."""
        scored = []
        with count_progress("judging texts", len(texts)) as advance:
            for text in texts:
                ids = self.require_fit(text, self.encode(text))
                if len(ids) == 1:
                    raise UserError(f"judge {self.name}: cannot score {text[:80]!r}: it has no tokens")
                following_T = torch.tensor(ids[1:], device=self.device)
                nll_T = torch.nn.functional.cross_entropy(self._logits(ids)[:-1], following_T, reduction="none")
                scored.append(TextScore(-nll_T.double().sum().item(), len(ids) - 1))
                advance(1)
        return scored

    def _logits(self, ids: list[int]) -> Tensor:
        """float32 [T, V]"""
        logits_TV: Tensor = self._model(torch.tensor([ids], device=self.device)).logits[0]
        return logits_TV

    def encode(self, text: str) -> list[int]:
        """See `Judge.encode`."""
        return [self._first, *self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def hidden(self, ids_1T: Tensor) -> Tensor:
        """See `Judge.hidden`."""
        states_1TD: Tensor = self._model(ids_1T, output_hidden_states=True).hidden_states[-1]
        return states_1TD[0]


def open_judge(path: Path, device: torch.device) -> Judge:
    """The judge in a run folder, checkpoint, exported folder or `transformers` folder; `device` applies to the last.

    Raises UserError if there is no model, or it is not causal.
    """
    if not path.exists():
        raise UserError(f"--judge {path}: no such folder")
    file = path / CONFIG_FILE
    is_other_model = file.is_file() and read_object(file).get("model_type", MODEL_TYPE) != MODEL_TYPE
    return HuggingFaceJudge(path, device) if is_other_model else TrainedJudge(open_model(path))


def perplexities(texts: Sequence[str], scores: Sequence[TextScore]) -> dict[str, float]:
    """Perplexity of all texts together, per token of the judge and per word.

    Only the perplexity per word can be compared between judges with different tokenizers. Words are separated by white
    space. NaN without words or tokens.
    """
    nats = -math.fsum(score.log_likelihood for score in scores)
    words, tokens = sum(len(text.split()) for text in texts), sum(score.tokens for score in scores)

    def perplexity(count: int) -> float:
        if not count:
            return math.nan
        return math.exp(nats / count) if nats / count < 700 else math.inf

    return {"perplexity_per_word": perplexity(words), "perplexity_per_token": perplexity(tokens)}
