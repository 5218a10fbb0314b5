"""Uses exported models in other programs, in a process with these programs and without ltg_mdlm.

`python clients.py EXPORTS RESULTS CLIENT ...` writes to RESULTS, as JSON, what each client finds for the models in the
folder EXPORTS: `uniform`, `hybrid` and `blocks`.  The working folder receives files.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

torch.set_num_threads(1)
torch.manual_seed(0)
SENTENCES = ["The dog ran.", "cats", "one, two. cats ran"]
CUSTOM = {"trust_remote_code": True}


def random_batch(rows, length):
    """Token ids with masked tokens, and a mask of attention that hides the end of the last row."""
    ids = torch.randint(16, 300, (rows, length))
    ids[torch.rand(rows, length) < 0.3] = 4
    mask = torch.ones_like(ids)
    mask[-1, max(1, length // 2) :] = 0
    return ids, mask


@torch.no_grad()
def onnx(exports):
    """Largest difference of logits in onnxruntime, by exporter and shape of the batch."""
    from onnxruntime import InferenceSession

    found = {}
    kinds = {"uniform": AutoModelForMaskedLM, "hybrid": AutoModelForCausalLM, "blocks": AutoModelForMaskedLM}
    for name, cls in kinds.items():
        model = cls.from_pretrained(exports / name, **CUSTOM).eval()
        ids, mask = random_batch(2, 5)
        axes = {0: "batch", 1: "length"}
        names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["logits"]}
        ways = {
            "dynamo": {"dynamo": True, "dynamic_shapes": (axes, axes), "verbose": False},
            "legacy": {"dynamo": False, "dynamic_axes": dict.fromkeys([*names["input_names"], "logits"], axes)},
        }
        if name == "hybrid":  # the other exporter meets the causal mask and the averages in the tests of `Transformer`
            del ways["legacy"]
        for way, options in ways.items():
            torch.onnx.export(model, (ids, mask), f"{name}_{way}.onnx", **names, **options)
            session = InferenceSession(f"{name}_{way}.onnx", providers=["CPUExecutionProvider"])
            for shape in ((2, 5), (1, 9), (4, 70), (3, 512)):
                other_ids, other_mask = random_batch(*shape)
                feed = {"input_ids": other_ids.numpy(), "attention_mask": other_mask.numpy()}
                logits = torch.from_numpy(session.run(None, feed)[0])
                expected = model(other_ids, attention_mask=other_mask).logits
                found[f"{name} {way} {shape}"] = float((logits - expected).abs().max())
    return found


def peft(exports):
    """Adapted modules, losses of steps with LoRA, and differences after loading and merging."""
    from peft import LoraConfig, PeftModel, get_peft_model

    found = {}
    for name, cls in (("uniform", AutoModelForMaskedLM), ("hybrid", AutoModelForCausalLM)):
        base = cls.from_pretrained(exports / name, **CUSTOM)
        task = {"task_type": "CAUSAL_LM"} if cls is AutoModelForCausalLM else {}
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", **task))
        ids, _ = random_batch(3, 8)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
        losses = []
        for _ in range(6):
            loss = model(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval().save_pretrained(f"{name}_lora")
        with torch.no_grad():
            expected = model(input_ids=ids).logits
            again = PeftModel.from_pretrained(cls.from_pretrained(exports / name, **CUSTOM), f"{name}_lora").eval()
            reloaded = float((again(input_ids=ids).logits - expected).abs().max())
            again.merge_and_unload().save_pretrained(f"{name}_merged")
            merged = cls.from_pretrained(f"{name}_merged", **CUSTOM).eval()
            off = float((merged(input_ids=ids).logits - expected).abs().max())
        adapted = sorted({key.rpartition(".")[2] for key in model.targeted_module_names})
        found[name] = {"losses": losses, "adapted": adapted, "reloaded": reloaded, "merged": off}
    return found


@torch.no_grad()
def sentence_transformers(exports):
    """Vectors by mean pooling: for all sentences in one batch, one by one, and by hand."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    found = {}
    for name in ("uniform", "hybrid"):
        path = str(exports / name)
        options = {"model_kwargs": CUSTOM, "config_kwargs": CUSTOM, "processor_kwargs": CUSTOM}
        encoder = Transformer(path, **options)
        model = SentenceTransformer(modules=[encoder, Pooling(24, "mean")], device="cpu")
        tokenizer = AutoTokenizer.from_pretrained(path, **CUSTOM)
        plain = AutoModel.from_pretrained(path, **CUSTOM).eval()
        by_hand = [plain(**tokenizer(text, return_tensors="pt"))[0][0].mean(0).tolist() for text in SENTENCES]
        found[name] = {
            "together": model.encode(SENTENCES, batch_size=8).tolist(),
            "alone": [model.encode([text])[0].tolist() for text in SENTENCES],
            "by_hand": by_hand,
        }
    return found


def minicons(exports):
    """Sums of log-probabilities of the sentences, each masked token by token, and from left to right."""
    from minicons.scorer import IncrementalLMScorer, MaskedLMScorer

    masked = MaskedLMScorer(str(exports / "uniform"), "cpu", **CUSTOM)
    causal = IncrementalLMScorer(str(exports / "hybrid"), "cpu", **CUSTOM)
    total = {"reduction": lambda log_p: log_p.sum().item()}
    return {
        "masked": masked.sequence_score(SENTENCES, **total),
        "causal": causal.sequence_score(SENTENCES, **total),
    }


def lm_eval(exports):
    """Log-likelihoods that a local task gives to its choices, and the error for a masked model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    Path("rows.jsonl").write_text('{"context": "The dog", "choices": ["ran.", "cats"], "label": 0}\n')
    task = {
        "task": "local_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(Path("rows.jsonl").resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    }
    Path("tasks").mkdir()
    Path("tasks/local_choice.yaml").write_text(json.dumps(task))
    options = {"device": "cpu", "batch_size": 2, "dtype": "float32", "add_bos_token": True, **CUSTOM}
    evaluated = simple_evaluate(
        HFLM(str(exports / "hybrid"), **options),
        tasks=["local_choice"],
        task_manager=TaskManager(include_path="tasks", include_defaults=False),
        bootstrap_iters=0,
    )
    sample = evaluated["samples"]["local_choice"][0]
    try:
        HFLM(str(exports / "uniform"), **options)
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    return {"log_likelihoods": [float(response[0][0]) for response in sample["resps"]], "refusal": refusal}


def card(exports):
    """What the example of the model card prints, in the folder of the exports, with nobody to answer a question."""
    found, aside = {}, Path.cwd()
    for name in ("uniform", "hybrid"):
        example = (exports / name / "README.md").read_text().split("```python\n")[1].split("```")[0]
        here: dict = {}
        os.chdir(exports)
        with redirect_stdout(StringIO()) as printed, open(os.devnull) as sys.stdin:
            exec(example, here)
        os.chdir(aside)
        found[name] = {"printed": printed.getvalue(), "ids": here["inputs"].input_ids[0].tolist()}
    return found


if __name__ == "__main__":
    CLIENTS = {f.__name__: f for f in (onnx, peft, sentence_transformers, minicons, lm_eval, card)}
    results = {client: CLIENTS[client](Path(sys.argv[1])) for client in sys.argv[3:]}
    assert "ltg_mdlm" not in sys.modules
    Path(sys.argv[2]).write_text(json.dumps(results))
