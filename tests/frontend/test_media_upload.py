"""Uploads keep to their credit, stop when nobody wants them any more, and start again when they are asked for again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np

from forebay.executor.v1 import executor_pb2 as wire
from forebay.media_packing import PackedItem, pack
from frontend.media_upload import MediaUploads
from preprocess.media_item import MediaItem, PlacedItem
from preprocess.ready_prompt import ReadyMedia, packed_media

MIB = 1 << 20


def item(seed: int, size: int) -> PackedItem:
    return pack("image", {"pixels": np.full(size, seed, np.uint8)})


class Executor:
    """Takes messages; `aboard` are the digests of flights' items."""

    def __init__(self) -> None:
        self.chunks: list[wire.TensorChunk] = []
        self.aboard: set[bytes] = set()

    async def write(self, message: wire.SessionRequest) -> None:
        self.chunks.append(message.chunk)

    def bytes_of(self, found: PackedItem) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks if chunk.digest == found.digest)


@contextlib.asynccontextmanager
async def uploads_to(executor: Executor, window: int) -> AsyncIterator[MediaUploads]:
    uploads = MediaUploads(window, write=executor.write, wanted=executor.aboard.__contains__)
    task = asyncio.create_task(uploads.run())
    try:
        yield uploads
    finally:
        task.cancel()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def want(executor: Executor, uploads: MediaUploads, *items: PackedItem) -> None:
    executor.aboard.update(found.digest for found in items)
    uploads.want([ReadyMedia(found, ((0, 1),)) for found in items], [found.digest for found in items])


async def test_items_go_up_one_after_the_other_as_far_as_the_credit_goes() -> None:
    executor, (a, b) = Executor(), (item(1, 2 * MIB), item(2, MIB + 7))
    async with uploads_to(executor, 2 * MIB) as uploads:
        want(executor, uploads, a, b)
        await settle()
        assert [(chunk.offset, len(chunk.data)) for chunk in executor.chunks] == [(0, MIB), (MIB, MIB)]
        uploads.credit(MIB)
        await settle()
        assert len(executor.bytes_of(b)) == MIB
        uploads.credit(7)
        await settle()
        assert executor.bytes_of(a) == b"\1" * 2 * MIB
        assert executor.bytes_of(b) == b"\2" * (MIB + 7)


async def test_an_upload_that_nobody_wants_makes_way_for_the_next() -> None:
    executor, (a, b) = Executor(), (item(1, 2 * MIB), item(2, 10))
    async with uploads_to(executor, MIB + 10) as uploads:
        want(executor, uploads, a, b)
        await settle()
        assert not executor.bytes_of(b)
        executor.aboard.discard(a.digest)
        uploads.flights_changed()
        await settle()
        assert len(executor.bytes_of(a)) == MIB
        assert executor.bytes_of(b) == b"\2" * 10


async def test_an_item_that_is_asked_for_again_is_sent_again_from_its_beginning() -> None:
    executor, a = Executor(), item(1, 10)
    async with uploads_to(executor, MIB) as uploads:
        want(executor, uploads, a)
        await settle()
        want(executor, uploads, a)
        await settle()
        assert [chunk.offset for chunk in executor.chunks] == [0, 0]


async def test_digests_of_no_item_of_the_flight_are_passed_over() -> None:
    executor = Executor()
    async with uploads_to(executor, MIB) as uploads:
        uploads.want([], [b"x" * 32])
        await settle()
        assert not executor.chunks


def test_an_item_that_comes_twice_is_packed_once() -> None:
    found = MediaItem("image", {"pixels": np.zeros((2, 2), np.uint8)}, 3)
    first, second = packed_media([PlacedItem(found, ((0, 3),)), PlacedItem(found, ((5, 3),))], "bfloat16")
    assert first.item is second.item
    assert [first.spans, second.spans] == [((0, 3),), ((5, 3),)]
