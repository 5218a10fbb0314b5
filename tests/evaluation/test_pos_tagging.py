"""Part-of-speech tagging: treebanks, the published splits, words of several tokens, and the official files."""

import json

import numpy as np
import pytest
import torch
from support.corpora import small_tokenizer
from support.finetuning import trained_model
from support.treebanks import WORDS, line, write_treebanks

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import BOS
from ltg_mdlm.evaluation.finetune_suite import finetune_suite
from ltg_mdlm.evaluation.finetune_tasks import FINETUNE_TASKS, TREEBANKS, UNIVERSAL_TAGS, find_tasks
from ltg_mdlm.evaluation.finetune_training import WordTagger, micro_batches
from ltg_mdlm.evaluation.pos_tagging import (
    Sentence,
    encode_sentences,
    encode_treebanks,
    macro_f1,
    read_treebank,
    shuffled,
    split,
)


def test_multiword_tokens_and_empty_nodes_are_words_as_in_the_published_dataset(tmp_path):
    file = tmp_path / "t.conllu"
    rows = [line("1-2", "don't", "_"), line(1, "do", "AUX"), line(2, "n't", "PART"), line("2.1", "go", "VERB")]
    file.write_text("\n".join(["# text = don't", *rows, "", "", line(1, "x", "X")]), "utf-8")
    first, second = read_treebank(file)
    assert first.words == ("don't", "do", "n't", "go")
    assert [UNIVERSAL_TAGS[tag] for tag in first.tags] == ["_", "AUX", "PART", "VERB"]
    assert second.words == ("x",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (line(1, "a", "DET") + "\n2 dog", r"conllu:2: 1 columns; CoNLL-U has 10, separated by tabs"),
        (line(1, "a", "ART"), r"conllu:1: unknown part of speech 'ART'"),
        ("# nothing\n", r"conllu: no sentences; expected CoNLL-U"),
    ],
)
def test_what_is_not_a_treebank_is_the_users_error(tmp_path, content, complaint):
    file = tmp_path / "t.conllu"
    file.write_text(content, "utf-8")
    with pytest.raises(UserError, match=complaint):
        read_treebank(file)


# Made with datasets 5.2.0: numbered = Dataset.from_dict({"i": range(23)}).shuffle(seed=42), then
# first = numbered.train_test_split(test_size=0.2, seed=42), first["test"].train_test_split(test_size=0.5, seed=42).
SHUFFLED = [18, 10, 17, 22, 16, 15, 7, 6, 9, 3, 0, 19, 12, 5, 11, 14, 21, 2, 4, 20, 1, 13, 8]
VALID, TEST = [0, 4], [21, 2, 8]


def test_splits_are_those_of_the_datasets_library():
    sentences = [Sentence((str(i),), (0,)) for i in range(23)]
    assert [int(sentence.words[0]) for sentence in shuffled(sentences)] == SHUFFLED
    train, valid, test = ([int(sentence.words[0]) for sentence in part] for part in split(sentences))
    assert (valid, test) == (VALID, TEST)
    assert sorted(train + valid + test) == list(range(23))
    assert [len(part) for part in split([sentences[0]] * 5000)] == [3200, 400, 400]


def test_a_word_is_tokenised_alone_and_cut_words_keep_their_first_tokens():
    tokenizer = small_tokenizer()
    sentence = Sentence(("the", "unbelievable", "dog"), (5, 0, 7))
    pieces = [tokenizer.backend.encode(word, add_special_tokens=False).ids for word in sentence.words]
    assert len(pieces[1]) > 2
    whole = encode_sentences([sentence], tokenizer, 128)
    assert whole.ids == [[BOS, *pieces[0], *pieces[1], *pieces[2]]]
    assert whole.word_tokens == [[len(piece) for piece in pieces]]
    assert whole.labels == [5, 0, 7]
    cut = encode_sentences([sentence], tokenizer, 1 + len(pieces[0]) + 2)
    assert cut.word_tokens == [[len(pieces[0]), 2]]
    assert (cut.labels, cut.truncated) == ([5, 0], 1)


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_logits_are_those_of_the_mean_state_of_every_words_tokens(pooling):
    trained = trained_model(cond_dim=None)
    sentences = [Sentence(("the", "unbelievable", "dog"), (5, 0, 7)), Sentence(("dog",), (7,))]
    rows = encode_sentences(sentences, trained.tokenizer, 128)
    tagger = WordTagger(trained.model, 18, 0.0).eval()
    (batch,) = micro_batches(rows, [0, 1], 10_000, torch.device("cpu"), pooling)
    logits = dict(zip(batch.item_N.tolist(), tagger(*batch[:2], None, batch.tokens_N), strict=True))
    item = 0
    for ids, counts in zip(rows.ids, rows.word_tokens, strict=True):
        hidden_TD, start = trained.model(torch.tensor([ids]))[0], 1
        for count in counts:
            expected = tagger.head[1](hidden_TD[start : start + count].mean(0))
            torch.testing.assert_close(logits[item], expected, atol=1e-5, rtol=1e-5)
            start, item = start + count, item + 1
    assert item == len(logits)


def test_every_language_gives_as_many_training_sentences(tmp_path):
    write_treebanks(tmp_path / "pos", ["en"], (60, 5, 5))
    write_treebanks(tmp_path / "pos" / "UD_Dutch-Alpino", ["nl"], (10, 5, 5))
    (files,) = find_tasks(tmp_path, ["pos"])
    data = encode_treebanks(files, small_tokenizer(), 128)
    assert len(data.train) == 2 * 16
    assert {language: (len(s.valid), len(s.test)) for language, s in data.languages.items()} == {
        "en": (7, 7),
        "nl": (2, 2),
    }
    assert len(data.valid) == len(data.test) == 9


def test_a_treebank_needs_all_its_files_and_enough_sentences(tmp_path):
    write_treebanks(tmp_path, ["nl"], (1, 1, 1))
    (files,) = find_tasks(tmp_path)
    with pytest.raises(UserError, match="too few sentences of nl_alpino to split them"):
        encode_treebanks(files, small_tokenizer(), 128)
    (tmp_path / "nl_alpino-ud-dev.conllu").unlink()
    with pytest.raises(UserError, match=r"nl_alpino-ud-dev\.conllu: no such file; the task pos needs"):
        find_tasks(tmp_path)


def test_tagging_is_learnt_and_writes_the_official_files_of_every_language(tmp_path):
    data = write_treebanks(tmp_path / "pos")
    quick = ["lr=3e-3", "batch_rows=8", "epochs=4"]
    (summary,) = finetune_suite(trained_model(), data, Ranks.alone(), sets=quick, out=tmp_path / "results")
    assert summary["mean"]["accuracy"] > 0.9
    assert (summary["task"], summary["seeds"], summary["selected_by"]) == ("pos", [12], "accuracy")
    folder = tmp_path / "results/tiny/main/finetune/pos"
    for language in ("en", "nl"):
        results = json.loads((folder / language / "eval_results.json").read_text())
        items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
        assert results["eval_accuracy"] == np.mean([i["correct"] for i in items if i["uid"] == language])
        assert results["eval_samples"] == 4
        header, *lines = (folder / language / "predictions.txt").read_text().splitlines()
        assert header == "index\tpredictions"
        parts = ("train", "dev", "test")
        sentences = [s for part in parts for s in read_treebank(data / f"{TREEBANKS[language]}-ud-{part}.conllu")]
        test = split(sentences)[2]
        tags = [line.split("\t")[1].split(" ") for line in lines]
        assert [len(of_sentence) for of_sentence in tags] == [len(sentence.words) for sentence in test]
        right = [
            tag == WORDS[word]
            for s, own in zip(test, tags, strict=True)
            for word, tag in zip(s.words, own, strict=True)
        ]
        assert json.loads((folder / language / "predict_results.json").read_text())["predict_accuracy"] == np.mean(
            right
        )


def test_macro_f1_is_the_mean_over_classes_that_occur():
    # Class 0: 2 right of 3 predicted and 2 present, class 1: 1 of 1 and 2, class 4: predicted by mistake.
    assert macro_f1([0, 0, 1, 1, 3], [0, 0, 1, 0, 4]) == pytest.approx((4 / 5 + 2 / 3 + 0 + 0) / 4)


def test_the_published_settings_of_tagging():
    published = FINETUNE_TASKS["pos"].published
    assert (published["lr"], published["batch_rows"], published["patience"], published["keep"]) == (5e-5, 64, 3, "last")
