"""Exported models in programs that people use them with, each in a separate process without ltg_mdlm.

The programs run for real: onnxruntime, peft, sentence-transformers, lm-eval (with the new `transformers`) and minicons
(with the old one).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.shared import made_once, session_folder
from support.third_party import BLOCKS, write_distribution
from support.third_party import installed as distributions_installed
from support.trained import write_run
from support.transformers_versions import CLIENTS, VERSIONS, installed

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.data.tokenizer import BOS, MASK
from ltg_mdlm.inference.trained_model import TrainedModel, open_model
from ltg_mdlm.interchange.export_model import export_model

SCRIPT = Path(__file__).parent / "clients.py"
SENTENCES = ["The dog ran.", "cats", "one, two. cats ran"]


def write_exports(folder: Path) -> None:
    """Write an export of a diffusion model, of a hybrid and of a model with blocks, and the runs they come from."""
    write_distribution(folder / "site", "blocks", BLOCKS)
    with distributions_installed(folder / "site"):
        for name, run in {
            "uniform": ["uniform_mdlm"],
            "hybrid": ["gpt_bert", "model.depth_weighted_averaging=true"],
            "blocks": ["blocks"],
        }.items():
            export_model(write_run(folder / "runs" / name, *run), folder / "exports" / name)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with `exports` and `runs`."""
    return made_once(session_folder(tmp_path_factory) / "for_clients", write_exports)


def results(models: Path, tmp_path_factory, version: str, *clients: str) -> dict:
    """What clients.py finds with one version of `transformers`."""
    path = os.pathsep.join(map(str, (installed(VERSIONS[version]), installed(*CLIENTS))))

    def use(aside: Path) -> None:
        aside.mkdir()
        environment = os.environ | {"PYTHONPATH": path, "HF_HOME": str(aside / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, SCRIPT, models / "exports", "results.json", *clients]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=aside, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]

    folder = made_once(session_folder(tmp_path_factory) / f"clients-{version}", use)
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="session")
def new(models, tmp_path_factory) -> dict:
    """Results of the clients of the new `transformers`."""
    return results(models, tmp_path_factory, "new", "card", "onnx", "peft", "sentence_transformers", "lm_eval")


def opened(models: Path, name: str) -> TrainedModel:
    return open_model(models / "runs" / name, Ranks.alone())


@torch.no_grad()
def causal_log_p(trained: TrainedModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of `ids[1:]` from left to right."""
    hidden = trained.model(torch.tensor([ids]), causal_B=torch.tensor([True]))
    log_p = trained.model.logits(trained.model.head(hidden))[0].log_softmax(-1)
    return log_p[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


@torch.no_grad()
def masked_log_p(trained: TrainedModel, ids: list[int]) -> torch.Tensor:
    """Log-probability of each of `ids[1:]`, if it is masked and the others are visible."""
    number = len(ids) - 1
    rows = torch.tensor([ids] * number)
    rows[torch.arange(number), torch.arange(1, number + 1)] = MASK
    value = trained.value_for_rate(torch.full((number,), 1 / number))
    log_p = trained.model.logits(trained.model.head(trained.model(rows, conditioning_B=value))).log_softmax(-1)
    return log_p[torch.arange(number), torch.arange(1, number + 1), torch.tensor(ids[1:])]


def test_onnx_graphs_of_both_exporters_hold_for_all_batch_sizes_and_lengths(new):
    assert len(new["onnx"]) == 20
    assert {case: off for case, off in new["onnx"].items() if not off < 1e-4} == {}


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_lora_adapts_the_attention_trains_and_merges(name, new):
    found = new["peft"][name]
    assert {"in_proj_qk", "in_proj_vg", "out_proj"} <= set(found["adapted"])
    assert found["losses"] == sorted(found["losses"], reverse=True)
    assert found["reloaded"] == 0
    assert found["merged"] < 1e-4


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_sentence_vectors_do_not_depend_on_padding(name, new):
    found = {way: torch.tensor(vectors) for way, vectors in new["sentence_transformers"][name].items()}
    assert found["together"].shape == (3, 24)
    torch.testing.assert_close(found["together"], found["alone"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["together"], found["by_hand"], rtol=1e-4, atol=1e-5)


def test_lm_eval_gives_the_log_likelihoods_of_the_causal_model_and_refuses_a_masked_one(new, models):
    trained = opened(models, "hybrid")
    start = [BOS, *trained.tokenizer.encode("The dog")]
    whole = [[BOS, *trained.tokenizer.encode(f"The dog {choice}")] for choice in ("ran.", "cats")]
    expected = [float(causal_log_p(trained, ids)[len(start) - 1 :].sum()) for ids in whole]
    assert new["lm_eval"]["log_likelihoods"] == pytest.approx(expected, rel=1e-4)
    assert "AutoModelForCausalLM" in new["lm_eval"]["refusal"]


def test_minicons_gives_the_scores_of_both_kinds_of_model(models, tmp_path_factory):
    found = results(models, tmp_path_factory, "old", "minicons")["minicons"]
    for kind, name, score in (("masked", "uniform", masked_log_p), ("causal", "hybrid", causal_log_p)):
        trained = opened(models, name)
        expected = [float(score(trained, [BOS, *trained.tokenizer.encode(text)]).sum()) for text in SENTENCES]
        assert found[kind] == pytest.approx(expected, rel=1e-4)


def test_the_example_of_the_model_card_fills_its_mask_and_asks_nothing(new, models):
    for name, at in (("uniform", 0), ("hybrid", -1)):
        trained = opened(models, name)
        # The tokens around the mask are those of a text with a word there, so no blank stands beside it.
        before, after = (trained.tokenizer.encode(text) for text in ("The dog", "a ball."))
        assert before + after == trained.tokenizer.encode("The dog a ball.")
        assert new["card"][name]["ids"] == [BOS, *before, MASK, *after]
        ids = torch.tensor([[BOS, *before, MASK, *after]])
        value = trained.value_for_rate(torch.tensor([1 / (ids.shape[1] - 1)]))
        with torch.no_grad():
            hidden = trained.model(ids, conditioning_B=value)[0, 1 + len(before) + at]
        best = trained.model.logits(trained.model.head(hidden)).argmax()
        assert new["card"][name]["printed"] == trained.tokenizer.decode([int(best)]) + "\n"
