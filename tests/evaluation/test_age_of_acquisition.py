"""Age of acquisition: fits of sigmoids, and ages of words on top of scorers whose scores are known."""

import csv
import json
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from support.scorers import TableScorer

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.age_of_acquisition import (
    MIN_CONTEXTS,
    MONTHS,
    AgeOfAcquisition,
    Sigmoid,
    fit_sigmoid,
    human_age,
    milestones,
    model_age,
)
from ltg_mdlm.evaluation.tasks import Skip

LOG_WORDS = np.log10([*range(1, 10), *range(10, 101, 10)]) + 6


def curve(x, low, high, middle, slope):
    return low + (high - low) / (1 + np.exp(-slope * (x - middle)))


def test_a_sigmoid_without_noise_is_recovered():
    for truth in (Sigmoid(-11, -4, 7.1, 5.0), Sigmoid(-4, -11, 6.5, 12.0)):
        fitted = fit_sigmoid(LOG_WORDS, curve(LOG_WORDS, *truth))
        assert fitted == pytest.approx(truth, rel=1e-4)
    shares = curve(np.arange(16.0, 31), 0, 1, 22.4, 0.5)
    assert fit_sigmoid(np.arange(16.0, 31), shares, (0, 1)) == pytest.approx((0, 1, 22.4, 0.5), rel=1e-6)


@pytest.mark.parametrize("asymptotes", [None, (-11.0, -4.0)])
@pytest.mark.parametrize("seed", range(8))
def test_no_other_sigmoid_near_the_fit_of_noisy_points_has_a_smaller_error(seed, asymptotes):
    """A gradient of 1e-3 is a millionth in the midpoint. No curve of a random search is better, either."""
    rng = np.random.default_rng(seed)
    truth = (-11.0, -4.0, rng.uniform(6.7, 7.4), rng.uniform(6, 15))
    y_N = curve(LOG_WORDS, *truth) + rng.normal(0, 0.3, len(LOG_WORDS))
    fit = np.array(fit_sigmoid(LOG_WORDS, y_N, asymptotes))
    free = range(4) if asymptotes is None else range(2, 4)

    def error(parameters):
        return np.square(curve(LOG_WORDS, *parameters) - y_N).sum()

    for i in free:
        step = 1e-6 * np.eye(4)[i]
        gradient = (error(fit + step) - error(fit - step)) / 2e-6
        assert abs(gradient) < 1e-3
    scale = np.array([1.0, 1.0, 0.3, 3.0]) * np.isin(range(4), free)
    assert all(error(fit) <= error(fit + scale * rng.normal(size=4)) for _ in range(500))


@pytest.mark.parametrize("y_N", [np.zeros(19), LOG_WORDS, np.arange(19) % 2, (np.arange(19) > 8).astype(float)])
def test_curves_that_are_no_sigmoids_have_finite_fits(y_N):
    assert np.isfinite(fit_sigmoid(LOG_WORDS, y_N.astype(float))).all()


def write_table(file, rows):
    file.parent.mkdir(exist_ok=True, parents=True)
    with file.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file.parent


def write_lexicon(folder, human, contexts=MIN_CONTEXTS):
    """Words with contexts, and children of whom half use a word at a given age."""
    lexicon = {word: [{"context": f"I see {i} ", "freq": i} for i in range(contexts)] for word in human}
    folder.mkdir(exist_ok=True)
    (folder / "words.json").write_text(json.dumps(lexicon), "utf-8")
    shares = [
        {"word": word, **{str(m): 1 / (1 + math.exp(-0.6 * (m - age))) for m in MONTHS}} for word, age in human.items()
    ]
    write_table(folder / "children.csv", shares)
    return folder


def learner(words_seen, learnt_at):
    """Surprisal falls from 12 to 4 nats around a word's own log10 of words seen; contexts differ a little."""

    def log_likelihood(text):
        middle = learnt_at.get(text.completion, 7.0)
        wiggle = 0.1 * (len(text.prefix) % 2 - 0.5)
        return -12 + 8 / (1 + math.exp(-6 * (math.log10(words_seen) - middle))) + wiggle

    return TableScorer(log_likelihood)


MILLIONS = [*range(1, 10), *range(10, 101, 10)]


def run_milestones(tmp_path, learnt_at, millions=MILLIONS):
    for count in millions:
        (tmp_path / "checkpoints" / f"chck_{count}M").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_0000100").mkdir()
    (tmp_path / "checkpoints" / "chck_xM").mkdir()
    return milestones(tmp_path / "checkpoints", lambda path: learner(int(path.name[5:-1]) * 1_000_000, learnt_at))


def test_a_model_that_learns_in_the_order_of_children_correlates_fully(tmp_path):
    human = {"ball": 17.0, "dog": 19.0, "because": 27.0, "think": 25.0, "I": 20.0}
    learnt_at = {word: 6.2 + (age - 16) / 10 for word, age in human.items()}
    found = run_milestones(tmp_path, learnt_at)
    assert [milestone.words for milestone in found] == [count * 1_000_000 for count in MILLIONS]
    result = AgeOfAcquisition(found, "my_model").run(write_lexicon(tmp_path / "aoa", human), TableScorer())
    assert result.figures == {
        "pearson": pytest.approx(1.0, abs=1e-6),
        "words": 4,
        "words_without_model_age": 0,
        "words_without_human_age": 0,
    }
    assert result.items[0] == {
        "id": "ball",
        "uid": "AoA_word",
        "model": pytest.approx(6.3, abs=1e-3),
        "human": pytest.approx(17.0, abs=1e-3),
    }
    rows = result.predictions["results"]
    assert len(rows) == len(MILLIONS) * 4 * MIN_CONTEXTS
    assert rows[-1] == {
        "step": "chck_100M",
        "word_count": 100_000_000,
        "target_word": "think",
        "context_id": MIN_CONTEXTS - 1,
        "context": f"I see {MIN_CONTEXTS - 1} ",
        "surprisal": pytest.approx(4.0, abs=0.1),
    }
    assert (result.place, result.predictions_file, result.validated) == ("AoA_word", "surprisal.json", False)


def test_words_that_are_never_learnt_or_that_nobody_knows_about_are_left_out_and_counted(tmp_path):
    human = {"ball": 17.0, "dog": 19.0, "always": 5.0, "zebra": 22.0, "early": 20.0}
    learnt_at = {"ball": 6.5, "dog": 6.9, "always": 7.0, "zebra": 11.0, "early": 3.0}
    folder = write_lexicon(tmp_path / "aoa", human)
    words = json.loads((folder / "words.json").read_text())
    (folder / "words.json").write_text(json.dumps(words | {"unheard": words["dog"]}))
    result = AgeOfAcquisition(run_milestones(tmp_path, learnt_at), "my_model").run(folder, TableScorer())
    assert {name: value for name, value in result.figures.items() if name != "pearson"} == {
        "words": 2,
        "words_without_model_age": 2,
        "words_without_human_age": 2,
    }


def test_the_age_of_a_model_is_where_its_curve_is_halfway_up():
    x_M = np.linspace(6, 8, 12)
    assert model_age(x_M, 9 - 3 * scipy.special.expit(5 * (x_M - 6.8))) == pytest.approx(6.8, abs=1e-4)
    assert model_age(x_M, 9 + 3 * scipy.special.expit(5 * (x_M - 6.8))) is None
    assert model_age(x_M, np.full(12, 9.0)) is None


def test_the_age_of_children_needs_three_known_months_and_a_crossing():
    shares = scipy.special.expit(0.5 * (np.array(MONTHS) - 21.5))
    shares[[0, 5]] = np.nan
    assert human_age(shares) == pytest.approx(21.5, abs=1e-4)
    assert human_age(np.where(np.arange(15) < 2, shares, np.nan)) is None
    assert human_age(np.full(15, 0.1)) is None


def test_few_checkpoints_are_a_reason_to_skip_and_not_a_mistake(tmp_path):
    found = run_milestones(tmp_path, {}, millions=[1, 2, 3])
    with pytest.raises(Skip, match=r"at least 5 chck_\* checkpoints; found 3"):
        AgeOfAcquisition(found, "my_model").run(write_lexicon(tmp_path / "aoa", {"ball": 17.0}), TableScorer())


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("words.json", '{"dog": [{"context": 1}]}', r"words\.json: 'dog', number 1: expected \{\"context\": text"),
        ("words.json", '{"dog": "I see a"}', r"words\.json: 'dog': expected a list of contexts"),
        ("words.json", '{"dog": [{"context": "a"}]}', "no word with 20 contexts or more"),
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
        AgeOfAcquisition(run_milestones(tmp_path, {}), "my_model").run(folder, TableScorer())
