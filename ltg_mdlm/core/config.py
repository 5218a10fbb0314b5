"""The schema of a run's config: every key, its type, default, constraints and help text.

Defaults are the published recipe of frequency-informed masked diffusion (arXiv 2509.05056, base size).
`core.settings` reads configs from files and the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ltg_mdlm.core.errors import UserError

MAX_NAME_BYTES = 200
"""Length of the name of a run folder; file systems allow 255 bytes, and other names are derived from it."""

Fraction = Annotated[float, Field(ge=0, le=1)]

MAX_STEPS = 10**7
"""Optimiser steps of the longest possible training, whose rows are planned before it begins."""

Interval = Annotated[int, Field(ge=1, le=10**18)]
"""Steps from one event to the next; a large number means never."""


class Section(BaseModel):
    """A group of settings.  Unknown keys, infinity and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class CurriculumConfig(Section):
    """Training on the documents from easy to hard."""

    by: Literal["source", "words", "file"] = Field(
        description="what is easy: sources as listed in `order`, documents of few words, or low numbers in `scores`"
    )
    order: list[str] | None = Field(None, description="for by=source: all sources of the corpus, the easiest first")
    scores: Path | None = Field(
        None, description="for by=file: text with one number per line, or a .npy array: one for each training document"
    )
    over: Literal["epoch", "training"] = Field(
        "epoch",
        description="epoch: every epoch goes from easy to hard; training: the first epochs repeat the easy documents,"
        " the last ones the hard documents",
    )

    @model_validator(mode="after")
    def _complete(self) -> CurriculumConfig:
        if (self.order is not None) != (self.by == "source"):
            raise ValueError("data.curriculum.order lists the sources if by is 'source', and is not used otherwise")
        if (self.scores is not None) != (self.by == "file"):
            raise ValueError("data.curriculum.scores names the file if by is 'file', and is not used otherwise")
        return self


Weights = dict[str, Annotated[float, Field(ge=0, le=1e6)]]


class DataConfig(Section):
    """The text: a prepared corpus folder, or files of the existing LTG stack."""

    corpus: str = Field(
        "builtin", description="folder made by `ltg-mdlm prepare`, or 'builtin' for the generated corpus"
    )
    builtin_words: int = Field(300_000, ge=1000, le=10**9, description="words of the generated corpus")
    builtin_zipf_exponent: float = Field(1.0, ge=0, le=100, description="exponent of its word frequencies")
    train: Path | None = Field(None, description="*_tokenized.bin of the existing stack, instead of a corpus folder")
    valid: Path | None = Field(None, description="*_tokenized.bin with validation documents, used with `train`")
    tokenizer: Path | None = Field(None, description="tokenizer JSON with which `train` was made")
    words: str | None = Field(
        None,
        description="unit in which the words seen are counted, which `ltg-mdlm prepare --words` decides; null: that of"
        " the corpus, which config.yaml of the run then states",
    )
    end_of_document: bool = Field(False, description="append a maskable </s> to every document")
    mixture: Weights | None = Field(
        None,
        description="how often a document of each source is seen, relative to the others, as in"
        " {childes: 2.0, simple_wiki: 0.5}; 1 for sources that are not named",
    )
    mixture_end: Weights | None = Field(
        None, description="weights at the end of training, which those of `mixture` change to linearly; null: constant"
    )
    curriculum: CurriculumConfig | None = Field(None, description="documents from easy to hard; null: random order")

    @model_validator(mode="after")
    def _complete(self) -> DataConfig:
        if self.train is None and (self.valid or self.tokenizer):
            raise ValueError("data.valid and data.tokenizer are used with data.train only")
        if self.train is not None and self.tokenizer is None:
            raise ValueError("data.train needs data.tokenizer: the tokenizer JSON with which it was made")
        if self.curriculum is not None and self.mixture_end is not None:
            raise ValueError("data.mixture_end and data.curriculum both decide when a document comes; leave one out")
        if self.curriculum is not None and self.curriculum.over == "training" and self.mixture is not None:
            raise ValueError("data.mixture cannot be combined with data.curriculum.over=training; leave one out")
        return self


class ModelSection(Section):
    """Sizes of the transformer.  The tokenizer determines the size of the vocabulary."""

    hidden_size: int = Field(768, ge=1, le=2**17, description="width of the hidden states")
    intermediate_size: int = Field(2560, ge=1, le=2**20, description="inner width of the gated MLP")
    num_hidden_layers: int = Field(12, ge=1, le=10_000, description="layers, each of attention and a gated MLP")
    num_attention_heads: int = Field(12, ge=1, le=2**17, description="attention heads; must divide hidden_size")
    max_position_embeddings: int = Field(512, ge=1, le=2**20, description="tokens of the longest possible row")
    position_bucket_size: int = Field(
        32,
        ge=4,
        multiple_of=2,
        description="buckets of relative positions per direction: half of them exact, the others logarithmic",
    )
    layer_norm_eps: float = Field(1e-5, gt=0, le=1, description="added to the variance in layer norms")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of hidden states and attention")
    cond_dim: int = Field(
        128, ge=1, le=2**17, description="width of the time embedding, if the model is conditioned on time"
    )
    depth_weighted_averaging: bool = Field(False, description="DenseFormer averaging, as in GPT-BERT")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelSection:
        if self.position_bucket_size > 2**20:
            raise ValueError(f"model.position_bucket_size must be at most {2**20}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


RowLength = Annotated[int, Field(ge=1, le=2**20)]


class BatchRamp(Section):
    """Linear growth of the global batch."""

    start: float = Field(0.25, gt=0, le=1, description="share of global_batch_rows in the first step")
    until: Fraction = Field(1.0, description="progress at which the full size is reached")


class TrainingConfig(Section):
    """Length of training, batches, and precision."""

    max_steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="optimiser steps; alternative to epochs")
    epochs: float | None = Field(
        None, gt=0, le=10**6, description="passes over the training split; alternative to max_steps"
    )
    seq_len: int = Field(128, ge=8, le=2**20, description="tokens per row")
    seq_len_schedule: list[tuple[Fraction, RowLength]] | None = Field(
        None, description="[[progress, tokens per row], ...], starting at 0; replaces seq_len"
    )
    global_batch_rows: int = Field(1024, ge=1, le=10**7, description="rows per step at the first sequence length")
    batch_ramp: BatchRamp | None = Field(None, description="growth of the global batch; null: constant")
    micro_batch_rows: int | None = Field(
        None, ge=1, description="rows per forward pass and rank; null: a default for the device"
    )
    packing: Literal["documents_packed", "one_document"] = Field(
        "documents_packed", description="several documents per row, or separate rows for each document"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: on GPUs bf16 if native; on CPUs with native bf16 the faster of both, measured at the start",
    )
    attention: Literal["auto", "fused", "library"] = Field(
        "auto",
        description="fused: a Triton kernel for GPUs that does not materialise the score matrix; library: that of"
        " torch; auto: on GPUs, the faster of the two, measured at the start, if fused is correct",
    )
    cpu_kernels: Literal["auto", "compiled", "torch"] = Field(
        "auto",
        description="operations between matrix products on CPUs. compiled: a C++ file, compiled at the first use;"
        " torch: those of torch; auto: compiled, in long runs on machines with a compiler; decided at the start",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, slower"
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="apply torch.compile to the layers, which takes time in the first step of every row length; auto:"
        " on GPUs, not on CPUs; if it fails, the layers run without it",
    )
    deterministic: bool = Field(False, description="deterministic CUDA kernels: bit-identical loss curves, slower")
    max_refused_updates: int = Field(
        10, ge=1, le=10**9, description="consecutive non-finite steps before the run stops"
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads per process; null: cores / processes")

    @model_validator(mode="after")
    def _length_of_training(self) -> TrainingConfig:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give either training.max_steps or training.epochs (set the other to null)")
        if self.micro_batch_rows is not None and self.micro_batch_rows > 10**7:
            raise ValueError(f"training.micro_batch_rows must be at most {10**7}")
        starts = [start for start, _ in self.seq_len_schedule or [(0.0, self.seq_len)]]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError("training.seq_len_schedule must start at progress 0 and increase")
        return self

    @property
    def stages(self) -> list[tuple[float, int]]:
        """(progress, tokens per row) of every stage."""
        return list(self.seq_len_schedule or [(0.0, self.seq_len)])


BUILT_IN_OPTIMIZERS = ("lamb", "adamw", "muon")
"""Values of `optimizer.name` that are not the names of plugins."""


class OptimizerConfig(Section):
    """Optimiser, learning-rate schedule and weight averaging."""

    name: str = Field(
        "lamb",
        min_length=1,
        description="lamb (an update is proportional to the norm of the weights), adamw, muon (updates of matrices are"
        " orthogonal), or a selected plugin that provides an optimiser",
    )
    lr: float = Field(
        7e-3,
        gt=0,
        description="learning rate after warm-up; adamw needs a smaller one than lamb and muon, such as 1e-3",
    )
    betas: tuple[Fraction, Fraction] = Field(
        (0.9, 0.98), description="decay rates of the averages of the gradient and its square"
    )
    eps: float = Field(1e-8, gt=0, le=1, description="added to the denominator of the update")
    weight_decay: float = Field(0.1, ge=0, description="not applied to biases and layer norms")
    clip: float = Field(2.0, gt=0, allow_inf_nan=True, description="maximum global gradient norm; .inf: no clipping")
    warmup: Fraction = Field(0.016, description="share of training with linear warm-up")
    cooldown: Fraction = Field(0.016, description="share of training with linear decay to zero at the end")
    final_factor: Fraction = Field(0.1, description="learning-rate factor at the end of the cosine")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the exponential moving average of the weights; 0: no averaging"
    )
    ema_ramp: bool = Field(True, description="limit the decay to (1+n)/(10+n) after n updates")
    tail_average: Fraction = Field(
        0.0,
        description="share of training at its end in which the averaged weights, which validation and export use, are"
        " the mean over its steps instead of the exponential average; 0: never",
    )
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="muon: momentum of matrices")
    muon_embedding_lr: float | None = Field(
        None, gt=0, description="muon: learning rate of embeddings, by AdamW; null: lr"
    )
    muon_head_lr: float | None = Field(
        None, gt=0, description="muon: learning rate of the head's matrix, by AdamW; null: lr"
    )
    muon_vector_lr: float | None = Field(
        None, gt=0, description="muon: learning rate of biases and other vectors, by AdamW; null: lr"
    )


class CheckpointConfig(Section):
    """When checkpoints are written, and how many are kept."""

    every: Interval = Field(500, description="steps between checkpoints")
    keep: int = Field(2, ge=1, le=10**9, description="newest checkpoints to keep, in addition to those by words seen")
    by_words: bool = Field(True, description="keep chck_1M ... chck_1000M permanently, for BabyLM submissions")


class ValidationConfig(Section):
    """Evaluation on held-out text with the averaged weights."""

    every: Interval = Field(500, description="steps between validations")
    rows: int = Field(512, ge=1, le=10**7, description="maximum number of rows of held-out text")
    draws: int = Field(
        2,
        ge=2,
        le=10_000,
        multiple_of=2,
        description="mask draws per row for the likelihood bound, in complementary pairs",
    )
    pairs: str | None = Field(
        "corpus", description="BLiMP-style file or folder of minimal pairs; 'corpus': those of the corpus"
    )
    pairs_every: Interval | None = Field(
        None, description="steps between evaluations of the pairs; null: before and after training only"
    )
    pairs_per_phenomenon: int = Field(
        50,
        ge=2,
        le=10**6,
        multiple_of=2,
        description="maximum number of minimal pairs per phenomenon; even, because they come in twins",
    )


def _wandb_mode(value: object) -> object:
    """YAML reads `off` and `on` as booleans."""
    return {False: "off", True: "online"}.get(value, value) if isinstance(value, bool) else value


class LoggingConfig(Section):
    """Console, metrics.jsonl, wandb and TensorBoard."""

    every: Interval = Field(10, description="steps between log entries")
    wandb: Annotated[Literal["auto", "online", "offline", "off"], BeforeValidator(_wandb_mode)] = Field(
        "auto", description="auto: if installed; online if logged in, else offline"
    )
    wandb_project: str = Field("ltg-mdlm", description="wandb project of the run")
    tensorboard: bool = Field(False, description="also write event files of TensorBoard in the run folder")


class RunSection(Section):
    """Files of the run."""

    out: Path | None = Field(None, description="run folder; null: runs/<config>-<plugins>-s<seed>")
    init_from: Path | None = Field(None, description="run folder or checkpoint with the initial weights")


def _no_options(value: object) -> object:
    """`freq_mdlm:` without a value selects the plugin with its default options."""
    return {} if value is None else value


PluginSettings = Annotated[dict[str, Any], BeforeValidator(_no_options)]


class Provider(Section):
    """Origin of a component, which a run writes to its config.yaml and checkpoints."""

    plugin: str
    distribution: str
    version: str
    file: str
    """file in which the plugin is defined"""

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution} {self.version} ({self.file})"


class RunConfig(Section):
    """Everything that defines a run.

    The trainer writes it to config.yaml, with all options of the plugins, `plugin_versions` and `provenance` filled in.
    """

    name: str = Field(
        "custom",
        description="first part of the name of the default run folder: that of the last --config, whatever a file says",
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, row order, masks, noise and dropout")
    plugins: dict[str, PluginSettings] = Field(default_factory=dict, description="selected plugins and their options")
    slots: dict[str, str] = Field(default_factory=dict, description="the plugin for a slot that several plugins fill")
    data: DataConfig = DataConfig()
    model: ModelSection = ModelSection()
    training: TrainingConfig = TrainingConfig(epochs=10)
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    logging: LoggingConfig = LoggingConfig()
    run: RunSection = RunSection()
    plugin_versions: dict[str, str] = Field(
        default_factory=dict, description="written by the trainer: distribution and version of every plugin"
    )
    provenance: dict[str, Provider] = Field(
        default_factory=dict, description="written by the trainer: the origin of the component in each slot"
    )

    @model_validator(mode="after")
    def _rows_fit_the_model(self) -> RunConfig:
        longest = max(length for _, length in self.training.stages)
        if longest > self.model.max_position_embeddings:
            raise ValueError(
                f"rows of {longest} tokens are longer than model.max_position_embeddings"
                f" {self.model.max_position_embeddings}"
            )
        return self

    def to_yaml(self) -> str:
        """The settings as YAML, which `--config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def run_folder(self) -> Path:
        """`run.out`, or runs/<config>-<plugins>-s<seed>.  Raises UserError if that is not a folder's name."""
        if self.run.out is not None:
            return self.run.out
        chosen = [p for p in self.plugins if p != "uniform_mdlm"] or ["uniform_mdlm"]
        name = "-".join([self.name, *chosen, f"s{self.seed}"])
        advice = "choose another name with --set name=..., or a run folder with --out"
        if "/" in name or not name.isprintable():
            raise UserError(f"name: {name!r} cannot be the name of a folder in runs/\n  {advice}")
        if (length := len(name.encode())) > MAX_NAME_BYTES:
            raise UserError(
                f"name: the run folder would have a name of {length} bytes; {MAX_NAME_BYTES} are allowed\n  {advice}"
            )
        return Path("runs") / name
