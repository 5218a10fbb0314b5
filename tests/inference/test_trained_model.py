"""Opening a trained model: where the plugins of its training are not there."""

import pytest
from support.trained import embedding_plugin_installed, write_run

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.inference.trained_model import open_model


def test_a_plugin_that_is_missing_is_named_with_the_distribution_that_has_it(tmp_path):
    with embedding_plugin_installed():
        run = write_run(tmp_path / "run", "embedding")
    with pytest.raises(UserError, match=r"'embedding'(?s:.*)was trained with .*embedding of embedding-plugin 1\.0$"):
        open_model(run)
