"""Owns what proto tests read: the files under protos/, and their descriptors with comments."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed (it comes with forebay[test])")

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
NAMES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def compile_protos(*options: str) -> None:
    """Runs protoc on all files with these options."""
    assert protoc.main(["protoc", f"-I{PROTOS}", *options, *NAMES]) == 0


@functools.cache
def files() -> list[FileDescriptorProto]:
    """The descriptors of all files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "descriptors"
        compile_protos("--include_source_info", f"--descriptor_set_out={path}")
        return list(FileDescriptorSet.FromString(path.read_bytes()).file)


def comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """The comment above each element, by its path in the descriptor."""
    return {tuple(location.path): location.leading_comments.strip() for location in file.source_code_info.location}


def messages(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str, DescriptorProto]]:
    """(path, full name, message) of every message of a file, nested ones too."""

    def within(path: tuple[int, ...], prefix: str, message: DescriptorProto) -> Iterator:
        name = f"{prefix}.{message.name}"
        yield path, name, message
        for index, nested in enumerate(message.nested_type):
            yield from within((*path, 3, index), name, nested)

    for index, message in enumerate(file.message_type):
        yield from within((4, index), file.package, message)


def enums(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str, EnumDescriptorProto]]:
    """(path, full name, enum) of every enum of a file, nested ones too."""
    for index, enum in enumerate(file.enum_type):
        yield (5, index), f"{file.package}.{enum.name}", enum
    for path, name, message in messages(file):
        for index, enum in enumerate(message.enum_type):
            yield (*path, 4, index), f"{name}.{enum.name}", enum
