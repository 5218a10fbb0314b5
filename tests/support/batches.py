"""Rows to corrupt: batches made by hand or drawn by hypothesis, and every built-in masking and schedule by name.

Ids 0 .. 15 are control tokens as in the real vocabularies; ordinary types follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from ltg_mdlm_plugins import freq_mdlm, gpt_bert, uniform_mdlm
from torch import Tensor

from ltg_mdlm.api import Batch, CorpusStatistics, MaskingStrategy, Noise, NoiseSchedule, RunContext, Step

VOCAB, SPECIAL = 48, 16
BOS, PAD, MASK = 1, 3, 4
POSITIONS = 65536


def context(**changes: object) -> RunContext:
    """A run of 100 steps in one process."""
    special_V = torch.arange(VOCAB) < SPECIAL
    values = RunContext(
        seed=0,
        max_steps=100,
        seq_len=128,
        vocab_size=VOCAB,
        hidden_size=8,
        mask_id=MASK,
        special_V=special_V,
        tokens_V=tuple(f"type{i}" for i in range(VOCAB)),
        word_start_V=~special_V,
        num_positions=POSITIONS,
        device=torch.device("cpu"),
        rank=0,
        world_size=1,
        sum_over_ranks=lambda x: x,
    )
    return dataclasses.replace(values, **changes)


def zipfian_counts() -> Tensor:
    """int64[V]: frequencies like 1 / rank, in an order unrelated to the ids, with ties and unseen types."""
    count_V = torch.zeros(VOCAB, dtype=torch.int64)
    order = torch.randperm(VOCAB - SPECIAL, generator=torch.Generator().manual_seed(1)) + SPECIAL
    count_V[order] = 1000 // torch.arange(1, VOCAB - SPECIAL + 1)
    count_V[order[-3:]] = 0
    return count_V


def statistics(count_V: Tensor) -> CorpusStatistics:
    """Corpus statistics with those counts."""
    return CorpusStatistics(token_count_V=count_V, num_tokens=int(count_V.sum()), num_words=int(count_V.sum()))


def batch_of(rows: Sequence[Sequence[Sequence[int]]], columns: int, first_row: int = 0) -> Batch:
    """Rows of documents of ids, each preceded by `<s>`, padded to `columns`."""
    shape = (len(rows), columns)
    ids_BT, document_BT = torch.full(shape, PAD), torch.full(shape, -1, dtype=torch.int32)
    for b, documents in enumerate(rows):
        end = 0
        for number, tokens in enumerate(documents):
            start, end = end, end + 1 + len(tokens)
            ids_BT[b, start:end] = torch.tensor([BOS, *tokens])
            document_BT[b, start:end] = number
        assert end <= columns
    has_place_BT = (document_BT >= 0) & (ids_BT != BOS)
    place_BT = has_place_BT.flatten().cumsum(0).view(shape) - 1 + first_row * columns
    return Batch(
        ids_BT=ids_BT,
        document_BT=document_BT,
        position_BT=torch.where(has_place_BT, place_BT, -1),
        maskable_BT=ids_BT >= SPECIAL,
        row_B=torch.arange(first_row, first_row + len(rows)),
    )


def text_batch(rows: int, columns: int, seed: int = 0) -> Batch:
    """Full rows of documents of 5 to 60 Zipf-distributed tokens, with a little padding."""
    generator = torch.Generator().manual_seed(seed)
    share_V = zipfian_counts().double()
    made = []
    for _ in range(rows):
        documents, left = [], columns
        while left > 6:
            length = min(int(torch.randint(5, 61, (), generator=generator)), left - 1)
            documents.append(torch.multinomial(share_V, length, replacement=True, generator=generator).tolist())
            left -= length + 1
        made.append(documents)
    return batch_of(made, columns)


def rows_of(batch: Batch, index: Tensor | slice) -> Batch:
    """Some rows of a batch, in any order: a micro-batch."""
    return Batch(**{f.name: getattr(batch, f.name)[index] for f in dataclasses.fields(batch)})


def step_for(batch: Batch, **changes: object) -> Step:
    """A step in the middle of training whose global batch ends with `batch`."""
    rows = int(batch.row_B.max()) + 1
    values = {"seed": 0, "step": 40, "progress": 0.4, "epoch": 4.5, "rows": rows, **changes}
    return Step(**values)


def noise_at(rate: float | Tensor, batch: Batch) -> Noise:
    """The same mask rate in all rows, or one for each; the slope is 1."""
    rate_B = torch.as_tensor(rate, dtype=torch.float64).expand(len(batch.row_B))
    return Noise(t_B=rate_B, rate_B=rate_B, slope_B=torch.ones_like(rate_B))


def no_causal(batch: Batch) -> Tensor:
    """bool[B]: every row is masked."""
    return torch.zeros_like(batch.row_B, dtype=torch.bool)


_tokens = st.integers(SPECIAL, VOCAB - 1) | st.sampled_from([0, 2, 5, 15])


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
