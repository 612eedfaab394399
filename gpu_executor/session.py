"""Owns one frontend's session: its requests by handle, its lease, and what is sent to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc

from forebay.errors import FailedPrecondition, ForebayError, InvalidRequest, Unavailable
from forebay.executor.v1 import executor_pb2
from forebay.v1.errors_pb2 import ErrorReason
from gpu_executor.media import MediaInput
from gpu_executor.media_intake import MediaIntake
from gpu_executor.outputs import Outbox
from gpu_executor.submission import read_submit

if TYPE_CHECKING:
    from gpu_executor.service import ExecutorServicer

logger = logging.getLogger(__name__)

_MAX_TOMBSTONES = 4096  # aborts that came before their Submit


class Session:
    """A frontend's stream. A request's key in the engine is (session, handle)."""

    def __init__(self, service: ExecutorServicer, hello: executor_pb2.Hello) -> None:
        self.service = service
        self.frontend_id = hello.frontend_id[:128]
        self.outbox = Outbox()
        self.handles: set[int] = set()
        self._last_handle = -1
        self._tombstones: dict[int, None] = {}
        self._heard = time.monotonic()
        self._waiting: dict[int, executor_pb2.Submit] = {}  # until their media is here
        self._intake = MediaIntake(
            service.media_store, service.media_window_bytes, send=self.outbox.put, start=self._start_with_media
        )

    async def read(self, requests: AsyncIterator[executor_pb2.SessionRequest]) -> None:
        """Carries out what the frontend sends until it closes its side."""
        async for request in requests:
            self._heard = time.monotonic()
            match request.WhichOneof("kind"):
                case "submit":
                    self._submit(request.submit)
                case "abort":
                    self._abort(request.abort)
                case "chunk":
                    self._intake.take(request.chunk)
                case "renew":
                    pass
                case "hello":
                    raise InvalidRequest("Hello opens a session and cannot come twice")
                case None:
                    raise InvalidRequest("a SessionRequest of no known kind")

    async def watch_lease(self) -> None:
        """Returns when the frontend has been silent for longer than the lease."""
        lease = self.service.config.lease_ms / 1000
        while (silent := time.monotonic() - self._heard) < lease:
            await asyncio.sleep(lease - silent)

    def end(self) -> None:
        """Aborts what the session still runs."""
        for handle in self.handles:
            self.service.loop.abort((self, handle), None)
        if self.handles:
            logger.info(
                "session of %r ended with %d requests running; they are aborted", self.frontend_id, len(self.handles)
            )
        self.handles.clear()
        self._intake.end_all()

    def finished(self, handle: int) -> None:
        """The engine holds nothing of the request any more."""
        self.handles.discard(handle)
        self._waiting.pop(handle, None)
        self._intake.end(handle)

    def reject(self, handle: int, error: ForebayError) -> None:
        """Tells the frontend that nothing more comes of a request."""
        self.finished(handle)
        self.outbox.put(
            executor_pb2.SessionResponse(
                rejected=executor_pb2.Rejected(
                    handle=handle,
                    reason=error.reason,
                    message=error.message,
                    code=grpc.StatusCode[error.code].value[0],
                    retry_after_ms=error.retry_after_ms,
                )
            )
        )

    def _submit(self, submit: executor_pb2.Submit) -> None:
        handle = submit.handle
        if handle <= self._last_handle:
            raise InvalidRequest(f"handle {handle} was used before in this session")
        self._last_handle = handle
        if handle in self._tombstones:  # the Abort overtook its Submit
            del self._tombstones[handle]
            return
        if self.service.draining:
            message = "the executor is shutting down"
            self.reject(handle, Unavailable(message, ErrorReason.ERROR_REASON_DRAINING, retry_after_ms=1000))
            return
        self.handles.add(handle)
        if not submit.media:
            self._start(submit, [])
            return
        self._waiting[handle] = submit
        try:
            self._intake.submit(handle, submit.media)
        except ForebayError as error:
            self.reject(handle, error)

    def _start_with_media(self, handle: int, media: list[MediaInput]) -> None:
        self._start(self._waiting.pop(handle), media)

    def _start(self, submit: executor_pb2.Submit, media: list[MediaInput]) -> None:
        """Gives the request to the engine."""
        info, handle = self.service.info, submit.handle
        try:
            request = read_submit(
                submit,
                key=(self, handle),
                owner=self,
                eos_token_ids=info.eos_token_ids,
                vocab_size=info.vocab_size,
                media=media,
            )
        except ForebayError as error:
            self.reject(handle, error)
            return
        self.service.loop.submit(request, lambda error: self._submitted(handle, error))

    def _submitted(self, handle: int, error: ForebayError | None) -> None:
        if error is not None:
            self.reject(handle, error)
        else:
            self.outbox.put(executor_pb2.SessionResponse(accepted=executor_pb2.Accepted(handle=handle)))

    def _abort(self, abort: executor_pb2.Abort) -> None:
        handle = abort.handle
        if handle > self._last_handle and not abort.HasField("sequence_index"):
            self._tombstones[handle] = None
            if len(self._tombstones) > _MAX_TOMBSTONES:
                del self._tombstones[next(iter(self._tombstones))]
        index = abort.sequence_index if abort.HasField("sequence_index") else None
        if index is None and handle in self._waiting:  # the engine does not know it yet
            self._aborted(handle, ended=True, gone=True)
            return
        self.service.loop.abort((self, handle), index, lambda ended, gone: self._aborted(handle, ended, gone))

    def _aborted(self, handle: int, ended: bool, gone: bool) -> None:
        if gone:
            self.finished(handle)
        aborted = executor_pb2.Aborted(handle=handle, was_running=ended)
        self.outbox.put(executor_pb2.SessionResponse(aborted=aborted))


def check_fingerprint(theirs: executor_pb2.Fingerprint, ours: executor_pb2.Fingerprint) -> None:
    """Raises FailedPrecondition naming what differs; what a side does not know is not compared."""
    for name in ("model_digest", "tokenizer_digest", "vocab_size"):
        their, our = getattr(theirs, name), getattr(ours, name)
        if their and our and their != our:
            raise FailedPrecondition(
                f"frontend and executor differ in {name}: {their} and {our}; start both from the same model and revision"
            )
    if theirs.processor_version not in (0, ours.processor_version):  # 0: it sends no media
        raise FailedPrecondition(
            f"frontend and executor differ in processor_version: {theirs.processor_version} and {ours.processor_version}; "
            "run the same version of Forebay on both"
        )
