"""Writes a tokenizer as `transformers` reads it, without `transformers`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltg_mdlm.data.tokenizer import BOS, EOS, MASK, PAD, SPECIAL_TOKENS, UNK, Tokenizer, untrained_tokenizer
from ltg_mdlm.inference.exported_folder import TOKENIZER_FILE

ROLES = {"bos": BOS, "cls": BOS, "eos": EOS, "sep": EOS, "pad": PAD, "mask": MASK, "unk": UNK}
"""Ids of the special tokens that `transformers` knows by name."""


def write_tokenizer(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Write the three files of a fast tokenizer that puts `<s>` before a text and nothing after it.

    `max_length` is the largest number of tokens per row.
    """
    template = json.loads(untrained_tokenizer().to_str())["post_processor"]
    # The unknown token as in `Tokenizer`, which encodes what the vocabulary lacks.
    model = tokenizer.definition["model"] | {"unk_token": SPECIAL_TOKENS[UNK], "byte_fallback": False}
    changes = {"model": model, "post_processor": template, "truncation": None, "padding": None}
    definition = tokenizer.definition | changes
    text = json.dumps(definition, ensure_ascii=False, indent=1)
    (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")
    special = {f"{role}_token": SPECIAL_TOKENS[token] for role, token in ROLES.items()}
    _write_json(folder / "special_tokens_map.json", special)
    added = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in definition["added_tokens"]
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
    }
    _write_json(folder / "tokenizer_config.json", settings | special)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
