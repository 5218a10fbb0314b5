"""Fine-tuning tasks: their files, errors in them, published settings and metrics."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import real_data, small_tokenizer
from support.finetuning import separable_rows, write_rows, write_task

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.finetune_tasks import (
    FINETUNE_TASKS,
    Example,
    classes_of,
    find_tasks,
    read_examples,
    scores,
    settings_of,
)
from ltg_mdlm.evaluation.finetune_training import encode

ROWS = {
    "boolq": ({"question": "is it", "passage": "It is."}, "is it", "It is."),
    "multirc": ({"paragraph": "P.", "question": "Q?", "answer": "A"}, "Question: Q? Answer: A", "P."),
    "mnli": ({"premise": "P.", "hypothesis": "H."}, "P.", "H."),
    "rte": ({"sentence1": "A.", "sentence2": "B."}, "A.", "B."),
    "mrpc": ({"sentence1": "A.", "sentence2": "B."}, "A.", "B."),
    "qqp": ({"question1": "A?", "question2": ""}, "A?", ""),
    "wsc": (
        {"text": "Al saw Bo; he ran.", "span1_text": "Al", "span2_text": "he"},
        'Does "he" refer to "Al" in this passage?',
        "Al saw Bo; he ran.",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_put_to_the_model_as_the_official_suite_does(tmp_path, name):
    fields, first, second = ROWS[name]
    file = write_rows(tmp_path / "file.jsonl", [{**fields, "label": 1, "idx": 7}])
    assert read_examples(file, FINETUNE_TASKS[name]) == [Example(first, second, 1)]


def test_braces_and_unicode_line_separators_in_a_text_are_text(tmp_path):
    texts = {"sentence1": "{sentence2} {0}", "sentence2": "one\u2028two\x85three"}
    file = write_rows(tmp_path / "file.jsonl", [{**texts, "label": 0}])
    assert read_examples(file, FINETUNE_TASKS["rte"]) == [Example(texts["sentence1"], texts["sentence2"], 0)]


GOOD = json.dumps({"sentence1": "a", "sentence2": "b", "label": 0})


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"sentence1": "a", "label": 0}', "sentence2 is missing"),
        ('{"sentence1": "a", "sentence2": 3, "label": 0}', "sentence2 must be text"),
        ('{"sentence1": "a", "sentence2": "\\ud800", "label": 0}', "sentence2 must be text"),
        ('{"sentence1": "a", "sentence2": "b"}', "label must be 0 or 1, as rte has them, not None"),
        ('{"sentence1": "a", "sentence2": "b", "label": 2}', "label must be 0 or 1, as rte has them, not 2"),
        ('{"sentence1": "a", "sentence2": "b", "label": -1}', "label must be 0 or 1, as rte has them, not -1"),
        (
            '{"sentence1": "a", "sentence2": "b", "label": "entailment"}',
            "label must be 0 or 1, as rte has them, not 'entailment'",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, complaint):
    file = tmp_path / "rte.train.jsonl"
    file.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(UserError) as error:
        read_examples(file, FINETUNE_TASKS["rte"])
    assert str(error.value).startswith(f"{file}:3: ")
    assert complaint in str(error.value)


@pytest.mark.parametrize(("content", "complaint"), [(b"", "no rows"), (b"\xff\n", r"not UTF-8 text \(byte 0\)")])
def test_a_file_without_rows_or_of_another_kind_is_refused(tmp_path, content, complaint):
    file = tmp_path / "rte.train.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file}: {complaint}"):
        read_examples(file, FINETUNE_TASKS["rte"])


def names(found):
    return [files.task.name for files in found]


@pytest.mark.parametrize("below", ["", "glue_filtered", "full_eval/glue_filtered"])
def test_all_tasks_of_a_folder_are_found_in_the_order_of_the_suite(tmp_path, below):
    for task in ("mrpc", "rte", "mnli"):
        write_task(tmp_path / below, task)
    found = find_tasks(tmp_path)
    assert names(found) == ["mnli", "rte", "mrpc"]
    assert found[1].train == tmp_path / below / "rte.train.jsonl"
    assert names(find_tasks(tmp_path, ["mrpc", "rte", "rte"])) == ["rte", "mrpc"]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_one_file_stands_for_its_task(tmp_path, split):
    write_task(write_task(tmp_path, "rte"), "mrpc")
    assert names(find_tasks(tmp_path / f"rte.{split}.jsonl")) == ["rte"]


@pytest.mark.parametrize(
    ("data", "tasks", "complaint"),
    [
        ("nowhere", [], "nowhere: no such file or folder"),
        ("other", [], "other: no task here; expected files named like rte.train.jsonl"),
        ("other/text.jsonl", [], "text.jsonl: no task here"),
        (".", ["rta"], "--task rta: no such task .did you mean 'rte'.."),
        (".", ["wsc"], "wsc.train.jsonl: no such file; the task wsc needs wsc.train.jsonl and wsc.valid.jsonl"),
        ("half", [], "rte.valid.jsonl: no such file; the task rte needs"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, data, tasks, complaint):
    write_task(tmp_path)
    for folder in ("other", "half"):
        (tmp_path / folder).mkdir()
    write_rows(tmp_path / "other" / "text.jsonl", separable_rows(1))
    write_rows(tmp_path / "half" / "rte.train.jsonl", separable_rows(1))
    with pytest.raises(UserError, match=complaint):
        find_tasks(tmp_path / data, tasks)


def test_the_published_settings_of_every_task():
    """Learning rate 3e-5; 32 rows, but 16 for boolq and multirc; 10 epochs, but 30 for wsc; 512 tokens."""
    found = {name: settings_of(FINETUNE_TASKS[name]) for name in ROWS}
    assert {(s.lr, s.seq_len, s.weight_decay, s.warmup, s.final_factor) for s in found.values()} == {
        (3e-5, 512, 0.01, 0.06, 0.1)
    }
    rows = {name: settings.batch_rows for name, settings in found.items()}
    assert rows == {"boolq": 16, "multirc": 16} | dict.fromkeys(["mnli", "rte", "mrpc", "qqp", "wsc"], 32)
    epochs = {name: settings.epochs for name, settings in found.items()}
    assert epochs == {"wsc": 30} | dict.fromkeys(["boolq", "multirc", "mnli", "rte", "mrpc", "qqp"], 10)
    assert {name for name, task in FINETUNE_TASKS.items() if task.selects == "f1"} == {"mrpc", "qqp"}
    assert {settings.pooling for settings in found.values()} == {"last"}
    assert {settings_of(FINETUNE_TASKS[name], protocol="2025").pooling for name in ROWS} == {"first"}


def test_a_given_setting_wins_over_the_published_one_of_the_task():
    settings = settings_of(FINETUNE_TASKS["wsc"], ["epochs=2", "lr=1e-4", "clip=1", "lr=2e-4"])
    assert (settings.epochs, settings.lr, settings.clip, settings.batch_rows) == (2, 2e-4, 1.0, 32)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            "epoch=3",
            "finetune.epoch: no such setting .did you mean 'epochs'..\n  set on the command line: --set epoch=3",
        ),
        ("epochs=0", r"finetune.epochs: .*greater than or equal to 1 \(got 0\)"),
        ("lr", "expected key.path=value"),
        ("dropout=1", "finetune.dropout: .*less than 1"),
    ],
)
def test_a_wrong_setting_is_explained(given, complaint):
    with pytest.raises(UserError, match=complaint):
        settings_of(FINETUNE_TASKS["rte"], [given])


@pytest.mark.parametrize(
    ("task", "train", "valid", "ones"), [("rte", 2490, 139, 1241), ("mrpc", 3668, 204, 2474), ("wsc", 554, 52, 259)]
)
def test_the_real_files_are_read_whole(task, train, valid, ones):
    (files,) = find_tasks(real_data("babylm_eval_2025"), [task])
    examples = [read_examples(file, files.task) for file in (files.train, files.valid)]
    assert [len(split) for split in examples] == [train, valid]
    assert sum(example.label for example in examples[0]) == ones
    rows = encode(examples[1], small_tokenizer(), 512)
    assert len(rows) == valid
    assert max(map(len, rows.ids)) <= 512


pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)


def test_a_table_worked_by_hand():
    """3 true positives, 1 false positive, 2 false negatives, 4 true negatives."""
    labels = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    predictions = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    found = scores(labels, predictions, 2)
    assert found == pytest.approx(
        {"accuracy": 0.7, "f1": 2 * 0.75 * 0.6 / 1.35, "mcc": (12 - 2) / (4 * 5 * 5 * 6) ** 0.5}
    )


@given(pairs)
def test_mcc_is_pearsons_correlation_and_f1_the_harmonic_mean(pairs):
    labels, predictions = (list(column) for column in zip(*pairs, strict=True))
    found = scores(labels, predictions, 2)
    label_N, predicted_N = np.array(labels), np.array(predictions)
    assert found["accuracy"] == np.mean(label_N == predicted_N)
    if label_N.std() and predicted_N.std():
        assert found["mcc"] == pytest.approx(np.corrcoef(label_N, predicted_N)[0, 1])
    else:
        assert found["mcc"] == 0
    hits = np.sum(label_N & predicted_N)
    if hits:
        precision, recall = hits / predicted_N.sum(), hits / label_N.sum()
        assert found["f1"] == pytest.approx(2 / (1 / precision + 1 / recall))
    else:
        assert found["f1"] == 0


def test_three_classes_have_an_accuracy_only():
    assert scores([0, 1, 2, 2], [0, 2, 2, 2], 3) == {"accuracy": 0.75}


# The multilingual track.


def test_the_published_settings_of_the_multilingual_track():
    settings = settings_of(FINETUNE_TASKS["arc_nl"])
    assert (settings.lr, settings.batch_rows, settings.epochs, settings.seq_len) == (5e-5, 64, 10, 128)
    assert (settings.schedule, settings.warmup, settings.weight_decay, settings.clip) == ("linear", 0, 0, 1)
    assert (settings.patience, settings.keep, settings.pooling) == (3, "last", "first")
    assert FINETUNE_TASKS["arc_nl"].seed == 12


@pytest.mark.parametrize("below", ["", "classification", "multilingual"])
def test_multilingual_tasks_are_found_in_folders_of_languages(tmp_path, below):
    for language, task in (("nl", "sib200"), ("en", "mnli")):
        folder = tmp_path / below / language / task
        folder.mkdir(parents=True)
        for split in ("train", "valid"):
            write_rows(folder / f"{task}_{language}.{split}.jsonl", [{"sentence": "A.", "label": "x"}])
    assert names(find_tasks(tmp_path)) == ["mnli_en", "sib200_nl"]
    assert names(find_tasks(tmp_path, ["sib200_nl"])) == ["sib200_nl"]
    assert names(find_tasks(tmp_path / below / "nl")) == ["sib200_nl"]
    assert names(find_tasks(tmp_path / below / "nl" / "sib200")) == ["sib200_nl"]
    assert names(find_tasks(tmp_path / below / "nl" / "sib200" / "sib200_nl.valid.jsonl")) == ["sib200_nl"]


def test_classes_are_the_sorted_labels_of_the_training_file(tmp_path):
    task = FINETUNE_TASKS["sib200_zh"]
    train = write_rows(
        tmp_path / "sib200_zh.train.jsonl",
        [{"sentence": f"{i}", "label": label} for i, label in enumerate(["travel", "health", "travel", "sports"])],
    )
    classes = classes_of(train, task)
    assert classes == ("health", "sports", "travel")
    assert read_examples(train, task, classes) == [
        Example("0", None, 2),
        Example("1", None, 0),
        Example("2", None, 2),
        Example("3", None, 1),
    ]
    valid = write_rows(tmp_path / "sib200_zh.valid.jsonl", [{"sentence": "a", "label": "politics"}])
    with pytest.raises(UserError, match=r"valid\.jsonl:1: label must be health or sports or travel, .* not 'politics'"):
        read_examples(valid, task, classes)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"sentence": "a", "label": "x"}, {"sentence": "b"}], r"jsonl:2: label must be text, not None"),
        ([{"sentence": "a", "label": "x"}] * 2, "all rows have the label 'x'; a classifier needs two classes"),
        ([{"sentence": "a", "label": True}], "jsonl:1: label must be text"),
    ],
)
def test_labels_that_are_no_classes_are_the_users_error(tmp_path, rows, complaint):
    with pytest.raises(UserError, match=complaint):
        classes_of(write_rows(tmp_path / "arc_en.train.jsonl", rows), FINETUNE_TASKS["arc_en"])


@pytest.mark.parametrize(("task", "train", "valid", "classes"), [("sib200", 803, 201, 7), ("arc", 1927, 482, 5)])
@pytest.mark.parametrize("language", ["en", "nl", "zh"])
def test_the_multilingual_files_are_read_whole(task, language, train, valid, classes):
    (files,) = find_tasks(real_data(), [f"{task}_{language}"])
    labels = classes_of(files.train, files.task)
    examples = [read_examples(file, files.task, labels) for file in (files.train, files.valid)]
    assert [len(split) for split in examples] == [train, valid]
    assert len(labels) == classes
