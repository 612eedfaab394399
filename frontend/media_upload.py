"""Owns the way of media up to an executor: what it asked for, chunk by chunk, as its credit allows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection

from forebay.executor.v1 import executor_pb2 as wire
from forebay.media_packing import PackedItem
from preprocess.ready_prompt import ReadyMedia


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

    def want(self, media: Collection[ReadyMedia], digests: Collection[bytes]) -> None:
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
