"""Generating on several processes: each draws some of the samples, and all get those of one process."""

from pathlib import Path

from support.trained import write_run

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.inference.sampling import Sample, generate
from ltg_mdlm.inference.sampling_rule import SamplingRule
from ltg_mdlm.inference.trained_model import open_model
from ltg_mdlm.testing.ranks import run_on_ranks


def samples_on_rank(ranks: Ranks, run: Path) -> list[Sample]:
    trained = open_model(run, ranks)
    trained.model.double()  # so that rounding decides nothing
    return generate(trained, SamplingRule(seed=2), prompt="the dog", length=5, count=5, ranks=ranks)


def test_two_ranks_get_the_samples_of_one(tmp_path):
    run = write_run(tmp_path / "run")
    alone = samples_on_rank(Ranks.alone(), run)
    assert run_on_ranks(samples_on_rank, 2, run) == [alone, alone]
