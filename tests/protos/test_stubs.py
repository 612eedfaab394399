"""The Python stubs in the repository are those that protoc makes of the protos now."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.protos.proto_files import NAMES, ROOT, compile_protos

KINDS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with newly generated stubs."""
    folder = tmp_path_factory.mktemp("stubs")
    compile_protos(*(f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_stub_is_current(name: str, kind: str, fresh: Path) -> None:
    stub = name.removesuffix(".proto") + kind
    committed = ROOT / stub
    assert committed.exists(), f"{stub} is missing: run `make protos`"
    is_current = committed.read_bytes() == (fresh / stub).read_bytes()
    assert is_current, f"{stub} is not current: run `make protos`"


def test_no_stub_is_left_of_a_proto_that_is_gone() -> None:
    expected = {name.removesuffix(".proto") + kind for name in NAMES for kind in KINDS}
    found = {str(path.relative_to(ROOT)) for kind in KINDS for path in (ROOT / "forebay").rglob(f"*{kind}")}
    assert found == expected
