"""Exported models in an old and a new `transformers`, each in a separate process without ltg_mdlm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.shared import made_once, session_folder
from support.third_party import BLOCKS, write_distribution
from support.third_party import installed as distributions_installed
from support.trained import embedding_plugin_installed, write_run
from support.transformers_versions import TRAINER, VERSIONS, installed

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.inference.trained_model import TrainedModel, open_model
from ltg_mdlm.interchange.export_model import CODE_FILES, export_model

PROBE = Path(__file__).parent / "probe.py"
MODELS = {
    "uniform": (("uniform_mdlm",), {}),
    "sigma": (("uniform_mdlm", "plugins.uniform_mdlm.conditioning=sigma"), {}),
    "untold": (("uniform_mdlm", "plugins.uniform_mdlm.conditioning=none"), {}),
    "frequency": (("freq_mdlm",), {"mask_rate": "constant", "constant_rate": 0.15}),
    "hybrid": (("gpt_bert", "model.depth_weighted_averaging=true"), {}),
    "embedding": (("embedding",), {"mask_rate": "zero"}),
    "blocks": (("blocks",), {}),
}
"""Plugin and settings of the run, and options of the export."""
BOS, PAD, MASK = 1, 3, 4
TOLERANCE = 1e-5


def masked_rows(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    """Rows of `<s>` and tokens, of which the first one and about a quarter of the others are masked."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(16, 320, (length,), generator=generator)
        ids[torch.rand(length, generator=generator) < 0.25] = MASK
        ids[0], ids[1] = BOS, MASK
        rows.append(ids)
    return rows


def stated_rate(ids: torch.Tensor, export: dict) -> float:
    """The mask rate that a conditioned model must use for one row without padding."""
    if "mask_rate" in export:
        return export.get("constant_rate", 0.0)
    return float((ids == MASK).sum() / ((ids == MASK).sum() + (ids >= 16).sum()))


class Oracle:
    """The trainer's model on single rows without padding."""

    def __init__(self, trained: TrainedModel, export: dict) -> None:
        self.trained, self.export = trained, export

    def hidden(self, ids: torch.Tensor, rate: float | None = None, value: float | None = None, *, causal=False):
        rate = stated_rate(ids, self.export) if rate is None else rate
        told = self.trained.value_for_rate(torch.tensor([rate]))
        if told is not None and value is not None:
            told = torch.tensor([value])
        visibility = None
        if self.trained.block_length:
            block = torch.arange(len(ids)) // self.trained.block_length
            visibility = (block[None, :] <= block[:, None])[None]
        with torch.no_grad():
            return self.trained.model(ids[None], None, torch.tensor([causal]), told, visibility)[0]

    def logits(self, ids: torch.Tensor, **how):
        model = self.trained.model
        with torch.no_grad():
            return model.logits(model.head(self.hidden(ids, **how)))


def case(outputs: list[torch.Tensor], rows: list[torch.Tensor], attention_mask=None, mask_rate=None) -> dict:
    """Padded rows, and the expected outputs at positions that are not padding."""
    longest = max(map(len, rows))
    filled = torch.stack([torch.cat([row, torch.full((longest - len(row),), PAD)]) for row in rows])
    expected = torch.zeros(len(rows), longest, outputs[0].shape[-1])
    for i, output in enumerate(outputs):
        expected[i, : len(output)] = output
    tensors = {"input_ids": filled, "expected": expected, "real": (filled != PAD).to(torch.uint8)}
    given = {"attention_mask": attention_mask, "mask_rate": mask_rate}
    return tensors | {name: tensor for name, tensor in given.items() if tensor is not None}


def cases_of(oracle: Oracle) -> dict[str, dict]:
    """Inputs and expected outputs of the classes: masked logits, causal logits, and hidden states."""
    one, padded, long = masked_rows(20), masked_rows(20, 7, 2), masked_rows(512)
    mask = (torch.arange(20) < torch.tensor([[20], [7], [2]])).long()
    square = mask[:, None] * torch.ones(3, 20, 20, dtype=torch.int64).tril()
    cases = {
        "masked/one": case([oracle.logits(row) for row in one], one, torch.ones(1, 20)),
        "masked/no mask": case([oracle.logits(row) for row in one], one),
        "masked/padded": case([oracle.logits(row) for row in padded], padded, mask),
        "masked/512": case([oracle.logits(row) for row in long], long, torch.ones(1, 512)),
        "causal/one": case([oracle.logits(row, value=0.0, causal=True) for row in one], one, torch.ones(1, 20)),
        "causal/padded": case([oracle.logits(row, value=0.0, causal=True) for row in padded], padded, mask),
        "causal/512": case([oracle.logits(row, value=0.0, causal=True) for row in long], long),
        "hidden/padded": case([oracle.hidden(row) for row in padded], padded, mask),
        "hidden/square": case([oracle.hidden(row, causal=True) for row in padded], padded, square),
    }
    if oracle.trained.is_conditioned:
        rates = torch.tensor([0.0, 0.37, 1.0])
        told = [oracle.logits(row, rate=float(rate)) for row, rate in zip(padded, rates, strict=True)]
        cases["masked/told"] = case(told, padded, mask, rates)
        told = [oracle.logits(row, rate=0.6, causal=True) for row in padded]
        cases["causal/told"] = case(told, padded, mask, torch.tensor(0.6))
    return cases


def write_exports(folder: Path) -> None:
    """Write one export for each of MODELS, and a file with its cases."""
    write_distribution(folder / "site", "blocks", BLOCKS)
    with embedding_plugin_installed(), distributions_installed(folder / "site"):
        for number, (name, (run, options)) in enumerate(MODELS.items()):
            path = write_run(folder / "runs" / name, *run, seed=number)
            export_model(path, folder / "exports" / name, **options)
            cases = cases_of(Oracle(open_model(path, Ranks.alone()), options))
            tensors = {f"{title}/{part}": t.clone() for title, case in cases.items() for part, t in case.items()}
            save_file(tensors, folder / "exports" / f"{name}.safetensors")


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> Path:
    """A folder with an export for each of MODELS."""
    return made_once(session_folder(tmp_path_factory) / "exported", write_exports) / "exports"


@pytest.fixture(scope="session", params=VERSIONS.values(), ids=VERSIONS.keys())
def found(request, exports, tmp_path_factory) -> dict:
    """The results of the probe with one version."""
    library = installed(request.param)

    def probe(aside: Path) -> None:
        aside.mkdir()
        # Without ltg_mdlm, which the working folder or PYTHONPATH could provide, and without the user's cache.
        path = f"{library}{os.pathsep}{installed(*TRAINER)}"
        environment = os.environ | {"PYTHONPATH": path, "HF_HOME": str(aside / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, PROBE, exports, aside / "found.json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=aside, check=False)
        assert done.returncode == 0, done.stderr[-4000:]

    folder = made_once(session_folder(tmp_path_factory) / f"found-{library.name}", probe)
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(params=MODELS)
def model(request, found) -> dict:
    """The results of one model."""
    return found["models"][request.param] | {"name": request.param}


def test_logits_and_hidden_states_are_the_trainers(model):
    assert len(model["differences"]) >= 6
    assert {case: d for case, d in model["differences"].items() if not d <= TOLERANCE} == {}


def test_configs_say_what_pipelines_ask(model):
    backends = ["mntp", "causal"] if model["name"] == "hybrid" else ["mlm"]
    predicts = "next" if model["name"] == "hybrid" else "same"
    assert model["config"] == {"hidden_size": 24, "backends": backends, "predicts": predicts, "vocab_size": 320}


def test_gradients_reach_every_weight_whatever_the_mask(model):
    assert model["unreached"] == {"none": [], "row": [], "square": []}


def test_a_classifier_trains_and_loads_what_it_saved(model):
    result = model["fine_tuning"]
    assert result["labels"] == 3
    assert 0.3 < result["loss"] < 4
    assert result["std"] == pytest.approx((2 / (5 * 24)) ** 0.5, rel=0.3)
    assert result["off"] <= TOLERANCE
    assert set(CODE_FILES) <= set(result["saved"])


def test_a_language_model_loads_what_it_saved_and_a_missing_head_is_a_fresh_one(model):
    result = model["round_trip"]
    assert result["off"] <= TOLERANCE
    mean, std = result["fresh_head"]["nonlinearity.1.weight"]
    assert abs(mean) < 0.02
    assert std == pytest.approx((2 / (5 * 24)) ** 0.5, rel=0.2)
    assert result["fresh_head"]["nonlinearity.5.bias"] == [0.0, 0.0]


def test_labels_are_read_where_the_model_predicts_them(model):
    losses = model["losses"]
    expected = "masked_next" if model["name"] == "hybrid" else "masked_here"
    assert losses["masked"] == pytest.approx(losses[expected], rel=1e-5)
    if "causal" in losses:
        assert losses["causal"] == pytest.approx(losses["causal_next"], rel=1e-5)
    assert losses["masked_here"] != pytest.approx(losses["masked_next"], rel=1e-3)


def test_the_tokenizer_is_the_trainers_and_suits_the_pipelines(model, exports):
    own = Tokenizer.read(exports / model["name"] / "tokenizer.json")
    found = model["tokenizer"]
    text = [BOS, *own.encode("text")]
    encoded = [[BOS, *own.encode(text)] for text in ("The dog ran.", "cats", "Ω-level naïve\nline two", "")]
    assert found["fast"]
    assert found["ids"] == [*encoded[:2], [*text, MASK, MASK, MASK], *encoded[2:]]
    assert found["pair"] == [BOS, *own.encode("cats"), BOS, *own.encode("ran")]
    assert found["special"] == {"bos": 1, "cls": 1, "eos": 2, "sep": 2, "pad": 3, "mask": 4, "unk": 0}
    assert found["inputs"] == found["keys"][::-1] == ["input_ids", "attention_mask"]
    longer, shorter = ([BOS, *own.encode(text)] for text in ("one, two. cats ran", "a"))
    assert found["padded"] == [longer, [*shorter, *[PAD] * (len(longer) - len(shorter))]]
    assert found["mask"] == [[int(token != PAD) for token in row] for row in found["padded"]]
    assert [tuple(span) for span in found["offsets"]] == [
        (0, 0),
        *own.backend.encode("cats ran", add_special_tokens=False).offsets,
    ]
    assert found["longest"] == 512
    assert found["decoded"] == "The dog ran."


@pytest.fixture(params=["hybrid", "sigma"])
def client(request, found) -> dict:
    """The results of programs that use one model."""
    return found["models"][request.param]["clients"] | {"name": request.param}


def test_the_trainer_takes_the_same_step_with_and_without_gradient_accumulation(client):
    assert set(client["trainer"]) >= {"masked", "classes"}
    for whole, accumulated in client["trainer"].values():
        assert accumulated == pytest.approx(whole, rel=1e-3)
        assert min(whole) > 0.01


def test_generation_is_the_argmax_step_by_step_whatever_the_padding(client):
    found = client["generation"]
    if found is None:
        pytest.skip("exported without a causal class")
    assert found["greedy"] == found["left"] == found["by_hand"]
    assert found["beams"] == [2, 11]
    assert found["samples"] == [2, 7]
    assert found["text"].startswith("cats")


def test_a_resized_vocabulary_has_all_its_parts_resized_and_is_loaded_as_it_was_saved(client):
    assert len(client["resizing"]) >= 9
    for case, result in client["resizing"].items():
        name, size = case.split()
        assert result["sizes"] == [int(size)] * 3
        assert result["width"] == {"masked": int(size), "causal": int(size), "hidden": 24, "classes": 2}[name]
        assert result["same_keys"]
        assert result["old"] <= TOLERANCE
        assert result["again"] == 0
        assert result["largest"] < 2, "new tokens have logits as old ones have"


def test_a_classifier_has_the_loss_of_its_problem_type_and_reads_the_first_token_behind_the_padding(client):
    found = client["classification"]
    assert found.pop("left padding") <= TOLERANCE
    assert len(found) == 7
    for loss, by_hand in found.values():
        assert loss == pytest.approx(by_hand, rel=1e-5)


def test_outputs_have_the_documented_forms_and_what_cannot_be_given_is_refused(client):
    found = client["outputs"]
    assert found["states"] == [[4, 9, 24]] * 3
    assert found["tuple"] == ["tuple", 0, 0]
    assert max(found["last"], found["embedded"], found["compiled"], *found["kernels"]) <= TOLERANCE
    assert found["no_labels"] == 0
    assert found["neither"] == found["both"] == "give either input_ids or inputs_embeds"
    assert "does not return its probabilities" in found["attentions"]
    assert "no cache" in found["cache"]
    assert (found["uncounted"] is not None) == (client["name"] == "sigma")


def test_gradient_checkpointing_computes_a_sublayer_again_and_has_the_same_gradients(client):
    assert client["checkpointing"]["calls"] == 3
    assert client["checkpointing"]["off"] <= TOLERANCE


def test_models_in_half_precision_and_loaded_in_other_ways_compute_the_same(model):
    assert len(model["precisions"]) == 6
    for case, (off, again) in model["precisions"].items():
        assert off <= (0.1 if "bfloat16" in case else 0.02 if "16" in case or case == "half" else TOLERANCE), case
        assert again == 0, case


def test_a_mask_is_filled_with_the_prediction_for_its_place(client):
    found = client["filled_masks"]
    one, other = found.pop("losses")
    assert one == pytest.approx(other, rel=1e-6)
    assert set(map(tuple, found.values())) == {tuple(found["by_hand"])}, found
