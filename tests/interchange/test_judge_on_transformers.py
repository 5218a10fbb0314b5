"""Judges from an old and a new `transformers`, each in a separate process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.corpora import small_tokenizer
from support.shared import made_once, session_folder
from support.transformers_versions import VERSIONS, installed

import ltg_mdlm

PROBE = Path(__file__).parent / "judge_probe.py"


@pytest.fixture(scope="session", params=VERSIONS.values(), ids=VERSIONS.keys())
def judges(request, tmp_path_factory) -> dict:
    """The results of the probe with one version, by model."""
    library = installed(request.param)

    def probe(aside: Path) -> None:
        aside.mkdir()
        small_tokenizer().save(aside / "tokenizer.json")
        path = os.pathsep.join(map(str, (library, Path(ltg_mdlm.__file__).parents[1])))
        environment = os.environ | {"PYTHONPATH": path, "HF_HOME": str(aside / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, PROBE, aside / "tokenizer.json", aside / "found.json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=aside, check=False)
        assert done.returncode == 0, done.stderr[-4000:]

    folder = made_once(session_folder(tmp_path_factory) / f"judges-{library.name}", probe)
    return json.loads((folder / "found.json").read_text())["models"]


@pytest.mark.parametrize("model", ["gpt2", "llama", "half"])
def test_a_judge_of_transformers_gives_the_results_of_the_library_in_full_precision(judges, model):
    found = judges[model]
    for score, features, expected in zip([*found["scores"], None], found["features"], found["expected"], strict=True):
        assert features == pytest.approx(expected["features"], rel=1e-4, abs=1e-5)
        if score is not None:
            assert score["log_likelihood"] == pytest.approx(expected["log_likelihood"], rel=1e-5)
            assert score["tokens"] == expected["tokens"] > 0
    assert found["features"][0] != pytest.approx(found["features"][1], rel=0.1), "texts differ"


def test_a_masked_model_which_transformers_opens_as_a_causal_one_is_no_judge(judges):
    assert "depend on later tokens" in judges["bert"]["refused"]


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_texts_that_a_judge_of_transformers_cannot_read_are_refused(judges, model):
    assert all("at most 23 fit" in message for message in judges[model]["too_long"])
    assert "has no tokens" in judges[model]["empty"]
