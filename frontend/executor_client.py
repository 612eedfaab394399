"""Owns the session with one executor: opens it, keeps it alive, opens it again, and carries requests over it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import logging
import random
from dataclasses import dataclass
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from forebay.errors import FailedPrecondition, ForebayError, error_of
from forebay.executor.v1 import executor_pb2 as wire
from forebay.rpc import KEEPALIVE_OPTIONS, error_from_rpc
from forebay.v1.errors_pb2 import ErrorReason
from frontend.demultiplexer import Demultiplexer, ProtocolError
from frontend.flight import Flight
from frontend.media_upload import MediaUploads
from frontend.router import ExecutorLoad

logger = logging.getLogger(__name__)

METHOD = "/forebay.executor.v1.ExecutorService/Session"
# Frames with the log-probabilities of a long prompt are the largest messages on this link.
MAX_FRAME_BYTES = 64 << 20
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *KEEPALIVE_OPTIONS,
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.enable_retries", 0),  # a broken session is resumed here, not replayed by gRPC
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the old one's wait before it dials
)
MIN_RETRY_S, MAX_RETRY_S, REFUSED_RETRY_S = 0.1, 5.0, 30.0


class State(enum.Enum):
    """How a session stands."""

    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"  # finishes what it has, takes nothing new
    REFUSED = "refused"  # holds another model


class SessionEvents(Protocol):
    """Who is told what happens to executors and to the flights aboard."""

    def check_welcome(self, client: ExecutorClient, welcome: wire.Welcome) -> None:
        """Raises FailedPrecondition if the executor does not fit to us or to the others."""

    def state_changed(self, client: ExecutorClient) -> None:
        """Says that the client is, or is no longer, one to send requests to."""

    def flight_lost(self, flight: Flight, client: ExecutorClient, *, blamed: bool) -> None:
        """Gives back a flight whose executor went away, or served it wrongly; `blamed` if it was not announced."""

    def flight_refused(self, flight: Flight, client: ExecutorClient, error: ForebayError) -> None:
        """Gives back a flight that the executor refused or ended with an error."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What all sessions of a frontend share; times in seconds."""

    frontend_id: str
    fingerprint: wire.Fingerprint
    connect_timeout_s: float = 5.0
    stall_s: float = 120.0
    refused_retry_s: float = REFUSED_RETRY_S


class ExecutorClient:
    """One executor, seen from a frontend. `submit` and `abort` return at once; a task of its own does the talking."""

    def __init__(self, address: str, settings: SessionSettings, events: SessionEvents) -> None:
        self.address = address
        self.state = State.CONNECTING
        self.welcome: wire.Welcome | None = None
        self.load: ExecutorLoad | None = None
        self.retired = False  # gone from the list of addresses: gets no new requests
        self._settings, self._events = settings, events
        self._outgoing: asyncio.Queue[wire.SessionRequest] = asyncio.Queue()
        self._demultiplexer: Demultiplexer | None = None
        self._uploads: MediaUploads | None = None
        self._next_handle = 1
        self._task: asyncio.Task[None] | None = None
        self._last_step, self._last_progress = 0, 0.0
        self._why_broken = ""

    @property
    def ready(self) -> bool:
        """Whether new requests can be sent here."""
        return self.state is State.READY and not self.retired

    @property
    def num_flights(self) -> int:
        """Requests aboard."""
        return len(self._demultiplexer.flights) if self._demultiplexer else 0

    def start(self) -> None:
        """Begins to connect, and goes on for ever."""
        self._task = asyncio.create_task(self._run(), name=f"executor {self.address}")

    async def close(self) -> None:
        """Ends the session; the executor ends what is aboard."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def submit(self, flight: Flight) -> None:
        """Takes a flight aboard."""
        demultiplexer, load = self._demultiplexer, self.load
        assert demultiplexer is not None and load is not None, "submit needs a session"
        if not demultiplexer.flights:
            self._last_progress = asyncio.get_running_loop().time()
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        submit = flight.submission(handle)
        flight.owner = self
        demultiplexer.flights[handle] = flight
        load.num_own_sequences += flight.num_sequences
        self._outgoing.put_nowait(wire.SessionRequest(submit=submit))

    def abort(self, flight: Flight) -> None:
        """Takes a flight off; nothing more comes of it."""
        if flight.owner is self and self._demultiplexer.flights.pop(flight.handle, None) is not None:
            self._send_abort(flight.handle, None)
            self._leave(flight)

    def _send_abort(self, handle: int, sequence_index: int | None) -> None:
        self._outgoing.put_nowait(wire.SessionRequest(abort=wire.Abort(handle=handle, sequence_index=sequence_index)))

    def _leave(self, flight: Flight) -> None:
        """Books that a flight is no longer aboard."""
        flight.owner = None
        if flight.media and self._uploads is not None:
            self._uploads.flights_changed()
        self.load.num_own_sequences -= flight.num_sequences

    def _flight_broken(self, flight: Flight) -> None:
        logger.warning("executor %s sent tokens that do not follow; the request goes on elsewhere", self.address)
        self._leave(flight)
        self._events.flight_lost(flight, self, blamed=True)

    # The connection

    async def _run(self) -> None:
        failures = 0
        while True:
            session = asyncio.create_task(self._session())
            try:
                await asyncio.wait({session})
            finally:
                if session.cancel():  # only if we are cancelled ourselves
                    await asyncio.wait({session})
                error = None if session.cancelled() else session.exception()
                was_up = self._end_session()
            failures = 0 if was_up else failures + 1
            self._log_end(error, failures)
            if self.state is State.REFUSED:
                delay = self._settings.refused_retry_s
            else:
                delay = min(MAX_RETRY_S, MIN_RETRY_S * 2 ** min(failures, 10))
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    def _end_session(self) -> bool:
        """Hands back what was aboard; returns whether the session had been up."""
        was_up, blamed = self.welcome is not None, self.state is State.READY
        flights = list(self._demultiplexer.flights.values()) if self._demultiplexer else []
        if self.state is not State.REFUSED:
            self.state = State.CONNECTING
        self._demultiplexer, self.welcome = None, None
        self._outgoing = asyncio.Queue()
        if was_up:
            self._events.state_changed(self)
        for flight in flights:
            self._leave(flight)
            self._events.flight_lost(flight, self, blamed=blamed)
        return was_up

    def _log_end(self, error: BaseException | None, failures: int) -> None:
        if isinstance(error, FailedPrecondition):
            logger.error("executor %s is refused: %s", self.address, error.message)
            return
        if isinstance(error, grpc.RpcError):
            known = error_from_rpc(error)
            cause = f"{known.code}: {known.message}"
        elif isinstance(error, TimeoutError):
            cause = f"no Welcome within {self._settings.connect_timeout_s:g} s"
        elif isinstance(error, ProtocolError):
            cause = str(error)
        else:
            cause = self._why_broken or (repr(error) if error else "the stream ended")
        expected = (grpc.RpcError, TimeoutError, asyncio.InvalidStateError, grpc.aio.BaseError, ProtocolError)
        if error is not None and not isinstance(error, expected):
            logger.error("the session with executor %s failed", self.address, exc_info=error)
        elif failures in (0, 1) or failures % 20 == 0:
            logger.warning("no session with executor %s: %s", self.address, cause)

    async def _session(self) -> None:
        """One session from Hello to its end."""
        self.state, self._why_broken = State.CONNECTING, ""
        async with grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
            call = channel.stream_stream(METHOD, request_serializer=wire.SessionRequest.SerializeToString)()
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s):  # wait_for may swallow a cancellation
                    welcome = await self._open(call)
                writing = asyncio.Lock()  # a chunk and any other message are written in turn
                self._uploads = MediaUploads(
                    welcome.media_window_bytes,
                    write=functools.partial(_write_in_turn, call, writing),
                    wanted=self._is_wanted,
                )
                self._begin(welcome)
                writer = asyncio.create_task(self._write(call, writing))
                uploader = asyncio.create_task(self._upload(call))
                keeper = asyncio.create_task(self._keep_alive(call, welcome.lease_ms / 1000))
                try:
                    while (data := await call.read()) is not grpc.aio.EOF:
                        self._receive(data)
                finally:
                    writer.cancel()
                    uploader.cancel()
                    keeper.cancel()
            finally:
                call.cancel()

    async def _open(self, call: grpc.aio.StreamStreamCall) -> wire.Welcome:
        settings = self._settings
        hello = wire.Hello(frontend_id=settings.frontend_id, fingerprint=settings.fingerprint)
        try:
            await call.write(wire.SessionRequest(hello=hello))
            data = await call.read()
        except (grpc.RpcError, asyncio.InvalidStateError):
            data = grpc.aio.EOF
        if data is grpc.aio.EOF:
            await self._raise_status(call)
        response = _parse(data)
        if not response.HasField("welcome"):
            raise ProtocolError("the first message is not Welcome")
        return response.welcome

    async def _raise_status(self, call: grpc.aio.StreamStreamCall) -> None:
        code, details = await call.code(), await call.details()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            self.state = State.REFUSED
            raise FailedPrecondition(details)
        raise grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), details)

    def _begin(self, welcome: wire.Welcome) -> None:
        try:  # here, and not where it arrived: two executors that differ must not be let in at the same time
            self._events.check_welcome(self, welcome)
        except FailedPrecondition:
            self.state = State.REFUSED
            raise
        self.welcome, self.load = welcome, ExecutorLoad(welcome)
        self._next_handle, self._last_step = 1, 0
        self._last_progress = asyncio.get_running_loop().time()
        self._demultiplexer = Demultiplexer(
            welcome.fingerprint.vocab_size, abort=self._send_abort, broken=self._flight_broken, ended=self._leave
        )
        self.state = State.READY
        logger.info("session with executor %s (%s)", self.address, welcome.executor_id)
        self._events.state_changed(self)

    def _is_wanted(self, digest: bytes) -> bool:
        """Whether a flight aboard has this media item."""
        flights = self._demultiplexer.flights.values() if self._demultiplexer else ()
        return any(digest == found.item.digest for flight in flights for found in flight.media)

    async def _upload(self, call: grpc.aio.StreamStreamCall) -> None:
        try:
            await self._uploads.run()
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            call.cancel()

    async def _write(self, call: grpc.aio.StreamStreamCall, writing: asyncio.Lock) -> None:
        outgoing = self._outgoing
        try:
            while True:
                await _write_in_turn(call, writing, await outgoing.get())
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            logger.debug("executor %s: the session can no longer be written to", self.address)
        finally:
            call.cancel()  # a session that cannot be written to is of no use; the reader sees its end

    async def _keep_alive(self, call: grpc.aio.StreamStreamCall, lease_s: float) -> None:
        """Renews the lease, and ends a session whose executor holds requests but does not move."""
        loop, stall_s = asyncio.get_running_loop(), self._settings.stall_s
        period = max(0.01, min(lease_s or 10.0, stall_s or 60.0) / 3)
        while True:
            await asyncio.sleep(period)
            self._outgoing.put_nowait(wire.SessionRequest(renew=wire.Renew()))
            if stall_s and self.num_flights and loop.time() - self._last_progress > stall_s:
                self._why_broken = f"no progress for {stall_s:g} s"
                call.cancel()

    # What comes down

    def _receive(self, data: bytes) -> None:
        response = _parse(data)
        kind = response.WhichOneof("kind")
        if kind == "step":
            self._receive_step(response.step)
            return
        self._last_progress = asyncio.get_running_loop().time()
        if kind == "accepted":
            flight = self._demultiplexer.flights.get(response.accepted.handle)
            if flight is not None:
                flight.wait_until = None
                flight.refused_by.clear()
        elif kind == "rejected":
            self._receive_rejected(response.rejected)
        elif kind == "media_wanted":
            flight = self._demultiplexer.flights.get(response.media_wanted.handle)
            if flight is not None:
                self._uploads.want(flight.media, response.media_wanted.digests)
        elif kind == "media_credit":
            self._uploads.credit(response.media_credit.num_bytes)
        elif kind == "draining":
            logger.info("executor %s drains", self.address)
            self.state = State.DRAINING
            self._events.state_changed(self)
        elif kind == "welcome":
            raise ProtocolError("a second Welcome")

    def _receive_step(self, frame: wire.StepFrame) -> None:
        if frame.step != self._last_step or frame.handles:
            self._last_step, self._last_progress = frame.step, asyncio.get_running_loop().time()
        if frame.HasField("load"):
            self.load.report(frame.load)
        if frame.HasField("cache_events"):
            self.load.learn(frame.cache_events)
        self._demultiplexer.deliver(frame)

    def _receive_rejected(self, rejected: wire.Rejected) -> None:
        if rejected.reason == ErrorReason.ERROR_REASON_EXECUTOR_LOST:
            raise ProtocolError(f"the executor cannot go on: {rejected.message}")  # and all that is aboard moves on
        retry_after_ms = rejected.retry_after_ms if rejected.HasField("retry_after_ms") else None
        code = code_pb2.Code.Name(rejected.code) if rejected.code in code_pb2.Code.values() else "INTERNAL"
        reason = rejected.reason or ErrorReason.ERROR_REASON_INTERNAL
        flight = self._demultiplexer.flights.pop(rejected.handle, None)
        if flight is None:
            return
        self._leave(flight)
        self._events.flight_refused(flight, self, error_of(code, rejected.message, reason, retry_after_ms))


async def _write_in_turn(call: grpc.aio.StreamStreamCall, writing: asyncio.Lock, message: wire.SessionRequest) -> None:
    async with writing:
        await call.write(message)


def _parse(data: bytes) -> wire.SessionResponse:
    try:
        return wire.SessionResponse.FromString(data)
    except (DecodeError, ValueError) as error:
        raise ProtocolError("a message that is not a SessionResponse") from error
