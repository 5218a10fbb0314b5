"""`training.cpu_kernels`: what a run takes, that it keeps it on resume, and that auto falls back with a line."""

from __future__ import annotations

import math

import pytest
from support.runs import TINY

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.preemption import Stopped, StopRequest
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.training import cpu_kernel_choice
from ltg_mdlm.training.assembly import build_run
from ltg_mdlm.training.consistency import differing_keys
from ltg_mdlm.training.cpu_kernel_choice import resolve_cpu_kernels


@pytest.fixture
def choose(monkeypatch):
    """Resolve the setting of a tiny run; returns the result, the lines, and whether the model got the operations."""

    def resolved(setting, stored, *, error: float | None = 0.0, min_flop: float = 1e14, signal: str | None = None):
        def largest_error() -> float:
            if error is None:
                raise RuntimeError("no compiler")
            return error

        used, lines = [], []
        monkeypatch.setattr(cpu_kernel_choice, "MIN_FLOP", min_flop)
        monkeypatch.setattr(cpu_kernel_choice, "largest_error", largest_error)
        monkeypatch.setattr(cpu_kernel_choice, "use_compiled_operations", used.append)
        settings = load_settings((), [*TINY, f"training.cpu_kernels={setting}"], ["uniform_mdlm"])
        host = Host(settings.config, settings.sources)
        stop = StopRequest()
        stop.signal_name = signal
        run = build_run(host, open_corpus(host.config), Ranks.alone())
        run = resolve_cpu_kernels(run, stored, lines.append, stop=stop)
        return run.config.training.cpu_kernels, lines, bool(used)

    return resolved


def test_auto_compiles_in_long_runs_only(choose):
    assert choose("auto", None) == ("torch", [], False)
    kernels, lines, used = choose("auto", None, min_flop=1.0)
    assert (kernels, len(lines), used) == ("compiled", 1, True)


@pytest.mark.parametrize(
    ("stored", "kernels"),
    [
        ({}, "torch"),
        ({"cpu_kernels": "auto"}, "torch"),
        ({"cpu_kernels": "torch"}, "torch"),
        ({"cpu_kernels": "compiled"}, "compiled"),
    ],
)
def test_a_resumed_run_keeps_its_kernels_whatever_its_length(choose, stored, kernels):
    """Runs of versions before the setting stored none, which reads as auto."""
    for min_flop in (1.0, 1e14):
        assert choose("auto", stored, min_flop=min_flop)[::2] == (kernels, kernels == "compiled")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "no compiler"),
        (0.01, "differ from those of torch by 1.0e-02"),
        (math.nan, "differ from those of torch by nan"),
    ],
)
def test_what_fails_makes_auto_fall_back_with_a_line_and_compiled_an_error(choose, error, reason):
    kernels, lines, used = choose("auto", None, error=error, min_flop=1.0)
    assert (kernels, used) == ("torch", False)
    assert reason in lines[-1]
    assert "other rounding errors" in choose("auto", {"cpu_kernels": "compiled"}, error=error)[1][-1]
    with pytest.raises(UserError, match=rf"training.cpu_kernels=compiled does not work on cpu: .*{reason}"):
        choose("compiled", None, error=error)


def test_a_compiler_that_a_stop_signal_ended_decides_nothing(choose):
    """Slurm and torchrun send TERM to the compiler, too."""
    with pytest.raises(Stopped):
        choose("auto", None, error=None, min_flop=1.0, signal="SIGTERM")
    assert choose("auto", None, min_flop=1.0, signal="SIGTERM")[0] == "compiled"


def test_auto_is_no_other_setting_than_what_it_was_resolved_to():
    old, new = (
        load_settings((), [*TINY, f"training.cpu_kernels={kernels}"], ["uniform_mdlm"]).config
        for kernels in ("compiled", "auto")
    )
    assert differing_keys(old, new) == []
    assert differing_keys(new, old) == ["training.cpu_kernels"]
