"""Age of acquisition: the official formulas, on top of scorers whose scores are known."""

import csv
import json
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from support.corpora import small_tokenizer
from support.scorers import TableScorer

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.age_of_acquisition import (
    MONTHS,
    AgeOfAcquisition,
    Sigmoid,
    chance_surprisal,
    human_age,
    milestones,
    model_age,
    words_seen_by,
)
from ltg_mdlm.evaluation.tasks import Skip
from ltg_mdlm.inference.texts import Text

MILLIONS = [*range(1, 10), *range(10, 101, 10)]
WORDS_SEEN = 1e6 * np.array(MILLIONS)
TOKENIZER = small_tokenizer()
CONTEXTS = 3


# The official definition, step by step.


def sigmoid(x, a, b, c, d):
    return a / (1 + np.exp(-b * (x - c))) + d


@np.errstate(over="ignore")
def literal_model_age(words_seen, surprisals, chance):
    x, y = np.log10(np.array(words_seen) + 1), -np.array(surprisals)
    threshold = -(chance + min(surprisals)) / 2
    span = max(y) - min(y)
    (a, b, c, d), _ = scipy.optimize.curve_fit(
        sigmoid,
        x,
        y,
        p0=[span, 1, np.mean(x), min(y)],
        bounds=([0, 0, min(x) - 1, min(y) - 2 * span - 1], [10 * span + 1, 100, max(x) + 1, max(y) + 1]),
        maxfev=20000,
    )
    if b <= 1e-6 or a <= 1e-6 or threshold <= d or threshold >= a + d:
        return None
    age = c - math.log(a / (threshold - d) - 1) / b
    return age if words_seen[0] <= np.power(10.0, age) - 1 <= words_seen[-1] else None


def literal_human_age(shares):
    months, known = zip(*[(m, s) for m, s in zip(MONTHS, shares, strict=True) if not math.isnan(s)], strict=True)
    (a, b, c, d), _ = scipy.optimize.curve_fit(
        sigmoid,
        np.array(months),
        np.array(known),
        p0=[1, 0.1, np.mean(months), 0],
        bounds=([0, 0, months[0], -0.5], [2, 1, months[-1], 0.5]),
        maxfev=1000,
    )
    if a <= 0 or b <= 0 or d >= 0.5 or a + d <= 0.5:
        return None
    age = c - math.log(a / (0.5 - d) - 1) / b
    return age if months[0] <= age <= months[-1] else None


same = pytest.approx


@pytest.mark.parametrize("seed", range(12))
def test_ages_of_models_are_those_of_the_official_formula(seed):
    rng = np.random.default_rng(seed)
    middle, slope, rise, lowest = rng.uniform((6, 2, 1, 3), (8.2, 15, 9, 9))
    curve = lowest + rise - rise * scipy.special.expit(slope * (np.log10(WORDS_SEEN) - middle))
    surprisals = curve + rng.normal(0, 0.2, len(MILLIONS))
    found = model_age(WORDS_SEEN, surprisals, 9.7)
    expected = literal_model_age(WORDS_SEEN.tolist(), surprisals.tolist(), 9.7)
    assert found == (None if expected is None else same(expected, rel=1e-9))


@pytest.mark.parametrize("seed", range(12))
def test_ages_of_children_are_those_of_the_official_formula(seed):
    rng = np.random.default_rng(seed)
    middle, slope, most = rng.uniform((14, 0.1, 0.4), (32, 1, 1))
    shares = np.clip(most * scipy.special.expit(slope * (np.array(MONTHS) - middle)) + rng.normal(0, 0.03, 15), 0, 1)
    shares[rng.random(15) < 0.2] = math.nan
    expected = literal_human_age(shares.tolist())
    assert human_age(shares) == (None if expected is None else same(expected, rel=1e-9))


def test_the_threshold_is_midway_between_chance_and_the_lowest_surprisal():
    """A curve from 10 to 4 nats: with chance at 10 its middle, with chance at 7 where it has fallen to 5.5."""
    x_M = np.linspace(6, 8, 12)
    curve = Sigmoid(6.0, 5.0, 6.8, -10.0)
    words_seen_M, surprisal_M = 10**x_M - 1, 10 - 6 * scipy.special.expit(5 * (x_M - 6.8))
    for chance in (10.0, 7.0):
        threshold = (chance + surprisal_M.min()) / 2
        assert model_age(words_seen_M, surprisal_M, chance) == same(curve.crossing(-threshold), abs=1e-5)
    assert model_age(words_seen_M, surprisal_M, 25.0) is None  # the curve never was as bad as the threshold
    assert model_age(words_seen_M, surprisal_M[::-1], 10.0) is None
    assert model_age(words_seen_M, np.full(12, 9.0), 10.0) is None


def test_the_age_of_children_needs_three_known_months_and_a_crossing():
    shares = scipy.special.expit(0.5 * (np.array(MONTHS) - 21.5))
    shares[[0, 5]] = np.nan
    assert human_age(shares) == same(21.5, abs=1e-3)
    assert human_age(np.where(np.arange(15) < 2, shares, np.nan)) is None
    assert human_age(np.full(15, 0.1)) is None


def test_a_sigmoid_has_no_crossing_outside_its_values():
    curve = Sigmoid(2.0, 3.0, 1.0, -1.0)
    assert curve.crossing(0.0) == 1.0
    assert curve.crossing(-1.0) is curve.crossing(1.0) is curve.crossing(5.0) is None


def test_chance_is_the_logarithm_of_the_vocabulary_for_every_token_of_the_word():
    several = next(word for word in ("zebra", "because", "xylophone") if len(TOKENIZER.encode(f" {word}")) > 1)
    tokens = len(TOKENIZER.encode(f"The {several}")) - len(TOKENIZER.encode("The"))
    assert tokens > 1
    assert chance_surprisal(TOKENIZER, several) == same(tokens * math.log(TOKENIZER.vocab_size))


def write_table(file, rows):
    file.parent.mkdir(exist_ok=True, parents=True)
    with file.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file.parent


def write_lexicon(folder, human):
    """Words with contexts, and children of whom half use a word at a given age."""
    lexicon = {word: [{"context": f"I see {i} ", "freq": i} for i in range(CONTEXTS)] for word in human}
    folder.mkdir(exist_ok=True)
    (folder / "words.json").write_text(json.dumps(lexicon), "utf-8")
    shares = [
        {"word": word, **{str(m): 1 / (1 + math.exp(-0.6 * (m - age))) for m in MONTHS}} for word, age in human.items()
    ]
    write_table(folder / "children.csv", shares)
    return folder


def learner(words_seen, learnt_at):
    """Surprisal falls from chance to 1 nat around a word's own log10 of words seen; contexts differ a little."""

    def log_likelihood(text):
        middle, chance = learnt_at.get(text.completion, 7.0), chance_surprisal(TOKENIZER, text.completion)
        wiggle = 0.1 * (len(text.prefix) % 2 - 0.5)
        return -chance + (chance - 1) / (1 + math.exp(-6 * (math.log10(words_seen) - middle))) + wiggle

    return TableScorer(log_likelihood)


def task_of(tmp_path, learnt_at, millions=MILLIONS):
    for count in millions:
        (tmp_path / "checkpoints" / f"chck_{count}M").mkdir(parents=True)
    for name in ("step_0000100", "chck_xM", "chck_15M", "chck_110M"):
        (tmp_path / "checkpoints" / name).mkdir()
    found = milestones(tmp_path / "checkpoints", lambda path: learner(words_seen_by(path.name), learnt_at))
    return AgeOfAcquisition(milestones=found, model="my_model", tokenizer=TOKENIZER)


def test_only_official_checkpoints_are_used(tmp_path):
    task = task_of(tmp_path, {}, [*MILLIONS, *range(200, 1001, 100)])
    assert [milestone.words for milestone in task.milestones] == [
        count * 1_000_000 for count in (*MILLIONS, *range(200, 1001, 100))
    ]


def test_a_model_that_learns_in_the_order_of_children_correlates_fully(tmp_path):
    human = {"ball": 17.0, "dog": 19.0, "because": 27.0, "think": 25.0, "I": 20.0}
    learnt_at = {word: 6.4 + (age - 16) / 10 for word, age in human.items()}
    result = task_of(tmp_path, learnt_at).run(write_lexicon(tmp_path / "aoa", human), TableScorer())
    assert result.value == result.figures["pearson"] == same(1.0, abs=1e-3)
    assert {name: result.figures[name] for name in ("words", "words_without_model_age", "words_without_human_age")} == {
        "words": 4,
        "words_without_model_age": 0,
        "words_without_human_age": 0,
    }
    assert result.items[0] == {
        "id": "ball",
        "uid": "AoA_word",
        "model": same(6.5, abs=0.05),
        "human": same(17, abs=0.01),
    }
    rows = result.predictions["results"]
    assert len(rows) == len(MILLIONS) * 4 * CONTEXTS
    assert rows[-1] == {
        "step": "chck_100M",
        "word_count": 100_000_000,
        "target_word": "think",
        "context_id": CONTEXTS - 1,
        "context": f"I see {CONTEXTS - 1} ",
        "surprisal": same(1.3, abs=0.3),
    }
    assert json.loads(result.other_files["aoa_score.json"]) == {"aoa": result.value}
    assert (result.place, result.predictions_file, result.validated) == ("AoA_word", "surprisal.json", False)


@pytest.mark.parametrize(
    ("human", "why"),
    [
        ({"ball": 17.0, "dog": 25.0}, "two words"),
        ({"ball": 17.0, "dog": 25.0, "think": 17.5, "because": 24.0}, "a correlation that is not significant"),
    ],
)
def test_the_score_is_zero_without_evidence(tmp_path, human, why):
    learnt_at = {"ball": 7.0, "dog": 7.1, "think": 7.2, "because": 6.9}
    figures = task_of(tmp_path, learnt_at).run(write_lexicon(tmp_path / "aoa", human), TableScorer()).figures
    assert figures["aoa"] == 0, why
    assert figures["words"] == len(human)
    assert figures["words"] < 3 or figures["p"] > 0.1


def test_words_that_are_never_learnt_or_that_nobody_knows_about_are_left_out_and_counted(tmp_path):
    human = {"ball": 17.0, "dog": 19.0, "always": 5.0, "zebra": 22.0, "early": 20.0}
    learnt_at = {"ball": 6.7, "dog": 6.9, "always": 7.0, "zebra": 11.0, "early": 3.0}
    folder = write_lexicon(tmp_path / "aoa", human)
    words = json.loads((folder / "words.json").read_text())
    (folder / "words.json").write_text(json.dumps(words | {"unheard": words["dog"]}))
    figures = task_of(tmp_path, learnt_at).run(folder, TableScorer()).figures
    assert (figures["words"], figures["words_without_model_age"], figures["words_without_human_age"]) == (2, 2, 2)


def test_without_children_there_are_surprisals_and_no_score(tmp_path):
    folder = write_lexicon(tmp_path / "aoa", {"ball": 17.0})
    (folder / "children.csv").unlink()
    result = task_of(tmp_path, {}).run(folder, TableScorer())
    assert math.isnan(result.value)
    assert result.other_files == {}
    assert len(result.predictions["results"]) == len(MILLIONS) * CONTEXTS


def test_files_with_the_official_names_are_read_among_others(tmp_path):
    folder = write_lexicon(tmp_path / "aoa", {"ball": 17.0})
    (folder / "words.json").rename(folder / "cdi_childes.json")
    (folder / "children.csv").rename(folder / "cdi_human.csv")
    (folder / "notes.json").write_text("[]")
    (folder / "notes.csv").write_text("a\n1\n")
    assert task_of(tmp_path, {}).run(folder, TableScorer()).questions == CONTEXTS


def test_a_word_is_scored_after_its_stripped_context_and_a_space(tmp_path):
    task = task_of(tmp_path, {}, [1, 2, 3])
    asked = TableScorer(lambda text: -5.0)
    folder = write_lexicon(tmp_path / "aoa", {"ball": 17.0})
    (folder / "words.json").write_text(json.dumps({"ball": [{"context": "  A red "}, {"context": ""}]}))
    task.milestones[:] = [milestone._replace(open=lambda: asked) for milestone in task.milestones]
    task.run(folder, TableScorer())
    assert asked.asked[:2] == [Text("A red ", "ball"), Text(" ", "ball")]


def test_few_checkpoints_are_a_reason_to_skip_and_not_a_mistake(tmp_path):
    with pytest.raises(Skip, match=r"at least 3 chck_\* checkpoints; found 2"):
        task_of(tmp_path, {}, [1, 2]).run(write_lexicon(tmp_path / "aoa", {"ball": 17.0}), TableScorer())


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("words.json", '{"dog": [{"context": 1}]}', r"words\.json: 'dog', number 1: expected \{\"context\": text"),
        ("words.json", '{"dog": "I see a"}', r"words\.json: 'dog': expected a list of contexts"),
        ("words.json", '{"a": [{"context": "b"}]}', "no word of two letters or more with a context"),
        ("words.json", '{"dog":\n', r"words\.json:2: not JSON"),
        ("children.csv", "word,16\ndog,0.5\n", r"children\.csv:2: 17 is missing"),
        (
            "children.csv",
            f"word,{','.join(map(str, MONTHS))}\ndog{',50' * 15}\n",
            r"16 must be a share in 0\.\.1, not '50'",
        ),
    ],
)
def test_a_malformed_lexicon_is_the_users_error(tmp_path, name, content, complaint):
    folder = write_lexicon(tmp_path / "aoa", {"dog": 20.0})
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=complaint):
        task_of(tmp_path, {}).run(folder, TableScorer())
