"""Opening a trained model fails with a message that names what is missing."""

import pytest
from support.trained import embedding_plugin_installed, write_run

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.inference.trained_model import open_model
from ltg_mdlm.interchange.export_model import export_model


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
