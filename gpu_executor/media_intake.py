"""Owns the media of one session's requests: asks for what is not held, takes chunks, and says when a request has all of it.

Submit ─▶ held already? ─no─▶ MediaWanted ─▶ TensorChunk … ─▶ digest right? ─▶ all there ─▶ the request starts
                                                 ▲                                             │ it ends
                                                 └────────────── MediaCredit ◀─────────────────┘
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from forebay.errors import InvalidRequest
from forebay.executor.v1 import executor_pb2 as wire
from forebay.media_packing import ITEM_BYTES, MAX_CHUNK_BYTES, ItemDigest, TensorForm
from forebay.v1.errors_pb2 import ErrorReason
from forebay.v1.media_pb2 import MediaKind, TensorType
from gpu_executor.media import MediaInput
from gpu_executor.media_store import MediaStore, tensors_of

MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS = 8, 64, 16


@dataclasses.dataclass(frozen=True, slots=True)
class ItemHead:
    """What a Submit says of an item, checked."""

    modality: str
    digest: bytes
    forms: tuple[TensorForm, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def num_bytes(self) -> int:
        return sum(form.num_bytes for form in self.forms)


def read_heads(items: list[wire.MediaItem], window_bytes: int) -> list[ItemHead]:
    """The items of a Submit; raises InvalidRequest for what cannot be: nothing of a frontend's numbers is trusted."""
    heads = [_read_head(item, index) for index, item in enumerate(items)]
    num_bytes = sum({head.digest: head.num_bytes for head in heads}.values())
    if num_bytes > window_bytes:
        raise InvalidRequest(
            f"the media of the prompt has {num_bytes:,} bytes as tensors; {window_bytes:,} are taken (--media-window-bytes)",
            ErrorReason.ERROR_REASON_MEDIA_TOO_LARGE,
        )
    return heads


def _read_head(item: wire.MediaItem, index: int) -> ItemHead:
    def check(holds: bool, problem: str) -> None:
        if not holds:
            problem = f"media item {index} {problem}"
            raise InvalidRequest(
                problem, ErrorReason.ERROR_REASON_MEDIA_UNUSABLE, fields=((f"media[{index}]", problem),)
            )

    check(item.kind in MediaKind.values() and item.kind != 0, f"is of kind {item.kind}, which is none")
    check(len(item.digest) == 32, f"has a digest of {len(item.digest)} bytes; SHA-256 has 32")
    check(0 < len(item.tensors) <= MAX_TENSORS, f"has {len(item.tensors)} tensors; 1 to {MAX_TENSORS} are taken")
    forms = []
    for tensor in item.tensors:
        known = tensor.dtype in TensorType.values()
        dtype = TensorType.Name(tensor.dtype).removeprefix("TENSOR_TYPE_").lower() if known else ""
        check(dtype in ITEM_BYTES, f"has a tensor of type {tensor.dtype}, which is none")
        check(len(tensor.shape) <= MAX_DIMENSIONS, f"has a tensor of {len(tensor.shape)} dimensions")
        check(0 < len(tensor.name) <= MAX_NAME, "has a tensor without a name, or with too long a one")
        forms.append(TensorForm(tensor.name, dtype, tuple(tensor.shape)))
    names = [form.name for form in forms]
    check(names == sorted(set(names)), "has tensors that are not in the order of their names")
    check(0 < len(item.span_starts) == len(item.span_lengths), "has spans without a start or a length")
    spans = tuple(zip(item.span_starts, item.span_lengths, strict=True))
    modality = MediaKind.Name(item.kind).removeprefix("MEDIA_KIND_").lower()
    return ItemHead(modality, item.digest, tuple(forms), spans)


class _Upload:
    """An item that is coming in."""

    __slots__ = ("_digest", "data", "head", "waiting")

    def __init__(self, head: ItemHead) -> None:
        self.head, self.data = head, bytearray()
        self._digest = ItemDigest(head.modality, head.forms)
        self.waiting: set[int] = set()  # handles of requests

    def take(self, offset: int, data: bytes) -> bool:
        """Appends a chunk if it is the next; raises InvalidRequest for one that cannot be."""
        if not 0 < len(data) <= MAX_CHUNK_BYTES:
            raise InvalidRequest(f"a chunk has {len(data):,} bytes; it can have 1 to {MAX_CHUNK_BYTES:,}")
        if offset != len(self.data):
            return False
        if offset + len(data) > self.head.num_bytes:
            raise InvalidRequest(f"a media item has more than the {self.head.num_bytes:,} bytes of its tensors")
        self.data += data
        self._digest.update(data)
        return True

    @property
    def complete(self) -> bool:
        return len(self.data) == self.head.num_bytes

    @property
    def intact(self) -> bool:
        """Whether the bytes are those of the digest."""
        return self._digest.digest() == self.head.digest


class MediaIntake:
    """The media half of a session. `send` puts a message into its outbox, `start` lets a request go on that has its media."""

    def __init__(
        self,
        store: MediaStore,
        window_bytes: int,
        *,
        send: Callable[[wire.SessionResponse], None],
        start: Callable[[int, list[MediaInput]], None],
    ) -> None:
        self._store, self._window_bytes = store, window_bytes
        self._send, self._start = send, start
        self._room = window_bytes  # that chunks may still take
        self._uploads: dict[bytes, _Upload] = {}
        self._heads: dict[int, list[ItemHead]] = {}  # of requests that wait or run
        self._missing: dict[int, set[bytes]] = {}  # of requests that wait
        self._charges: dict[bytes, int] = {}  # bytes of items that came in this session and whose requests are not over

    def submit(self, handle: int, items: list[wire.MediaItem]) -> None:
        """Takes note of a request's media; it starts at once if all is held. Raises InvalidRequest."""
        heads = read_heads(items, self._window_bytes)
        self._heads[handle] = heads
        missing = self._missing[handle] = set()
        wanted = []
        for digest, head in {head.digest: head for head in heads}.items():
            if digest in self._store:
                self._store.take(digest)
                continue
            missing.add(digest)
            if digest not in self._uploads:
                self._uploads[digest] = _Upload(head)
                wanted.append(head)
            self._uploads[digest].waiting.add(handle)
        if any(head.num_bytes for head in wanted):
            digests = [head.digest for head in wanted if head.num_bytes]
            self._send(wire.SessionResponse(media_wanted=wire.MediaWanted(handle=handle, digests=digests)))
        for head in wanted:
            if not head.num_bytes:  # nothing will come
                self._arrived(self._uploads[head.digest])
        self._start_if_complete(handle)

    def take(self, chunk: wire.TensorChunk) -> None:
        """Takes a chunk. Raises InvalidRequest, which ends the session, for one beyond what may be sent."""
        data = chunk.data
        self._room -= len(data)
        if self._room < 0:
            raise InvalidRequest("chunks exceed the credit that was given", ErrorReason.ERROR_REASON_MALFORMED_MESSAGE)
        upload = self._uploads.get(chunk.digest)
        # Chunks may be on their way when their requests end, and an upload of the same item may have begun again since.
        if upload is None or not upload.take(chunk.offset, data):
            self._give_credit(len(data))
            return
        self._charges[chunk.digest] = self._charges.get(chunk.digest, 0) + len(data)
        if upload.complete:
            self._arrived(upload)

    def _arrived(self, upload: _Upload) -> None:
        digest = upload.head.digest
        if not upload.intact:
            raise InvalidRequest("the bytes of a media item are not those of its digest")
        del self._uploads[digest]
        self._store.add(digest, tensors_of(upload.head.forms, upload.data), upload.head.num_bytes)
        for handle in sorted(upload.waiting):
            self._store.take(digest)
            self._missing[handle].discard(digest)
            self._start_if_complete(handle)
        self._store.trim()

    def _start_if_complete(self, handle: int) -> None:
        if self._missing.get(handle) != set():
            return
        del self._missing[handle]
        media = []
        for head in self._heads[handle]:
            media.append(MediaInput(head.modality, head.digest, head.spans, self._store[head.digest]))
        self._start(handle, media)

    def end(self, handle: int) -> None:
        """The request is over, be it before it started: what nobody else has is given back."""
        missing = self._missing.pop(handle, set())
        for digest in {head.digest for head in self._heads.pop(handle, ())}:
            if digest not in missing:
                self._store.release(digest)
            elif digest in self._uploads:
                self._uploads[digest].waiting.discard(handle)
                if not self._uploads[digest].waiting:
                    del self._uploads[digest]
            if not any(digest == head.digest for heads in self._heads.values() for head in heads):
                self._give_credit(self._charges.pop(digest, 0))

    def end_all(self) -> None:
        """The session is over."""
        for handle in list(self._heads):
            self.end(handle)

    def _give_credit(self, num_bytes: int) -> None:
        if num_bytes:
            self._room += num_bytes
            self._send(wire.SessionResponse(media_credit=wire.MediaCredit(num_bytes=num_bytes)))
