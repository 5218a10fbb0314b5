"""Run folders with curves that nobody had to train, written as the trainer writes them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.evaluation.result_folders import to_json
from ltg_mdlm.storage.run_folder import RunFolder, Status
from ltg_mdlm.training.metric_sinks import JSONLines

_FEW = {"step", "words_seen", "tokens_seen", "loss", "tokens_per_second", "valid/loss", "valid/bound"}


def fabricate_run(
    out: Path,
    plugin: str = "uniform_mdlm",
    *sets: str,
    seed: int = 0,
    status: str = "finished",
    steps: int = 100,
    planned: int | None = None,
    diverges_at: int | None = None,
    level: float = 5.0,
    torch: str = "2.13.0",
    every_metric: bool = False,
) -> Path:
    """A run of `steps` logged steps whose held-out bound ends near `level`; `planned` steps were asked for.

    It logs what every run has, or all that a run of `plugin` could have: charts take time.
    """
    settings = [f"seed={seed}", f"training.max_steps={planned or steps}", "data.builtin_words=4000", *sets]
    folder = RunFolder(out)
    out.mkdir(parents=True)
    config = load_settings([], settings, [plugin], out).config
    folder.write_config(config.to_yaml())
    sink = JSONLines(folder.metrics_file)
    for row in _rows(random.Random(f"{out.name}"), steps, level, diverges_at, plugin):
        sink.write(row if every_metric else {key: value for key, value in row.items() if key in _FEW})
    sink.close()
    state = folder.checkpoints / f"step_{steps:07d}" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"versions": {"ltg_mdlm": "0.1.0", "torch": torch}, "world_size": 1}))
    reason = "3 updates in a row were not finite" if status == "failed" else ""
    folder.write_status(Status(status, steps, reason))
    return out


def _rows(chance: random.Random, steps: int, level: float, diverges_at: int | None, plugin: str) -> Iterator[dict]:
    for step in range(steps + 1):
        share = step / steps
        fallen = level + 4 * math.exp(-6 * share)
        alive = diverges_at is None or step < diverges_at
        noisy = fallen + chance.gauss(0, 0.15) if alive else math.nan
        if step % max(steps // 5, 1) == 0:
            yield {
                "step": step,
                "words_seen": 640 * step,
                "valid/loss": noisy,
                "valid/bound": fallen + chance.gauss(0, 0.03) if alive else math.nan,
                "valid/bound_standard_error": 0.05,
                "valid/accuracy": 0.4 * share,
                "valid/accuracy_rare": 0.05 * share,
                "valid/accuracy_frequent": 0.6 * share,
                "valid/unigram": 6.9,
            }
        if step:
            yield {
                "step": step,
                "epoch": share,
                "words_seen": 640 * step,
                "tokens_seen": 1000 * step,
                "loss": noisy,
                "lr": 0.01 * (1 - share),
                "grad_norm": 1.5 + chance.random() if alive else math.nan,
                "tokens_per_second": 2000 + 100 * chance.random(),
                **({"freq_mdlm/power": 0.02 * share} if plugin == "freq_mdlm" else {}),
            }


def fabricate_sweep(folder: Path) -> list[Path]:
    """Two plugins with three seeds each."""
    return [
        fabricate_run(folder / f"{plugin}-s{seed}", plugin, seed=seed, level=level, every_metric=True)
        for plugin, level in (("uniform_mdlm", 5.4), ("freq_mdlm", 5.1))
        for seed in range(3)
    ]


def fabricate_large_sweep(folder: Path) -> list[Path]:
    """Sixty runs: twenty recipes with three seeds each."""
    return [
        fabricate_run(
            folder / f"schedule={schedule}-power={power}-s{seed}",
            "freq_mdlm",
            f"plugins.uniform_mdlm.schedule={schedule}",
            f"plugins.freq_mdlm.power={power}",
            seed=seed,
            level=5 + abs(i - 7) / 10,
        )
        for i, (schedule, power) in enumerate(
            (schedule, power / 10) for schedule in ("linear", "cosine") for power in range(1, 11)
        )
        for seed in range(3)
    ]


def fabricate_result(results: Path, model: str, accuracy: float, data: str = "blimp_fast", **summary: object) -> Path:
    """The summary that `eval pairs` writes."""
    folder = results / model / "main" / "zero_shot" / "mlm" / "blimp" / data
    folder.mkdir(parents=True)
    about = {"model": model, "revision": "main", "score": "pll", "time": "fraction", "weights": "ema"}
    figures = {"task": "blimp", "data": data, "metric": "accuracy", "accuracy": accuracy, "validated": True}
    (folder / "summary.json").write_text(to_json({**about, **figures, **summary}))
    return folder
