"""How a model is fine-tuned: the settings of the BabyLM evaluation suite of 2025, each of which can be changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from ltg_mdlm.config import Fraction, Layer, Section, merge, parse_set, validate
from ltg_mdlm.finetune.tasks import Task


class FinetuneSettings(Section):
    """Settings of one fine-tuning; the defaults are the published ones, but for what a task has its own value of."""

    lr: float = Field(3e-5, gt=0, description="highest learning rate")
    batch_rows: int = Field(32, ge=1, description="rows per step; 16 for boolq and multirc")
    epochs: int = Field(10, ge=1, description="passes over the training file; 30 for wsc")
    seq_len: int = Field(512, ge=8, description="tokens per row; longer pairs of texts are cut")
    warmup: Fraction = Field(0.06, description="share of the steps in which the learning rate grows")
    final_factor: Fraction = Field(0.1, description="learning-rate factor that the cosine ends in")
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="of all parameters")
    clip: float | None = Field(None, gt=0, description="largest global gradient norm; null: no clipping, as published")
    dropout: float | None = Field(None, ge=0, lt=1, description="in the model; null: as it was trained")
    head_dropout: float = Field(0.1, ge=0, lt=1, description="before the last layer of the classifier")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device computes it natively"
    )


def settings_of(task: Task, sets: Sequence[str] = ()) -> FinetuneSettings:
    """The published settings of a task, changed by `key=value` texts.

    Raises UserError for a key that is unknown or a value that does not fit.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in (Layer(f"the published settings of {task.name}", task.published), *map(parse_set, sets)):
        merge(values, layer.values, layer.source, sources, "finetune.")
    settings: FinetuneSettings = validate(FinetuneSettings, values, sources, "finetune.")
    return settings
