"""Owns a checkpoint's weight files: which tensors there are, checked from the headers before anything is read.

Safetensors, single or sharded; pickled `.bin` files only through torch's weights-only unpickler. Nothing from a model
folder is executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from forebay.errors import CheckpointError

_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1,
    "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # as the safetensors format allows


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a file."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """The weight files of a model folder. Raises CheckpointError, naming file and tensor, for what is not right."""

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self._pickled: dict[Path, dict[str, torch.Tensor]] = {}
        for path, expected in _weight_files(folder):
            stored = self._headers(path)
            if expected is not None:
                _compare_with_index(path, expected, {tensor.name for tensor in stored})
            for tensor in stored:
                if tensor.name in self.tensors:
                    other = self.tensors[tensor.name].path.name
                    raise CheckpointError(f"tensor {tensor.name} is in both {other} and {path.name}")
                self.tensors[tensor.name] = tensor

    def _headers(self, path: Path) -> list[StoredTensor]:
        if path.suffix == ".safetensors":
            return list(read_header(path))
        try:
            self._pickled[path] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the unpickler raises whatever the bytes lead it to
            raise CheckpointError(f"{path.name} cannot be read: {_first_line(error)}") from None
        items = self._pickled[path].items()
        return [StoredTensor(name, path, tuple(t.shape), str(t.dtype)) for name, t in items if torch.is_tensor(t)]

    def read(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors, file by file, in the order in which they lie there."""
        wanted = set(names)
        for path in dict.fromkeys(tensor.path for tensor in self.tensors.values()):
            here = [t.name for t in self.tensors.values() if t.path == path and t.name in wanted]
            if path in self._pickled:
                yield from ((name, self._pickled[path][name]) for name in here)
                continue
            try:
                with safe_open(path, framework="pt", device="cpu") as file:
                    for name in here:
                        yield name, file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path.name} cannot be read: {_first_line(error)}") from None


def read_header(path: Path) -> Iterator[StoredTensor]:
    """The tensors that a safetensors file says it holds, in file order, once all of them are known to lie in the file."""

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{path.name} is not a whole safetensors file: {what}; download it again")

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise refuse(f"it has {size} bytes")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise refuse(f"its header claims {length:,} bytes and the file has {size:,}")
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, not JSON, or a name twice
        raise refuse(f"its header is broken ({_first_line(error)})") from None
    end = 0
    entries = ((name, entry) for name, entry in header.items() if name != "__metadata__")
    for name, entry in sorted(entries, key=lambda item: _begin(item[1])):
        try:
            dtype, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            num_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
        except (KeyError, TypeError, ValueError):
            raise refuse(f"the entry of tensor {name} is broken") from None
        if begin != end or stop - begin != num_bytes or any(side < 0 for side in shape):
            raise refuse(
                f"tensor {name} has bytes {begin:,} to {stop:,} for shape {list(shape)} of {dtype}, after byte {end:,}"
            )
        end = stop
        if 8 + length + end > size:
            raise refuse(f"tensor {name} ends at byte {8 + length + end:,} and the file has {size:,}")
        yield StoredTensor(name, path, shape, dtype)
    if 8 + length + end != size:
        raise refuse(f"{size - 8 - length - end:,} bytes follow the last tensor")


def _begin(entry: Any) -> int:
    try:
        return int(entry["data_offsets"][0])
    except (KeyError, TypeError, ValueError, IndexError):
        return -1


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands in it twice")
    return result


def _weight_files(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """The weight files to read, each with the tensors that the index puts there, if there is an index."""
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / index).is_file():
            return _indexed_files(folder, index)
        if (folder / single).is_file():
            return [(folder / single, None)]
    loose = sorted(folder.glob("*.safetensors"))
    if not loose:
        raise CheckpointError(
            f"{folder.name} has no weights: expected model.safetensors, model.safetensors.index.json with its shards, or "
            "pytorch_model.bin (--load-format dummy runs without)"
        )
    return [(path, None) for path in loose]


def _indexed_files(folder: Path, index: str) -> list[tuple[Path, set[str] | None]]:
    try:
        weight_map = json.loads((folder / index).read_bytes())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index} is not a readable index: it needs a weight_map of tensor to file") from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index} names the file {shard!r}, which is not a plain file name")
        if not (folder / shard).is_file():
            count = sum(file == shard for file in weight_map.values())
            raise CheckpointError(f"{index} names {shard} for {count} tensors, but that file is missing")
    return [(folder / shard, {name for name, file in weight_map.items() if file == shard}) for shard in shards]


def _compare_with_index(path: Path, expected: set[str], found: set[str]) -> None:
    if missing := sorted(expected - found):
        raise CheckpointError(f"{path.name} lacks tensor {missing[0]}, which the index puts there")
    if extra := sorted(found - expected):
        raise CheckpointError(f"{path.name} holds tensor {extra[0]}, which the index does not put there")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
