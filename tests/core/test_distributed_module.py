"""Several processes on one machine, over gloo."""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.testing.ranks import RankFailed, run_on_ranks
from ltg_mdlm.training.optimizers import build_optimizer


def _identity(ranks):
    return ranks.rank, ranks.world_size, ranks.local_rank, str(ranks.device), ranks.is_main


def test_every_rank_knows_its_place():
    assert run_on_ranks(_identity, 2) == [(0, 2, 0, "cpu", True), (1, 2, 1, "cpu", False)]


def _sum(ranks):
    mine = torch.tensor([1.0, 10.0]) * (ranks.rank + 1)
    total = ranks.sum_over_ranks(mine)
    transposed = ranks.sum_over_ranks(torch.arange(6.0).view(2, 3).t() * (ranks.rank + 1))
    return mine, total, transposed


def test_sums_reach_every_rank_and_leave_the_summands_alone():
    for rank, (mine, total, transposed) in enumerate(run_on_ranks(_sum, 3)):
        assert mine.tolist() == [rank + 1, 10 * (rank + 1)]
        assert total.tolist() == [6, 60]
        assert transposed.tolist() == [[0, 18], [6, 24], [12, 30]]


def _votes(ranks):
    return ranks.all_agree(True), ranks.all_agree(ranks.rank == 0), ranks.all_agree(False)


def test_ranks_agree_only_if_all_of_them_say_so():
    assert run_on_ranks(_votes, 2) == [(True, False, False)] * 2


def _broadcast(ranks):
    return ranks.broadcast_object({"path": "x", "rank": ranks.rank} if ranks.is_main else None)


def test_an_object_of_the_first_rank_reaches_every_rank():
    assert run_on_ranks(_broadcast, 2) == [{"path": "x", "rank": 0}] * 2


def _late(ranks):
    time.sleep(0.5 if ranks.rank == 1 else 0)
    before = time.time()
    ranks.barrier()
    return before, time.time()


def test_a_barrier_is_left_when_the_last_rank_has_come():
    times = run_on_ranks(_late, 2)
    assert min(left for _, left in times) >= max(came for came, _ in times)


def _raise_on_one(ranks):
    if ranks.rank == 1:
        raise ValueError("the culprit")
    ranks.barrier()


def test_the_error_of_the_failing_rank_is_shown():
    with pytest.raises(RankFailed, match="the culprit"):
        run_on_ranks(_raise_on_one, 2)


def _die(ranks):
    if ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(UserError, match="process 1 of 2 failed at adding up over processes: another process has ended"):
        ranks.barrier()
    time.sleep(60)


def test_a_rank_whose_partner_was_killed_says_so():
    with pytest.raises(RankFailed, match="rank 0 died with exit code -9"):
        run_on_ranks(_die, 2)


def _hang(ranks):
    time.sleep(60 * ranks.rank)


def test_a_hanging_rank_is_named():
    with pytest.raises(RankFailed, match=r"1\] did not finish"):
        run_on_ranks(_hang, 2, timeout=1)


def test_unreachable_partners_are_reported_in_a_sentence(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="process 1 of 2 failed at meeting the other processes"):
        Ranks.setup("cpu", timeout=timedelta(seconds=1))


def _train(ranks, steps, bad_step):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    wrapped = DistributedDataParallel(model) if ranks.world_size > 1 else model
    optimizer = build_optimizer("lamb", model, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, max_norm=1.0)
    data = torch.randn(steps, 4, 4, generator=torch.Generator().manual_seed(1))
    refused = []
    for step in range(steps):
        rows = data[step][ranks.rank :: ranks.world_size]
        loss = wrapped(rows).square().sum() * ranks.world_size
        if step == bad_step and ranks.rank == ranks.world_size - 1:
            loss = loss * float("nan")
        loss.backward()
        refused.append(bool(optimizer.step(0.1).refused))
        optimizer.zero_grad()
    return refused, {name: p.detach() for name, p in model.named_parameters()}


def test_two_ranks_take_the_steps_of_one_and_refuse_together():
    """A NaN on one rank reaches all of them through the reduced gradients, so that all refuse the same step."""
    (refused_0, weights_0), (refused_1, weights_1) = run_on_ranks(_train, 2, 6, 3)
    refused, weights = run_on_ranks(_train, 1, 6, 3)[0]
    assert refused_0 == refused_1 == refused == [False, False, False, True, False, False]
    for name, weight in weights.items():
        assert torch.equal(weights_0[name], weights_1[name])
        torch.testing.assert_close(weights_0[name], weight, rtol=1e-5, atol=1e-6)
