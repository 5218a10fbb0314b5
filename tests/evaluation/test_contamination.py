"""Evaluation texts that occur in the training text are found, counted and listed; nothing else is."""

import csv
import gzip
import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import documents, real_data, small_tokenizer, write_text
from support.results import write_result

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data import word_sequences
from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.readers import Piece, read_pieces
from ltg_mdlm.data.sources import find_sources
from ltg_mdlm.data.word_sequences import WordSequences
from ltg_mdlm.data.words import terms_of
from ltg_mdlm.evaluation import contamination as decoded
from ltg_mdlm.evaluation.contamination import decoded_pieces, find_contamination
from ltg_mdlm.evaluation.contamination_report import effect_on, questions_asked, results_on, summary, worst
from ltg_mdlm.evaluation.task_texts import read_task_texts

WORDS = st.sampled_from("abcd")
SEQUENCES = st.lists(st.lists(WORDS, min_size=1, max_size=7), min_size=1, max_size=20)
DOCUMENTS = st.lists(st.lists(st.lists(WORDS, max_size=8), min_size=1, max_size=3), max_size=6)


def searched(sequences, pieces):
    """(found, words read)"""
    length_S = np.array([len(words) for words in sequences])
    flat = [word for words in sequences for word in words]
    search = WordSequences(flat, np.cumsum(length_S) - length_S, length_S)
    return search.found_in(pieces).tolist(), search.words_read


def words_by_document(pieces):
    found = []
    for piece in pieces:
        if piece.opens_document:
            found.append([])
        found[-1] += terms_of(piece.text)
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't!", ["don", "t"]),
        ("A: What?\nB: It's 1984…", ["a", "what", "b", "it", "s", "1984"]),
        ("well-known_fact (e.g. naïve Ω)", ["well", "known", "fact", "e", "g", "naïve", "ω"]),
        ("\ufb01ne nai\u0308ve ①", ["fine", "naïve", "1"]),
        (" \n–", []),
    ],
)
def test_words_are_runs_of_letters_and_digits(text, words):
    assert terms_of(text) == words


@given(SEQUENCES, DOCUMENTS, st.integers(1, 30))
def test_exactly_the_sequences_within_a_document_are_found(sequences, text, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_sequences, "_WORDS_PER_PART", at_once)
        pieces = [Piece(" ".join(part) + " ", i == 0) for parts in text for i, part in enumerate(parts)]
        found, words_read = searched(sequences, pieces)
    whole = [list(chain.from_iterable(parts)) for parts in text]
    expected = [any(words[i : i + len(s)] == s for words in whole for i in range(len(words))) for s in sequences]
    assert found == expected
    assert words_read == sum(map(len, whole))


@pytest.mark.parametrize("cut", range(1, 6))
def test_the_longest_sequence_is_found_across_parts(monkeypatch, cut):
    monkeypatch.setattr(word_sequences, "_WORDS_PER_PART", 1)
    words = list("xabcde")
    pieces = [Piece(" ".join(words[:cut]), True), Piece(" ".join(words[cut:]), False)]
    assert searched([list("abcde"), list("abced")], pieces)[0] == [True, False]


def test_words_that_are_in_no_sequence_stand_between_the_others():
    assert searched([["a", "b"], ["c"]], [Piece("a x b c", True)]) == ([False, True], 4)


@pytest.mark.parametrize("at_once", [1, 3, 50, 1 << 18])
def test_decoded_documents_have_the_terms_of_their_text(monkeypatch, at_once):
    monkeypatch.setattr(decoded, "_TOKENS_PER_PART", at_once)
    texts = documents(30)
    split = Split.of([np.array(small_tokenizer().encode(text)) for text in texts], small_tokenizer())
    assert words_by_document(decoded_pieces(split, small_tokenizer())) == [terms_of(text) for text in texts]


def test_pieces_of_a_decoded_document_follow_each_other(monkeypatch):
    text = documents(1)[0]
    split = Split.of([np.array(small_tokenizer().encode(text))], small_tokenizer())
    (whole,) = decoded_pieces(split, small_tokenizer())
    monkeypatch.setattr(decoded, "_TOKENS_PER_PART", 5)
    pieces = list(decoded_pieces(split, small_tokenizer()))
    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.opens_document for piece in pieces] == [True] + [False] * (len(pieces) - 1)


def test_a_prepared_corpus_has_the_terms_of_its_files(tmp_path):
    text = real_data("babylm_2024_merged", "train_100k", "childes.train")
    small_tokenizer().save(tmp_path / "tokenizer.json")
    prepare_corpus([text], tmp_path / "corpus", tokenizer=tmp_path / "tokenizer.json", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    expected = words_by_document(piece for source in find_sources([text]) for piece in read_pieces(source))
    assert words_by_document(decoded_pieces(corpus.train, corpus.tokenizer)) == expected


TRAINING = "The dogs run home, and the cats sleep.\nShe saw it."
PAIRS = [
    ("The dogs run home.", "The dogs runs home."),
    ("Every one of the cats sleep now.", "Every one of the cats sleeps now."),
    ("She saw it", "She it saw"),
    ("Nobody knows.", "Nobody know."),
]
TASKS = {
    "blimp/x.jsonl": {"sentence_good": "g", "sentence_bad": "b", "UID": "u", "field": "f", "linguistics_term": "t"},
    "ewok/x.jsonl": {"Context1": "c", "Context2": "d", "Target1": "t", "Target2": "u", "Domain": "n"},
    "entity/x.jsonl": {"input_prefix": "p", "options": ["o", "q"], "numops": 1, "sample_id": "s"},
    "comps/x.jsonl": {"prefix_acceptable": "a", "prefix_unacceptable": "b", "property_phrase": "can fly"},
    "piqa/x.jsonl": {"prompt": "p", "solution0": "s", "solution1": "t", "label": 0, "example_id": "e"},
    "wug/x.jsonl": {"sentences": "s\tt", "ratio": 0.5},
    "rte/x.jsonl": {"sentence1": "s", "sentence2": "t", "label": 1, "idx": 0},
    "multirc/x.jsonl": {"paragraph": "p", "question": "q", "answer": "a", "label": 0},
}


def write_pairs(path, pairs=PAIRS):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"sentence_good": good, "sentence_bad": bad} for good, bad in pairs)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found_in(path, text=TRAINING, n=3):
    return find_contamination(read_task_texts(path), [Piece(text, True)], n)


def test_texts_of_all_tasks_are_found(tmp_path):
    for name, row in TASKS.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    (tmp_path / "reading.csv").write_text("item,word,sentence\nShe,saw,She saw it.\nShe saw,it,She saw it.\n")
    (tmp_path / "aoa").mkdir()
    (tmp_path / "aoa" / "contexts.json").write_text(json.dumps({"dog": [{"context": "a"}, {"context": "the"}]}))
    (tmp_path / "aoa" / "human.csv").write_text("word,16,17\ndog,0.1,0.2\n")
    found = read_task_texts(tmp_path)
    texts = {}
    for text in found.texts:
        texts.setdefault((text.data, text.field), []).append(text.text)
    assert texts == {
        ("aoa", "context"): ["a", "the"],
        ("blimp", "sentence_good"): ["g"],
        ("blimp", "sentence_bad"): ["b"],
        ("comps", "prefix_acceptable+property_phrase"): ["a can fly"],
        ("comps", "prefix_unacceptable+property_phrase"): ["b can fly"],
        ("entity", "input_prefix"): ["p"],
        ("entity", "options"): ["o", "q"],
        ("ewok", "Context1"): ["c"],
        ("ewok", "Context2"): ["d"],
        ("ewok", "Target1"): ["t"],
        ("ewok", "Target2"): ["u"],
        ("multirc", "question"): ["q"],
        ("multirc", "paragraph"): ["p"],
        ("multirc", "answer"): ["a"],
        ("piqa", "prompt"): ["p"],
        ("piqa", "solution0"): ["s"],
        ("piqa", "solution1"): ["t"],
        (tmp_path.name, "sentence"): ["She saw it.", "She saw it."],
        ("rte", "sentence1"): ["s"],
        ("rte", "sentence2"): ["t"],
        ("wug", "sentences"): ["s", "t"],
    }
    assert found.questions == dict.fromkeys(texts_by_data(texts), 1) | {tmp_path.name: 2, "aoa": 2}
    assert found.skipped == [tmp_path / "aoa" / "human.csv"]


def texts_by_data(texts):
    return [data for data, _ in texts]


def test_other_fields_can_be_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a b", "text": "c"}\n')
    assert [text.text for text in read_task_texts(tmp_path, ["prompt"]).texts] == ["a b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": 3}\n', r"x.jsonl:2: text must be text, as in the file's first row, not 3"),
        ("x.jsonl", '{"text": "a"}\n{\n', r"x.jsonl:2: not JSON"),
        ("x.jsonl", '{"label": 1}\n', r"no text of evaluation tasks .* looked for sentence_good"),
        ("x.csv", "sentence,word\na\n", r"x.csv:2: the row and the header have different lengths"),
        ("x.json", "[]", r"x.json:1: expected a JSON object"),
        ("x.txt", "text", r"no text of evaluation tasks"),
    ],
)
def test_data_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_task_texts(tmp_path)


def test_missing_data_and_empty_texts_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file"):
        read_task_texts(tmp_path / "nowhere")
    with pytest.raises(UserError, match="have no words"):
        found_in(write_pairs(tmp_path / "x.jsonl", [("?", "!")]))
    with pytest.raises(UserError, match="the training corpus has no words"):
        found_in(write_pairs(tmp_path / "x.jsonl"), text="...")


def test_shared_ngrams_and_whole_texts_are_counted(tmp_path):
    """By hand: of the good ones, the first and the third stand there as a whole, and three words of the second do."""
    contamination = found_in(write_pairs(tmp_path / "pairs.jsonl"))
    overlaps = [contamination.overlaps[good] for good, _ in PAIRS]
    assert [(o.words, o.ngrams, o.shared, o.verbatim) for o in overlaps] == [
        (4, 2, 2, True),
        (7, 5, 1, False),
        (3, 1, 1, True),
        (2, 0, 0, False),
    ]
    assert [o.example for o in overlaps] == ["the dogs run", "the cats sleep", "she saw it", ""]
    good, bad, questions = summary(contamination)
    assert good == {
        "data": "pairs",
        "field": "sentence_good",
        "texts": 4,
        "shorter": 1,
        "shared": 3,
        "shared_share": 0.75,
        "verbatim": 2,
        "verbatim_share": 0.5,
    }
    assert (bad["field"], bad["shared"], bad["verbatim"]) == ("sentence_bad", 0, 0)
    assert (questions["field"], questions["texts"], questions["shared"]) == ("(any)", 4, 3)
    assert contamination.contaminated("pairs") == {0, 1, 2}
    assert contamination.corpus_words == 11


def test_a_short_text_counts_if_it_stands_there_as_a_whole(tmp_path):
    contamination = found_in(write_pairs(tmp_path / "x.jsonl", [("It", "cats sleep")]), n=8)
    assert [row["verbatim"] for row in summary(contamination)] == [1, 1, 1]
    assert [row["shorter"] for row in summary(contamination)] == [1, 1, 1]
    assert contamination.contaminated("x") == {0}


def test_equal_texts_count_once_but_each_of_their_questions_does(tmp_path):
    (tmp_path / "x.csv").write_text("word,sentence\na,She saw it.\nb,She saw it.\n")
    texts, questions = summary(found_in(tmp_path / "x.csv"))
    assert (texts["texts"], texts["verbatim"], questions["texts"], questions["verbatim"]) == (1, 1, 2, 2)


def test_the_worst_come_first(tmp_path):
    listed = list(worst(found_in(write_pairs(tmp_path / "x.jsonl"))))
    assert [row["text"] for row in listed] == ["The dogs run home.", "She saw it", "Every one of the cats sleep now."]
    assert listed[0]["where"] == f"{tmp_path / 'x.jsonl'}:1"
    assert listed[0]["verbatim"]


def test_accuracy_is_compared_within_uids(tmp_path):
    """Two uids: contaminated are the first question of the one, right, whose clean one is wrong, and the other uid."""
    write_pairs(tmp_path / "data" / "blimp_fast" / "x.jsonl", [PAIRS[0], PAIRS[3], PAIRS[2]])
    write_result(tmp_path / "results", "m", {"x": [1, 0], "y": [0]})
    contamination = found_in(tmp_path / "data")
    ((data, answers),) = results_on(contamination.found, [tmp_path / "results"])
    effect = effect_on(data, answers, contamination)
    assert (effect.clean, effect.contaminated) == (1, 2)
    assert (effect.clean_accuracy, effect.contaminated_accuracy, effect.difference) == (0, 0.5, 1)


@pytest.mark.parametrize(("protocol", "asked"), [("2026", [0, 2]), ("2025", [0, 1, 2])])
def test_rows_that_a_protocol_leaves_out_are_no_questions(tmp_path, protocol, asked):
    rows = [{"input_prefix": f"Box {p}", "options": ["a", "nothing" if p == "q" else "b"]} for p in "pqr"]
    (tmp_path / "entity_tracking").mkdir()
    file = tmp_path / "entity_tracking" / "regular.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_task_texts(tmp_path, fields=["input_prefix"])
    contamination = find_contamination(found, [Piece("So Box r is full.", True)], 2)
    settings = {"task": "entity_tracking", "data": "entity_tracking", "protocol": protocol}
    write_result(tmp_path / "results", "m", {"u": [1, 0, 0.5][: len(asked)]}, **settings)
    ((data, answers),) = results_on(contamination.found, [tmp_path / "results"])
    assert questions_asked(contamination.found, data, answers) == asked
    effect = effect_on(data, answers, contamination)
    assert (effect.clean, effect.contaminated) == (len(asked) - 1, 1)
    assert effect.contaminated_accuracy == [1, 0, 0.5][len(asked) - 1]


def test_results_of_other_data_say_nothing_and_of_other_rows_are_refused(tmp_path):
    write_pairs(tmp_path / "data" / "blimp_fast" / "x.jsonl")
    found = read_task_texts(tmp_path / "data")
    write_result(tmp_path / "results", "m", {"x": [1, 0]}, data="ewok")
    assert results_on(found, [tmp_path / "results"]) == []
    tuned = write_result(tmp_path / "results", "m", {"x": [1, 0]}, task="rte", seeds=[42])  # as fine-tuning: no score
    about = json.loads((tuned / "summary.json").read_text())
    del about["score"]
    (tuned / "summary.json").write_text(json.dumps(about))
    assert results_on(found, [tmp_path / "results"]) == []
    write_result(tmp_path / "results", "m", {"x": [1, 0]})
    with pytest.raises(UserError, match=r"blimp_fast: 2 questions, but 4 in the data blimp_fast"):
        results_on(found, [tmp_path / "results"])


@pytest.mark.parametrize("kind", ["corpus", "text", "compressed"])
def test_the_command_searches_a_corpus_or_text_files(tmp_path, run, kind):
    data = write_pairs(tmp_path / "data" / "blimp_fast" / "x.jsonl")
    text = write_text(tmp_path / "a.train", [TRAINING, "nothing else"])
    source = ["--text", str(text)]
    if kind == "corpus":
        small_tokenizer().save(tmp_path / "tokenizer.json")
        prepare_corpus([text], tmp_path / "c", tokenizer=tmp_path / "tokenizer.json", workers=1, progress=False)
        source = ["--corpus", str(tmp_path / "c")]
    elif kind == "compressed":
        (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.read_bytes()))
        source = ["--text", str(tmp_path / "b.txt.gz")]
    write_result(tmp_path / "results", "m", {"x": [1, 0, 1, 1]})
    files = ["--list", str(tmp_path / "worst.jsonl"), "--csv", str(tmp_path / "t.csv")]
    arguments = ["eval", "contamination", "--data", str(data.parents[1]), *source, "--ngram", "3"]
    code, out, err = run(*arguments, *files, "--results", str(tmp_path / "results"))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["blimp_fast", "sentence_good", "4", "1", "3", "75.00%", "2", "50.00%"],
        ["blimp_fast", "sentence_bad", "4", "1", "0", "0.00%", "0", "0.00%"],
        ["blimp_fast", "(any)", "4", "1", "3", "75.00%", "2", "50.00%"],
    ]
    assert lines[5].startswith("13 words of training text searched for n-grams of 3 terms")
    assert lines[-1].split() == ["m", "main", "pll", "blimp_fast", "1", "3", "100.00%", "66.67%", "-33.33%"]
    assert len((tmp_path / "worst.jsonl").read_text().splitlines()) == 3
    found = json.loads(run(*arguments, "--json")[1])
    assert (found["n"], found["corpus_words"], found["effects"]) == (3, 13, [])
    with (tmp_path / "t.csv").open() as file:
        assert list(csv.DictReader(file)) == [{k: str(v) for k, v in row.items()} for row in found["texts"]]


def test_the_command_needs_training_text_and_a_place_for_its_list(tmp_path, run):
    data = write_pairs(tmp_path / "x.jsonl")
    code, _, err = run("eval", "contamination", "--data", str(data))
    assert (code, err) == (
        2,
        "error: no training text: give the corpus folder with --corpus, or text files with --text\n",
    )
    text = write_text(tmp_path / "a.train", [TRAINING])
    nowhere = str(tmp_path / "nowhere" / "list.jsonl")
    code, _, err = run("eval", "contamination", "--data", str(data), "--text", str(text), "--list", nowhere)
    assert (code, err) == (2, f"error: {nowhere} cannot be written: No such file or directory\n")


def test_no_real_minimal_pair_stands_in_a_small_real_corpus(tmp_path):
    """100,000 words hold no whole sentence of BLiMP, and hold every 3-gram that they should."""
    pairs = real_data("babylm_eval_2025", "fast_eval", "blimp_fast", "wh_island.jsonl")
    text = real_data("babylm_2024_merged", "train_100k", "gutenberg.train").read_text("utf-8")
    clean = found_in(pairs, text, n=5)
    assert not any(overlap.verbatim for overlap in clean.overlaps.values())
    first = next(iter(clean.overlaps))
    assert found_in(pairs, f"{text}\n{first}", n=5).overlaps[first].verbatim
