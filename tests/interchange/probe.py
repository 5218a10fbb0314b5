"""Loads exported models as evaluation pipelines do, in a process with `transformers` and without ltg_mdlm.

`python probe.py EXPORTS RESULTS` reads, for each model in the folder EXPORTS, `NAME.safetensors` with inputs and
expected outputs of its cases, and writes to RESULTS, as JSON, the differences by case and other facts.
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
torch.manual_seed(0)
CLASSES = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "hidden": AutoModel}
TEXTS = ["The dog ran.", "cats", "text<mask><mask><mask>", "Ω-level naïve\nline two", ""]
IDS = torch.randint(16, 300, (4, 9))


def load(cls, path, **options):
    return cls.from_pretrained(path, trust_remote_code=True, revision="main", **options).eval()


def saved(model, path):
    """Save a model and return the folder; `transformers` identifies the code of a folder by its name."""
    model.save_pretrained(path)
    return path


def difference(got, expected):
    """The largest difference, relative to expected values above 1."""
    assert expected.abs().max() > 0.1, "nothing to compare"
    return float(((got - expected).abs() / expected.abs().clamp(min=1)).max())


@torch.no_grad()
def differences(models, path):
    """Largest difference from the outputs of the trainer's model, for each case."""
    tensors = load_file(path.with_suffix(".safetensors"))
    found = {}
    for case in sorted({name.rpartition("/")[0] for name in tensors}):
        names = ("input_ids", "attention_mask", "mask_rate")
        arguments = {name: tensors.get(f"{case}/{name}") for name in names}
        output = models[case.partition("/")[0]](**arguments, token_type_ids=None)
        assert ("last_hidden_state" in output) != ("logits" in output)
        got = output[0]
        assert got.dtype == torch.float32
        real = tensors[f"{case}/real"].bool()
        found[case] = difference(got[real], tensors[f"{case}/expected"][real])
    return found


def unreached(model):
    """Names of parameters without a gradient, for each type of attention mask."""
    found = {}
    for name, mask in {"none": None, "row": torch.ones(4, 9), "square": torch.ones(4, 9, 9).tril()}.items():
        model.zero_grad(set_to_none=True)
        model(input_ids=IDS, attention_mask=mask).last_hidden_state.square().sum().backward()
        found[name] = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    return found


def fine_tuning(path, folder):
    """Train a classifier for one step, save it and load it again."""
    model = load(AutoModelForSequenceClassification, path, num_labels=3).train()
    std = float(model.score[5].weight.detach().std())
    output = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=torch.tensor([0, 1, 2, 0]))
    output.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    place = saved(model.eval(), folder / f"{path.name}_classifier")
    with torch.no_grad():
        again = load(AutoModelForSequenceClassification, place)
        off = difference(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    files = sorted(os.listdir(place))
    return {"loss": output.loss.item(), "labels": output.logits.shape[1], "std": std, "off": off, "saved": files}


@torch.no_grad()
def round_trip(models, path, folder):
    """Save a language model and load it again; mean and standard deviation of a head that was not saved."""
    again = load(AutoModelForMaskedLM, saved(models["masked"], folder / f"{path.name}_lm"))
    headless = saved(models["hidden"], folder / f"{path.name}_base")
    head = load(AutoModelForMaskedLM, headless).denoiser.classifier
    return {
        "off": difference(again(input_ids=IDS).logits, models["masked"](input_ids=IDS).logits),
        "fresh_head": {name: [float(p.mean()), float(p.std())] for name, p in head.named_parameters()},
    }


@torch.no_grad()
def losses(models):
    """Loss of both language models with the inputs as labels, and the unshifted and shifted losses by hand."""
    found = {}
    for name in ("masked", "causal"):
        output = models[name](input_ids=IDS, labels=IDS)
        log_p = output.logits.log_softmax(-1)
        found[name] = float(output.loss)
        found[f"{name}_here"] = float(-log_p.gather(-1, IDS[..., None]).mean())
        found[f"{name}_next"] = float(-log_p[:, :-1].gather(-1, IDS[:, 1:, None]).mean())
    return found


def tokenizer_facts(path):
    """Properties of the tokenizer that evaluation pipelines use."""
    tokenizer = AutoProcessor.from_pretrained(path, padding_side="right", revision="main", trust_remote_code=True)
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
        "offsets": tokenizer(text="cats ran", return_offsets_mapping=True).offset_mapping,
        "longest": tokenizer.model_max_length,
        "decoded": tokenizer.decode(tokenizer("The dog ran.").input_ids, skip_special_tokens=True),
    }


def facts(path, folder):
    """All results of one model."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    models = {name: load(cls, path) for name, cls in CLASSES.items()}
    return {
        "differences": differences(models, path),
        "config": {name: getattr(config, name) for name in ("hidden_size", "backends", "predicts", "vocab_size")},
        "unreached": unreached(models["hidden"]),
        "fine_tuning": fine_tuning(path, folder),
        "round_trip": round_trip(models, path, folder),
        "losses": losses(models),
        "tokenizer": tokenizer_facts(path),
    }


def main(exports, results):
    """Write the results of all models."""
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(path for path in Path(exports).iterdir() if path.is_dir())
        found = {path.name: facts(path, Path(folder)) for path in paths}
    assert "ltg_mdlm" not in sys.modules
    Path(results).write_text(json.dumps({"version": transformers.__version__, "models": found}))


main(*sys.argv[1:])
