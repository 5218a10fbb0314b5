"""The Hugging Face Hub in memory: as much of `HfApi` as uploading uses, with its meaning and its signatures."""

from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace


class Refusal(OSError):
    """As huggingface_hub's errors of the same name."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} Client Error")
        self.response = SimpleNamespace(status_code=status)


HfHubHTTPError = type("HfHubHTTPError", (Refusal,), {})
LocalTokenNotFoundError = type("LocalTokenNotFoundError", (OSError,), {})
OfflineModeIsEnabled = type("OfflineModeIsEnabled", (ConnectionError,), {})
ConnectError = type("ConnectError", (Exception,), {"__module__": "httpx"})


class FakeHub:
    """Commits by branch, each a dict from file names to content; `failures` maps a method's name to what it raises."""

    def __init__(self, **failures: Exception) -> None:
        self.private: dict[str, bool] = {}
        self.branches: dict[str, dict[str, list[dict[str, bytes]]]] = {}
        self.messages: list[str] = []
        self.failures = failures

    def whoami(self) -> dict:
        self._meet("whoami")
        return {"name": "somebody"}

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        self._meet("create_repo")
        assert exist_ok
        self.private.setdefault(repo_id, bool(private))
        self.branches.setdefault(repo_id, {"main": [{".gitattributes": b""}]})
        return f"https://huggingface.co/{repo_id}"

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private[repo_id])

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        self._meet("create_branch")
        assert exist_ok
        self.branches[repo_id].setdefault(branch, list(self.branches[repo_id]["main"]))

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        revision: str,
        commit_message: str,
        ignore_patterns: list[str],
        delete_patterns: str,
    ) -> None:
        self._meet("upload_folder")
        commits = self.branches[repo_id][revision]
        kept = {
            name: content
            for name, content in commits[-1].items()
            if name == ".gitattributes" or not fnmatch(name, delete_patterns)
        }
        files = (path for path in folder_path.rglob("*") if path.is_file())
        named = {path.relative_to(folder_path).as_posix(): path for path in files}
        new = {
            name: path.read_bytes()
            for name, path in named.items()
            if not any(fnmatch(name, pattern) for pattern in ignore_patterns)
        }
        commits.append(kept | new)
        self.messages.append(commit_message)

    def _meet(self, method: str) -> None:
        if method in self.failures:
            raise self.failures[method]
