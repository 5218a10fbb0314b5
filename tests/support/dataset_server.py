"""A local server that answers huggingface_hub as the Hub does, for downloads of datasets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class DatasetServer:
    """Datasets by repository, each a dict from paths to content."""

    def __init__(self, datasets: dict[str, dict[str, bytes]]) -> None:
        self.datasets = datasets
        self.gated: set[str] = set()
        self.broken: set[str] = set()
        """Paths that are refused, with a status after which nobody tries again."""
        self.sent: list[str] = []
        """The paths of all files that were sent."""
        self.endpoint = ""

    @contextmanager
    def running(self) -> Iterator[DatasetServer]:
        """The server listens at `endpoint` within the context."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: DatasetServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        repo, rest = "/".join(parts[1:3]), parts[3:]
        files = self.hub.datasets.get(repo)
        if files is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif is_api and rest[:1] == ["tree"]:
            self._json([{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()])
        elif is_api:
            self._json({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
        elif repo in self.hub.gated:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "not in the authorized list"})
        elif (path := "/".join(rest[2:])) not in files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self._file(path, files[path])

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, path: str, content: bytes) -> None:
        if path in self.hub.broken:
            self._answer(400, b"", {})
            return
        if self.command == "GET":
            self.hub.sent.append(path)
        self._answer(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    """The id of git for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
