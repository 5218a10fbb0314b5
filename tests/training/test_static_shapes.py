"""Few shapes reach the layers and the head, since each is compiled: by torch on GPUs, by oneDNN in bf16 on CPUs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.storage.checkpoint import Checkpoints
from ltg_mdlm.training import assembly
from ltg_mdlm.training.assembly import build_run
from ltg_mdlm.training.recipe import POSITION_MULTIPLE, gather_supervised
from ltg_mdlm.training.trainer import Trainer

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMALL = (
    "data.corpus=builtin",
    "data.builtin_words=4000",
    "model.hidden_size=8",
    "model.intermediate_size=8",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=1",
    "training.max_steps=20",
    "training.epochs=null",
    "training.global_batch_rows=100",
    "training.precision=bf16",
    "validation.pairs=null",
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_published_config_has_one_shape_of_micro_batches_per_row_length(config, monkeypatch):
    """Over its whole schedule with stages and ramps, and few numbers of supervised positions."""
    monkeypatch.setitem(assembly.TOKENS_PER_MICRO_BATCH, "cpu", 4096)
    settings = load_settings([str(config)], SMALL, [])
    host = Host(settings.config, settings.sources)
    run = build_run(host, open_corpus(host.config), Ranks.alone())
    loss, masking = run.loss, run.recipe.components.masking
    rows_by_length, positions_by_length = defaultdict(set), defaultdict(set)

    def layers(ids_BT, document_BT, causal_B, *_, **__):
        assert len(document_BT) == len(ids_BT)
        assert causal_B is None or len(causal_B) == len(ids_BT)
        rows_by_length[ids_BT.shape[1]].add(len(ids_BT))
        return torch.zeros(*ids_BT.shape, 8)

    monkeypatch.setattr(loss.model, "forward", layers)
    trainer = Trainer(run, Checkpoints(Path(), every=99, keep=1, writes=False), [], StopRequest())
    for step in trainer.steps():
        for batch in run.loader.micro_batches(step.step):
            for micro_batch in run.recipe.corrupt(batch, step):
                loss.hidden(micro_batch, training=True)
                multiple = loss.position_multiple(torch.device("cpu"))
                most = loss.rows_seen(micro_batch, training=True) * batch.ids_BT.shape[1]
                predicts_next = masking.predicts == "next"
                _, index_M = gather_supervised(micro_batch, predicts_next=predicts_next, multiple=multiple, most=most)
                positions_by_length[batch.ids_BT.shape[1]].add(len(index_M))
    lengths = {length for _, length in host.config.training.stages}
    assert rows_by_length.keys() == lengths
    assert all(len(rows) == 1 for rows in rows_by_length.values())
    for length, found in positions_by_length.items():
        (rows,) = rows_by_length[length]
        assert all(count % POSITION_MULTIPLE == 0 or count == rows * length for count in found)
