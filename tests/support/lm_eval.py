"""lm-eval and the packages that come with it, from this environment or from the user's cache."""

import importlib.util
import os
import sys

import pytest
from support.transformers_versions import CLIENTS, installed


@pytest.fixture(scope="session")
def lm_eval_installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """lm-eval can be imported, and asks nobody for data."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("HF_HOME", str(tmp_path_factory.mktemp("hf_home")))
    if importlib.util.find_spec("lm_eval") is None:
        sys.path.append(str(installed(*CLIENTS)))
