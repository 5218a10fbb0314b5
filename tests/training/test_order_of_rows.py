"""Mixtures, curricula and the slot `row_order` in whole runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.installed import BROKEN_PLUGINS, plugins_installed
from support.runs import TINY, killed, losses, rows, run, saved_bits

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.storage.tensor_files import load_tensors
from ltg_mdlm.training.check import describe_run

MIXTURE = ("data.mixture.book=3", "data.mixture_end.story=4")
CURRICULUM = ("data.curriculum.by=words",)
SHORT_EPOCHS = (
    "training.global_batch_rows=80",
    "model.dropout=0",
    "model.num_hidden_layers=1",
    "training.max_steps=8",
    "validation.every=100",
)
"""An epoch has 2.5 steps."""


@pytest.fixture(autouse=True)
def order_plugins():
    with plugins_installed(BROKEN_PLUGINS):
        yield


def report(*sets: str, plugin: str = "uniform_mdlm"):
    return describe_run(load_settings([], [*TINY, *sets], [plugin]))


@pytest.mark.parametrize(
    ("plugin", "sets"),
    [("uniform_mdlm", MIXTURE), ("hard_rows_again", MIXTURE)],
    ids=["mixture", "adaptive order of a mixture"],
)
def test_a_run_killed_in_mid_epoch_resumes_bit_exactly(plugin, sets, tmp_path: Path):
    sets = (*sets, *SHORT_EPOCHS)
    run(tmp_path / "straight", *sets, plugin=plugin)
    killed(tmp_path / "killed", *sets, plugin=plugin, faults=({"at": "step 6", "do": "SIGKILL"},))
    (done,) = run(tmp_path / "killed", *sets, plugin=plugin)
    assert "resuming from step 4 of 8" in done.output
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    words = [[row.get("words_seen") for row in rows(tmp_path / name)] for name in ("killed", "straight")]
    assert words[0] == words[1]
    assert saved_bits(tmp_path / "killed", 8) == saved_bits(tmp_path / "straight", 8)


def test_a_checkpoint_can_be_continued_with_a_mixture_or_a_curriculum(tmp_path: Path):
    stopped = ({"at": "step 4", "do": "SIGTERM"},)
    run(tmp_path / "even", *SHORT_EPOCHS, plugin="faulty", faults=stopped)
    options = {"plugin": "faulty", "resume": str(tmp_path / "even")}
    (done,) = run(tmp_path / "mixed", *SHORT_EPOCHS, *MIXTURE, faults=({"at": "step 6", "do": "SIGTERM"},), **options)
    assert done.code == 75, done.output
    assert "resuming from step 5 of 8" in done.output
    options["resume"] = str(tmp_path / "mixed")
    (done,) = run(tmp_path / "sorted", *SHORT_EPOCHS, *CURRICULUM, **options)
    assert done.code == 0, done.output
    assert "resuming from step 7 of 8" in done.output
    assert "was trained with other settings: data.curriculum" in done.output


@pytest.mark.parametrize(("plugin", "sets"), [("uniform_mdlm", MIXTURE), ("hard_rows_again", ())])
def test_two_processes_train_on_the_rows_of_one(plugin, sets, tmp_path: Path):
    sets = (*sets, *SHORT_EPOCHS)
    run(tmp_path / "one", *sets, plugin=plugin)
    run(tmp_path / "two", *sets, plugin=plugin, processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    counts = [
        [(row.get("words_seen"), row.get("tokens_seen")) for row in rows(tmp_path / name)] for name in ("one", "two")
    ]
    assert counts[0] == counts[1]


def test_checkpoints_hold_the_orders_in_use_and_only_if_there_are_any(tmp_path: Path):
    def saved(name: str, plugin: str, *sets: str) -> set[str]:
        run(tmp_path / name, *sets, *SHORT_EPOCHS, "training.max_steps=4", plugin=plugin)
        return set(load_tensors(tmp_path / name / "checkpoints" / "step_0000004" / "components.safetensors"))

    uniform = saved("uniform", "uniform_mdlm")
    assert not any(key.startswith("data/") for key in uniform)
    mixed = saved("mixed", "uniform_mdlm", *MIXTURE) - uniform
    assert mixed == {"data/counts", "data/digest"}
    ordered = saved("ordered", "hard_rows_again") - uniform
    assert ordered == {"data/counts", "data/rows/0/1", "row_order/sums"}


def test_the_bound_is_not_logged_in_training_unless_epochs_are_uniform(tmp_path: Path):
    def keys(name: str, plugin: str, *sets: str) -> set[str]:
        run(tmp_path / name, *sets, "training.max_steps=2", plugin=plugin)
        return {key for row in rows(tmp_path / name) for key in row}

    bounds = {"bound", "bits_per_byte"}
    uniform = keys("uniform", "uniform_mdlm")
    assert bounds <= uniform
    for name, plugin, sets in [("mixed", "uniform_mdlm", MIXTURE), ("ordered", "hard_rows_again", ())]:
        found = keys(name, plugin, *sets)
        assert not bounds & found
        assert {key for key in uniform if key.startswith("valid/")} <= found


def test_check_reports_how_often_each_source_is_really_seen(tmp_path: Path):
    """As counted in the rows of the run."""
    sets = ("data.mixture.book=3", "data.mixture.talk=0.5", *SHORT_EPOCHS)
    described = report(*sets)
    run(tmp_path / "run", *sets)
    assert described.words == [row["words_seen"] for row in rows(tmp_path / "run")][-1]
    times = {name: use.times for name, use in described.sources.items()}
    assert set(times) == {"book", "diary", "story", "talk"}
    assert times["book"] / times["story"] == pytest.approx(3, rel=0.05)
    assert times["talk"] / times["story"] == pytest.approx(0.5, rel=0.05)
    assert f"sources      book: seen {times['book']:.2f} times (" in described.to_text()
    assert described.to_json()["sources"]["book"]["times"] == pytest.approx(times["book"], abs=1e-4)
    assert "about" in described.to_text()


def test_check_warns_of_a_source_that_is_seen_too_often():
    described = report("data.mixture.diary=4", "training.max_steps=null", "training.epochs=4")
    assert any("source 'diary' is seen 1" in text and "at most 10 times" in text for text in described.warnings)
    assert not report("training.max_steps=null", "training.epochs=4").warnings


def test_check_says_that_a_plugin_decides_how_often_sources_are_seen():
    assert "sources      the plugin in the slot row_order decides" in report(plugin="hard_rows_again").to_text()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["data.mixture.bok=2"],
            r"data.mixture: the corpus has no source 'bok' \(did you mean 'book'\?\)\n  sources: book, di",
        ),
        (["data.mixture_end.tolk=2"], r"data.mixture_end: .* 'tolk' \(did you mean 'talk'\?\)"),
        (["data.mixture={book: 0, diary: 0, story: 0, talk: 0}"], r"data.mixture: every source has the weight 0"),
        (
            ["data.mixture.book=-1"],
            r"(?s)data.mixture.book: Input should be greater than or equal to 0.*set on the command",
        ),
        (["data.curriculum={by: source, order: [talk, book]}"], r"must list every source; missing: diary, story"),
        (["data.curriculum={by: source, order: [talk, book, story, diary, talk]}"], "it lists a source twice"),
        (["data.curriculum={by: source, order: [talk, boko, story, diary]}"], r"did you mean 'book'"),
        (["data.curriculum.by=source"], r"data.curriculum.order lists the sources if by is 'source'"),
        (["data.curriculum={by: words, scores: x.txt}"], r"data.curriculum.scores names the file if by is 'file'"),
        (["data.curriculum={by: file, scores: missing.txt}"], r"missing.txt: cannot be read: No such file"),
        (
            ["data.curriculum={by: words, over: training}"],
            r"training has 0.\d+ epochs, and 'training' needs at least two",
        ),
        (["data.curriculum.by=words", "data.mixture_end.book=2"], r"both decide when a document comes"),
        (["data.curriculum={by: words, over: training}", "data.mixture.book=2"], r"cannot be combined"),
    ],
)
def test_settings_that_do_not_fit_the_corpus_are_clear_errors(sets, message):
    with pytest.raises(UserError, match=message):
        report(*sets)


def test_a_corpus_without_sources_has_no_mixture(tmp_path: Path):
    corpus = open_corpus(load_settings([], TINY).config)
    for path in corpus.path.rglob("*"):
        if path.is_file() and path.name != "corpus.json" and "source_D" not in path.name:
            (tmp_path / path.relative_to(corpus.path)).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / path.relative_to(corpus.path)).write_bytes(path.read_bytes())
    description = {k: v for k, v in corpus.description.items() if k not in ("source_names", "files", "digest")}
    (tmp_path / "corpus.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"does not say from which source its documents are\n  prepare it again"):
        report(f"data.corpus={tmp_path}", "data.mixture.book=2")
    described = report(f"data.corpus={tmp_path}", *CURRICULUM)
    assert described.sources == {}
    assert described.words > 0


def test_scores_from_a_file_decide_the_order_of_the_documents(tmp_path: Path):
    corpus = open_corpus(load_settings([], TINY).config)
    np.save(tmp_path / "scores.npy", corpus.train.words)
    setting = f"data.curriculum={{by: file, scores: {tmp_path / 'scores.npy'}}}"
    run(tmp_path / "file", setting, "training.max_steps=3")
    run(tmp_path / "words", *CURRICULUM, "training.max_steps=3")
    assert losses(tmp_path / "file") == losses(tmp_path / "words")
    np.save(tmp_path / "scores.npy", corpus.train.words[:-1])
    (refused,) = run(tmp_path / "other", setting)
    assert f"numbers for {corpus.train.num_documents:,} training documents" in refused.output


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("half_of_the_rows", r"HalfOfTheRows.epoch (hook ltg_mdlm_row_order) returned int64[90]"),
        ("rows_as_floats", r"RowsAsFloats.epoch (hook ltg_mdlm_row_order) returned float64[180]"),
        ("rows_from_one", r"RowsFromOne.epoch (hook ltg_mdlm_row_order) returned row 180 at place"),
    ],
)
def test_wrong_orders_are_errors_that_name_the_plugin(plugin, message, tmp_path: Path):
    (refused,) = run(tmp_path / "run", plugin=plugin)
    assert refused.code is None
    assert f"error: plugin '{plugin}' of broken-plugins 1.0 (" in refused.output
    assert message in refused.output
