"""Fine-tuning on several processes: each takes some of the tasks, and the results are those of one process."""

from pathlib import Path

from support.finetuning import trained_model, write_task

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.evaluation.finetune_suite import finetune_suite
from ltg_mdlm.testing.ranks import run_on_ranks

QUICK = ("epochs=1", "lr=1e-3", "batch_rows=8", "seq_len=64", "precision=fp32")


def suite_on_rank(ranks: Ranks, data: Path, out: Path):
    said: list[str] = []
    summaries = finetune_suite(trained_model(), data, ranks, sets=QUICK, out=out, say=said.append)
    return [(s["task"], s["mean"]) for s in summaries], said


def test_two_ranks_get_the_results_of_one(tmp_path):
    data = write_task(write_task(tmp_path / "data", "rte"), "mrpc", train=48)
    (alone, _) = suite_on_rank(Ranks.alone(), data, tmp_path / "alone")
    (first, said), (second, also_said) = run_on_ranks(suite_on_rank, 2, data, tmp_path / "together")
    assert first == second == alone
    assert sorted(text[:4] for text in said + also_said) == ["mrpc", "rte:"]
    kept = ("predictions.json", "items.jsonl")
    alone_files, together = everything(tmp_path / "alone"), everything(tmp_path / "together")
    assert alone_files.keys() == together.keys()
    assert all(together[name] == content for name, content in alone_files.items() if name.endswith(kept))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
