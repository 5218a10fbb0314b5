"""Minimal pairs that are scored while a model trains."""

from pathlib import Path

import pytest
from support.runs import SCORED, TINY

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.data.records import MinimalPair, write_minimal_pairs
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.storage.checkpoint import Checkpoints
from ltg_mdlm.training.assembly import build_run
from ltg_mdlm.training.trainer import Trainer

PAIRS = [
    MinimalPair("The dog runs.", "The dog run.", "agreement"),
    MinimalPair("A cat saw it.", "Cat a saw it.", "order"),
]


class Rows(list):
    """A sink that keeps rows."""

    write = list.append

    def close(self) -> None:
        pass


def rows_of(*sets: str) -> list:
    settings = load_settings((), [*TINY, *sets], ["freq_mdlm"])
    host = Host(settings.config, settings.sources)
    rows = Rows()
    run = build_run(host, open_corpus(host.config), Ranks.alone())
    Trainer(run, Checkpoints(Path(), every=99, keep=1, writes=False), [rows], StopRequest()).train()
    return rows


@pytest.mark.parametrize(("every", "steps"), [("null", [0, 12]), ("4", [0, 4, 8, 12])])
def test_pairs_are_scored_before_and_after_training_and_every_so_many_steps(tmp_path, every, steps):
    write_minimal_pairs(tmp_path / "pairs.jsonl", PAIRS)
    rows = rows_of(f"validation.pairs={tmp_path / 'pairs.jsonl'}", f"validation.pairs_every={every}")
    assert [row["step"] for row in rows if "valid/minimal_pairs" in row] == steps
    assert [row["step"] for row in rows if "valid/loss" in row] == [0, 6, 12]


def test_scoring_pairs_does_not_move_training():
    plain = [row["loss"] for row in rows_of() if "loss" in row]
    scored = [row["loss"] for row in rows_of(*SCORED, "validation.pairs_every=1") if "loss" in row]
    assert plain == scored
    assert len(plain) == 12
