"""Result folders, as evaluation writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Correct = Mapping[str, Sequence[float]]
"""How right each question of each uid was answered."""


def write_result(
    results: Path, model: str, correct: Correct, *, task: str = "blimp", data: str = "blimp_fast", **summary: Any
) -> Path:
    """Write the folder of one task, with what comparisons read of it."""
    rows = [
        {"id": f"{uid}_{i}", "uid": uid, "correct": value}
        for uid, values in correct.items()
        for i, value in enumerate(values)
    ]
    about = {"metric": "accuracy", "revision": "main", "score": "pll", "weights": "ema", **summary}
    folder = results / model / about["revision"] / "zero_shot" / about["score"] / task / data
    folder.mkdir(parents=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"model": model, "task": task, "data": data, **about}))
    return folder
