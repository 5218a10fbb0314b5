"""Runs where a `transformers` is installed and ltg_mdlm is not: loads exported models as evaluation pipelines do.

`python probe.py EXPORTS RESULTS` reads, for each model in the folder EXPORTS, `NAME.safetensors` with inputs and
expected outputs of its cases, and writes to RESULTS, as JSON, what it found: differences by case, and other facts.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

torch.set_num_threads(1)
CLASSES = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "hidden": AutoModel}
TEXTS = ["The dog ran.", "cats", "text<mask><mask><mask>", "Ω-level naïve\nline two", ""]


def load(cls, path, **options):
    return cls.from_pretrained(path, trust_remote_code=True, revision="main", **options).eval()


def difference(got, expected):
    assert expected.abs().max() > 0.1, "nothing to compare"
    return float(((got - expected).abs() / expected.abs().clamp(min=1)).max())


def differences(path):
    """Largest difference of each case to the outputs of the trainer's model, relative to them if they are beyond 1."""
    tensors = load_file(path.with_suffix(".safetensors"))
    cases = sorted({name.rpartition("/")[0] for name in tensors})
    found = {}
    for kind, cls in CLASSES.items():
        model = load(cls, path)
        for case in (case for case in cases if case.startswith(kind)):
            arguments = {k: tensors.get(f"{case}/{k}") for k in ("input_ids", "attention_mask")}
            if f"{case}/mask_rate" in tensors:
                arguments["mask_rate"] = tensors[f"{case}/mask_rate"]
            with torch.no_grad():
                output = model(**arguments, token_type_ids=None)
            got = output.last_hidden_state if kind == "hidden" else output.logits
            real = tensors[f"{case}/real"].bool()
            assert got.dtype == torch.float32
            found[case] = difference(got[real], tensors[f"{case}/expected"][real])
    return found


def gradients_flow(path):
    """Names of parameters of AutoModel that a loss does not reach, for each kind of attention mask."""
    unreached = {}
    ids = torch.randint(16, 300, (2, 9))
    square = torch.ones(2, 9, 9).tril()
    for name, mask in {"none": None, "row": torch.ones(2, 9), "square": square}.items():
        model = load(AutoModel, path).train()
        model(input_ids=ids, attention_mask=mask).last_hidden_state.square().sum().backward()
        dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        unreached[name] = dead
    return unreached


def fine_tuning(path):
    """A classifier's step, and whether what it saves is what it loads."""
    torch.manual_seed(0)
    model = load(AutoModelForSequenceClassification, path, num_labels=3).train()
    std = float(model.score[5].weight.detach().std())
    ids = torch.randint(16, 300, (4, 9))
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 1, 2, 0]))
    output.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"{path.name}_classifier"
        model.eval().save_pretrained(place)
        again = load(AutoModelForSequenceClassification, place)
        saved = sorted(os.listdir(place))
    with torch.no_grad():
        off = difference(again(input_ids=ids).logits, model(input_ids=ids).logits)
    return {"loss": float(output.loss), "labels": output.logits.shape[1], "std": std, "off": off, "saved": saved}


def round_trip(path):
    """Whether a language model loads what it saved; mean and deviation of a head that was not saved."""
    ids = torch.randint(16, 300, (2, 9))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = load(AutoModelForMaskedLM, path)
        model.save_pretrained(Path(folder) / f"{path.name}_lm")
        again = load(AutoModelForMaskedLM, Path(folder) / f"{path.name}_lm")
        off = difference(again(input_ids=ids).logits, model(input_ids=ids).logits)
        load(AutoModel, path).save_pretrained(Path(folder) / f"{path.name}_base")
        head = load(AutoModelForMaskedLM, Path(folder) / f"{path.name}_base").denoiser.classifier
        fresh = {name: [float(p.mean()), float(p.std())] for name, p in head.named_parameters()}
    return {"off": off, "fresh_head": fresh}


def losses(path):
    """Loss of both language models with the tokens themselves as labels; by hand, unshifted and shifted."""
    ids = torch.randint(16, 300, (2, 9))
    found = {}
    for name in ("masked", "causal"):
        with torch.no_grad():
            output = load(CLASSES[name], path)(input_ids=ids, labels=ids)
        found[name] = float(output.loss)
        log_p = output.logits.log_softmax(-1)
        found[f"{name}_here"] = float(-log_p.gather(-1, ids[..., None]).mean())
        found[f"{name}_next"] = float(-log_p[:, :-1].gather(-1, ids[:, 1:, None]).mean())
    return found


def tokenizer_facts(path):
    tokenizer = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    names = ("bos", "cls", "eos", "sep", "pad", "mask", "unk")
    batch = tokenizer(["one, two. cats ran", "a"], padding=True, return_tensors="pt")
    return {
        "fast": tokenizer.is_fast,
        "ids": [tokenizer(text).input_ids for text in TEXTS],
        "pair": tokenizer("cats", "ran").input_ids,
        "special": {name: getattr(tokenizer, f"{name}_token_id") for name in names},
        "inputs": tokenizer.model_input_names,
        "keys": sorted(batch.keys()),
        "padded": batch.input_ids.tolist(),
        "mask": batch.attention_mask.tolist(),
        "offsets": tokenizer("cats ran", return_offsets_mapping=True).offset_mapping,
        "longest": tokenizer.model_max_length,
        "decoded": tokenizer.decode(tokenizer("The dog ran.").input_ids, skip_special_tokens=True),
    }


def facts(path):
    """All that is asked of one model."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    return {
        "differences": differences(path),
        "config": {name: getattr(config, name) for name in ("hidden_size", "backends", "predicts", "vocab_size")},
        "unreached": gradients_flow(path),
        "fine_tuning": fine_tuning(path),
        "round_trip": round_trip(path),
        "losses": losses(path),
        "tokenizer": tokenizer_facts(path),
    }


def main(exports, results):
    found = {path.name: facts(path) for path in sorted(Path(exports).iterdir()) if path.is_dir()}
    assert "ltg_mdlm" not in sys.modules
    Path(results).write_text(json.dumps({"version": transformers.__version__, "models": found}))


main(*sys.argv[1:])
