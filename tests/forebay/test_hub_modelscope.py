"""With FOREBAY_USE_MODELSCOPE=True a name is ModelScope's: its own package downloads from a server on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("modelscope") is None, reason="needs pip install 'forebay[modelscope]'"
)

ROOT = Path(__file__).parents[2]
TEXT = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}'}
REPOSITORY = {
    "master": TEXT | {"model.safetensors": b"safe", "pytorch_model.bin": b"pickle", "README.md": b"#"},
    "v2": TEXT | {"pytorch_model.bin": b"pickle"},
}


class _Handler(BaseHTTPRequestHandler):
    """The listing and the files of org/model."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        files = REPOSITORY.get(query.get("Revision", "master"))
        content = None
        if files is not None and address.path == "/api/v1/models/org/model/repo/files":
            listing = [
                {
                    "Path": name,
                    "Name": name,
                    "Type": "blob",
                    "Size": len(data),
                    "Sha256": hashlib.sha256(data).hexdigest(),
                }
                for name, data in files.items()
            ]
            content = json.dumps({"Code": 200, "Success": True, "Data": {"Files": listing}}).encode()
        elif files is not None and address.path == "/api/v1/models/org/model/repo":
            content = files.get(query["FilePath"])
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_PROGRAM = """
import json, sys
from forebay.errors import ForebayError
from forebay.hub import resolve_model
try:
    result = {"folder": str(resolve_model(sys.argv[1], **json.loads(sys.argv[2])))}
except ForebayError as error:
    result = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(result))
"""


def resolve(home: Path, endpoint: str, model: str, **options: object) -> dict:
    variables = {
        "FOREBAY_USE_MODELSCOPE": "True", "MODELSCOPE_ENDPOINT": endpoint, "MODELSCOPE_CACHE": str(home), "HOME": str(home),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    finished = subprocess.run(
        [sys.executable, "-c", _PROGRAM, model, json.dumps(options)],
        env=os.environ | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout.splitlines()[-1])


def names_in(result: dict) -> set[str]:
    assert "folder" in result, result
    return {path.name for path in Path(result["folder"]).iterdir() if not path.name.startswith(".")}


def test_downloads_text_files_and_safetensors(tmp_path: Path) -> None:
    with _server() as endpoint:
        result = resolve(tmp_path, endpoint, "org/model")
        assert names_in(result) == {*TEXT, "model.safetensors"}
        assert (Path(result["folder"]) / "model.safetensors").read_bytes() == b"safe"


def test_without_weights_and_at_a_revision(tmp_path: Path) -> None:
    with _server() as endpoint:
        assert names_in(resolve(tmp_path / "a", endpoint, "org/model", weights=False)) == set(TEXT)
        assert names_in(resolve(tmp_path / "b", endpoint, "org/model", revision="v2")) == {*TEXT, "pytorch_model.bin"}


def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    with _server() as endpoint:
        for options in ({"model": "org/unknown"}, {"model": "org/model", "revision": "v3"}):
            result = resolve(tmp_path, endpoint, **options)
            assert result["error"] == "NotFound", result
            assert "is not on ModelScope" in result["message"]


def test_a_server_that_is_down_says_so(tmp_path: Path) -> None:
    result = resolve(tmp_path, "http://127.0.0.1:9", "org/model")
    assert result["error"] == "Unavailable", result
