"""`ltg-mdlm prepare` and `ltg-mdlm corpus`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from ltg_mdlm.cli.command_classes import CommandApp
from ltg_mdlm.cli.options import AsJson, Csv
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import print_table

corpus_app = CommandApp(help="Look at prepared corpora; write the built-in text.")

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def prepare(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS...",
            help="Text, JSON, CSV, Parquet or Arrow files, also compressed or in archives; folders; hf://owner/name.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Corpus folder to create.")],
    valid: Annotated[
        list[str] | None,
        typer.Option("--valid", metavar="PATHS...", help="Held-out text. For a dataset, its validation split is used."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="Use this tokenizer; default: train one.")
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", min=273, help="Vocabulary size of the trained tokenizer; default: 16384."),
    ] = None,
    balance: Annotated[
        bool, typer.Option("--balance", help="Train the tokenizer on equally much text of every source.")
    ] = False,
    text_field: Annotated[
        str, typer.Option("--text-field", metavar="FIELD", help="Column, or field of JSON objects, with the text.")
    ] = "text",
    source_field: Annotated[
        str | None,
        typer.Option(
            "--source-field", metavar="FIELD", help="Column or field with a document's source; default: files."
        ),
    ] = None,
    skip_nulls: Annotated[bool, typer.Option("--skip-nulls", help="Leave out rows whose text is null.")] = False,
    words: Annotated[
        str,
        typer.Option("--words", metavar="UNIT", help="Unit of words: whitespace, characters, characters/N, or jieba."),
    ] = "whitespace",
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="WORDS", help="Leave out training documents beyond this size: 10M, 100M."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            metavar="[SOURCE=]CODE",
            help="Language of the text or of one source, whose byte premium adjusts the budget: eng, nld, zho, or the"
            " premium itself (repeatable).",
        ),
    ] = None,
    drop_headings: Annotated[
        bool, typer.Option("--drop-headings", help="Delete `= = = heading = = =` lines, as the published code does.")
    ] = False,
    nfkc: Annotated[bool, typer.Option("--nfkc", help="Normalise the text by NFKC.")] = False,
    drop_controls: Annotated[
        bool, typer.Option("--drop-controls", help="Delete control characters, soft hyphens and spaces of no width.")
    ] = False,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Leave out documents that are equal to an earlier one.")
    ] = False,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            "--drop-near-duplicates",
            metavar="SIMILARITY",
            min=0.1,
            max=1,
            help="Leave out documents of at least this Jaccard similarity to an earlier one, such as 0.8.",
        ),
    ] = None,
    decontaminate: Annotated[
        Path | None,
        typer.Option(
            "--decontaminate", metavar="DIR", help="Leave out training documents that share text with evaluation data."
        ),
    ] = None,
    ngram: Annotated[
        int | None,
        typer.Option(
            "--ngram", min=1, help="With --decontaminate: number of consecutive terms that are shared; default: 13."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Number of processes; default: all cores.")
    ] = None,
) -> None:
    """Convert text to a corpus folder: tokenizer, memory-mapped tokens, documents, counts, hashes of the sources.

    For datasets with splits, and for those of the Hub, the training split is used. Append another one after a colon:
    `hf://owner/name@revision:test`, `folder:validation`.
    """
    from ltg_mdlm.data.prepare import prepare_corpus
    from ltg_mdlm.data.selection import Budget, premiums_of
    from ltg_mdlm.data.word_sequences import SharedNgrams

    if language and budget is None:
        raise UserError("--language adjusts a budget\n  add --budget WORDS")
    if tokenizer is not None and (vocab_size is not None or balance):
        option = "--balance" if vocab_size is None else "--vocab-size"
        raise UserError(f"{option} is for a tokenizer that is trained\n  leave it out, or --tokenizer")
    if ngram is not None and decontaminate is None:
        raise UserError("--ngram goes with --decontaminate\n  add --decontaminate DIR")
    evaluation = None
    if decontaminate is not None:
        from ltg_mdlm.evaluation.task_texts import read_task_texts

        evaluation = SharedNgrams((found.text for found in read_task_texts(decontaminate).texts), ngram or 13)
    corpus = prepare_corpus(
        files,
        out,
        valid=valid or (),
        tokenizer=tokenizer,
        vocab_size=vocab_size or 16384,
        balance=balance,
        text_field=text_field,
        source_field=source_field,
        skip_nulls=skip_nulls,
        words=words,
        budget=Budget(size_of(budget), premiums_of(language or [])) if budget is not None else None,
        drop_headings=drop_headings,
        nfkc=nfkc,
        drop_controls=drop_controls,
        drop_duplicates=drop_duplicates,
        near_duplicates=near_duplicates,
        evaluation=evaluation,
        workers=workers,
    )
    typer.echo(corpus.describe())


def size_of(text: str) -> int:
    """The number that `10M`, `1.5K` or `250000` stands for. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d{1,20}(?:\.\d+)?)([KMB]?)", text.upper())
    if match is None or not (size := round(float(match[1]) * _SIZES[match[2]])):
        raise UserError(f"--budget {text}: not a number of words\n  write it as 10M, 100M or 250000")
    return size


@corpus_app.command()
def show(
    corpus: Annotated[Path, typer.Argument(metavar="DIR", help="Corpus folder made by `ltg-mdlm prepare`.")],
    split: Annotated[Literal["train", "valid"], typer.Option("--split", help="The split to show.")] = "train",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.png", help="Also draw a picture (also .svg or .pdf).")
    ] = None,
    csv: Csv = None,
    as_json: AsJson = False,
) -> None:
    """Show the sources of a corpus: documents, words, tokens, lengths, unknown and repeated text, and a sample.

    `length` is the number of tokens of a document: the 5 %, 50 % and 95 % quantiles.
    """
    from ltg_mdlm.data.corpus import Corpus
    from ltg_mdlm.data.corpus_summary import summarise
    from ltg_mdlm.reporting.corpus_report import corpus_table, draw_corpus
    from ltg_mdlm.reporting.run_table import write_csv

    opened = Corpus.open(corpus)
    chosen = opened.train if split == "train" else opened.valid
    if chosen is None:
        raise UserError(f"{corpus}: has no validation split")
    summaries = summarise(opened, chosen)
    if out is not None:
        draw_corpus(summaries, out, title=f"{corpus} ({split})")
    records = [summary.to_json() for summary in summaries]
    if csv is not None:
        write_csv([{key: value for key, value in row.items() if key != "length_quantiles"} for row in records], csv)
    if as_json:
        typer.echo(json.dumps({"words": opened.word_unit, "sources": records}, indent=2, ensure_ascii=False))
        return
    typer.echo(opened.describe() + "\n")
    print_table(corpus_table(summaries))


@corpus_app.command()
def builtin(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to create.")],
    words: Annotated[int, typer.Option("--words", min=1000, help="Words of the training text.")] = 300_000,
    zipf_exponent: Annotated[
        float, typer.Option("--zipf-exponent", min=0, help="Exponent of the word frequencies; 0: equally frequent.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the text.")] = 0,
) -> None:
    """Write the text of the built-in corpus: train.txt, valid.txt, both as JSON lines, and minimal pairs.

    The same options give the same bytes on every machine.
    """
    from ltg_mdlm.core.files import write_errors, written_folder
    from ltg_mdlm.data.synthetic.builtin import write_builtin_text

    if out.exists():
        raise UserError(f"{out} exists\n  give another folder with --out, or delete this one")
    with write_errors(out), written_folder(out) as aside:
        files = write_builtin_text(aside, words, seed, zipf_exponent)
    for file in (files.train, files.valid, files.minimal_pairs):
        typer.echo(str(out / file.name))
