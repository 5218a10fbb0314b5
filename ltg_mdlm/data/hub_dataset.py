"""Datasets of the Hugging Face Hub: `hf://owner/name[@revision][:[config/]split]`.

Files are kept in the cache of `huggingface_hub`, and only those of the split that is asked for are downloaded. Beside
them the cache keeps a list of all files of a commit, so that a dataset that was downloaded in part is not taken for a
whole one without a network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import require_free_space, write_errors, write_text
from ltg_mdlm.core.network_errors import is_network_error
from ltg_mdlm.data.dataset_splits import chosen_names
from ltg_mdlm.data.text_files import TextFile, kind_of, text_names

HUB_PREFIX = "hf:/"
"""`pathlib` removes the second slash."""

_ADDRESS = re.compile(r"(?:datasets/)?([\w.-]+/[\w.-]+)(?:@([^:]+))?(?::(.+))?")

_README = "README.md"


def fetch_dataset(address: str, split: str) -> list[TextFile]:
    """The files of one split of a dataset, in the cache; those that are missing there are downloaded.

    Raises:
        UserError: an address that cannot be read, a dataset or split that does not exist, a gated dataset, no network
            and an incomplete cache, or a disk that is too small.
    """
    match = _ADDRESS.fullmatch(address.removeprefix(HUB_PREFIX).lstrip("/"))
    if match is None:
        raise UserError(f"{address}: not an address of a dataset; write hf://owner/name[@revision][:split]")
    repo, revision, wanted = match[1], match[2] or "main", match[3] or ""
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants
    except ImportError:
        raise UserError(f'{address}: downloading needs huggingface_hub\n  pip install "ltg-mdlm[hub,data]"') from None
    origin = f"hf://{repo}"
    with _explained(repo, revision):
        cache = Path(constants.HF_HUB_CACHE)
        commit, sizes = _files_of_commit(hub, cache / f"datasets--{repo.replace('/', '--')}", repo, revision)

        def path_of(name: str) -> Path:
            return Path(hub.hf_hub_download(repo, name, repo_type="dataset", revision=commit))

        readme = path_of(_README).read_text("utf-8", errors="replace") if _README in sizes else ""
        names = text_names(sorted(sizes))
        if not names:
            raise UserError(f"{origin}: has no files with text, only {', '.join(sorted(sizes)) or 'none':.200}")
        chosen = chosen_names(names, readme, wanted, split, origin)
        with write_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            absent = [name for name in chosen if not _is_cached(hub, repo, name, commit)]
            require_free_space(cache, sum(sizes[name] for name in absent))
        files = []
        for name in chosen:
            kind, compression = kind_of(name) or ("text", "")
            files.append(TextFile(path_of(name), kind, compression, f"{repo}/{name}", f"{repo}@{commit}"))
        return files


def _files_of_commit(hub: Any, folder: Path, repo: str, revision: str) -> tuple[str, dict[str, int]]:
    """The commit of a revision, and the size of each of its files (0 if unknown).

    Without a network, both are what `folder`, the place of the dataset in the cache, holds.
    """
    listed = folder / "ltg_mdlm_files"
    try:
        info = hub.HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    except Exception as error:
        if not (is_network_error(error) or "OfflineModeIsEnabled" in _kinds(error)):
            raise
        reference, known = folder / "refs" / revision, None
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):  # absent or damaged
            commit = reference.read_text("utf-8") if reference.is_file() else revision
            listing = json.loads((listed / f"{commit}.json").read_text("utf-8"))
            known = commit, {name: int(size) for name, size in listing.items()}
        if known is None:
            raise
        return known
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    with write_errors(listed):
        listed.mkdir(parents=True, exist_ok=True)
        write_text(listed / f"{info.sha}.json", json.dumps(sizes))
        if revision != info.sha:
            reference = folder / "refs" / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, str(info.sha))
    return str(info.sha), sizes


def _is_cached(hub: Any, repo: str, name: str, commit: str) -> bool:
    return isinstance(hub.try_to_load_from_cache(repo, name, repo_type="dataset", revision=commit), str)


@contextmanager
def _explained(repo: str, revision: str) -> Iterator[None]:
    """Turn exceptions of huggingface_hub into messages that say what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        explanation = _explanation(error, repo, revision)
        if explanation is None:
            raise
        raise UserError(f"hf://{repo}: {explanation}") from error


def _explanation(error: Exception, repo: str, revision: str) -> str | None:
    kinds, url = _kinds(error), f"https://huggingface.co/datasets/{repo}"
    if "LocalEntryNotFoundError" in kinds and isinstance(error.__cause__, Exception):  # why the Hub was not asked
        return _explanation(error.__cause__, repo, revision)
    if "GatedRepoError" in kinds:
        return (
            f"the dataset is gated: log in at {url} and accept its conditions"
            "\n  then run `hf auth login` with a token of the same account, and this command again"
        )
    if "RevisionNotFoundError" in kinds:
        return f"there is no revision {revision!r}\n  look at {url}/refs, and write hf://{repo}@REVISION"
    if "RepositoryNotFoundError" in kinds:
        return (
            "there is no such dataset on the Hugging Face Hub, or it is private"
            f"\n  look at {url}; for a private dataset, log in with `hf auth login`"
        )
    if getattr(getattr(error, "response", None), "status_code", None) == 401:
        return "the token for the Hugging Face Hub is not valid\n  hf auth login"
    if kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"} or is_network_error(error):
        return (
            f"{url} cannot be reached, and the cache does not hold all files that are needed: {error}"
            "\n  run this command again with a network; it downloads the files that are missing"
        )
    if "HfHubHTTPError" in kinds:
        return f"the Hugging Face Hub refused {url}: {error}\n  try again later"
    return None


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
