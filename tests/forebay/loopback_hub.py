"""A Hugging Face hub on loopback: as much of its HTTP interface as downloads need, with a log of what was asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class LoopbackHub(ThreadingHTTPServer):
    """`repositories`: by name, then by revision, files by name. `tokens`: the token that a repository asks for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Files]] = {}
        self.tokens: dict[str, str] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []  # "GET /path"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        """Names of the files whose content was sent."""
        return sorted(
            line.split("/resolve/")[1].split("/", 1)[1]
            for line in self.requests
            if line.startswith("GET") and "/resolve/" in line
        )

    def commit_of(self, name: str, revision: str) -> str | None:
        """The commit that a branch or a commit names."""
        for branch, files in self.repositories.get(name, {}).items():
            commit = hashlib.sha1(repr((name, branch, sorted(files))).encode()).hexdigest()
            if revision in (branch, commit):
                return commit
        return None

    def files_of(self, name: str, commit: str) -> Files:
        return next(
            files for branch, files in self.repositories[name].items() if self.commit_of(name, branch) == commit
        )


@contextlib.contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Serves until the block ends."""
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass  # the test's output is not the place

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            name, _, rest = path.removeprefix("/api/models/").partition("/revision/")
            is_tree = not rest
            if is_tree:
                name, _, rest = path.removeprefix("/api/models/").partition("/tree/")
            file = None
        else:
            name, _, rest = path.removeprefix("/").partition("/resolve/")
            is_tree = False
            rest, _, file = rest.partition("/")
        if name not in self.server.repositories:
            return self._refuse(404, "RepoNotFound")
        token = self.server.tokens.get(name)
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            return self._refuse(401, "GatedRepo" if name in self.server.gated else "RepoNotFound")
        commit = self.server.commit_of(name, rest)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = self.server.files_of(name, commit)
        if file is not None:
            if file not in files:
                return self._refuse(404, "EntryNotFound")
            headers = {"ETag": f'"{_oid(files[file])}"', "X-Repo-Commit": commit}
            return self._send(200, files[file], headers, with_body)
        if is_tree:
            tree = [{"type": "file", "path": f, "size": len(c), "oid": _oid(c)} for f, c in files.items()]
            return self._send_json(tree, with_body)
        info = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0}
        return self._send_json(info | {"siblings": [{"rfilename": f} for f in files]}, with_body)

    def _send_json(self, value: object, with_body: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, with_body)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code}, with_body=True)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
