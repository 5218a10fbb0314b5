"""Downloads evaluation data from the Hugging Face Hub, laid out as in the official pipeline.

    DIR/evaluation_data/full_eval/<task>/...      for `--data`; the official pipeline reads both folders
    DIR/evaluation_data/fast_eval/<task>/...

Needs `huggingface_hub` (`pip install "ltg-mdlm[hub]"`); EWoK also needs pyarrow and nltk.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import require_writable, write_text, written_folder
from ltg_mdlm.core.network_errors import is_network_error
from ltg_mdlm.data.compression import DAMAGE

FULL, FAST = Path("evaluation_data/full_eval"), Path("evaluation_data/fast_eval")

_EWOK_PASSWORD = b"BabyLM2025"
"""The password is published with the archive; it keeps the texts away from crawlers."""


@dataclass(frozen=True)
class Dataset:
    """A dataset of the Hub, and the folders that its download fills."""

    name: str
    repo: str
    files: str
    """The files that are needed, as a pattern."""
    folders: tuple[Path, ...]
    """Folders below DIR."""

    @property
    def url(self) -> str:
        return f"https://huggingface.co/datasets/{self.repo}"


_STRICT_FOLDERS = (
    *(FULL / name for name in ("blimp_filtered", "supplement_filtered", "entity_tracking", "comps", "reading")),
    *(FAST / name for name in ("blimp_fast", "supplement_fast", "entity_tracking_fast", "ewok_fast")),
)


def _global_piqa(split: str) -> Dataset:
    folders = tuple(part / f"global_piqa_{split}" for part in (FULL, FAST))
    return Dataset(f"global_piqa_{split}", f"mrlbenchmarks/global-piqa-{split}", f"data/{split}_eng_latn.tsv", folders)


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("strict", "BabyLM-community/BabyLM-2026-Strict-Evals", "evaluation_data/*", _STRICT_FOLDERS),
        _global_piqa("parallel"),
        _global_piqa("nonparallel"),
        Dataset("ewok", "ewok-core/ewok-core-1.0", "data/test/ewok-core-1.0.parquet", (FULL / "ewok_filtered",)),
    )
}
"""By name.  `strict` holds everything except the full EWoK and GlobalPIQA."""


def download(
    names: Sequence[str], out: Path, *, ewok_vocabulary: Path | None = None, done: Callable[[Dataset], None]
) -> None:
    """Download datasets; `done` is called after each one.  Files that are already complete are not loaded again.

    Args:
        names: keys of `DATASETS`; empty for all, EWoK only if there is a vocabulary.
        out: the folder DIR.
        ewok_vocabulary: the words that EWoK items may contain, one per line: `evaluation_pipeline/ewok/vocab.txt` of
            the official pipeline.
        done: called with the dataset whose folders are complete.

    Raises UserError with one paragraph for every dataset that could not be downloaded, after all others.
    """
    names = list(dict.fromkeys(names or (name for name in DATASETS if name != "ewok" or ewok_vocabulary)))
    if unknown := [name for name in names if name not in DATASETS]:
        raise UserError(f"{', '.join(unknown)}: no such evaluation data\n  there are: {', '.join(DATASETS)}")
    if "ewok" in names and ewok_vocabulary is None:
        raise UserError(
            "ewok: the official evaluation keeps only items whose words are in a vocabulary"
            "\n  add --ewok-vocabulary FILE, the file strict/evaluation_pipeline/ewok/vocab.txt of"
            " https://github.com/babylm-org/babylm-eval"
        )
    vocabulary = _read_words(ewok_vocabulary) if "ewok" in names and ewok_vocabulary else frozenset()
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise UserError('downloading needs huggingface_hub\n  pip install "ltg-mdlm[hub]"') from None
    require_writable(out, inside=True)
    problems = []
    for dataset in map(DATASETS.__getitem__, names):
        try:
            with _explained(dataset, out):
                if dataset.name == "strict":
                    _download_strict(dataset, out)
                elif dataset.name == "ewok":
                    write_ewok(_fetch(dataset), vocabulary, out / dataset.folders[0])
                else:
                    _write_global_piqa(_fetch(dataset), [out / folder for folder in dataset.folders])
                _require_folders(dataset, out)
        except UserError as error:
            problems.append(str(error))
        else:
            done(dataset)
    if problems:
        raise UserError("\nerror: ".join(problems))


def _download_strict(dataset: Dataset, out: Path) -> None:
    """The dataset has the layout of the official pipeline, except for a protected archive, which is unpacked."""
    from huggingface_hub import HfApi, snapshot_download

    # Asked first: where the Hub cannot be reached, snapshot_download returns any folder that exists.
    commit = HfApi().dataset_info(dataset.repo).sha
    snapshot_download(dataset.repo, repo_type="dataset", revision=commit, local_dir=out, allow_patterns=[dataset.files])
    archive = out / FAST / "ewok_fast.zip"
    if not archive.is_file():
        return
    try:
        with zipfile.ZipFile(archive) as packed, written_folder(out / FAST / "ewok_fast", replace=True) as unfinished:
            for name in packed.namelist():
                if name.endswith(".jsonl"):  # the archive has the folders of the official pipeline inside
                    (unfinished / Path(name).name).write_bytes(packed.read(name, pwd=_EWOK_PASSWORD))
    except (*DAMAGE, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}\n  delete it and run the command again") from None


def _fetch(dataset: Dataset) -> Path:
    """The only file of a dataset, in the cache of huggingface_hub."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(dataset.repo, dataset.files, repo_type="dataset"))


def _write_global_piqa(table: Path, folders: Sequence[Path]) -> None:
    """The same rows for the full and for the fast evaluation."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        lines = [json.dumps(row | {"label": int(row["label"])}, ensure_ascii=False) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{table}: expected a whole number in the column 'label' of every row") from None
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "eng_latn.jsonl", "".join(f"{line}\n" for line in lines))


def write_ewok(table: Path, vocabulary: frozenset[str], folder: Path) -> None:
    """Items without words outside the vocabulary, one file per domain.

    Each item is followed by a copy with contexts and targets swapped, so that both contexts are tested.
    """
    try:
        import nltk
        import pyarrow.parquet
    except ImportError:
        raise UserError('ewok needs pyarrow and nltk\n  pip install "ltg-mdlm[harness]"') from None
    lines: dict[str, list[str]] = defaultdict(list)
    texts = ("Context1", "Context2", "Target1", "Target2")
    try:
        for item in pyarrow.parquet.read_table(table).to_pylist():
            if all(word in vocabulary for text in texts for word in nltk.word_tokenize(item[text].lower())):
                swapped = {"Context1": "Context2", "Context2": "Context1", "Target1": "Target2", "Target2": "Target1"}
                other = {key: item[swapped.get(key, key)] for key in item}
                lines[item["Domain"]] += [json.dumps(item), json.dumps(other)]
    except LookupError as error:
        if isinstance(error, KeyError):
            raise UserError(
                f"{table}: expected columns {', '.join(texts)} and Domain, but {error} is missing"
            ) from None
        raise UserError(
            "ewok: nltk has no data to split texts into words\n  python -m nltk.downloader punkt_tab"
        ) from None
    if not lines:
        raise UserError("ewok: no item is left; --ewok-vocabulary has too few words")
    with written_folder(folder, replace=True) as unfinished:
        for domain, rows in lines.items():
            (unfinished / f"{domain}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def _read_words(file: Path) -> frozenset[str]:
    try:
        return frozenset(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError:
        raise UserError(f"--ewok-vocabulary {file}: not a text file in UTF-8") from None


def _require_folders(dataset: Dataset, out: Path) -> None:
    missing = [str(folder) for folder in dataset.folders if not (out / folder).is_dir()]
    if missing:
        raise UserError(
            f"{dataset.name}: {dataset.url} was downloaded, but has no {', '.join(missing)}"
            "\n  the dataset may have changed; look at its files on the Hub"
        )


@contextmanager
def _explained(dataset: Dataset, out: Path) -> Iterator[None]:
    """Turn exceptions of huggingface_hub into messages that say what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        explanation = _explanation(error, dataset, out)
        if explanation is None:
            raise
        raise UserError(f"{dataset.name}: {explanation}") from error


def _explanation(error: Exception, dataset: Dataset, out: Path) -> str | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "LocalEntryNotFoundError" in names and isinstance(error.__cause__, Exception):  # why the Hub was not asked
        return _explanation(error.__cause__, dataset, out)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "GatedRepoError" in names:
        return (
            f"the dataset is gated: log in at {dataset.url} and accept its conditions"
            "\n  then run `hf auth login` with a token of the same account, and this command again"
        )
    if "RepositoryNotFoundError" in names:
        return (
            f"there is no dataset {dataset.repo} on the Hugging Face Hub, or it is private"
            f"\n  look at {dataset.url}; for a private dataset, log in with `hf auth login`"
        )
    if "EntryNotFoundError" in names:
        return f"{dataset.url} has no {dataset.files}\n  the dataset may have changed; look at its files on the Hub"
    if status == 401:
        return "the token for the Hugging Face Hub is not valid\n  hf auth login"
    folders = "\n    ".join(str(out / folder) for folder in dataset.folders)
    elsewhere = f"run this command on a machine that reaches it, and copy these folders from there:\n    {folders}"
    if "OfflineModeIsEnabled" in names:
        return f"HF_HUB_OFFLINE disables access to {dataset.url}\n  unset it, or {elsewhere}"
    if is_network_error(error):
        return f"{dataset.url} cannot be reached: {error}\n  run the command again to download the rest, or {elsewhere}"
    if "HfHubHTTPError" in names:
        return f"the Hugging Face Hub refused {dataset.url}: {error}\n  try again later"
    return None
