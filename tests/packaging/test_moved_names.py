"""Names that the documentation of version 0.1 showed keep working, with a warning."""

import importlib

import pytest

from ltg_mdlm.core.moved import MOVED


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ltg_mdlm.generate", "SamplingRule"),
        ("ltg_mdlm.generate", "generate"),
        ("ltg_mdlm.html_report.page", "Extent"),
        ("ltg_mdlm.html_report.page", "write_report"),
        ("ltg_mdlm.random", "stream_key"),
        ("ltg_mdlm.report", "find_runs"),
        ("ltg_mdlm.trained_model", "open_model"),
    ],
)
@pytest.mark.filterwarnings("ignore:ltg_mdlm.html_report has moved:FutureWarning")
def test_a_moved_module_is_imported_with_a_warning(module, name, monkeypatch):
    for loaded in MOVED:
        monkeypatch.delitem(importlib.sys.modules, loaded, raising=False)
    with pytest.warns(FutureWarning, match=f"{module} has moved to {MOVED[module]}$"):
        old = importlib.import_module(module)
    assert getattr(old, name) is getattr(importlib.import_module(MOVED[module]), name)


def test_no_other_name_is_taken_for_a_moved_one():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("ltg_mdlm.nothing")
