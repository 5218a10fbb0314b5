"""A damaged corpus is found by `check --verify` and by the first start of a run, not in the middle of training."""

import json

import numpy as np
import pytest
from support.corpora import documents, small_tokenizer, write_text
from support.runs import TINY

from ltg_mdlm.data.prepare import prepare_corpus


@pytest.fixture
def corpus(tmp_path):
    small_tokenizer().save(tmp_path / "tokenizer.json")
    files = [write_text(tmp_path / f"{name}.txt", documents(20, seed)) for seed, name in enumerate(("train", "valid"))]
    given = tmp_path / "tokenizer.json"
    return prepare_corpus(files[:1], tmp_path / "corpus", valid=files[1:], tokenizer=given, progress=False)


def test_a_valid_wrong_token_is_found_by_check_verify_and_by_the_first_start_of_a_run(run, corpus, tmp_path):
    """Every start finds a token out of range."""
    names = (*TINY, f"data.corpus={corpus.path}", "training.max_steps=1")
    sets = [part for text in names for part in ("--set", text)]
    code, out, err = run("check", "--verify", "--json", *sets)
    assert (code, json.loads(out)["corpus_verified"]) == (0, "13 files have the recorded SHA-256"), err

    tokens = np.memmap(corpus.path / "train" / "tokens.bin", np.uint16, "r+")
    tokens[3] ^= 1
    assert run("check", *sets)[0] == 0
    message = "train/tokens.bin: damaged (its content is not what was written); prepare the corpus again"
    for command in (("check", "--verify"), ("train", "--out", str(tmp_path / "run"))):
        code, _, err = run(*command, *sets)
        assert code == 2
        assert message in err
        assert not (tmp_path / "run").exists()

    tokens[3] = 60_000
    code, _, err = run("check", *sets)
    assert code == 2
    assert "train/tokens.bin: damaged (token id 60000 is not in the vocabulary of 320)" in err
