"""The protos are documented throughout, typed throughout, and named by one rule. What buf checks too is checked without buf."""

from __future__ import annotations

import re

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from tests.protos.proto_files import PROTOS, comments, enums, files, messages

FILES = pytest.mark.parametrize("file", files(), ids=lambda file: file.name)

# Words for things of which there are a few kinds: an enum, not a string.
KINDS = re.compile(r"(^|_)(type|kind|mode|status|state|level|format|role|reason|dtype|task|code|policy)$")


@FILES
def test_everything_is_documented_in_sentences(file: FileDescriptorProto) -> None:
    paths = {(2,): f"package of {file.name}"}
    for index, service in enumerate(file.service):
        paths[(6, index)] = service.name
        paths |= {(6, index, 2, i): f"{service.name}.{method.name}" for i, method in enumerate(service.method)}
    for path, name, message in messages(file):
        paths[path] = name
        paths |= {(*path, 2, i): f"{name}.{field.name}" for i, field in enumerate(message.field)}
        # "_x" is what proto3 makes of `optional x`.
        oneofs = [oneof.name for oneof in message.oneof_decl if not oneof.name.startswith("_")]
        paths |= {(*path, 8, i): f"{name}.{oneof}" for i, oneof in enumerate(oneofs)}
    for path, name, enum in enums(file):
        paths[path] = name
        paths |= {(*path, 2, i): f"{name}.{value.name}" for i, value in enumerate(enum.value)}
    written = comments(file)
    bad = [name for path, name in paths.items() if not re.fullmatch(r"[A-Z0-9].*[.]", written.get(path, ""), re.DOTALL)]
    assert not bad, "no comment, or not a sentence"


@FILES
def test_each_call_owns_its_messages(file: FileDescriptorProto) -> None:
    for service in file.service:
        assert service.name.endswith("Service")
        for method in service.method:
            assert method.input_type == f".{file.package}.{method.name}Request"
            assert method.output_type == f".{file.package}.{method.name}Response"


@FILES
def test_enums_begin_with_unspecified_and_share_a_prefix(file: FileDescriptorProto) -> None:
    for _, name, enum in enums(file):
        prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
        assert enum.value[0].name == f"{prefix}UNSPECIFIED" and enum.value[0].number == 0, name
        assert all(value.name.startswith(prefix) for value in enum.value), name


@FILES
def test_numbers_ascend_in_reading_order_without_gaps(file: FileDescriptorProto) -> None:
    numbers = {name: [field.number for field in message.field] for _, name, message in messages(file)}
    reserved = {
        name: {number for span in message.reserved_range for number in range(span.start, span.end)}
        for _, name, message in messages(file)
    }
    for name, given in numbers.items():
        assert given == [number for number in range(1, max(given, default=0) + 1) if number not in reserved[name]], name


@FILES
def test_no_field_hides_its_type(file: FileDescriptorProto) -> None:
    for _, name, message in messages(file):
        assert not message.options.map_entry, f"{name}: a map says nothing of its keys"
        for field in message.field:
            where = f"{name}.{field.name}"
            assert "json" not in field.name, f"{where}: a message, not JSON in a string"
            assert not field.type_name.startswith(".google.protobuf."), f"{where}: no Any and no Struct"
            if field.type == FieldDescriptorProto.TYPE_STRING:
                assert not KINDS.search(field.name), f"{where}: an enum, not a string"


@FILES
def test_file_is_in_the_folder_of_its_package(file: FileDescriptorProto) -> None:
    assert file.syntax == "proto3"  # what protoc of current Linux distributions can read
    assert re.fullmatch(r"forebay(\.[a-z]+)*\.v\d+", file.package)
    assert file.name.rpartition("/")[0] == file.package.replace(".", "/")
    assert file.options.go_package.startswith("github.com/")
    assert (PROTOS / file.name).exists()
