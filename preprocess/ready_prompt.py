"""Owns a prompt that is ready for executors: ids, packed media, positions; what frontends and preprocess services pass on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from forebay.executor.v1 import executor_pb2 as wire
from forebay.media_packing import PackedItem, TensorForm, pack
from forebay.preprocess.v1 import preprocess_pb2
from forebay.run_lengths import lengthen_positions, shorten_positions
from forebay.v1.media_pb2 import MediaKind, TensorType
from preprocess.media_item import EncodedPrompt, PlacedItem

Positions = np.ndarray | Sequence[Sequence[int]]  # (axes, tokens)


@dataclasses.dataclass(frozen=True, slots=True)
class ReadyMedia:
    """An item, and the spans (start, length) of the prompt's tokens that it stands behind."""

    item: PackedItem
    spans: tuple[tuple[int, int], ...]

    def message(self) -> wire.MediaItem:
        """What a Submit says of it."""
        return wire.MediaItem(
            kind=MediaKind.Value(f"MEDIA_KIND_{self.item.modality.upper()}"),
            digest=self.item.digest,
            tensors=[
                wire.TensorHeader(
                    name=form.name, dtype=TensorType.Value(f"TENSOR_TYPE_{form.dtype.upper()}"), shape=form.shape
                )
                for form in self.item.forms
            ],
            span_starts=[start for start, _ in self.spans],
            span_lengths=[length for _, length in self.spans],
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ReadyPrompt:
    """Ids, media, and rotary positions, axis by axis, where these are not the tokens' indexes."""

    token_ids: list[int]
    media: tuple[ReadyMedia, ...] = ()
    positions: Positions = ()

    @classmethod
    def of(cls, encoded: EncodedPrompt, float_dtype: str) -> ReadyPrompt:
        """An encoded prompt; numbers of its media's tensors are in `float_dtype`."""
        positions = () if encoded.positions is None else encoded.positions
        return cls(encoded.token_ids, packed_media(encoded.media, float_dtype), positions)

    def message(self) -> preprocess_pb2.EncodedPrompt:
        """All but the tensors, as a preprocess service sends it."""
        return preprocess_pb2.EncodedPrompt(
            token_ids=self.token_ids,
            media=[found.message() for found in self.media],
            **position_fields(self.positions),
        )

    @classmethod
    def from_message(cls, message: preprocess_pb2.EncodedPrompt, data: dict[bytes, bytes]) -> ReadyPrompt:
        """The reverse; `data` has the bytes of each item's tensors by its digest."""
        items: dict[bytes, PackedItem] = {}
        for head in message.media:
            if head.digest not in items:
                items[head.digest] = _item_of(head, data.get(head.digest, b""))
        media = tuple(
            ReadyMedia(items[head.digest], tuple(zip(head.span_starts, head.span_lengths, strict=True)))
            for head in message.media
        )
        positions = lengthen_positions(
            message.position_steps, message.position_step_counts, message.num_position_axes, len(message.token_ids)
        )
        return cls(list(message.token_ids), media, () if positions is None else positions)


def position_fields(positions: Positions) -> dict[str, Any]:
    """The fields of a message that hold rotary positions."""
    if not len(positions):
        return {}
    steps, counts = shorten_positions(positions)
    return {"num_position_axes": len(positions), "position_steps": steps, "position_step_counts": counts}


def packed_media(placed: Iterable[PlacedItem], float_dtype: str) -> tuple[ReadyMedia, ...]:
    """Items in their places, packed; an item that comes twice is packed once."""
    packed: dict[int, PackedItem] = {}
    found = []
    for place in placed:
        item = place.item
        if id(item) not in packed:
            packed[id(item)] = pack(item.modality, item.tensors, float_dtype)
        found.append(ReadyMedia(packed[id(item)], place.spans))
    return tuple(found)


def _item_of(head: wire.MediaItem, data: bytes) -> PackedItem:
    forms = tuple(
        TensorForm(
            tensor.name,
            TensorType.Name(tensor.dtype).removeprefix("TENSOR_TYPE_").lower(),
            tuple(tensor.shape),
        )
        for tensor in head.tensors
    )
    view, parts = memoryview(data), []
    for form in forms:
        parts.append(view[: form.num_bytes])
        view = view[form.num_bytes :]
    modality = MediaKind.Name(head.kind).removeprefix("MEDIA_KIND_").lower()
    return PackedItem(modality, head.digest, forms, tuple(parts))
