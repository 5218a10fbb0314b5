"""For any predictions: given tokens are kept, gaps get ordinary tokens, and texts end at the first `</s>`."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import WORDS, small_tokenizer
from torch import Tensor

from ltg_mdlm.data.tokenizer import EOS, MASK, NUM_SPECIAL, PAD
from ltg_mdlm.inference.canvas import GAP, Canvas, Readout, Setting, Template, continuation, infilling
from ltg_mdlm.inference.samplers import unmask_counts
from ltg_mdlm.inference.sampling import draw_rows
from ltg_mdlm.inference.sampling_rule import EqualSteps, SamplingRule, mask_rates

TOKENIZER = small_tokenizer()

RULES = st.one_of(
    st.fixed_dictionaries(
        {"sampler": st.sampled_from(["ancestral", "confidence", "entropy"])},
        optional={"steps": st.integers(1, 12), "temperature": st.sampled_from([0.0, 0.7]), "seed": st.integers(0, 9)},
    ),
    st.fixed_dictionaries({"sampler": st.just("block"), "block_length": st.integers(1, 5)}),
    st.fixed_dictionaries({"steps": st.integers(1, 12), "eta_cap": st.sampled_from([0.1, 1.0])}),
    st.fixed_dictionaries({"steps": st.integers(1, 12), "eta_rescale": st.sampled_from([0.3, 1.0])}),
)
PIECES = st.lists(st.one_of(st.sampled_from([*WORDS, "0", "7."]), st.just(GAP)), min_size=1, max_size=10)
BLANKS = st.sampled_from([" ", "", ", ", "\n"])


@st.composite
def texts_with_gaps(draw: st.DrawFn) -> str:
    """Words, digits and at least one gap, with and without spaces between them."""
    pieces = [*draw(PIECES), GAP, *draw(st.lists(st.sampled_from(WORDS), max_size=3))]
    return "".join(piece + draw(BLANKS) for piece in pieces)


def random_predictor(seed: int, likes_to_end: float) -> Any:
    """A predictor with random logits, including those of special tokens."""
    generator = torch.Generator().manual_seed(seed)

    def predict(ids_BT: Tensor, document_BT: Tensor | None, rate_B: Tensor) -> Readout:
        assert bool(((rate_B >= 0) & (rate_B <= 1)).all())
        logits_BTV = torch.randn(*ids_BT.shape, TOKENIZER.vocab_size, generator=generator) * 3
        logits_BTV[:, :, EOS] += likes_to_end
        return lambda row_N, column_N: logits_BTV[row_N, column_N]

    return predict


def drawn(template: Template, rule: dict[str, Any], *, seed: int = 0, ends: bool, likes_to_end: float = 0) -> Canvas:
    """Three sampled rows; also checks that progress adds up to the number of gaps."""
    steps: list[int] = []
    setting = Setting(
        predict=random_predictor(seed, likes_to_end), rule=SamplingRule(**rule), ends=ends, advance=steps.append
    )
    canvas = draw_rows(template, torch.arange(3), setting)
    assert sum(steps) == 3 * len(template.gaps)
    return canvas


@settings(max_examples=60)
@given(texts_with_gaps(), RULES, st.booleans(), st.integers(0, 99))
def test_infilling_changes_no_given_token_and_fills_every_gap(text, rule, ends, seed):
    template = infilling(TOKENIZER, text)
    given_T = torch.tensor(template.ids) != MASK
    canvas = drawn(template, rule, seed=seed, ends=ends, likes_to_end=5)
    assert bool((canvas.ids_BT[:, given_T] == torch.tensor(template.ids)[given_T]).all())
    assert bool((canvas.drawn_at_BT[:, given_T] == -1).all())
    filled_N = canvas.ids_BT[canvas.gap_BT]
    assert bool(((filled_N >= NUM_SPECIAL) | ((filled_N == EOS) & ends)).all())
    assert bool((canvas.drawn_at_BT[canvas.gap_BT] >= 0).all())


@settings(max_examples=60)
@given(st.integers(1, 20), RULES, st.booleans(), st.floats(-3, 9))
def test_there_is_only_padding_after_the_first_end(length, rule, prompted, likes_to_end):
    template = continuation(TOKENIZER, "the dog" if prompted else None, length)
    canvas = drawn(template, rule, ends=True, likes_to_end=likes_to_end)
    for ids, passes in zip(canvas.ids_BT.tolist(), canvas.passes_B.tolist(), strict=True):
        end = ids.index(EOS) if EOS in ids else len(ids) - 1
        assert set(ids[end + 1 :]) <= {PAD}
        assert all(token >= NUM_SPECIAL for token in ids[1:end])
        assert 1 <= passes <= (rule.get("steps") or length)


@given(texts_with_gaps())
def test_a_gap_stands_for_one_token_and_the_rest_is_read_as_it_was(text):
    template = infilling(TOKENIZER, text)
    assert len(template.gaps) == text.count(GAP)
    ids = [TOKENIZER.encode("0")[-1] if token == MASK else token for token in template.ids[1:]]
    squeezed = TOKENIZER.decode(ids).replace(" ", "")
    plain = TOKENIZER.decode(TOKENIZER.encode(text.replace(GAP, "0"))).replace(" ", "")
    assert squeezed == plain


@given(st.integers(1, 200), st.integers(1, 300))
def test_ordered_samplers_distribute_the_tokens_evenly_over_the_steps(columns, steps):
    dealt = unmask_counts(columns, mask_rates(EqualSteps(), steps))
    assert sum(dealt) == columns
    assert len(dealt) == min(columns, steps)
    assert max(dealt) - min(dealt) <= 1
