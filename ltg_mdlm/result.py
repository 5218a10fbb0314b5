"""What came out of a run, read back from its metrics: the same text at the end of training and ever after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltg_mdlm.metrics_file import read_rows

ROWS = (
    ("valid/loss", "objective", "{:.4f}"),
    ("valid/bound", "bound on -log p, nats per token", "{:.4f}"),
    ("valid/training_bound", "  under the training's own masking", "{:.4f}"),
    ("valid/causal_nll", "causal -log p, nats per token", "{:.4f}"),
    ("valid/unigram", "unigram cross-entropy, for comparison", "{:.4f}"),
    ("valid/bits_per_byte", "bound, bits per byte of text", "{:.4f}"),
    ("valid/accuracy", "accuracy of masked tokens", "{:.1%}"),
    ("valid/accuracy_frequent", "  of frequent token types", "{:.1%}"),
    ("valid/accuracy_rare", "  of rare token types", "{:.1%}"),
    ("valid/minimal_pairs", "minimal pairs", "{:.1%}"),
)


def result_text(folder: Path) -> str:
    """Held-out figures before and after training, and where everything lies."""
    rows = list(read_rows(folder / "metrics.jsonl", b'"valid/loss"'))
    if not rows:
        return f"no validation text, so there is nothing to report beyond {folder / 'metrics.jsonl'}"
    first, last = rows[0], rows[-1]
    lines = [f"{'held-out text':<42}{'step ' + str(first['step']):>12}{'step ' + str(last['step']):>12}"]
    for key, label, form in ROWS:
        if last.get(key) is not None:
            lines.append(f"{label:<42}{_cell(first, key, form):>12}{_cell(last, key, form):>12}")
    lines.append(f"standard error of the bound: {last['valid/bound_standard_error']:.4f}")
    lines.append(f"run folder: {folder}")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], key: str, form: str) -> str:
    value = row.get(key)
    return "-" if value is None else form.format(value)
