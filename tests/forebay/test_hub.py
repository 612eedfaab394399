"""A model's name becomes a folder: a folder itself, or one downloaded from a hub on loopback, once and whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.errors import InvalidRequest, NotFound, NotOffered
from forebay.hub import resolve_model
from tests.forebay.loopback_hub import LoopbackHub, loopback_hub

ROOT = Path(__file__).parents[2]
TEXT = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "README.md": b"# read me",
}
SAFE = {"model.safetensors": b"safe"}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub() as hub:
        hub.repositories["org/model"] = {"main": TEXT | SAFE | {"pytorch_model.bin": b"pickle"}}
        yield hub


# The hub's variables are read when its library is imported, so each resolution is a process of its own.
_PROGRAM = """
import json, sys
from forebay.errors import ForebayError
from forebay.hub import resolve_model
try:
    result = {"folder": str(resolve_model(sys.argv[1], progress=False, **json.loads(sys.argv[2])))}
except ForebayError as error:
    result = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(result | {"torch": "torch" in sys.modules}))
"""


def resolve(hub: LoopbackHub, home: Path, model: str, *, env: dict[str, str] | None = None, **options: object) -> dict:
    """What resolve_model gives in a fresh process: `folder`, or `error` and `message`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "FOREBAY_"))}
    variables = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-c", _PROGRAM, model, json.dumps(options)],
        env=inherited | variables | (env or {}), cwd=home, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    result = json.loads(finished.stdout.splitlines()[-1])
    assert not result["torch"], "resolving a name needs no torch"
    return result


def names_in(result: dict) -> set[str]:
    assert "folder" in result, result
    return {path.name for path in Path(result["folder"]).iterdir()}


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./model", "~/nothing-here", "../model", "a/b/c", "a/..", "a b", "org/", "", "org/mo?del", "-x",
             "~nobody-of-this-name/model", "x" * 5000, "nul\0byte"]
)  # fmt: skip
def test_a_name_that_cannot_be_a_hub_id_is_not_looked_up(name: str) -> None:
    with pytest.raises(NotFound, match="folder"):
        resolve_model(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="is a file; give the folder"):
        resolve_model(str(tmp_path / "model.safetensors"))


def test_downloads_text_files_and_safetensors_once(hub: LoopbackHub, tmp_path: Path) -> None:
    first = resolve(hub, tmp_path, "org/model")
    assert names_in(first) == set(TEXT) - {"README.md"} | set(SAFE)
    assert (Path(first["folder"]) / "model.safetensors").read_bytes() == b"safe"
    assert hub.downloads() == sorted(names_in(first))
    hub.requests.clear()
    assert resolve(hub, tmp_path, "org/model") == first
    assert hub.downloads() == []


def test_without_weights_only_text_files(hub: LoopbackHub, tmp_path: Path) -> None:
    result = resolve(hub, tmp_path, "org/model", weights=False)
    assert names_in(result) == set(TEXT) - {"README.md"}


def test_pickled_weights_only_where_there_are_no_others(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories["org/old"] = {"main": TEXT | {"pytorch_model.bin": b"pickle", "training_args.bin": b"code"}}
    assert names_in(resolve(hub, tmp_path, "org/old")) == set(TEXT) - {"README.md"} | {"pytorch_model.bin"}


def test_a_second_copy_of_the_weights_is_left_out(hub: LoopbackHub, tmp_path: Path) -> None:
    copies = {"consolidated.safetensors": b"again", "original/consolidated.00.pth": b"again", "onnx/model.json": b"{}"}
    hub.repositories["org/model"]["main"] |= copies
    assert "consolidated.safetensors" not in names_in(resolve(hub, tmp_path, "org/model"))
    hub.repositories["org/mistral"] = {"main": TEXT | copies}
    assert "consolidated.safetensors" in names_in(resolve(hub, tmp_path, "org/mistral"))
    assert not any("original" in name or "onnx" in name for name in hub.downloads())


def test_all_shards(hub: LoopbackHub, tmp_path: Path) -> None:
    shards = {f"model-0000{i}-of-00003.safetensors": bytes([i]) for i in (1, 2, 3)}
    hub.repositories["org/large"] = {"main": TEXT | shards | {"model.safetensors.index.json": b"{}"}}
    assert set(shards) < names_in(resolve(hub, tmp_path, "org/large"))


def test_a_revision(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories["org/model"]["v2"] = TEXT | {"model.safetensors": b"second"}
    result = resolve(hub, tmp_path, "org/model", revision="v2")
    assert (Path(result["folder"]) / "model.safetensors").read_bytes() == b"second"
    missing = resolve(hub, tmp_path, "org/model", revision="v3")
    assert missing["error"] == "NotFound"
    assert "org/model at revision v3 is not on the hub" in missing["message"]


def test_a_download_dir(hub: LoopbackHub, tmp_path: Path) -> None:
    result = resolve(hub, tmp_path, "org/model", download_dir=str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere") in Path(result["folder"]).parents


def test_a_token_as_argument_or_variable(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.tokens["org/model"] = "hf_secret"
    refused = resolve(hub, tmp_path, "org/model")
    assert refused["error"] == "NotFound"
    assert "HF_TOKEN" in refused["message"]
    hub.gated.add("org/model")
    assert "is gated: ask for access" in resolve(hub, tmp_path, "org/model")["message"]
    assert "model.safetensors" in names_in(resolve(hub, tmp_path, "org/model", token="hf_secret"))
    other_home = tmp_path / "other"
    other_home.mkdir()
    by_variable = resolve(hub, other_home, "org/model", env={"HF_TOKEN": "hf_secret"})
    assert "model.safetensors" in names_in(by_variable)


def test_offline_serves_the_cache_and_nothing_else(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories["org/old"] = {"main": TEXT | {"pytorch_model.bin": b"pickle"}}
    offline = {"HF_HUB_OFFLINE": "1"}
    online = [resolve(hub, tmp_path, name) for name in ("org/model", "org/old")]
    resolve(hub, tmp_path, "org/model", revision="main", weights=False)
    hub.requests.clear()
    assert [resolve(hub, tmp_path, name, env=offline) for name in ("org/model", "org/old")] == online
    missing = resolve(hub, tmp_path, "org/other", env=offline)
    assert hub.requests == []
    assert missing["error"] == "Unavailable"
    assert "not wholly in the cache and HF_HUB_OFFLINE is set" in missing["message"]


def test_a_cache_without_the_weights_is_not_the_model(hub: LoopbackHub, tmp_path: Path) -> None:
    resolve(hub, tmp_path, "org/model", weights=False)
    result = resolve(hub, tmp_path, "org/model", env={"HF_HUB_OFFLINE": "1"})
    assert result["error"] == "Unavailable", result


def test_a_hub_that_is_down_leaves_the_cache(hub: LoopbackHub, tmp_path: Path) -> None:
    cached = resolve(hub, tmp_path, "org/model")
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert resolve(hub, tmp_path, "org/model", env=nobody) == cached
    missing = resolve(hub, tmp_path, "org/other", env=nobody)
    assert missing["error"] == "Unavailable"
    assert "the hub cannot be reached" in missing["message"]


@pytest.mark.parametrize(
    ("files", "message"),
    [({"model.safetensors": b""}, "has no config.json"), (TEXT | {"model.gguf": b""}, "has no weights in safetensors or .bin")],
    ids=["no-config", "no-weights"],
)  # fmt: skip
def test_a_repository_that_is_no_model(hub: LoopbackHub, tmp_path: Path, files: dict, message: str) -> None:
    hub.repositories["org/other"] = {"main": files}
    result = resolve(hub, tmp_path, "org/other")
    assert result["error"] == "CheckpointError"
    assert message in result["message"]


def test_an_unknown_repository_says_what_to_check(hub: LoopbackHub, tmp_path: Path) -> None:
    for name in ("org/unknown", "org/foo--bar", "org/foo.git"):
        result = resolve(hub, tmp_path, name)
        assert result["error"] == "NotFound", result
        assert "folder" in result["message"]


def test_modelscope_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_USE_MODELSCOPE", "True")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(NotOffered, match=r"pip install 'forebay\[modelscope\]'"):
        resolve_model("org/model")
