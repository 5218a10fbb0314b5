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
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoProcessor,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

torch.set_num_threads(1)
torch.manual_seed(0)
CLASSES = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "hidden": AutoModel}
TEXTS = ["The dog ran.", "cats", "text<mask><mask><mask>", "Ω-level naïve\nline two", ""]
IDS = torch.randint(16, 300, (4, 9))
CLIENTS = ("hybrid", "sigma")
"""The models that are used as in other programs, which takes longer."""


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
        if case.partition("/")[0] not in models:
            continue
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
    for name in models.keys() & {"masked", "causal"}:
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


def trainer_steps(path, folder, names):
    """Loss and gradient norm of one step of the `Trainer` on eight rows, and on four times two rows, for each class."""
    tokenizer = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    rows = [tokenizer(" ".join(["cats ran"] * length)) for length in (1, 2, 9, 3, 1, 7, 2, 4)]
    texts = [row | {"labels": [-100, *row["input_ids"][1:]]} for row in rows]
    kinds = [row | {"labels": number % 3} for number, row in enumerate(rows)]
    work = {
        "masked": (AutoModelForMaskedLM, {}, texts, DataCollatorForTokenClassification(tokenizer)),
        "causal": (AutoModelForCausalLM, {}, texts, DataCollatorForTokenClassification(tokenizer)),
        "classes": (AutoModelForSequenceClassification, {"num_labels": 3}, kinds, DataCollatorWithPadding(tokenizer)),
    }
    found = {}
    for name in work.keys() & {*names, "classes"}:
        cls, options, data, collator = work[name]
        for size in (8, 2):
            torch.manual_seed(0)
            model = without_dropout(load(cls, path, **options))
            arguments = TrainingArguments(
                str(folder / "trainer"),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
                max_steps=1,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
            )
            trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
            trainer.train()
            logged = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
            found.setdefault(name, []).append([float(logged["loss"]), float(logged["grad_norm"])])
    return found


def without_dropout(model):
    """The model, with every dropout rate set to 0."""
    for module in model.modules():
        for name in ("dropout", "p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


@torch.no_grad()
def generation(model, path):
    """Token ids of `generate` and of repeated argmax, with and without padding on the left; results of other ways."""
    prompts = [IDS[:1, :3], IDS[1:2, :7]]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 3}
    greedy, by_hand = [], []
    for prompt in prompts:
        ids = prompt
        for _ in range(4):
            logits = model(ids).logits[:, -1]
            logits[:, 2] = -torch.inf  # the end of the text, which min_new_tokens excludes
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        by_hand.append(ids[0, -4:].tolist())
        greedy.append(model.generate(prompt, **options)[0, -4:].tolist())
    padded = torch.cat([torch.cat([torch.full((1, 4), 3), prompts[0]], 1), prompts[1]])
    mask = (padded != 3).long()
    left = model.generate(padded, attention_mask=mask, **options)[:, -4:].tolist()
    rate = 0.5 if model.config.cond_dim is not None else None
    options |= {"use_cache": True, "mask_rate": rate} if rate else {"use_cache": True}
    text = pipeline("text-generation", model=str(path), trust_remote_code=True, device="cpu")("cats", max_new_tokens=3)
    return {
        "greedy": greedy,
        "by_hand": by_hand,
        "left": left,
        "beams": list(model.generate(padded, attention_mask=mask, **options, num_beams=3).shape),
        "samples": list(
            model.generate(prompts[0], **options | {"do_sample": True, "top_k": 5}, num_return_sequences=2).shape
        ),
        "text": text[0]["generated_text"],
    }


@torch.no_grad()
def resizing(path, folder, names):
    """Vocabularies after growing and shrinking, the change of old logits, and the difference after loading again."""
    found = {}
    classes = {name: CLASSES[name] for name in names} | {"classes": AutoModelForSequenceClassification}
    for name, cls in classes.items():
        for size, options in {328: {}, 336: {"mean_resizing": False}, 301: {}}.items():
            model = load(cls, path)
            before, keys = model(IDS)[0], set(model.state_dict())
            model.resize_token_embeddings(size, **options)
            after = model(IDS)[0]
            again = load(cls, saved(model, folder / f"{path.name}_{name}_{size}"))
            common = min(before.shape[-1], after.shape[-1])
            found[f"{name} {size}"] = {
                "sizes": [m.config.vocab_size for m in (model, again)] + [len(again.get_input_embeddings().weight)],
                "width": after.shape[-1],
                "same_keys": keys == set(model.state_dict()),
                "old": float((before[..., :common] - after[..., :common]).abs().max()),
                "again": float((again(IDS)[0] - after).abs().max()),
                "largest": float(after.abs().max() / before.abs().max()),
            }
    return found


def classification(path):
    """Losses of the problem types and of the labels that select them, each with the loss by hand."""
    classes, several = torch.tensor([0, 2, -100, 1]), torch.randint(0, 2, (4, 3))
    value, values = torch.rand(4), torch.rand(4, 3)

    def by_label(logits):
        return F.binary_cross_entropy(logits.sigmoid(), several.float())

    cases = {
        "one value": (None, value, lambda x: (x[:, 0] - value).square().mean()),
        "whole values": ("regression", several, lambda x: (x - several).square().mean()),
        "values": ("regression", values, lambda x: (x - values).square().mean()),
        "classes": ("single_label_classification", classes, lambda x: F.cross_entropy(x, classes)),
        "classes found": (None, classes, lambda x: F.cross_entropy(x, classes)),
        "several": ("multi_label_classification", several, by_label),
        "several found": (None, several, by_label),
    }
    found = {}
    for name, (kind, labels, by_hand) in cases.items():
        labels_per_row = 1 if labels is value else 3
        model = load(AutoModelForSequenceClassification, path, num_labels=labels_per_row, problem_type=kind)
        output = model(IDS, labels=labels)
        found[name] = [float(output.loss), float(by_hand(output.logits))]
    padded = torch.cat([torch.full((4, 5), 3), IDS], 1)
    found["left padding"] = difference(model(padded, attention_mask=(padded != 3).long()).logits, model(IDS).logits)
    return found


def message(call, *arguments, **options):
    """The message of the ValueError that a call raises; None if it raises none."""
    try:
        call(*arguments, **options)
    except ValueError as error:
        return str(error)


@torch.no_grad()
def outputs(models, path):
    """Forms of the outputs, other forms of the input, and the messages of refusals."""
    model, rate = models["masked"], models["masked"].config.cond_dim and 0.3
    full = model(IDS, labels=IDS, mask_rate=rate, output_hidden_states=True)
    embedded = model.get_input_embeddings()(IDS)
    values = model(IDS, labels=IDS, mask_rate=rate, return_dict=False)
    compiled = torch.compile(model, backend="eager")
    kernels = [load(AutoModelForMaskedLM, path, attn_implementation=name) for name in ("sdpa", "eager")]
    return {
        "states": [list(state.shape) for state in full.hidden_states],
        "last": difference(full.hidden_states[-1], models["hidden"](IDS, mask_rate=rate)[0]),
        "tuple": [type(values).__name__, difference(values[1], full.logits), float(values[0] - full.loss)],
        "embedded": difference(model(inputs_embeds=embedded, mask_rate=rate).logits, full.logits),
        "compiled": difference(compiled(IDS, mask_rate=rate).logits, full.logits),
        "no_labels": float(model(IDS, labels=torch.full_like(IDS, -100)).loss),
        "kernels": [difference(other(IDS).logits, model(IDS).logits) for other in kernels],
        "neither": message(model),
        "both": message(model, IDS, inputs_embeds=embedded),
        "attentions": message(model, IDS, output_attentions=True),
        "cache": message(model, IDS, past_key_values=((embedded, embedded),)),
        "uncounted": message(model, inputs_embeds=embedded),
    }


def checkpointing(path):
    """Calls of a sublayer and the largest difference of gradients, with and without gradient checkpointing."""
    model, calls = without_dropout(load(AutoModelForMaskedLM, path).train()), []
    model.denoiser.transformer.mlp_layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    model.gradient_checkpointing_disable()
    return {"calls": len(calls), "off": max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))}


def precisions(models, path, folder):
    """The difference of 16-bit logits, and their difference after saving; of ways to load a model, the difference."""
    with torch.no_grad():
        expected, found = models["masked"](IDS).logits, {}
        for option in ({"device_map": "cpu"}, {"device_map": "auto"}, {"low_cpu_mem_usage": True}):
            found[str(option)] = [difference(load(AutoModelForMaskedLM, path, **option)(IDS).logits, expected), 0.0]
    for dtype in (torch.bfloat16, torch.float16):
        model = load(AutoModelForMaskedLM, path, torch_dtype=dtype)
        output = model(IDS, labels=IDS)
        output.loss.backward()
        assert output.logits.dtype == dtype
        assert all(p.grad.isfinite().all() for p in model.parameters())
        place = saved(model, folder / f"{path.name}_{str(dtype)[6:]}")
        again = load(AutoModelForMaskedLM, place, torch_dtype="auto")(IDS).logits
        found[str(dtype)] = [difference(output.logits.float(), expected), float((again - output.logits).abs().max())]
    half = load(AutoModelForMaskedLM, path).half()(IDS).logits
    found["half"] = [difference(half.float(), expected), 0.0]
    return found


@torch.no_grad()
def filled_masks(path):
    """The best token at each mask by hand, by `fill-mask` pipelines, and by the evaluation backend of the model."""
    tokenizer = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    text = "The dog<mask> ran<mask>."
    batch = tokenizer(text, return_tensors="pt")
    places = (batch.input_ids[0] == 4).nonzero()[:, 0]
    plain, shifted = (load(AutoModelForMaskedLM, path, mntp_shift=shift) for shift in (False, True))
    back = int(plain.config.predicts == "next")
    by_hand = plain.denoiser.logits(plain.denoiser.head(plain.encode(**batch, mask_rate=None, inputs_embeds=None)[0]))
    answers = {
        "backend": plain(**batch).logits[0, places - back].argmax(-1).tolist(),
        "shifted": shifted(**batch).logits[0, places].argmax(-1).tolist(),
        "losses": [float(model(**batch, labels=batch.input_ids).loss) for model in (plain, shifted)],
        "by_hand": by_hand[0, places - back].argmax(-1).tolist(),
    }
    folder = {"model": str(path), "trust_remote_code": True}
    for name, options in {"folder": folder, "plain": {"model": plain}, "moved": {"model": shifted}}.items():
        fill = pipeline("fill-mask", **{"tokenizer": tokenizer} | options, device="cpu")
        answers[f"pipeline {name}"] = [answer[0]["token"] for answer in fill(text)]
    return answers


def clients(models, path, folder):
    """Results of programs that use a model."""
    return {
        "trainer": trainer_steps(path, folder, models),
        "generation": generation(models["causal"], path) if "causal" in models else None,
        "resizing": resizing(path, folder, models),
        "classification": classification(path),
        "outputs": outputs(models, path),
        "checkpointing": checkpointing(path),
        "filled_masks": filled_masks(path),
    }


def facts(path, folder):
    """All results of one model."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    models = {name: load(cls, path) for name, cls in CLASSES.items() if cls.__name__ in config.auto_map}
    return {
        "differences": differences(models, path),
        "config": {name: getattr(config, name) for name in ("hidden_size", "backends", "predicts", "vocab_size")},
        "unreached": unreached(models["hidden"]),
        "fine_tuning": fine_tuning(path, folder),
        "round_trip": round_trip(models, path, folder),
        "losses": losses(models),
        "tokenizer": tokenizer_facts(path),
        "precisions": precisions(models, path, folder),
        "clients": clients(models, path, folder) if path.name in CLIENTS else None,
    }


def main(exports, results):
    """Write the results of all models."""
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(path for path in Path(exports).iterdir() if path.is_dir())
        found = {path.name: facts(path, Path(folder)) for path in paths}
    assert "ltg_mdlm" not in sys.modules
    Path(results).write_text(json.dumps({"version": transformers.__version__, "models": found}))


main(*sys.argv[1:])
