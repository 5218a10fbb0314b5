"""The three files from which `transformers` makes a fast tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ltg_mdlm.data.special_tokens import BOS, EOS, MASK, PAD, SPECIAL_TOKENS, UNK
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.data.tokenizer_recipe import untrained_tokenizer
from ltg_mdlm.export.folder import TOKENIZER_FILE, write_json

ROLES = {"bos": BOS, "cls": BOS, "eos": EOS, "sep": EOS, "pad": PAD, "mask": MASK, "unk": UNK}
"""Ids of the special tokens that `transformers` knows by name."""


def write_tokenizer(tokenizer: Tokenizer, longest: int, folder: Path) -> None:
    """Write a tokenizer that puts `<s>` before a text, and nothing behind it, for rows of up to `longest` tokens."""
    template = json.loads(untrained_tokenizer().to_str())["post_processor"]
    definition = tokenizer.definition | {"post_processor": template, "truncation": None, "padding": None}
    text = json.dumps(definition, ensure_ascii=False, indent=1)
    (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")
    special = {f"{role}_token": SPECIAL_TOKENS[token] for role, token in ROLES.items()}
    write_json(folder / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": longest,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": _added_tokens(definition["added_tokens"]),
    }
    write_json(folder / "tokenizer_config.json", settings | special)


def _added_tokens(tokens: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in tokens}
