"""The README.md of an exported model: what it is, how to load and evaluate it, and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltg_mdlm.core.settings import flatten
from ltg_mdlm.inference.trained_model import TrainedModel
from ltg_mdlm.storage.metrics_file import ROWS, read_rows
from ltg_mdlm.storage.run_folder import RunFolder

_BACKENDS = {
    "mlm": "`mlm` (`AutoModelForMaskedLM`): a masked token is predicted at its own position",
    "mntp": "`mntp` (`AutoModelForMaskedLM`): the logits of token i + 1 stand at position i, without a shift inside",
    "causal": "`causal` (`AutoModelForCausalLM`)",
}


_RATES = {
    "fraction": "the share of each row's tokens that are masked",
    "zero": "0, as if nothing were masked",
    "constant": "the constant {constant_rate}",
}


_TRAINING_KEYS = (
    "training.max_steps",
    "training.epochs",
    "training.seq_len",
    "training.seq_len_schedule",
    "training.global_batch_rows",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.ema_decay",
    "seed",
)


def model_card(trained: TrainedModel, config: Mapping[str, Any]) -> str:
    """Markdown with the metadata block of a model hub; `config` is the content of config.json."""
    sections = (_header(trained), _use(trained, config), _recipe(trained), _results(trained))
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _header(trained: TrainedModel) -> list[str]:
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    return [
        "---",
        "library_name: transformers",
        "tags:",
        "- babylm",
        "- masked-language-model",
        "---",
        "",
        f"# {trained.name}",
        "",
        f"A language model of {parameters:,} parameters, trained with `ltg-mdlm`.",
    ]


def _use(trained: TrainedModel, config: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForMaskedLM, AutoTokenizer",
        "",
        "model = AutoModelForMaskedLM.from_pretrained(PATH, trust_remote_code=True)",
        "tokenizer = AutoTokenizer.from_pretrained(PATH)",
        "```",
        "",
        "`transformers` 4.51 or later. `AutoModel` gives hidden states, `AutoModelForSequenceClassification` a new head"
        f" on the first token. Rows may be up to {config['max_position_embeddings']} tokens long.",
        "",
        "Backends of the BabyLM evaluation pipeline that fit the training:",
        "",
        *(f"- {_BACKENDS[name]}" for name in config["backends"]),
    ]
    if "causal" not in config["backends"]:
        lines += ["", "It saw no rows from left to right: `AutoModelForCausalLM` loads, but its scores mean nothing."]
    if "mask_rate" in config:
        told = _RATES[config["mask_rate"]].format_map(config)
        lines += [
            "",
            f"The model is conditioned on the mask rate. Without `mask_rate=` in the call it is told {told}"
            " (`mask_rate` in config.json).",
        ]
    return lines


def _recipe(trained: TrainedModel) -> list[str]:
    about = trained.about
    averaged = "averaged weights" if trained.weights == "ema" else "weights of the last step"
    if about["words_seen"] is None:  # imported: its settings are a guess from the layout of its weights
        file = about["imported_from"]["file"]
        return ["## Training", "", f"Imported from `{file}`, which does not say how it was trained; {averaged}."]
    settings = flatten(about["config"])
    chosen = {key: settings[key] for key in _TRAINING_KEYS if settings.get(key) is not None}
    plugins = {key: value for key, value in settings.items() if key.startswith("plugins.")}
    return [
        "## Training",
        "",
        f"{about['words_seen']:,} words seen in {about['step']:,} steps; {averaged}.",
        f"Data: {_data(settings)}.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in (chosen | plugins).items()),
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + ".",
    ]


def _data(settings: Mapping[str, Any]) -> str:
    """What the run was trained on, by the last part of its path."""
    source = str(settings.get("data.train") or settings["data.corpus"])
    return "the generated corpus of ltg-mdlm" if source == "builtin" else source.rstrip("/").rpartition("/")[2]


def _results(trained: TrainedModel) -> list[str]:
    row = _held_out(trained)
    if row is None:
        return []
    figures = [
        f"| {label.strip()} | {form.format(row[key])} |" for key, label, form in ROWS if row.get(key) is not None
    ]
    title = f"## Held-out text, step {row['step']:,}"
    return [title, "", "Measured in training, with averaged weights.", "", "| | |", "|---|---|", *figures]


def _held_out(trained: TrainedModel) -> Mapping[str, Any] | None:
    """The last figures on held-out text that training had measured by the checkpoint's step."""
    file = RunFolder(trained.source.parent.parent).metrics_file
    known = [row for row in read_rows(file, b'"valid/loss"') if row["step"] <= trained.about["step"]]
    return known[-1] if known else None
