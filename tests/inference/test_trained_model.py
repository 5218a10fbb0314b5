"""Opening a trained model fails with a message that names what is missing or damaged."""

import json
import shutil

import pytest
import torch
from support.trained import embedding_plugin_installed, write_run

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.inference.trained_model import model_name, open_model
from ltg_mdlm.interchange.export_model import export_model
from ltg_mdlm.storage import checkpoint


def test_a_missing_plugin_is_named_with_its_distribution(tmp_path):
    with embedding_plugin_installed():
        run = write_run(tmp_path / "run", "embedding")
    with pytest.raises(UserError, match=r"'embedding'(?s:.*)was trained with .*embedding of embedding-plugin 1\.0$"):
        open_model(run)


def test_a_missing_tokenizer_is_named_with_its_path(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer: expected .*run/tokenizer\.json"):
        open_model(run)


def test_weights_that_an_exported_folder_does_not_hold_are_refused(tmp_path):
    export_model(write_run(tmp_path / "run"), tmp_path / "exported")
    with pytest.raises(UserError, match="holds averaged weights only"):
        open_model(tmp_path / "exported", weights="raw")


def newest(run):
    return checkpoint.newest_checkpoint(run / "checkpoints")


def test_a_damaged_checkpoint_is_passed_over_or_refused(tmp_path):
    """Passed over if the run is opened, refused if the checkpoint itself is."""
    run = write_run(tmp_path / "run")
    sound = newest(run)
    number = int(sound.name.removeprefix("step_"))
    damaged = sound.with_name(f"step_{number + 1:07d}")
    shutil.copytree(sound, damaged)
    about = checkpoint.read_about(damaged) | {"step": number + 1}
    checkpoint._write_state_file(damaged, about)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    (run / "checkpoints" / "latest").write_text(damaged.name)
    with pytest.warns(UserWarning, match=rf"{damaged.name} is skipped: .*SHA-256"):
        model = open_model(run)
    assert model.source == sound
    with pytest.raises(UserError, match=rf"{damaged.name} is damaged: .*SHA-256"):
        open_model(damaged)


def test_a_checkpoint_that_does_not_describe_its_model_is_an_error(tmp_path):
    run = write_run(tmp_path / "run")
    about = checkpoint.read_about(newest(run))
    checkpoint._write_state_file(newest(run), {k: v for k, v in about.items() if k not in ("config", "modes")})
    with pytest.raises(UserError, match=r"state\.json does not describe the model: it has no config, modes"):
        open_model(run)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    """One token of the vocabulary is another one: all ids would stand, and the text would be wrong."""
    run = write_run(tmp_path / "run")
    trained = open_model(run)
    about = checkpoint.read_about(newest(run)) | {"tokenizer": trained.tokenizer.fingerprint}
    checkpoint._write_state_file(newest(run), about)
    assert torch.equal(open_model(run).model.output_weight_VD, trained.model.output_weight_VD)
    definition = json.loads((run / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    first, second = list(vocabulary)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (run / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(
        UserError, match=r"tokenizer\.json is damaged, or is not the tokenizer that .* was trained with"
    ):
        open_model(run)


def test_model_names_do_not_depend_on_links_or_the_current_folder(tmp_path, monkeypatch):
    run = write_run(tmp_path / "mine", words_seen=(1_000_000, 2_000_000))
    export_model(run, tmp_path / "hub" / "mine", revisions=True)
    for inside, given in ((run / "checkpoints", "chck_1M"), (tmp_path / "hub" / "mine" / "chck_1M", ".")):
        monkeypatch.chdir(inside)
        opened = open_model(given)
        assert (opened.name, opened.revision) == ("mine", "chck_1M")
    assert (opened.source.parent / "main").is_dir()
    step = newest(run).name
    (run / "checkpoints" / step).rename(tmp_path / "far")
    (run / "checkpoints" / step).symlink_to(tmp_path / "far")
    (run / "checkpoints").rename(tmp_path / "scratch")
    (run / "checkpoints").symlink_to(tmp_path / "scratch")
    opened = open_model(run)
    assert (opened.name, opened.revision, model_name(run)) == ("mine", "main", "mine")


def test_an_export_has_the_hash_of_the_weights_of_its_run(tmp_path):
    run = write_run(tmp_path / "run")
    export_model(run, tmp_path / "exported")
    assert open_model(run).weights_sha256 == open_model(tmp_path / "exported").weights_sha256
    assert open_model(run).weights_sha256 != open_model(run, weights="raw").weights_sha256
