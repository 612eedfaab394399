"""A session's media: what is held is not asked for again, what is wrong is refused, and all that was lent comes back."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from forebay.errors import InvalidRequest
from forebay.executor.v1 import executor_pb2 as wire
from forebay.media_packing import PackedItem, pack
from forebay.v1 import media_pb2
from gpu_executor.media import MediaInput
from gpu_executor.media_intake import MediaIntake
from gpu_executor.media_store import MediaStore
from preprocess.ready_prompt import ReadyMedia

WINDOW = 10_000


def item(seed: int, size: int = 1000) -> PackedItem:
    pixels = np.random.default_rng(seed).integers(0, 255, size, np.uint8)
    return pack("image", {"pixels": pixels, "scale": np.array([1.5, 2.5], np.float32)})


class Peer:
    """A frontend without a network: keeps what it is sent, and answers when a test lets it."""

    def __init__(self, *, store: MediaStore | None = None, window: int = WINDOW) -> None:
        self.started: dict[int, list[MediaInput]] = {}
        self.wanted: list[bytes] = []
        self.credit = window
        self.store = store or MediaStore(WINDOW)
        self.intake = MediaIntake(self.store, window, send=self.receive, start=self.started.__setitem__)

    def receive(self, response: wire.SessionResponse) -> None:
        if response.HasField("media_wanted"):
            self.wanted += response.media_wanted.digests
        else:
            self.credit += response.media_credit.num_bytes

    def submit(self, handle: int, *items: PackedItem) -> None:
        self.intake.submit(handle, [ReadyMedia(found, ((3 * i, 2),)).message() for i, found in enumerate(items)])

    def send(self, found: PackedItem, start: int = 0, size: int = 300, end: int | None = None) -> None:
        data = b"".join(bytes(piece) for piece in found.chunks())[:end]
        for offset in range(start, len(data), size):
            piece = data[offset : offset + size]
            self.credit -= len(piece)
            self.intake.take(wire.TensorChunk(digest=found.digest, offset=offset, data=piece))


def test_a_request_starts_when_all_of_its_media_is_there() -> None:
    peer, (a, b) = Peer(), (item(1), item(2))
    peer.submit(7, a, b, a)
    assert peer.wanted == [a.digest, b.digest]
    peer.send(a)
    assert not peer.started
    peer.send(b)
    media = peer.started[7]
    assert [found.digest for found in media] == [a.digest, b.digest, a.digest]
    assert [found.spans for found in media] == [((0, 2),), ((3, 2),), ((6, 2),)]
    assert media[1].tensors["pixels"].tolist() == list(bytes(b.parts[0]))
    assert media[1].tensors["scale"].dtype == torch.float32
    assert media[1].tensors["scale"].tolist() == [1.5, 2.5]


def test_what_is_held_is_not_asked_for_again() -> None:
    peer, a = Peer(), item(1)
    peer.submit(1, a)
    peer.send(a)
    peer.submit(2, a)
    peer.intake.end(1)
    peer.intake.end(2)
    peer.submit(3, a)
    assert peer.wanted == [a.digest]
    assert peer.started.keys() == {1, 2, 3}


def test_what_another_session_sent_is_held_too() -> None:
    first, a = Peer(), item(1)
    first.submit(1, a)
    first.send(a)
    second = Peer(store=first.store)
    second.submit(1, a)
    assert not second.wanted
    assert second.started


def test_two_requests_wait_for_one_upload_and_outlive_each_other() -> None:
    peer, a = Peer(), item(1)
    peer.submit(1, a)
    peer.send(a, end=600)
    peer.submit(2, a)
    peer.intake.end(1)
    peer.send(a, start=600)
    assert peer.wanted == [a.digest]
    assert peer.started.keys() == {2}


def test_chunks_of_a_request_that_is_over_are_passed_over_and_credited() -> None:
    peer, a = Peer(), item(1)
    peer.submit(1, a)
    peer.send(a, end=300)
    peer.intake.end(1)
    peer.send(a, start=300, end=900)  # on their way when the request ended
    assert peer.credit == WINDOW
    peer.submit(2, a)
    peer.send(a, start=900)  # the last of them, while the item is asked for again
    peer.send(a)
    assert peer.started.keys() == {2}


def test_bytes_that_are_not_those_of_the_digest_end_the_session() -> None:
    peer, a, b = Peer(), item(1), item(2)
    peer.submit(1, a)
    with pytest.raises(InvalidRequest, match="digest"):
        peer.send(PackedItem(a.modality, a.digest, a.forms, b.parts))
    assert a.digest not in peer.store


def test_chunks_beyond_the_credit_end_the_session() -> None:
    peer = Peer(window=1200)
    peer.submit(1, item(1))
    peer.send(item(1))
    peer.submit(2, item(2))
    with pytest.raises(InvalidRequest, match="credit"):
        peer.send(item(2))


@pytest.mark.parametrize("size", [0, (1 << 20) + 1])
def test_chunks_have_a_byte_and_at_most_a_mebibyte(size: int) -> None:
    peer, a = Peer(window=1 << 22), item(1, 1 << 21)
    peer.submit(1, a)
    with pytest.raises(InvalidRequest, match="chunk"):
        peer.intake.take(wire.TensorChunk(digest=a.digest, data=bytes(size)))


def test_media_larger_than_the_window_is_refused() -> None:
    peer = Peer()
    with pytest.raises(InvalidRequest, match="media-window-bytes") as caught:
        peer.submit(1, item(1, WINDOW))
    assert caught.value.reason_name == "MEDIA_TOO_LARGE"
    peer.intake.end(1)
    assert not peer.wanted


def headed(**changes: object) -> wire.MediaItem:
    message = ReadyMedia(item(1), ((0, 2),)).message()
    for name, value in changes.items():
        message.ClearField(name)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def header(**fields: object) -> wire.TensorHeader:
    return wire.TensorHeader(**({"name": "a", "dtype": media_pb2.TENSOR_TYPE_UINT8, "shape": [2]} | fields))


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (headed(kind=0), "kind"),
        (headed(kind=99), "kind"),
        (headed(digest=b"short"), "digest"),
        (headed(tensors=[]), "tensors"),
        (headed(tensors=[header(name=str(i)) for i in range(17)]), "tensors"),
        (headed(tensors=[header(name="b"), header(name="a")]), "order"),
        (headed(tensors=[header(), header()]), "order"),
        (headed(tensors=[header(name="")]), "name"),
        (headed(tensors=[header(dtype=0)]), "type"),
        (headed(tensors=[header(dtype=77)]), "type"),
        (headed(tensors=[header(shape=[1] * 9)]), "dimensions"),
        (headed(span_lengths=[]), "spans"),
        (headed(tensors=[header(shape=[1 << 31] * 8)]), "bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_heads_that_cannot_be_are_refused(message: wire.MediaItem, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        Peer().intake.submit(1, [message])


def test_an_item_without_bytes_needs_no_chunk() -> None:
    peer, empty = Peer(), pack("image", {"pixels": np.zeros((0, 3), np.uint8)})
    peer.submit(1, empty)
    assert not peer.wanted
    assert peer.started[1][0].tensors["pixels"].shape == (0, 3)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["submit", "send", "end"]), st.integers(0, 5), st.integers(0, 5)), max_size=40)
)
def test_all_credit_comes_back_when_all_requests_are_over(actions: list[tuple[str, int, int]]) -> None:
    items = [item(seed, 100) for seed in range(6)]
    peer, live, next_handle, sent = Peer(), [], 1, 0
    for kind, a, b in actions:
        if kind == "submit":
            peer.submit(next_handle, items[a], items[b])
            live.append(next_handle)
            next_handle += 1
        elif kind == "send" and sent < len(peer.wanted):
            peer.send(next(found for found in items if found.digest == peer.wanted[sent]), size=60)
            sent += 1
        elif kind == "end" and live:
            peer.intake.end(live.pop(a % len(live)))
        assert peer.credit >= 0
    for handle in live:
        peer.intake.end(handle)
    assert peer.credit == WINDOW
    assert peer.store.num_idle_bytes <= WINDOW
