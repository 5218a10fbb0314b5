"""`prepare`, `corpus show` and what `check` says about words."""

import json

import numpy as np
import pytest
from support.corpora import documents, small_tokenizer, write_text

from ltg_mdlm.cli.corpus_commands import size_of
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.synthetic.builtin import MINIMAL_PAIRS, builtin_corpus
from ltg_mdlm.training.check import SourceUse, budget_warnings, track_of


@pytest.fixture
def corpus(run, tmp_path):
    """A corpus of two sources, one of which repeats a document, counted in characters."""
    small_tokenizer().save(tmp_path / "tokenizer.json")
    write_text(tmp_path / "a.train", documents(20))
    write_text(tmp_path / "b.train", [*documents(9, seed=1), documents(9, seed=1)[3]])
    options = ("--tokenizer", str(tmp_path / "tokenizer.json"), "--words", "characters", "--out", str(tmp_path / "c"))
    code, _, err = run("prepare", str(tmp_path / "a.train"), str(tmp_path / "b.train"), *options)
    assert code == 0, err
    return tmp_path / "c"


def test_show_counts_what_each_source_holds(run, corpus):
    code, out, _ = run("corpus", "show", str(corpus), "--json")
    shown = json.loads(out)
    assert (code, shown["words"]) == (0, "characters")
    for source, texts in zip(shown["sources"], (documents(20), documents(9, seed=1)), strict=True):
        texts = [*texts, texts[3]] if source["source"] == "b" else texts
        tokens = [len(small_tokenizer().encode(text)) for text in texts]
        assert source["documents"] == len(texts)
        assert source["words"] == sum(len("".join(text.split())) for text in texts)
        assert source["tokens"] == sum(tokens)
        assert source["bytes"] == sum(
            len(small_tokenizer().decode(small_tokenizer().encode(t)).encode()) for t in texts
        )
        assert source["length_quantiles"]["0.5"] == np.median(tokens)
        assert source["unknown_share"] == 0
    assert [source["duplicate_share"] for source in shown["sources"]] == [0, 0.1]


def test_show_prints_a_table_and_draws_a_picture(run, corpus, tmp_path):
    pytest.importorskip("matplotlib")
    picture, table = tmp_path / "c.png", tmp_path / "c.csv"
    code, out, err = run("corpus", "show", str(corpus), "--out", str(picture), "--csv", str(table))
    assert (code, err) == (0, "")
    assert "words counted by characters" in out
    assert [line.split()[0] for line in out.splitlines()[-4:]] == ["source", "a", "b", "all"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(table.read_text().splitlines()) == 3
    code, _, err = run("corpus", "show", str(corpus), "--split", "valid")
    assert (code, err) == (2, f"error: {corpus}: has no validation split\n")


def test_check_states_the_unit_of_the_corpus_and_refuses_another(run, corpus):
    code, out, _ = run("check", "--set", f"data.corpus={corpus}", "--json")
    report = json.loads(out)
    assert (code, report["word_unit"], report["config"]["data"]["words"]) == (0, "characters", "characters")
    assert report["babylm_track"] == "strict-small"
    code, _, err = run("check", "--set", f"data.corpus={corpus}", "--set", "data.words=jieba")
    assert code == 2
    assert "data.words: jieba, but the corpus" in err
    assert "prepare it again with --words jieba" in err


def test_the_limits_of_the_challenge_depend_on_the_size_of_the_text():
    assert [track_of(words) for words in (10**7, 10**7 + 1, 10**8, 10**8 + 1)] == [
        *("strict-small", "strict", "strict"),
        None,
    ]
    assert budget_warnings(10.0, 10**8, 10**7, {}) == []
    (text,) = budget_warnings(9.0, 10**9, 10**9, {})
    assert text.startswith("1000.0M words of training text: BabyLM submissions may have 10M (strict-small) or 100M")
    (text,) = budget_warnings(10.0, 2 * 10**8, 10**7, {"a": SourceUse(10**7, 2 * 10**7)})
    assert text == "200.0M words seen: BabyLM submissions to strict-small may see 100M"


@pytest.mark.parametrize(("text", "size"), [("10M", 10**7), ("1.5k", 1500), ("250000", 250_000)])
def test_sizes_are_numbers_with_a_letter(text, size):
    assert size_of(text) == size
    for wrong in ("ten", "0M", "-1", "1G", "9" * 400):
        with pytest.raises(UserError, match=f"--budget {wrong}: not a number of words"):
            size_of(wrong)


def test_a_language_without_a_budget_is_refused(run, tmp_path):
    code, _, err = run("prepare", "x.txt", "--out", str(tmp_path / "c"), "--language", "zho")
    assert (code, err) == (2, "error: --language adjusts a budget\n  add --budget WORDS\n")


def test_decontaminate_leaves_out_documents_with_evaluation_text(run, tmp_path):
    texts = documents(30)
    sentence = texts[4].replace("\n", " ")
    (tmp_path / "eval.jsonl").write_text(json.dumps({"sentence_good": sentence, "sentence_bad": "x"}) + "\n")
    text = write_text(tmp_path / "a.txt", texts)
    options = ("--decontaminate", str(tmp_path / "eval.jsonl"), "--ngram", "8", "--vocab-size", "300")
    code, out, err = run("prepare", str(text), "--out", str(tmp_path / "c"), *options)
    assert code == 0, err
    assert "left out, evaluation data: 1 documents" in out
    assert (tmp_path / "c" / "evaluation_data.tsv").read_text().splitlines()[1].startswith("5\t")


def test_builtin_writes_the_text_of_the_corpus_that_the_default_config_trains_on(run, tmp_path):
    folder = tmp_path / "text"
    options = ("corpus", "builtin", "--out", str(folder), "--words", "2000", "--zipf-exponent", "0.5", "--seed", "3")
    code, out, err = run(*options)
    assert (code, out.split()) == (0, [str(folder / name) for name in ("train.txt", "valid.txt", MINIMAL_PAIRS)]), err
    corpus = builtin_corpus(tmp_path / "cache", words=2000, zipf_exponent=0.5, vocab_size=300, seed=3)
    for file in folder.iterdir():
        same = corpus.path / ("" if file.name == MINIMAL_PAIRS else "text") / file.name
        assert file.read_bytes() == same.read_bytes()
    code, _, err = run(*options)
    assert (code, err) == (2, f"error: {folder} exists\n  give another folder with --out, or delete this one\n")
