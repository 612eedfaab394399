"""The reasons in errors.proto and the errors in the code name each other rightly."""

from __future__ import annotations

import re

import pytest

from tests.protos.proto_files import ROOT, comments, enums, files

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")

PACKAGES = ("forebay", "frontend", "preprocess", "gpu_executor")


def _reasons() -> dict[str, str]:
    """Each reason's comment, by its name."""
    for file in files():
        for path, name, enum in enums(file):
            if name == "forebay.v1.ErrorReason":
                return {value.name: comments(file)[(*path, 2, index)] for index, value in enumerate(enum.value)}
    raise AssertionError("there is no forebay.v1.ErrorReason")


def test_every_reason_in_the_code_exists() -> None:
    named = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                found = re.findall(r"\bERROR_REASON_[A-Z0-9_]*[A-Z0-9]\b", path.read_text(encoding="utf-8"))
                named |= dict.fromkeys(found, path.relative_to(ROOT))
    assert any(str(path) == "forebay/errors.py" for path in named.values())
    unknown = {name: path for name, path in named.items() if name not in _reasons()}
    assert not unknown


@pytest.mark.parametrize("name", [name for name in _reasons() if name != "ERROR_REASON_UNSPECIFIED"])
def test_reason_says_which_code_it_comes_with(name: str) -> None:
    code, colon, _ = _reasons()[name].partition(": ")
    assert colon and code in grpc.StatusCode.__members__


def test_errors_come_with_the_code_that_their_reason_says() -> None:
    errors = pytest.importorskip("forebay.errors", reason="forebay.errors cannot be imported", exc_type=ImportError)
    kinds, found = [errors.ForebayError], []
    while kinds:
        kind = kinds.pop()
        found.append(kind)
        kinds += kind.__subclasses__()
    for kind in found:
        reason = errors.ErrorReason.Name(kind.default_reason)
        assert _reasons()[reason].startswith(f"{kind.code}: "), f"{kind.__name__}: {reason}"
