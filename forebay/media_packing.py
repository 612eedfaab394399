"""Owns how a media item's tensors become bytes: what frontend and executor agree on, and the digest over it.

An item's bytes are its tensors in the order of their names, each contiguous and little-endian. Its digest is SHA-256 over

    modality, then for each tensor: 0, name, 0, dtype, 0, dimensions with commas between, 0, the tensor's bytes
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

ITEM_BYTES = {"uint8": 1, "int32": 4, "int64": 8, "float16": 2, "bfloat16": 2, "float32": 4}
MAX_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class TensorForm:
    """A tensor without its numbers."""

    name: str
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def header(self) -> bytes:
        """What enters the digest before the tensor's bytes."""
        return f"\0{self.name}\0{self.dtype}\0{','.join(map(str, self.shape))}\0".encode()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PackedItem:
    """An item as it travels."""

    modality: str
    digest: bytes
    forms: tuple[TensorForm, ...]
    parts: tuple[memoryview, ...]  # the bytes of each tensor

    @property
    def num_bytes(self) -> int:
        return sum(form.num_bytes for form in self.forms)

    def chunks(self) -> Iterator[memoryview]:
        """The item's bytes in pieces of MAX_CHUNK_BYTES at most; a piece is of one tensor alone."""
        for part in self.parts:
            for start in range(0, len(part), MAX_CHUNK_BYTES):
                yield part[start : start + MAX_CHUNK_BYTES]


class ItemDigest:
    """The digest of an item whose bytes come piece by piece, whatever the pieces."""

    def __init__(self, modality: str, forms: Iterable[TensorForm]) -> None:
        self._hash = hashlib.sha256(modality.encode())
        self._forms = iter(forms)
        self._left = 0
        self._next_tensor()

    def update(self, data: bytes | memoryview) -> None:
        """Takes the next bytes, of which there must not be more than the tensors have."""
        view = memoryview(data)
        while len(view):
            taken, view = view[: self._left], view[self._left :]
            self._hash.update(taken)
            self._left -= len(taken)
            if not self._left:
                self._next_tensor()

    def digest(self) -> bytes:
        return self._hash.digest()

    def _next_tensor(self) -> None:
        while not self._left and (form := next(self._forms, None)) is not None:
            self._hash.update(form.header)
            self._left = form.num_bytes


def pack(modality: str, tensors: Mapping[str, np.ndarray], float_dtype: str = "float32") -> PackedItem:
    """The item of arrays; float32 ones travel in `float_dtype`, the model's, but for vectors, which are its constants."""
    forms, parts = [], []
    for name, array in sorted(tensors.items()):
        dtype = array.dtype.name
        if dtype == "float32" and array.ndim > 1 and float_dtype != "float32":
            dtype, array = float_dtype, _rounded(array, float_dtype)
        forms.append(TensorForm(name, dtype, array.shape))
        parts.append(memoryview(np.ascontiguousarray(array)).cast("B") if array.size else memoryview(b""))
    digest = ItemDigest(modality, forms)
    for part in parts:
        digest.update(part)
    return PackedItem(modality, digest.digest(), tuple(forms), tuple(parts))


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 numbers in another format, rounded to the nearest, ties to even; bfloat16 as the 16 bits that it is."""
    if dtype == "float16":
        return array.astype(np.float16)
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)
