"""Part-of-speech tagging of the multilingual track: one model for the treebanks of all languages, scored on each.

The data are Universal Dependencies (de Marneffe et al. 2021, https://universaldependencies.org), in CoNLL-U. As in the
official script, the sentences of a treebank are shuffled and split anew, and a word is tagged from the mean of the
hidden states of its tokens.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import read_text
from ltg_mdlm.data.tokenizer import BOS, Tokenizer
from ltg_mdlm.evaluation.finetune_tasks import TREEBANKS, UNIVERSAL_TAGS, TaskFiles
from ltg_mdlm.evaluation.finetune_training import EncodedExamples, EncodedTask, Epoch

MAX_SENTENCES = 4000
"""Sentences of a treebank that are used, of all its splits together."""

SPLIT_SEED = 42

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence, and the index of the tag of each in `UNIVERSAL_TAGS`."""

    words: tuple[str, ...]
    tags: tuple[int, ...]


@dataclass(frozen=True)
class Splits:
    """The encoded validation and test sentences of a language."""

    valid: EncodedExamples
    test: EncodedExamples


@dataclass(frozen=True, kw_only=True)
class EncodedTreebanks(EncodedTask):
    """The task with all languages; validation and test sentences are those of the languages, one after another."""

    languages: dict[str, Splits]


def read_treebank(file: Path) -> list[Sentence]:
    """The sentences of a CoNLL-U file, with the lines of multiword tokens and of empty nodes.

    Raises UserError with the line number for a line that is not CoNLL-U, and for a file without sentences.
    """
    index = {tag: i for i, tag in enumerate(UNIVERSAL_TAGS)}
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[int] = []
    for number, line in enumerate([*read_text(file).split("\n"), ""], 1):
        if not line.strip():
            if words:
                sentences.append(Sentence(tuple(words), tuple(tags)))
                words, tags = [], []
        elif not line.startswith("#"):
            columns = line.rstrip("\r").split("\t")
            if len(columns) != 10:
                raise UserError(f"{file}:{number}: {len(columns)} columns; CoNLL-U has 10, separated by tabs")
            if columns[3] not in index:
                raise UserError(f"{file}:{number}: unknown part of speech {columns[3]!r}")
            words.append(columns[1])
            tags.append(index[columns[3]])
    if not sentences:
        raise UserError(f"{file}: no sentences; expected CoNLL-U")
    return sentences


def shuffled(items: Sequence[Item]) -> list[Item]:
    """The items in the order of `datasets.Dataset.shuffle` with the published seed."""
    return [items[i] for i in np.random.default_rng(SPLIT_SEED).permutation(len(items))]


def split(sentences: Sequence[Sentence]) -> tuple[list[Sentence], list[Sentence], list[Sentence]]:
    """Train, validation and test sentences: 80, 10 and 10 per cent of at most `MAX_SENTENCES`, drawn at random.

    They are those of `datasets.Dataset.shuffle` and, twice, `train_test_split`.
    """

    def cut(items: list[Sentence], share: float) -> tuple[list[Sentence], list[Sentence]]:
        mixed, size = shuffled(items), math.ceil(share * len(items))
        return mixed[size:], mixed[:size]

    train, held_out = cut(shuffled(sentences)[:MAX_SENTENCES], 0.2)
    valid, test = cut(held_out, 0.5)
    return train, valid, test


def encode_sentences(sentences: Sequence[Sentence], tokenizer: Tokenizer, seq_len: int) -> EncodedExamples:
    """Token ids of sentences, each word tokenised on its own, cut to `seq_len`; words without tokens are left out."""
    ids, labels, word_tokens, truncated = [], [], [], 0
    codes = tokenizer.backend.encode_batch(
        [sentence.words for sentence in sentences], is_pretokenized=True, add_special_tokens=False
    )
    for sentence, code in zip(sentences, codes, strict=True):
        counts = Counter(word for word in code.word_ids[: seq_len - 1] if word is not None)  # in the order of words
        ids.append([BOS, *code.ids[: seq_len - 1]])
        labels += [sentence.tags[word] for word in counts]
        word_tokens.append(list(counts.values()))
        truncated += len(code.ids) > seq_len - 1
    return EncodedExamples(ids, labels, truncated, word_tokens)


def encode_treebanks(files: TaskFiles, tokenizer: Tokenizer, seq_len: int) -> EncodedTreebanks:
    """The sentences of all languages that have files, as many training sentences of each.

    Raises UserError for files that cannot be read, and for a treebank that is too small to be split.
    """
    train: list[list[Sentence]] = []
    valid: list[Sentence] = []
    test: list[Sentence] = []
    languages = {}
    for language in TREEBANKS:
        if f"{language}-train" not in files.files:
            continue
        parts = [files.files[f"{language}-{part}"] for part in ("train", "dev", "test")]
        of_train, of_valid, of_test = split([sentence for file in parts for sentence in read_treebank(file)])
        if not of_valid:
            raise UserError(f"{parts[0].parent}: too few sentences of {TREEBANKS[language]} to split them")
        train.append(of_train)
        valid += of_valid
        test += of_test
        languages[language] = Splits(
            *(encode_sentences(sentences, tokenizer, seq_len) for sentences in (of_valid, of_test))
        )
    smallest = min(map(len, train))
    mixture = [
        sentence
        for sentences in train
        for sentence in (shuffled(sentences)[:smallest] if len(sentences) > smallest else sentences)
    ]
    if len(train) > 1:
        mixture = shuffled(mixture)
    encoded = (encode_sentences(sentences, tokenizer, seq_len) for sentences in (mixture, valid, test))
    return EncodedTreebanks(files.task, UNIVERSAL_TAGS, *encoded, languages=languages)


def tagging_files(data: EncodedTreebanks, epoch: Epoch) -> dict[str, str]:
    """The files of the official script for every language, by path: figures of both splits, and tags of the test."""
    files, valid_start, test_start = {}, 0, 0
    for language, splits in data.languages.items():
        valid = epoch.predictions[valid_start : valid_start + len(splits.valid.labels)]
        test = epoch.test_predictions[test_start : test_start + len(splits.test.labels)]
        valid_start, test_start = valid_start + len(valid), test_start + len(test)
        for name, examples, predictions in (("eval", splits.valid, valid), ("predict", splits.test, test)):
            right = sum(map(int.__eq__, examples.labels, predictions))
            figures: dict[str, float] = {
                f"{name}_accuracy": right / len(predictions),
                f"{name}_macro_f1": macro_f1(examples.labels, predictions),
            }
            if name == "eval":
                figures["eval_samples"] = len(examples)
            files[f"{language}/{name}_results.json"] = json.dumps(figures, indent=4)
        rows = (" ".join(UNIVERSAL_TAGS[test[word]] for word in words) for words in splits.test.items)
        lines = ["index\tpredictions", *(f"{i}\t{tags}" for i, tags in enumerate(rows))]
        files[f"{language}/predictions.txt"] = "".join(f"{line}\n" for line in lines)
    return files


def macro_f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """The mean of F1 over all classes that occur or are predicted."""
    label_N, prediction_N = np.array(labels), np.array(predictions)
    classes = np.union1d(label_N, prediction_N)
    f1 = [
        2 * np.sum((label_N == c) & (prediction_N == c)) / (np.sum(label_N == c) + np.sum(prediction_N == c))
        for c in classes
    ]
    return float(np.mean(f1))
