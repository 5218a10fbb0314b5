"""Compares judges with the library's own results, in a process with both `transformers` and ltg_mdlm.

`python judge_probe.py TOKENIZER.json RESULTS.json` creates small models and writes the results.
"""

import copy
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.judge import open_judge

torch.set_num_threads(1)
TEXTS = ["the dog ran", "one, two. 1984", "a"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 24}
MODELS = {
    "gpt2": (transformers.GPT2LMHeadModel, GPT2Config(n_positions=24, n_embd=16, n_layer=2, n_head=2)),
    "llama": (transformers.LlamaForCausalLM, LlamaConfig(**SIZES, intermediate_size=32)),
    "half": (transformers.LlamaForCausalLM, LlamaConfig(**SIZES, intermediate_size=32)),
    "bert": (transformers.BertForMaskedLM, BertConfig(**SIZES, intermediate_size=32)),
}


@torch.no_grad()
def made(name, tokenizer, folder):
    """Create a model with large weights and save it to a folder; "half" is saved in 16 bits, without loss."""
    cls, config = MODELS[name]
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = cls(config).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.3).copy_(parameter.bfloat16())
    (copy.deepcopy(model).bfloat16() if name == "half" else model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@torch.no_grad()
def expected(model, tokenizer, text):
    """Log-likelihood from the library's own loss, and the hidden state of the last token."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    log_likelihood = -model(ids, labels=ids).loss.item() * (ids.shape[1] - 1) if ids.shape[1] > 1 else None
    return {
        "log_likelihood": log_likelihood,
        "tokens": ids.shape[1] - 1,
        "features": model.base_model(ids).last_hidden_state[0, -1].tolist(),
    }


def refusal(action):
    """The message of the UserError that `action` raises; None if it raises none."""
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def facts(name, tokenizer, folder):
    """Results of a judge with the expected ones; for a refused judge, the message."""
    model = made(name, tokenizer, folder)
    message = refusal(lambda: open_judge(folder, torch.device("cpu")))
    if message is not None:
        return {"refused": message}
    judge = open_judge(folder, torch.device("cpu"))
    return {
        "scores": [{"log_likelihood": s.log_likelihood, "tokens": s.tokens} for s in judge.scores(TEXTS)],
        "features": judge.features([*TEXTS, ""]).tolist(),
        "expected": [expected(model, tokenizer, text) for text in [*TEXTS, ""]],
        "too_long": [refusal(lambda: judge.scores(["the " * 40])), refusal(lambda: judge.features(["the " * 40]))],
        "empty": refusal(lambda: judge.scores([""])),
    }


def main():
    """Write the results of all models."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1], bos_token="<s>", eos_token="</s>")
    with tempfile.TemporaryDirectory() as folder:
        models = {name: facts(name, tokenizer, Path(folder) / name) for name in MODELS}
    found = {"transformers": transformers.__version__, "models": models}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
