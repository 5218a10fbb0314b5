"""A published checkpoint that is imported, exported and imported again is bit-identical."""

import pytest
import torch
from support.published import (
    averaged,
    freq_checkpoint,
    gpt_bert_checkpoint,
    published_model,
    write_model_config,
    write_tokenizer,
)

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.inference.scoring import LikelihoodScorer, scoring_rule
from ltg_mdlm.inference.texts import Text
from ltg_mdlm.inference.trained_model import open_model
from ltg_mdlm.interchange.export_model import export_model
from ltg_mdlm.interchange.import_checkpoint import import_checkpoint
from ltg_mdlm.storage.checkpoint import find_checkpoint, load_weights

FORMS = {
    "freq, weights": lambda: published_model("freq").state_dict(),
    "freq, training checkpoint": lambda: freq_checkpoint(published_model("freq"), averaged(published_model("freq"))),
    "gpt_bert, weights": lambda: published_model("gpt_bert").state_dict(),
    "gpt_bert, training checkpoint": lambda: gpt_bert_checkpoint(
        published_model("gpt_bert"), averaged(published_model("gpt_bert"))
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_is_imported_exported_and_imported_again_is_bit_identical(tmp_path, form):
    torch.save(FORMS[form](), tmp_path / "model.bin")
    files = {
        "model_config": write_model_config(tmp_path / "base.json"),
        "tokenizer": write_tokenizer(tmp_path / "tokenizer.json"),
    }
    import_checkpoint(tmp_path / "model.bin", out=tmp_path / "first", **files)
    export_model(tmp_path / "first", tmp_path / "exported")
    import_checkpoint(tmp_path / "exported", out=tmp_path / "second")
    first, second = (load_weights(find_checkpoint(tmp_path / name)) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["freq", "gpt_bert"])
def test_an_imported_run_and_its_export_score_alike(tmp_path, kind):
    torch.save(published_model(kind).state_dict(), tmp_path / "model.bin")
    files = {
        "model_config": write_model_config(tmp_path / "base.json"),
        "tokenizer": write_tokenizer(tmp_path / "tokenizer.json"),
    }
    import_checkpoint(tmp_path / "model.bin", out=tmp_path / "run", **files)
    export_model(tmp_path / "run", tmp_path / "exported")
    found = []
    for name in ("run", "exported"):
        model = open_model(tmp_path / name, Ranks.alone())
        scores = LikelihoodScorer(model, scoring_rule(model, "auto"), Ranks.alone())([[Text("", "the dog ran")]])
        found.append((model.predicts, model.modes, scores))
    assert found[0] == found[1]
