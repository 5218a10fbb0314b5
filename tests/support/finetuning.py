"""A small model, and classification tasks for it that can be learnt, or that cannot be read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from support.corpora import small_tokenizer
from support.models import disturbed_model, small_config

from ltg_mdlm.inference.trained_model import TrainedModel

PROMPTS = {"rte": ("sentence1", "sentence2"), "mrpc": ("sentence1", "sentence2"), "mnli": ("premise", "hypothesis")}


def trained_model(**changes: Any) -> TrainedModel:
    """A small float32 model in evaluation mode, conditioned on the mask rate unless `cond_dim=None`."""
    tokenizer = small_tokenizer()
    config = small_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=512, **changes)
    model = disturbed_model(config, dtype=torch.float32).eval().requires_grad_(False)
    return TrainedModel(
        model=model,
        tokenizer=tokenizer,
        predicts="same",
        modes=frozenset({"masked"}),
        value_for_rate=lambda rate_B: None if config.cond_dim is None else rate_B,
        source=Path("runs/tiny/checkpoints/step_0000012"),
        weights="ema",
        about={"step": 12},
    )


def separable_rows(count: int, task: str = "rte", labels: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose class is the word that the second text is made of."""
    rng = random.Random(seed)
    words = ["dog", "cats", "tree"][:labels]
    first, second = PROMPTS[task]
    rows = []
    for i in range(count):
        label = rng.randrange(labels)
        rows.append(
            {first: f"the a {rng.choice(words)}", second: " ".join([words[label]] * rng.randint(2, 4)), "label": label}
            | {"idx": i}
        )
    return rows


def write_rows(file: Path, rows: list[Any]) -> Path:
    """JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def write_task(folder: Path, task: str = "rte", train: int = 40, valid: int = 12, labels: int = 2) -> Path:
    """Both files of a separable task; returns the folder."""
    folder.mkdir(exist_ok=True, parents=True)
    write_rows(folder / f"{task}.train.jsonl", separable_rows(train, task, labels, seed=0))
    write_rows(folder / f"{task}.valid.jsonl", separable_rows(valid, task, labels, seed=1))
    return folder
