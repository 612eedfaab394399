"""Owns a checkpoint's weight files: which tensors there are, checked from the headers before anything is read.

Safetensors, single or sharded; pickled `.bin` files only through torch's weights-only unpickler. Nothing from a model
folder is executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from forebay.errors import CheckpointError

# Number formats of safetensors files that weights can be in, and how torch calls them.
FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1,
    "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8, "C64": 8,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # as the safetensors format allows
_SHARD = re.compile(r"(.+)-\d{5,}-of-\d{5,}(\.safetensors|\.bin)")


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a file."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it; of a quantized matrix, how it is


class Checkpoint:
    """The weight files of a model folder. Raises CheckpointError, naming file and tensor, for what is not right."""

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self._pickled: dict[Path, dict[str, torch.Tensor]] = {}
        for path, expected in _weight_files(folder):
            stored = list(read_header(path)) if path.suffix == ".safetensors" else self._unpickle(path)
            if expected is not None:
                _compare_with_index(path, expected, {tensor.name for tensor in stored})
            for tensor in stored:
                if tensor.name in self.tensors:
                    other = self.tensors[tensor.name].path.name
                    raise CheckpointError(f"tensor {tensor.name} is in both {other} and {path.name}")
                self.tensors[tensor.name] = tensor

    def _unpickle(self, path: Path) -> list[StoredTensor]:
        try:
            # Files of torch before 1.6 are no zip archives, and cannot be mapped into memory.
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # the unpickler raises whatever the bytes lead it to
            raise CheckpointError(f"{path.name} cannot be read: {_first_line(error)}") from None
        if not isinstance(tensors, dict):
            raise CheckpointError(f"{path.name} holds a {type(tensors).__name__}, not tensors by name")
        names_of_dtypes = {dtype: name for name, dtype in FLOAT_DTYPES.items()}
        stored = []
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not torch.is_tensor(tensor):
                raise CheckpointError(
                    f"{path.name} holds a {type(tensor).__name__} as {str(name)[:100]!r}, not a tensor"
                )
            dtype = names_of_dtypes.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
            stored.append(StoredTensor(name, path, tuple(tensor.shape), dtype))
        self._pickled[path] = tensors
        return stored

    def add_part(self, prefix: str, part: Checkpoint) -> None:
        """Adds another checkpoint's tensors, with `prefix` before their names, unless there are tensors behind it already."""
        if not any(name.startswith(prefix) for name in self.tensors):
            self.tensors |= {prefix + name: tensor for name, tensor in part.tensors.items()}
            self._pickled |= part._pickled

    def read(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors, file by file, in the order in which they lie there; safetensors are views of the file."""
        wanted = set(names)
        by_path: dict[Path, list[str]] = {}
        for name, tensor in self.tensors.items():
            if name in wanted:
                by_path.setdefault(tensor.path, []).append(name)
        for path, here in by_path.items():
            if path in self._pickled:
                yield from ((name, self._pickled[path][self.tensors[name].name]) for name in here)
                continue
            name = here[0]
            try:
                with safe_open(path, framework="pt", device="cpu") as file:
                    for name in here:
                        yield name, file.get_tensor(self.tensors[name].name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path.name} cannot be read at tensor {name}: {_first_line(error)}") from None


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
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a name twice, or nested without end
        raise refuse(f"its header is broken ({_first_line(error)})") from None
    if not isinstance(header, dict):
        raise refuse("its header is not a JSON object")
    header.pop("__metadata__", None)
    entries = sorted(
        ((name, *_parse_entry(name, entry, refuse)) for name, entry in header.items()), key=lambda e: e[3:]
    )
    end = 0
    for name, dtype, shape, begin, stop in entries:
        num_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
        if begin != end or stop - begin != num_bytes:
            raise refuse(
                f"tensor {name} has bytes {begin:,} to {stop:,} for shape {list(shape)} of {dtype}, after byte {end:,}"
            )
        end = stop
        if 8 + length + end > size:
            raise refuse(f"tensor {name} ends at byte {8 + length + end:,} and the file has {size:,}")
        yield StoredTensor(name, path, shape, dtype)
    if 8 + length + end != size:
        raise refuse(f"{size - 8 - length - end:,} bytes follow the last tensor")


def _parse_entry(name: str, entry: Any, refuse: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of a header's entry."""
    try:
        dtype, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise refuse(f"the entry of tensor {name} is broken") from None
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise refuse(f"tensor {name} is of the unknown dtype {str(dtype)[:20]!r}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, stop)):
        raise refuse(f"the entry of tensor {name} is broken")
    return dtype, shape, begin, stop


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name[:100]} stands in it twice")
        result[name] = value
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
        files = list(weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{index} is not a readable index: it needs a weight_map of tensor to file") from None
    expected: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard:
            raise CheckpointError(f"{index} names the file {str(shard)[:100]!r}, which is not a plain file name")
        expected.setdefault(shard, set()).add(name)
    for shard in sorted(expected):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{index} names {shard} for {files.count(shard)} tensors, but that file is missing")
    families = {(match[1], match[2]) for shard in expected if (match := _SHARD.fullmatch(shard))}
    for path in sorted(folder.iterdir()):
        match = _SHARD.fullmatch(path.name)
        if match and (match[1], match[2]) in families and path.name not in expected:
            raise CheckpointError(
                f"{path.name} lies beside the shards of {index} and is none of them: remove one or the other"
            )
    return [(folder / shard, names) for shard, names in sorted(expected.items())]


def _compare_with_index(path: Path, expected: set[str], found: set[str]) -> None:
    if missing := sorted(expected - found):
        raise CheckpointError(f"{path.name} lacks tensor {missing[0]}, which the index puts there")
    if extra := sorted(found - expected):
        raise CheckpointError(f"{path.name} holds tensor {extra[0]}, which the index does not put there")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
