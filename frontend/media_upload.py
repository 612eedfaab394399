"""Owns the way of media up to an executor: what it asked for, chunk by chunk, as its credit allows."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

from forebay.executor.v1 import executor_pb2 as wire
from forebay.media_packing import PackedItem, pack
from forebay.v1.media_pb2 import MediaKind, TensorType


@dataclasses.dataclass(frozen=True, slots=True)
class FlightMedia:
    """An item of a flight's prompt, and the spans (start, length) of tokens that it stands behind."""

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


def packed_media(placed: Iterable[Any], float_dtype: str) -> tuple[FlightMedia, ...]:
    """Items in their places (preprocess.media_item.PlacedItem) as a flight takes them; an item that comes twice is packed once."""
    packed: dict[int, PackedItem] = {}
    found = []
    for place in placed:
        item = place.item
        if id(item) not in packed:
            packed[id(item)] = pack(item.modality, item.tensors, float_dtype)
        found.append(FlightMedia(packed[id(item)], place.spans))
    return tuple(found)


class MediaUploads:
    """The uploads of one session, one after the other, so that no two wait for each other's credit.

    `write` sends a message and returns when it is on its way; `wanted(digest)` says whether any flight aboard has the item.
    """

    def __init__(
        self,
        window_bytes: int,
        *,
        write: Callable[[wire.SessionRequest], Awaitable[None]],
        wanted: Callable[[bytes], bool],
    ) -> None:
        self._credit, self._write, self._wanted = window_bytes, write, wanted
        self._queue: deque[PackedItem] = deque()
        self._changed = asyncio.Event()
        self.num_sent_bytes = 0

    def want(self, media: Collection[FlightMedia], digests: Collection[bytes]) -> None:
        """The executor asks for items of a flight."""
        items = {found.item.digest: found.item for found in media}
        self._queue.extend(items[digest] for digest in digests if digest in items)
        self._changed.set()

    def credit(self, num_bytes: int) -> None:
        """The executor has room for more."""
        self._credit += num_bytes
        self._changed.set()

    async def run(self) -> None:
        """Sends for ever; raises what `write` raises."""
        while True:
            while not self._queue:
                await self._wait()
            await self._send(self._queue.popleft())

    async def _send(self, item: PackedItem) -> None:
        offset = 0
        for piece in item.chunks():
            while self._credit < len(piece):
                if not self._wanted(item.digest):
                    return
                await self._wait()
            if not self._wanted(item.digest):
                return
            self._credit -= len(piece)
            chunk = wire.TensorChunk(digest=item.digest, offset=offset, data=bytes(piece))
            await self._write(wire.SessionRequest(chunk=chunk))
            offset += len(piece)
            self.num_sent_bytes += len(piece)

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def flights_changed(self) -> None:
        """A flight has left: what waits for credit may no longer be wanted."""
        self._changed.set()
