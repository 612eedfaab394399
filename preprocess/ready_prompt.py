"""Owns a prompt that is ready for executors: ids, packed media, positions; what frontends and preprocess services pass on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from forebay.executor.v1 import executor_pb2 as wire
from forebay.media_packing import PackedItem, TensorForm, pack
from forebay.preprocess.v1 import preprocess_pb2
from forebay.v1.media_pb2 import MediaKind, TensorType
from preprocess.media_item import EncodedPrompt, PlacedItem


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


@dataclasses.dataclass(frozen=True, slots=True)
class ReadyPrompt:
    """Ids, media, and rotary positions, axis by axis, where these are not the tokens' indexes."""

    token_ids: list[int]
    media: tuple[ReadyMedia, ...] = ()
    positions: Sequence[Sequence[int]] = ()

    @classmethod
    def of(cls, encoded: EncodedPrompt, float_dtype: str) -> ReadyPrompt:
        """An encoded prompt; numbers of its media's tensors are in `float_dtype`."""
        positions = () if encoded.positions is None else encoded.positions.tolist()
        return cls(encoded.token_ids, packed_media(encoded.media, float_dtype), positions)

    def message(self) -> preprocess_pb2.EncodedPrompt:
        """All but the tensors, as a preprocess service sends it."""
        return preprocess_pb2.EncodedPrompt(
            token_ids=self.token_ids,
            media=[found.message() for found in self.media],
            positions=itertools.chain.from_iterable(self.positions),
            num_position_axes=len(self.positions),
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
        num_axes, count = message.num_position_axes, len(message.token_ids)
        positions = [message.positions[axis * count : (axis + 1) * count] for axis in range(num_axes)]
        return cls(list(message.token_ids), media, positions)


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
