"""From text files to a corpus folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.corpora import VOCAB, documents, small_tokenizer, write_text

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data import prepare
from ltg_mdlm.data.corpus import Corpus, digest_of
from ltg_mdlm.data.encode import EncoderPool
from ltg_mdlm.data.prepare import batches, copies, prepare_corpus
from ltg_mdlm.data.readers import Piece
from ltg_mdlm.data.tokenizer import Tokenizer

TRAIN, VALID = documents(60), documents(10, seed=1)


@pytest.fixture
def texts(tmp_path) -> dict[str, Path]:
    small_tokenizer().save(tmp_path / "tokenizer.json")
    return {
        "train": write_text(tmp_path / "a.train", TRAIN),
        "valid": write_text(tmp_path / "a.dev", VALID),
        "tokenizer": tmp_path / "tokenizer.json",
        "out": tmp_path / "corpus",
    }


def make(texts: dict[str, Path], **options) -> Corpus:
    """The corpus of the texts, by default with the small tokenizer."""
    given = {"valid": [texts["valid"]], "tokenizer": texts["tokenizer"], "progress": False, **options}
    return prepare_corpus([texts["train"]], texts["out"], **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_corpus_holds_the_documents_their_words_and_counts(texts):
    corpus = make(texts)
    assert corpus.valid is not None
    for split, expected in ((corpus.train, TRAIN), (corpus.valid, VALID)):
        ids = [small_tokenizer().encode(text) for text in expected]
        flat = np.concatenate(ids)
        assert split.tokens.tolist() == flat.tolist()
        assert split.tokens.dtype == np.uint16
        assert np.diff(split.offsets).tolist() == [len(document) for document in ids]
        assert split.words.tolist() == [len(text.split()) for text in expected]
        assert split.token_count_V.tolist() == np.bincount(flat, minlength=VOCAB).tolist()
        assert split.text_bytes == sum(len(text.encode()) for text in expected)
        assert split.word_start(0, split.num_tokens).sum() == split.num_words == split.words.sum()


def test_every_source_is_recorded_with_its_hash(texts):
    data = texts["train"].read_bytes()
    (source,) = make(texts).train.sources
    assert source == {"file": "a.train", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_tokenizer_is_trained_when_none_is_given(texts):
    corpus = make(texts, tokenizer=None, vocab_size=300, valid=())
    assert corpus.valid is None
    assert corpus.vocab_size == 300
    assert corpus.tokenizer.definition == Tokenizer.train(TRAIN, 300).definition
    assert corpus.description["tokenizer"]["trained_on"] == {"bytes": corpus.train.text_bytes} | {
        "of_bytes": corpus.train.text_bytes
    }
    assert "asked for" not in corpus.describe()


def test_a_text_with_too_few_pairs_for_the_vocabulary_is_reported(texts):
    corpus = make(texts, tokenizer=None, vocab_size=50_000)
    assert f"tokenizer: {corpus.vocab_size:,} tokens" in corpus.describe()
    assert "fewer than the 50,000 asked for: no other pair of tokens occurs twice" in corpus.describe()


def test_a_large_corpus_is_sampled_evenly_for_the_tokenizer(texts):
    corpus = make(texts, tokenizer=None, vocab_size=300, sample_bytes=texts["train"].stat().st_size // 3)
    trained_on = corpus.description["tokenizer"]["trained_on"]
    assert trained_on["bytes"] == pytest.approx(trained_on["of_bytes"] / 3, rel=0.2)
    assert "of 0.0 MB of text" in corpus.describe()


def test_a_sample_is_evenly_spread():
    chosen = np.array([number for number in range(10_000) if copies(number, 0.1)])
    assert len(chosen) == pytest.approx(1000, abs=5)
    assert np.bincount(chosen // 1000).tolist() == pytest.approx([100] * 10, abs=5)
    assert [copies(number, 1.0) for number in range(3)] == [1, 1, 1]
    repeated = [copies(number, 2.25) for number in range(1000)]
    assert set(repeated) == {2, 3}
    assert sum(repeated) == pytest.approx(2250, abs=5)


def test_the_result_does_not_depend_on_the_number_of_workers(texts, monkeypatch):
    monkeypatch.setattr(prepare, "_BYTES_PER_WORKER", 1)
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 300)
    monkeypatch.setattr(prepare, "PIECE_CHARACTERS", 100)
    found = []
    for count in (1, 2, 3):
        make(texts, workers=count)
        found.append(contents(texts["out"]))
        shutil.rmtree(texts["out"])
    assert found[0] == found[1] == found[2]


def test_the_pieces_of_a_long_document_are_one_document_in_the_corpus(texts, monkeypatch):
    expected = contents(make(texts).path)
    shutil.rmtree(texts["out"])
    monkeypatch.setattr(prepare, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 70)
    assert contents(make(texts).path) == expected


def test_batches_hold_all_pieces_in_order(monkeypatch):
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 10)
    pieces = [Piece("x" * n, True) for n in (1, 4, 9, 30, 2, 2)]
    found = list(batches(pieces))
    assert [piece for batch in found for piece in batch] == pieces
    assert [len(batch) for batch in found] == [3, 1, 2]


def test_the_same_request_again_does_nothing(texts):
    before = contents(make(texts).path)
    stamp = (texts["out"] / "corpus.json").stat().st_mtime_ns
    assert make(texts).train.num_tokens > 0
    assert (texts["out"] / "corpus.json").stat().st_mtime_ns == stamp
    assert contents(texts["out"]) == before


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"valid": ()}, "valid files"),
        ({"drop_headings": True}, "drop_headings"),
        ({"tokenizer": None}, "sample_bytes, tokenizer, vocab_size"),
    ],
)
def test_a_folder_with_another_corpus_is_not_changed(texts, change, differs):
    before = contents(make(texts).path)
    with pytest.raises(UserError, match=rf"corpus: contains another corpus \(different {differs}\)"):
        make(texts, **change)
    write_text(texts["train"], ["something else"])
    with pytest.raises(UserError, match=r"different train files"):
        make(texts)
    assert contents(texts["out"]) == before


def test_a_folder_with_other_files_is_not_changed(texts):
    texts["out"].mkdir()
    make(texts)  # an empty folder may be used
    shutil.rmtree(texts["out"])
    texts["out"].mkdir()
    (texts["out"] / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="corpus: exists and is not a corpus folder"):
        make(texts)
    with pytest.raises(UserError, match=r"thesis.tex: exists and is not a corpus folder"):
        make({**texts, "out": texts["out"] / "thesis.tex"})
    with pytest.raises(UserError, match=r"inside: not a folder|inside: .*nothing was written"):
        make({**texts, "out": texts["out"] / "thesis.tex" / "inside"})
    assert contents(texts["out"]) == {"thesis.tex": b"x"}


@pytest.mark.parametrize("target_exists", [False, True])
def test_out_may_be_a_link_to_an_absent_or_empty_folder(texts, target_exists):
    place = texts["out"].with_name("scratch")
    if target_exists:
        place.mkdir()
    texts["out"].symlink_to(place)
    assert make(texts).path == place


def test_the_current_folder_is_refused_as_out(texts, monkeypatch):
    place = texts["out"].with_name("scratch")
    place.mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match="choose a new folder inside of this one, such as corpus"):
        make({**texts, "out": Path()})


def test_every_document_has_the_source_that_its_file_is(texts, tmp_path):
    more = write_text(tmp_path / "b.train", documents(20, seed=2))
    empty = write_text(tmp_path / "c.train", [])
    corpus = prepare_corpus(
        [texts["train"], more, empty], texts["out"], valid=[texts["valid"]], vocab_size=300, progress=False
    )
    assert corpus.train.source_names == ("a", "b")
    assert corpus.train.source_D.tolist() == [0] * 60 + [1] * 20
    assert corpus.valid.source_D.tolist() == [0] * 10
    words = [sum(len(text.split()) for text in texts) for texts in (TRAIN, documents(20, seed=2))]
    assert corpus.train.words_by_source() == dict(zip("ab", words, strict=True))
    assert f"sources of train, by words: a {words[0] / sum(words):.1%}, b " in corpus.describe()


def test_a_document_of_many_pieces_has_one_source(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 70)
    long = write_text(tmp_path / "long.train", [" ".join(TRAIN[:3]), TRAIN[4]])
    corpus = prepare_corpus([long, texts["train"]], texts["out"], tokenizer=texts["tokenizer"], progress=False)
    assert corpus.train.source_D.tolist() == [1] * 2 + [0] * 60


def test_a_field_of_json_lines_names_the_source(texts, tmp_path):
    lines = tmp_path / "mixed.jsonl"
    kinds = ["wiki", "talk", "wiki"]
    lines.write_text("".join(json.dumps({"kind": k, "text": t}) + "\n" for k, t in zip(kinds, TRAIN, strict=False)))
    options = {"tokenizer": texts["tokenizer"], "source_field": "kind", "progress": False}
    corpus = prepare_corpus([lines, texts["train"]], texts["out"], **options)
    assert [corpus.train.source_names[s] for s in corpus.train.source_D] == kinds + ["a"] * 60
    with pytest.raises(UserError, match=r"different source_field"):
        prepare_corpus([lines, texts["train"]], texts["out"], **{**options, "source_field": None})
    with pytest.raises(UserError, match=r"mixed.jsonl, line 1: no name of a source in the field 'style'"):
        prepare_corpus([lines], tmp_path / "other", **{**options, "source_field": "style"})


def test_a_corpus_without_sources_is_that_of_an_older_version(texts):
    make(texts)
    (texts["out"] / "train" / "source_D.bin").unlink()
    (texts["out"] / "valid" / "source_D.bin").unlink()
    description = json.loads((texts["out"] / "corpus.json").read_text())
    del description["source_names"], description["request"]["source_field"]
    description["files"] = {k: v for k, v in description["files"].items() if "source_D" not in k}
    description["digest"] = digest_of(description)
    (texts["out"] / "corpus.json").write_text(json.dumps(description))
    corpus = make(texts)  # opened, not made again
    assert corpus.train.source_D is None
    assert corpus.train.words_by_source() == {}
    assert corpus.verify() == "11 files have the recorded SHA-256"


def test_sources_that_an_int16_cannot_number_are_not_kept(texts, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_SOURCES", 0)
    assert make(texts).train.source_D is None


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), UserError("bad")])
def test_nothing_is_left_after_an_exception(texts, monkeypatch, error):
    def fail(self: object, encoded: object) -> None:
        raise error

    before = set(texts["out"].parent.iterdir())
    monkeypatch.setattr(prepare.SplitWriter, "add", fail)
    with pytest.raises(type(error)):
        make(texts)
    assert set(texts["out"].parent.iterdir()) == before


def test_a_full_disk_is_found_before_anything_is_written(texts, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"0 MB free, but .* MB are needed; nothing was written"):
        make(texts)
    assert not texts["out"].exists()


def test_a_disk_that_becomes_full_is_a_clear_error(texts, monkeypatch):
    def fail(self: object, encoded: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare.SplitWriter, "add", fail)
    with pytest.raises(UserError, match="corpus: the disk is full; nothing was written"):
        make(texts)


def test_text_that_changes_during_preparation_is_an_error(texts, monkeypatch):
    monkeypatch.setattr(prepare, "require_free_space", lambda *_: write_text(texts["train"], [*TRAIN, "and more"]))
    with pytest.raises(UserError, match="the train files changed while they were read"):
        make(texts)
    assert not texts["out"].exists()


def test_no_files_at_all_are_refused(texts):
    with pytest.raises(UserError, match="no text files given"):
        prepare_corpus([], texts["out"], progress=False)


@pytest.mark.parametrize("empty", ["train", "valid"])
def test_a_split_without_text_is_refused(texts, empty):
    texts[empty].write_text(" \n\n \n")
    with pytest.raises(UserError, match=rf"{texts[empty].name}: no text for the {empty} split"):
        make(texts)
    assert not texts["out"].exists()


def test_a_validation_file_must_not_be_a_training_file(texts):
    shutil.copy(texts["train"], texts["valid"])
    with pytest.raises(UserError, match=r"a.dev: the validation file is also a training file \(.*a.train\)"):
        make(texts)


def test_unreadable_text_is_reported_before_the_tokenizer_is_trained(texts, monkeypatch):
    texts["valid"].write_bytes(b"fine\n\xff\n")
    monkeypatch.setattr(Tokenizer, "train", lambda *_: pytest.fail("trained first"))
    with pytest.raises(UserError, match=r"a.dev, line 2: not UTF-8"):
        make(texts, tokenizer=None)


def test_a_dead_worker_is_an_error(texts):
    with EncoderPool(small_tokenizer(), texts["tokenizer"], 2) as pool:
        for process in pool._processes:
            process.kill()
            process.wait()
        with pytest.raises(UserError, match="an encoding process died"):
            list(pool.encode([[Piece("a b", True)]] * 4))


def test_workers_do_not_import_torch():
    code = "import sys, ltg_mdlm.data.encode, ltg_mdlm.data.prepare; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[2])}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_file_beside_the_data_is_not_executed(texts, monkeypatch):
    """Also with an empty entry in PYTHONPATH, which means the current folder."""
    for name in ("numpy", "tokenizers", "pickle", "signal", "sitecustomize"):
        (texts["out"].parent / f"{name}.py").write_text("open('EXECUTED', 'w')\nraise SystemExit")
    monkeypatch.chdir(texts["out"].parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep)
    monkeypatch.setattr(prepare, "_BYTES_PER_WORKER", 1)
    assert make(texts, workers=2).train.num_documents == len(TRAIN)
    assert not Path("EXECUTED").exists()


def test_dropout_is_refused(texts):
    definition = small_tokenizer().definition
    texts["tokenizer"].write_text(json.dumps({**definition, "model": {**definition["model"], "dropout": 0.3}}))
    with pytest.raises(UserError, match=r"tokenizer.json: has BPE dropout 0.3, which .* set dropout to null"):
        make(texts)
    assert not texts["out"].exists()


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_text_that_the_vocabulary_lacks_bytes_for_is_refused(texts, unknown):
    definition = json.loads(json.dumps(small_tokenizer().definition))
    vocabulary = definition["model"]["vocab"]
    lost = vocabulary.pop("Z")
    vocabulary["ZZZ"] = lost
    definition["model"]["unk_token"] = unknown
    texts["tokenizer"].write_text(json.dumps(definition))
    assert make(texts).train.token_count_V[0] == 0  # nothing is lost in this text
    shutil.rmtree(texts["out"])
    write_text(texts["valid"], ["Z is a letter"])
    with pytest.raises(UserError, match=r"the valid files contain text that the tokenizer cannot .*lacks 5a; use one"):
        make(texts)
    assert not texts["out"].exists()


def test_a_vocabulary_above_65536_takes_four_bytes_per_token(texts):
    definition = json.loads(json.dumps(small_tokenizer().definition))
    vocabulary = definition["model"]["vocab"]
    for i in range(VOCAB, 66_000):
        vocabulary[f"Ġ{i}x"] = i
    definition["pre_tokenizer"] = {**definition["pre_tokenizer"]["pretokenizers"][1]}  # bytes only: one part per line
    texts["tokenizer"].write_text(json.dumps(definition))
    texts["train"].write_text("65999x\n\n65536x\n\n400x")
    corpus = make(texts, valid=())
    assert corpus.train.tokens.dtype == np.uint32
    assert corpus.train.tokens.tolist() == [65999, 65536, 400]
    assert corpus.train.words.tolist() == [1, 1, 1]


def test_killed_at_any_time_and_repeated_it_makes_the_same_corpus(texts):
    write_text(texts["train"], documents(3000))
    expected = make(texts).description["fingerprint"]
    shutil.rmtree(texts["out"])
    command = [sys.executable, "-m", "ltg_mdlm", "prepare", str(texts["train"]), "--out", str(texts["out"])]
    command += ["--valid", str(texts["valid"]), "--tokenizer", str(texts["tokenizer"])]

    def unfinished() -> int:
        walk = os.walk(texts["out"].parent)  # it ignores folders that vanish
        return sum(len(files) for folder, _, files in walk if ".tmp-" in folder)

    for written in range(4):  # killed when this many files of the unfinished folder exist
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and unfinished() < 3 * written:
                pass
            process.kill()
        assert not texts["out"].exists() or make(texts).description["fingerprint"] == expected
        shutil.rmtree(texts["out"], ignore_errors=True)
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=True).returncode == 0
    assert make(texts).description["fingerprint"] == expected
    assert not list(texts["out"].parent.glob(".tmp-*"))
