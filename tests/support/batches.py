"""Rows drawn by hypothesis, and every built-in masking and schedule by name."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from ltg_mdlm_plugins import freq_mdlm, gpt_bert, uniform_mdlm

from ltg_mdlm.api import Batch, MaskingStrategy, NoiseSchedule
from ltg_mdlm.data.tokenizer import NUM_SPECIAL
from ltg_mdlm.testing.toy import VOCAB, batch_of, context, statistics, zipfian_counts

_tokens = st.integers(NUM_SPECIAL, VOCAB - 1) | st.sampled_from([0, 2, 5, 15])


@st.composite
def batches(draw: st.DrawFn, max_rows: int = 5, columns: int = 24) -> Batch:
    """Batches with several documents per row, control tokens inside documents, padding, and rows without any token."""
    rows = []
    for _ in range(draw(st.integers(1, max_rows))):
        documents, left = [], columns
        for _ in range(draw(st.integers(0, 4))):
            if left >= 2:
                documents.append(draw(st.lists(_tokens, max_size=min(left - 1, 12))))
                left -= len(documents[-1]) + 1
        rows.append(documents)
    return batch_of(rows, columns, first_row=draw(st.integers(0, 3)))


def rates() -> st.SearchStrategy[float]:
    """Mask rates, both ends included."""
    return st.sampled_from([1e-10, 1e-6, 0.5, 1 - 1e-9, 1.0]) | st.floats(1e-9, 1)


def frequency_masking(**options: object) -> MaskingStrategy:
    """`freq_mdlm`'s masking on the Zipfian counts."""
    plugin = freq_mdlm.FreqMDLM(freq_mdlm.Options(**options))
    plugin.ltg_mdlm_corpus_statistics(statistics(zipfian_counts()), context())
    return plugin.ltg_mdlm_masking(context())


def span_masking(**options: object) -> MaskingStrategy:
    """`gpt_bert`'s masking."""
    return gpt_bert.GPTBert(gpt_bert.Options(**options)).ltg_mdlm_masking(context())


FREQUENCY_OPTIONS: dict[str, dict[str, object]] = {
    "freq": {},
    "freq_token": {"weighting": "token"},
    "freq_strong": {"power": 1.0, "curriculum": "none"},
    "freq_inverse": {"weights": "inverse", "power": 0.5},
    "freq_exponential": {"weights": "exponential", "frequency_scale": 0.3},
    "freq_row_min": {"row_min": "row", "power": 0.3},
    "freq_published": {"row_min": "row", "statistics": "all_positions", "curriculum": "epochs"},
    "freq_corpus": {"statistics": "corpus", "power": 0.5},
    "freq_exact": {"statistics": "corpus", "weighting": "exact", "power": 0.5},
}

MASKINGS: dict[str, Callable[[], MaskingStrategy]] = {
    "uniform": lambda: uniform_mdlm.UniformMDLM(uniform_mdlm.Options()).ltg_mdlm_masking(context()),
    **{name: lambda o=options: frequency_masking(**o) for name, options in FREQUENCY_OPTIONS.items()},
    "spans": lambda: span_masking(),
    "spans_unbalanced": lambda: span_masking(balance=False),
}
INDEPENDENT = [name for name in MASKINGS if not name.startswith("spans")]
"""Maskings that decide about every token on its own."""

SCHEDULE_OPTIONS: dict[str, dict[str, object]] = {
    "linear": {"schedule": "linear"},
    "cosine": {"schedule": "cosine"},
    "cosine_squared": {"schedule": "cosine_squared"},
    "gaussian": {"schedule": "gaussian"},
    "gaussian_clamped": {"schedule": "gaussian", "tails": "clamp"},
    "bimodal": {"schedule": "bimodal_gaussian"},
    "bimodal_mixture": {"schedule": "bimodal_gaussian", "derivative": "mixture"},
    "bimodal_clamped": {"schedule": "bimodal_gaussian", "tails": "clamp"},
}


def schedule(name: str) -> NoiseSchedule:
    """A built-in noise schedule."""
    if name == "declining":
        return gpt_bert.GPTBert(gpt_bert.Options()).ltg_mdlm_noise_schedule()
    return uniform_mdlm.UniformMDLM(uniform_mdlm.Options(**SCHEDULE_OPTIONS[name])).ltg_mdlm_noise_schedule()


SCHEDULES = [*SCHEDULE_OPTIONS, "declining"]
