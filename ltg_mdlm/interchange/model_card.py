"""The README.md of an exported model: what it is, how to load and evaluate it, and how it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ltg_mdlm.core.settings import flatten
from ltg_mdlm.data.words import WHITESPACE
from ltg_mdlm.inference.trained_model import TrainedModel
from ltg_mdlm.storage.metrics_file import ROWS, read_validations
from ltg_mdlm.storage.run_folder import run_of_checkpoint

_BACKENDS = {
    "mlm": "`mlm` (`AutoModelForMaskedLM`): a masked token is predicted at its own position",
    "mntp": "`mntp` (`AutoModelForMaskedLM`): the logits of token i + 1 are at position i, without a shift",
    "causal": "`causal` (`AutoModelForCausalLM`; `generate` works, without a cache)",
}

_RATES = {
    "fraction": "the masked share of each row's tokens",
    "zero": "0, as if no token were masked",
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
    "optimizer.tail_average",
    "seed",
)


def model_card(trained: TrainedModel, config: Mapping[str, Any]) -> str:
    """Markdown with the metadata block of a model hub; `config` is the content of config.json."""
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    header = [
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
    sections = (header, _use(trained, config), _training(trained), _results(trained))
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _use(trained: TrainedModel, config: Mapping[str, Any]) -> list[str]:
    backends, encode = config["backends"], trained.tokenizer.encode
    # Special tokens cut a text into parts. Most tokenizers put a blank before every part, so that one in the text would
    # be a token of its own.
    adds_blanks = encode("The dog a ball.") == encode("The dog") + encode("a ball.")
    masked_text = "The dog<mask>a ball." if adds_blanks else "The dog<mask> a ball."
    model_class, text, position, where = {
        "mlm": (
            "AutoModelForMaskedLM",
            masked_text,
            "masked",
            "The logits of a masked token are at its own position.",
        ),
        "mntp": (
            "AutoModelForMaskedLM",
            masked_text,
            "masked - 1",
            "The logits of a masked token are one position earlier. For programs that read them at its own position,"
            " load the model with `mntp_shift=True`, or set `mntp_shift` in config.json, and use the backend `mlm`."
            " The `fill-mask` pipeline of `transformers` reads the right position with either setting.",
        ),
        "causal": (
            "AutoModelForCausalLM",
            "The dog sees a",
            "-1",
            "The logits of a token are one position earlier.",
        ),
    }[backends[0]]
    blanks = "The tokenizer adds the blank after a mask itself: write no blanks before or after `<mask>`."
    masked = ["masked = inputs.input_ids[0].tolist().index(tokenizer.mask_token_id)"] * ("<mask>" in text)
    lines = [
        "## Use",
        "",
        "```python",
        "import torch",
        f"from transformers import {model_class}, AutoTokenizer",
        "",
        f"path = {json.dumps(trained.name)}  # this folder, or its name on the Hub",
        f"model = {model_class}.from_pretrained(path, trust_remote_code=True)",
        "tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        f'inputs = tokenizer("{text}", return_tensors="pt")',
        *masked,
        "with torch.no_grad():",
        f"    logits = model(**inputs).logits[0, {position}]",
        "print(tokenizer.decode(logits.argmax()))",
        "```",
        "",
        where,
        *(["", blanks] if masked and adds_blanks else []),
        "",
        "Requires `transformers` 4.51 or later. `AutoModel` returns hidden states, `AutoModelForSequenceClassification`"
        f" adds a new head on the first token. Rows have up to {config['max_position_embeddings']} tokens.",
        "",
        "Backends of the BabyLM evaluation pipeline that fit the training:",
        "",
        *(f"- {_BACKENDS[name]}" for name in backends),
    ]
    if "causal" not in backends:
        lines += [
            "",
            "It was not trained on causal rows, so it has no `AutoModelForCausalLM`: programs that score text from left"
            " to right, such as the multilingual tasks of the pipeline, stop instead of giving meaningless scores.",
        ]
    if "block_length" in config:
        lines += [
            "",
            f"The model works in blocks of {config['block_length']} tokens from the first token of a text on: a token"
            " attends to its own block and to earlier ones (`block_length` in config.json). Fill a text from left to"
            " right; what follows a block has no effect on it.",
        ]
    if "mask_rate" in config:
        rate = _RATES[config["mask_rate"]].format_map(config)
        lines += [
            "",
            f"The model is conditioned on the mask rate. If `mask_rate=` is not given in the call, it is {rate}"
            " (`mask_rate` in config.json).",
        ]
    return lines


def _training(trained: TrainedModel) -> list[str]:
    about = trained.about
    averaged = "averaged weights" if trained.weights == "ema" else "weights of the last step"
    if about["words_seen"] is None:  # imported: its settings are a guess from the layout of its weights
        file = about["imported_from"]["file"]
        return ["## Training", "", f"Imported from `{file}`, which does not say how it was trained; {averaged}."]
    settings = flatten(about["config"])
    source = str(settings.get("data.train") or settings["data.corpus"])
    data = "the generated corpus of ltg-mdlm" if source == "builtin" else source.rstrip("/").rpartition("/")[2]
    chosen = {key: settings[key] for key in _TRAINING_KEYS if settings.get(key) is not None}
    plugins = {key: value for key, value in settings.items() if key.startswith("plugins.")}
    unit = settings.get("data.words") or WHITESPACE
    counted = "" if unit == WHITESPACE else f" (counted in the unit {unit})"
    return [
        "## Training",
        "",
        f"{about['words_seen']:,} words seen{counted} in {about['step']:,} steps; {averaged}.",
        f"Data: {data}.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in (chosen | plugins).items()),
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + ".",
    ]


def _results(trained: TrainedModel) -> list[str]:
    """The last metrics on held-out text that training measured up to the checkpoint's step."""
    file = run_of_checkpoint(trained.source).metrics_file
    row = read_validations(file, up_to=trained.about["step"]).last
    if not row:
        return []
    title = f"## Held-out text, step {row['step']:,}"
    metrics = [
        f"| {label.strip()} | {form.format(row[key])} |" for key, label, form in ROWS if row.get(key) is not None
    ]
    return [title, "", "Measured during training, with averaged weights.", "", "| | |", "|---|---|", *metrics]
