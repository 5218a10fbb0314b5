"""Uploads exported models to the Hugging Face Hub.

Only the upload itself needs `huggingface_hub` (`pip install "ltg-mdlm[hub]"`); a dry run works without it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.core.network_errors import is_network_error
from ltg_mdlm.inference.exported_folder import CONFIG_FILE, MAIN, TOKENIZER_FILE, WEIGHTS_FILE

REQUIRED_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "README.md",
)
"""Files of every exported folder, in addition to the code that its config.json names."""

_HIDDEN = [".*", "*/.*"]

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)

_MAX_NAME = 96


class Hub(Protocol):
    """The methods of `huggingface_hub.HfApi` that are used."""

    def whoami(self) -> dict[str, Any]:
        """The account that is logged in; raises an exception if there is none."""

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        """Create a model repository; an existing one keeps its visibility."""

    def repo_info(self, repo_id: str) -> Any:
        """Information on a repository, including whether it is `private`."""

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        """Create a branch from main."""

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        revision: str,
        commit_message: str,
        ignore_patterns: list[str],
        delete_patterns: str,
    ) -> Any:
        """Commit the files of a folder to a branch, and delete the branch's other files that match a pattern."""


@dataclass(frozen=True)
class Upload:
    """A folder and the branch to upload it to."""

    folder: Path
    branch: str

    @property
    def files(self) -> list[Path]:
        """The files to upload, relative to the folder: all except hidden files."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(path for path in found if not any(part.startswith(".") for part in path.parts))

    @property
    def num_bytes(self) -> int:
        return sum((self.folder / path).stat().st_size for path in self.files)

    def describe(self) -> str:
        """One line: branch, folder, number of files, size."""
        return f"{self.branch:<12} {self.folder}  {len(self.files)} files, {self.num_bytes / 1e6:,.1f} MB"


def plan_uploads(folder: Path, *, revisions: bool) -> list[Upload]:
    """Assign the folder to the branch main, or with `revisions` every subfolder to the branch of its name, main first.

    Raises UserError unless all folders are complete exports.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not revisions:
        if not (folder / "config.json").is_file() and (folder / MAIN).is_dir():
            raise UserError(f"{folder} has a subfolder for every revision; upload them with --revisions")
        uploads = [Upload(folder, MAIN)]
    else:
        if not (folder / MAIN).is_dir():
            raise UserError(
                f"{folder}: no folder {MAIN} in it; --revisions uploads the output of `ltg-mdlm export --revisions`"
            )
        inner = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        uploads = [Upload(path, path.name) for path in sorted(inner, key=_by_words)]
    for upload in uploads:
        _require_complete(upload.folder)
    return uploads


def push(hub: Hub, uploads: Sequence[Upload], repo: str, *, private: bool, done: Callable[[Upload], None]) -> None:
    """Upload every folder as a new commit on its branch; `done` is called after each folder.

    The repository and the branches are created if they do not exist.  Earlier files of a branch stay in its history.

    Raises UserError, with nothing uploaded, for an invalid name or if nobody is logged in; also if the Hub cannot be
    reached or refuses the upload.
    """
    require_repo_name(repo)
    with _explained(repo):
        hub.whoami()  # raises unless somebody is logged in
        hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repo).private:
            raise UserError(
                f"{repo} exists and is public, so nothing was uploaded"
                "\n  make it private on the Hub first, choose another --repo, or leave out --private"
            )
        for upload in uploads:
            if upload.branch != MAIN:
                hub.create_branch(repo, branch=upload.branch, exist_ok=True)
            hub.upload_folder(
                repo_id=repo,
                folder_path=upload.folder,
                revision=upload.branch,
                commit_message=f"Upload {upload.branch} with ltg-mdlm",
                ignore_patterns=_HIDDEN,
                delete_patterns="*",  # files from main or from an earlier upload
            )
            done(upload)


def open_hub() -> Hub:
    """The Hub, with the account of `hf auth login`.  Raises UserError if huggingface_hub is not installed."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError('uploading needs huggingface_hub\n  pip install "ltg-mdlm[hub]"') from None
    hub: Hub = HfApi()
    return hub


def require_repo_name(repo: str) -> None:
    """Raises UserError unless `repo` is a valid OWNER/NAME on the Hub, without a dot in NAME."""
    parts = repo.split("/")
    is_valid = len(parts) == 2 and all(_NAME.fullmatch(part) for part in parts)
    if not is_valid or "--" in repo or ".." in repo or repo.endswith(".git") or len(repo) > _MAX_NAME:
        raise UserError(
            f"--repo {repo}: must be OWNER/NAME of letters, digits, '-', '_' and '.', such as my-lab/freq-mdlm;"
            f" at most {_MAX_NAME} characters, no '--' or '..', no '-' or '.' at the ends"
        )
    if "." in parts[1]:
        raise UserError(
            f"--repo {repo}: transformers 4.51 loads no code from a repository with a dot in its name, and evaluation"
            " pipelines cut the name at the dot; choose a name without dots"
        )


def _by_words(path: Path) -> tuple[bool, int, str]:
    """Sort key: main first, then the checkpoints by words seen."""
    words = re.fullmatch(r"chck_(\d+)M", path.name)
    return path.name != MAIN, int(words[1]) if words else 0, path.name


def _require_complete(folder: Path) -> None:
    missing = [name for name in (*REQUIRED_FILES, *_code_files(folder)) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: not a complete exported folder: missing {', '.join(missing)}"
            "\n  create one with `ltg-mdlm export`"
        )
    try:
        with safe_open(folder / "model.safetensors", "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / 'model.safetensors'} cannot be read: {error}; export the model again") from None


def _code_files(folder: Path) -> list[str]:
    """Files of the classes that config.json names (`modeling_x.Class`), and the files that these import.

    Raises UserError for files that cannot be read.
    """
    file = folder / "config.json"
    found: list[str] = []
    try:
        classes = read_object(file).get("auto_map", {}) if file.is_file() else {}
        wanted = {f"{name.partition('.')[0]}.py" for name in classes.values()}
        while wanted:
            file = folder / wanted.pop()
            found.append(file.name)
            wanted |= _imports(file) - set(found)
    except (UserError, ValueError, AttributeError, SyntaxError) as error:
        raise UserError(f"{file} cannot be read: {error}; export the model again") from None
    return sorted(found)


def _imports(file: Path) -> set[str]:
    """Files of the same folder that `file` imports; none if it does not exist."""
    statements = ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else ()
    relative = (statement for statement in statements if isinstance(statement, ast.ImportFrom) and statement.level == 1)
    return {f"{statement.module}.py" for statement in relative if statement.module}


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the exceptions of huggingface_hub into messages that say what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        explanation = _explanation(error, repo)
        if explanation is None:
            raise
        raise UserError(explanation) from error


def _explanation(error: Exception, repo: str) -> str | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "LocalTokenNotFoundError" in names or status == 401:
        return "not logged in to the Hugging Face Hub, or the token is no longer valid\n  hf auth login"
    if status in (403, 404):
        return (
            f"the account that is logged in has no write access to {repo}"
            "\n  choose another --repo, or log in with a token that has write access: hf auth login"
        )
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE disables access to the Hugging Face Hub\n  unset it to upload"
    if "HfHubHTTPError" in names:
        return f"the Hugging Face Hub refused the request: {error}"
    if is_network_error(error):
        return (
            f"the Hugging Face Hub cannot be reached: {error}"
            "\n  run the same command again: branches that are already uploaded stay unchanged"
        )
    return None
