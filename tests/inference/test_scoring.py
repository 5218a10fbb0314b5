"""Scores of texts agree with a literal computation, one row and one position at a time."""

import itertools
import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import small_tokenizer
from support.models import disturbed_model, small_config

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import BOS, MASK
from ltg_mdlm.inference import scoring
from ltg_mdlm.inference.choices import answer
from ltg_mdlm.inference.scoring import (
    TOKENS_PER_BATCH,
    LikelihoodScorer,
    ScoringRule,
    default_score,
    default_tokens_per_batch,
    draw_masks,
    order_keys,
)
from ltg_mdlm.inference.texts import Encoded, NextWord, Question, Text, encode_texts
from ltg_mdlm.inference.trained_model import Denoiser

TOKENIZER = small_tokenizer()
ALONE = Ranks.alone()
SENTENCES = ["the dog ran", "a cat saw the dog", "cats", "the dog runs", "a dog saw a cat and ran"]


def denoiser(predicts="same", modes=("masked", "causal"), block_length=0, **sizes):
    """A small disturbed transformer over the vocabulary of the small tokenizer."""
    model = disturbed_model(small_config(vocab_size=TOKENIZER.vocab_size, **sizes), dtype=torch.float32).eval()
    return Denoiser(
        model=model,
        tokenizer=TOKENIZER,
        predicts=predicts,
        modes=frozenset(modes),
        value_for_rate=lambda rate_B: rate_B if model.config.cond_dim is not None else None,
        block_length=block_length,
    )


def log_probability(parts, ids, column, *, causal=False, value=None):
    """Log-probability of a label at `column`, in plain arithmetic, from one row of `ids`."""
    model = parts.model
    read_at = column - 1 if causal or parts.predicts == "next" else column
    hidden = model(
        torch.tensor([ids]),
        causal_B=torch.tensor([True]) if causal else None,
        conditioning_B=None if value is None else torch.tensor([float(value)]),
    )
    logits_V = model.logits(model.head(hidden))[0, read_at].detach().double().numpy()
    return lambda label: logits_V[label] - np.log(np.exp(logits_V - logits_V.max()).sum()) - logits_V.max()


def literal(parts, ids, start, told):
    """Pseudo-log-likelihood of the columns from `start` on, one row and one position at a time."""
    total = 0.0
    for column in range(start, len(ids)):
        row = [*ids[:column], MASK, *ids[column + 1 :]]
        total += log_probability(parts, row, column, value=told(1 / (len(ids) - 1)))(ids[column])
    return total


def ids_of(text):
    return (BOS, *TOKENIZER.encode(text))


RULES = {
    "zero": (ScoringRule(time="zero"), lambda fraction: 0.0),
    "constant": (ScoringRule(time="constant", rate=0.3), lambda fraction: 0.3),
    "fraction": (ScoringRule(time="fraction"), lambda fraction: fraction),
}


@pytest.mark.parametrize("time", RULES)
@pytest.mark.parametrize("predicts", ["same", "next"])
@pytest.mark.parametrize("tokens_per_batch", [1, 40, 4096])
def test_masked_scores_are_those_of_one_row_at_a_time(time, predicts, tokens_per_batch, monkeypatch):
    monkeypatch.setattr(scoring, "_POSITIONS_AT_ONCE", 7)
    rule, told = RULES[time]
    parts = denoiser(predicts)
    rule = ScoringRule(score=default_score(parts), time=rule.time, rate=rule.rate, tokens_per_batch=tokens_per_batch)
    scores = LikelihoodScorer(parts, rule, ALONE)([[Text("", text) for text in SENTENCES]])[0]
    expected = [literal(parts, ids_of(text), 1, told) for text in SENTENCES]
    assert [s.log_likelihood for s in scores] == pytest.approx(expected, abs=1e-4)
    assert [s.tokens for s in scores] == [len(ids_of(text)) - 1 for text in SENTENCES]


def test_causal_scores_are_those_of_one_prediction_at_a_time_conditioned_on_mask_rate_zero():
    parts = denoiser("next")
    scores = LikelihoodScorer(parts, ScoringRule(score="causal", time="constant", rate=0.5), ALONE)
    found = [s.log_likelihood for s in scores([[Text("", text) for text in SENTENCES]])[0]]
    expected = [
        sum(
            log_probability(parts, ids_of(text), column, causal=True, value=0)(ids_of(text)[column])
            for column in range(1, len(ids_of(text)))
        )
        for text in SENTENCES
    ]
    assert found == pytest.approx(expected, abs=1e-4)


def block_log_probability(parts, ids, column):
    """Log-probabilities at a masked column from its own block and earlier ones: what follows is cut off."""
    stop = min(len(ids), (column // parts.block_length + 1) * parts.block_length)
    block_T = torch.arange(stop) // parts.block_length
    earlier_TT = block_T[None, :] <= block_T[:, None]
    hidden = parts.model(torch.tensor([ids[:stop]]), visibility=earlier_TT[None])
    return parts.model.logits(parts.model.head(hidden))[0, column].detach().double().log_softmax(0)


@pytest.mark.parametrize("block_length", [1, 3, 50])
def test_masked_scores_in_blocks_are_those_of_texts_that_end_with_the_block(block_length):
    parts = denoiser(cond_dim=None, block_length=block_length)
    scores = LikelihoodScorer(parts, ScoringRule(), ALONE)([[Text("", text) for text in SENTENCES]])[0]
    for text, score in zip(SENTENCES, scores, strict=True):
        ids = ids_of(text)
        rows = [[*ids[:column], MASK, *ids[column + 1 :]] for column in range(1, len(ids))]
        expected = sum(float(block_log_probability(parts, row, c)[ids[c]]) for c, row in enumerate(rows, 1))
        assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


def exact_block_bound(parts, ids, start):
    """Sum over the blocks of the mean over all masks of L / k times the log-likelihoods, with clean blocks before."""
    total, size = 0.0, parts.block_length
    for first in range(0, len(ids), size):
        columns = [column for column in range(first, min(first + size, len(ids))) if column >= start]
        for k in range(1, len(columns) + 1):
            masks = list(itertools.combinations(columns, k))
            for chosen in masks:
                row = [MASK if column in chosen else token for column, token in enumerate(ids)]
                found = sum(float(block_log_probability(parts, row, column)[ids[column]]) for column in chosen)
                total += found / k / len(masks)
    return total


@pytest.mark.parametrize(("prefix", "said"), [("", "the dog ran"), ("the dog", " ran and saw")])
def test_the_bound_in_blocks_is_the_sum_of_those_of_the_blocks_after_clean_ones(prefix, said):
    parts = denoiser(cond_dim=None, block_length=3)
    rule = ScoringRule(score="bound", draws=4000)
    [[found]] = LikelihoodScorer(parts, rule, ALONE)([[Text(prefix, said)]])
    exact = exact_block_bound(parts, ids_of(prefix + said), len(ids_of(prefix)))
    assert found.standard_error < 0.2
    assert abs(found.log_likelihood - exact) < 4 * found.standard_error + 1e-4


def test_the_bound_in_blocks_of_one_token_is_exact_and_reads_from_left_to_right():
    parts = denoiser(cond_dim=None, block_length=1)
    [[found]] = LikelihoodScorer(parts, ScoringRule(score="bound", draws=2), ALONE)([[Text("", "the dog ran")]])
    assert found.log_likelihood == pytest.approx(exact_block_bound(parts, ids_of("the dog ran"), 1), abs=1e-4)


@pytest.mark.parametrize("score", ["pll", "causal", "bound"])
def test_only_the_completion_is_scored(score):
    parts = denoiser("same")
    prefix, said = "the dog", " ran"
    ids = ids_of(prefix + said)
    start = len(ids_of(prefix))
    (found,) = LikelihoodScorer(parts, ScoringRule(score=score), ALONE)([[Text(prefix, said)]])[0]
    assert found.tokens == len(ids) - start
    if score == "pll":
        assert found.log_likelihood == pytest.approx(literal(parts, ids, start, lambda f: f), abs=1e-4)


def test_per_token_scores_are_divided_by_the_scored_tokens():
    parts = denoiser()
    texts = [[Text("", text)] for text in SENTENCES]
    plain = LikelihoodScorer(parts, ScoringRule(), ALONE)(texts)
    normalised = LikelihoodScorer(parts, ScoringRule(normalise="tokens"), ALONE)(texts)
    for (a,), (b,) in zip(plain, normalised, strict=True):
        assert b.log_likelihood == pytest.approx(a.log_likelihood / a.tokens)


@pytest.mark.parametrize("score", ["pll", "causal", "bound"])
def test_a_score_does_not_depend_on_what_else_is_asked(score):
    """Although equal rows are computed once, and batches contain rows of several texts."""
    parts = denoiser()
    rule = ScoringRule(score=score, draws=4 if score == "bound" else None)
    pairs = [[Text("", "the dog ran"), Text("", "the dog runs")], [Text("", "the dog ran"), Text("", "cats")]]
    together = LikelihoodScorer(parts, rule, ALONE)([pairs[0], *[[Text("", s)] for s in SENTENCES], pairs[1]])
    alone = LikelihoodScorer(parts, rule, ALONE)([pairs[0]])
    assert [s.log_likelihood for s in together[0]] == pytest.approx([s.log_likelihood for s in alone[0]], abs=1e-4)


def test_rows_that_two_sentences_share_are_computed_once():
    """Two sentences that differ in one token share the row in which this token is masked."""
    parts = denoiser()
    seen = []
    forward = parts.model.forward
    parts.model.forward = lambda ids, **more: seen.extend(map(tuple, ids.tolist())) or forward(ids, **more)
    sentences = ["the dog q ran", "the dog z ran"]
    ids = [ids_of(text) for text in sentences]
    assert len(ids[0]) == len(ids[1])
    assert sum(a != b for a, b in zip(*ids, strict=True)) == 1
    scores = LikelihoodScorer(parts, ScoringRule(), ALONE)([[Text("", text) for text in sentences]])
    assert len(seen) == len(set(seen)) == 2 * (len(ids[0]) - 1) - 1
    expected = [literal(parts, one, 1, lambda f: f) for one in ids]
    assert [s.log_likelihood for s in scores[0]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("score", ["pll", "causal", "bound"])
def test_progress_is_the_share_of_tokens_that_the_model_has_read(score, monkeypatch):
    """The time of a batch is about that of its tokens, and long texts come last."""
    parts, read, shares = denoiser(), [0], []
    forward = parts.model.forward

    def count(ids_BT, **more):
        read[0] += ids_BT.numel()
        return forward(ids_BT, **more)

    @contextmanager
    def record(title, total, *, show):
        done = [0]

        def advance(amount):
            done[0] += amount
            shares.append((done[0] / total, read[0]))

        yield advance

    parts.model.forward = count
    monkeypatch.setattr(scoring, "share_progress", record)
    rule = ScoringRule(score=score, tokens_per_batch=16)
    LikelihoodScorer(parts, rule, ALONE)([[Text("", "a dog")], [Text("", "the old cat saw the dog run far away")]])
    assert len(shares) > 1
    for share, tokens in shares:
        assert share == pytest.approx(tokens / read[0], abs=0.02)


@pytest.mark.parametrize("score", ["pll", "mntp", "causal", "bound"])
def test_ranks_share_the_work_and_agree_with_one_process(score):
    parts = denoiser("next" if score == "mntp" else "same")
    rule = ScoringRule(score=score)
    groups = [[Text("", a), Text("", b)] for a, b in itertools.combinations(SENTENCES, 2)]
    whole = LikelihoodScorer(parts, rule, ALONE)(groups)
    totals = []
    for rank in range(3):
        ranks = OfThree(rank, totals.append)
        LikelihoodScorer(parts, rule, ranks)(groups)
    assert all((part == 0).any() and (part != 0).any() for part in totals)
    shared = LikelihoodScorer(parts, rule, OfThree(1, lambda _: None, sum(totals)))(groups)
    for a, b in zip(itertools.chain(*whole), itertools.chain(*shared), strict=True):
        assert a.log_likelihood == pytest.approx(b.log_likelihood, abs=1e-5)


class OfThree:
    """One of three ranks; passes what it sends to a function, and receives a given tensor."""

    world_size, is_main = 3, False

    def __init__(self, rank, sent, received=None):
        self.rank, self._sent, self._received = rank, sent, received

    def sum_over_ranks(self, tensor):
        self._sent(tensor)
        return tensor if self._received is None else self._received


# The bound.


def exact_bound(parts, ids):
    """The mean over all masks of L / k times the cross-entropy of the masked tokens; every k is equally likely."""
    columns = range(1, len(ids))
    total = 0.0
    for count in columns:
        subsets = list(itertools.combinations(columns, count))
        for subset in subsets:
            row = [MASK if column in subset else token for column, token in enumerate(ids)]
            nll = sum(
                -log_probability(parts, row, column, value=count / len(columns))(ids[column]) for column in subset
            )
            total += len(columns) / count * nll / len(subsets) / len(columns)
    return total


def test_the_bound_is_the_mean_over_all_masks():
    parts = denoiser()
    ids = ids_of("the dog ran")
    (score,) = LikelihoodScorer(parts, ScoringRule(score="bound", draws=4000), ALONE)([[Text("", "the dog ran")]])[0]
    assert -score.log_likelihood == pytest.approx(exact_bound(parts, ids), abs=4 * score.standard_error)
    assert 0 < score.standard_error < 0.2


def test_without_a_number_of_draws_the_bound_costs_what_the_pseudo_log_likelihood_costs():
    parts = denoiser()
    rows = {}
    for score in ("pll", "bound"):
        counted = []
        forward = parts.model.forward
        parts.model.forward = lambda ids, **more: counted.append(len(ids)) or forward(ids, **more)  # noqa: B023
        LikelihoodScorer(parts, ScoringRule(score=score), ALONE)([[Text("", "a cat saw the dog")]])
        parts.model.forward = forward
        rows[score] = sum(counted)
    assert rows["pll"] - 1 <= rows["bound"] <= rows["pll"] + 1


def test_a_text_of_one_token_has_an_exact_bound():
    parts = denoiser()
    word = next(text for text in ("a", "e", "cats") if len(TOKENIZER.encode(text)) == 1)
    (score,) = LikelihoodScorer(parts, ScoringRule(score="bound"), ALONE)([[Text("", word)]])[0]
    assert score.standard_error == 0
    assert -score.log_likelihood == pytest.approx(exact_bound(parts, ids_of(word)), abs=1e-5)


lengths = st.integers(1, 9)


@given(st.lists(lengths, min_size=1, max_size=3), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_counts_of_masks_are_stratified_and_complementary(sizes, pairs, seed):
    draws = 2 * pairs
    group = [Encoded((BOS, *range(20, 20 + size)), 1) for size in sizes]
    for text, mask_JT in zip(group, draw_masks(group, draws, (seed, 0)), strict=True):
        count_J = mask_JT.sum(1)
        assert not mask_JT[:, 0].any()
        assert (mask_JT | mask_JT[::-1])[:, 1:].all()
        assert (count_J + count_J[::-1] == text.scored + 1).all()
        for j, count in enumerate(count_J[:pairs].tolist()):
            assert math.floor(j / draws * text.scored) + 1 <= count <= math.ceil((j + 1) / draws * text.scored)


def test_masks_of_a_pair_agree_where_its_sentences_do():
    """The last tokens match although the lengths differ."""
    good, bad = Encoded((BOS, 20, 21, 22, 30, 31), 1), Encoded((BOS, 20, 25, 30, 31), 1)
    keys = order_keys([good.ids[1:], bad.ids[1:]], 5, np.random.default_rng(0))
    assert np.array_equal(keys[0][:, :1], keys[1][:, :1])
    assert np.array_equal(keys[0][:, -2:], keys[1][:, -2:])
    assert not np.isclose(keys[0][:, 1], keys[1][:, 1]).any()


def test_common_random_numbers_lower_the_error_of_a_difference():
    """For sentences that differ in one token, compared with separate scores of the same two sentences."""
    parts = denoiser()
    pair = [Text("", "a cat saw the dog and ran"), Text("", "a cat saw a dog and ran")]
    apart, together = [], []
    for seed in range(25):
        scorer = LikelihoodScorer(parts, ScoringRule(score="bound", draws=4, seed=seed), ALONE)
        a, b = scorer([pair])[0]
        together.append(a.log_likelihood - b.log_likelihood)
        (c,), (d,) = scorer([[pair[0]], [pair[1]]])
        apart.append(c.log_likelihood - d.log_likelihood)
    assert np.var(together) < 0.6 * np.var(apart)


def test_the_error_of_a_margin_takes_common_random_numbers_into_account():
    """It agrees with the spread of the margin over seeds, and is below the error of independent scores."""
    parts = denoiser()
    question = Question((Text("", "a cat saw the dog and ran"), Text("", "a cat saw a dog and ran")), "uid")
    margins, errors, apart = [], [], []
    for seed in range(60):
        scorer = LikelihoodScorer(parts, ScoringRule(score="bound", draws=8, seed=seed), ALONE)
        scores = scorer([question.candidates])[0]
        found = answer(question, scores)
        margins.append(found.margin)
        errors.append(found.margin_error)
        apart.append(math.hypot(*(score.standard_error for score in scores)))
    # The squared error is unbiased except for the strata, which make it too large rather than too small.
    error = math.sqrt(np.mean(np.square(errors)))
    assert 0.8 * np.std(margins, ddof=1) < error < 1.5 * np.std(margins, ddof=1)
    assert np.mean(errors) < 0.8 * np.mean(apart)


# Words that come next.


def literal_surprisal(parts, context, word, score):
    """The official procedure: the text grows by decoded tokens, and is tokenised again for each of them."""
    total, text = 0.0, context
    targets = TOKENIZER.encode(word)
    for place, target in enumerate(targets):
        said = TOKENIZER.decode([target])
        label = target if place == 0 else TOKENIZER.encode(said)[0]
        before = ids_of(text)
        row = [*before, label] if score == "causal" else [*before, MASK, MASK, MASK]
        told = 0 if score == "causal" else 3 / (len(row) - 1)
        total -= log_probability(parts, row, len(before), causal=score == "causal", value=told)(label)
        text += said
    return total


@pytest.mark.parametrize(("score", "predicts"), [("pll", "same"), ("mntp", "next"), ("causal", "next")])
def test_surprisals_of_words_are_those_of_the_official_procedure(score, predicts):
    parts = denoiser(predicts)
    words = [
        NextWord("the dog", "ran"),
        NextWord("", "cats"),
        NextWord("the dog saw", "one,"),
        NextWord("the dog", "ran"),
    ]
    assert [len(TOKENIZER.encode(word)) > 1 for _, word in words[:3]] == [False, False, True]
    found = LikelihoodScorer(parts, ScoringRule(score=score), ALONE).surprisals(words)
    for (context, word), value in zip(words, found, strict=True):
        assert value == pytest.approx(literal_surprisal(parts, context, word, score), abs=1e-4)
    assert found[3] == found[0]


# What cannot be scored.


@pytest.mark.parametrize(
    ("score", "predicts", "modes", "hint"),
    [
        ("causal", "same", {"masked"}, "--score pll"),
        ("pll", "next", {"masked", "causal"}, "--score mntp"),
        ("mntp", "same", {"masked"}, "--score pll"),
        ("bound", "next", {"causal"}, "--score causal"),
        ("pll", "same", {"causal"}, "--score causal"),
    ],
)
def test_a_score_that_the_objective_cannot_give_is_refused_with_one_that_it_can(score, predicts, modes, hint):
    with pytest.raises(UserError, match=hint):
        LikelihoodScorer(denoiser(predicts, modes), ScoringRule(score=score), ALONE)


def test_a_prefix_that_does_not_fit_loses_its_beginning():
    prefix = "the dog saw the cat and ran "
    (whole,) = encode_texts(TOKENIZER, [Text(prefix, "cats")], 1000)
    (cut,) = encode_texts(TOKENIZER, [Text(prefix, "cats")], 8)
    assert len(cut.ids) == 8
    assert (cut.ids[0], cut.ids[1:]) == (BOS, whole.ids[-7:])
    assert cut.scored == whole.scored


@pytest.mark.parametrize(
    ("text", "complaint"), [(Text("a dog", ""), "no tokens"), (Text("", "dog " * 20), "at most 7")]
)
def test_texts_that_cannot_be_scored_are_refused(text, complaint):
    with pytest.raises(UserError, match=complaint):
        encode_texts(TOKENIZER, [text], 8)


def test_a_smaller_gpu_has_smaller_batches(monkeypatch):
    memory = SimpleNamespace(total_memory=10 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert default_tokens_per_batch(torch.device("cuda")) == TOKENS_PER_BATCH["cuda"] // 4
    assert default_tokens_per_batch(torch.device("cpu")) == TOKENS_PER_BATCH["cpu"]
