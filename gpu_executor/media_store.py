"""Owns the tensors of media items that frontends have sent, by digest: as long as requests need them, and while there is room."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping

import torch

from forebay.media_packing import TensorForm

_DTYPES = {
    "uint8": torch.uint8, "int32": torch.int32, "int64": torch.int64, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}  # fmt: skip

Tensors = Mapping[str, torch.Tensor]


def tensors_of(forms: tuple[TensorForm, ...], data: bytearray) -> Tensors:
    """The tensors whose bytes lie in `data` one after the other; it is theirs from now on."""
    tensors: dict[str, torch.Tensor] = {}
    offset = 0
    for form in forms:
        dtype = _DTYPES[form.dtype]
        count = form.num_bytes // dtype.itemsize
        if offset % dtype.itemsize:  # behind bytes or halves: torch reads aligned numbers alone
            flat = torch.frombuffer(bytearray(memoryview(data)[offset : offset + form.num_bytes]), dtype=dtype)
        else:
            flat = (
                torch.frombuffer(data, dtype=dtype, count=count, offset=offset)
                if count
                else torch.empty(0, dtype=dtype)
            )
        tensors[form.name] = flat.view(form.shape)
        offset += form.num_bytes
    return tensors


@dataclasses.dataclass(slots=True)
class _Held:
    tensors: Tensors
    num_bytes: int
    num_users: int = 0


class MediaStore:
    """Items by digest, counted by the requests that have them. Idle ones go, longest idle first, beyond `max_idle_bytes`."""

    def __init__(self, max_idle_bytes: int) -> None:
        self._max_idle_bytes, self.num_idle_bytes = max_idle_bytes, 0
        self._items: OrderedDict[bytes, _Held] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._items

    def __getitem__(self, digest: bytes) -> Tensors:
        """The tensors of an item that is here."""
        return self._items[digest].tensors

    def take(self, digest: bytes) -> None:
        """One more request has an item that is here."""
        held = self._items[digest]
        if not held.num_users:
            self.num_idle_bytes -= held.num_bytes
        held.num_users += 1

    def add(self, digest: bytes, tensors: Tensors, num_bytes: int) -> None:
        """Keeps an item that has come; idle until it is taken."""
        if digest not in self._items:
            self._items[digest] = _Held(tensors, num_bytes)
            self.num_idle_bytes += num_bytes

    def release(self, digest: bytes) -> None:
        """One request less has the item."""
        held = self._items[digest]
        held.num_users -= 1
        if not held.num_users:
            self.num_idle_bytes += held.num_bytes
            self._items.move_to_end(digest)
            self.trim()

    def trim(self) -> None:
        """Forgets idle items until those that are left fit."""
        for digest in list(self._items):
            if self.num_idle_bytes <= self._max_idle_bytes:
                return
            if not self._items[digest].num_users:
                self.num_idle_bytes -= self._items.pop(digest).num_bytes
