"""Owns the count of requests: who may come in, who waits for a slot, and one ledger that always balances."""

from __future__ import annotations

import asyncio
import enum
import heapq
import itertools
import random
import time
from dataclasses import dataclass

from forebay.errors import AlreadyExists, ResourceExhausted, Unavailable
from forebay.v1.errors_pb2 import ErrorReason

DRAIN_RETRY_MS = 1_000
MIN_RETRY_MS, MAX_RETRY_MS = 100, 10_000


class Outcome(enum.Enum):
    """How a request that was let in ended."""

    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(slots=True)
class Ledger:
    """Requests by state. Every request that ever came is in exactly one of them."""

    arrived: int = 0
    refused: int = 0
    queued: int = 0
    running: int = 0
    done: int = 0
    cancelled: int = 0
    expired: int = 0
    failed: int = 0

    @property
    def in_flight(self) -> int:
        """Requests that hold something."""
        return self.queued + self.running

    @property
    def balanced(self) -> bool:
        """Whether no request was lost or counted twice."""
        ended = self.refused + self.done + self.cancelled + self.expired + self.failed
        return self.arrived == self.in_flight + ended and min(self.queued, self.running) >= 0


class Ticket:
    """One admitted request's place: first in the queue, perhaps, then in a slot, until it is closed."""

    __slots__ = ("_admission", "_closed", "_slot", "priority", "request_id")

    def __init__(self, admission: Admission, request_id: str, priority: int, slot: asyncio.Future[None] | None) -> None:
        self.request_id = request_id
        self.priority = priority
        self._admission = admission
        self._slot = slot  # None: has one from the beginning
        self._closed = False

    @property
    def queued(self) -> bool:
        """Whether it still waits for a slot."""
        return not self._closed and self._slot is not None and not self._slot.done()

    async def slot(self) -> None:
        """Returns when the request may run."""
        if self._slot is not None:
            await asyncio.shield(self._slot)  # a cancelled caller closes the ticket; the future is the queue's

    def close(self, outcome: Outcome) -> None:
        """Gives the place back; the first call counts."""
        if not self._closed:
            was_queued = self.queued
            self._closed = True
            self._admission.release(self, outcome, was_queued)


class Admission:
    """Lets at most `max_running` requests run and `max_queued` wait, the lowest priority value first, then in order."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        self.ledger = Ledger()
        self.draining = False
        self._max_running, self._max_queued = max_running, max_queued
        self._tickets: dict[str, Ticket] = {}
        self._queue: list[tuple[int, int, Ticket]] = []
        self._order = itertools.count()
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_end, self._seconds_per_end = time.monotonic(), 0.1

    def check_open(self) -> None:
        """Raises Unavailable while the server drains."""
        if self.draining:
            raise Unavailable(
                "the server is shutting down", ErrorReason.ERROR_REASON_DRAINING, retry_after_ms=_jitter(DRAIN_RETRY_MS)
            )

    def admit(self, request_id: str, priority: int = 0) -> Ticket:
        """A ticket for the request; raises Unavailable, AlreadyExists or ResourceExhausted before any work is done."""
        ledger = self.ledger
        ledger.arrived += 1
        try:
            self.check_open()
            if request_id in self._tickets:
                raise AlreadyExists(f"a request with request_id {request_id!r} is running")
            must_wait = ledger.running >= self._max_running
            if must_wait and ledger.queued >= self._max_queued:
                raise ResourceExhausted(
                    f"{ledger.running} requests run and {ledger.queued} wait, which is the limit",
                    retry_after_ms=self._retry_after_ms(),
                )
        except BaseException:
            ledger.refused += 1
            raise
        slot = asyncio.get_running_loop().create_future() if must_wait else None
        ticket = self._tickets[request_id] = Ticket(self, request_id, priority, slot)
        self._idle.clear()
        if must_wait:
            ledger.queued += 1
            heapq.heappush(self._queue, (priority, next(self._order), ticket))
        else:
            ledger.running += 1
        return ticket

    def release(self, ticket: Ticket, outcome: Outcome, was_queued: bool) -> None:
        """Books the end of a ticket and hands its slot on. Called by the ticket, once."""
        ledger = self.ledger
        del self._tickets[ticket.request_id]
        setattr(ledger, outcome.value, getattr(ledger, outcome.value) + 1)
        if was_queued:
            ledger.queued -= 1
            if len(self._queue) > 2 * ledger.queued + 16:  # mostly tickets of callers that left: forget them
                self._queue = [entry for entry in self._queue if entry[2].queued]
                heapq.heapify(self._queue)
        else:
            ledger.running -= 1
            self._note_end()
            self._promote()
        if not ledger.in_flight:
            self._idle.set()

    async def idle(self) -> None:
        """Returns when no request is in flight."""
        await self._idle.wait()

    def _promote(self) -> None:
        while self._queue and self.ledger.running < self._max_running:
            ticket = heapq.heappop(self._queue)[2]
            if ticket.queued:
                self.ledger.queued -= 1
                self.ledger.running += 1
                ticket._slot.set_result(None)

    def _note_end(self) -> None:
        now = time.monotonic()
        self._seconds_per_end += 0.1 * (now - self._last_end - self._seconds_per_end)
        self._last_end = now

    def _retry_after_ms(self) -> int:
        """About how long the queue takes to get half empty, at the pace of late."""
        estimate = self._seconds_per_end * self.ledger.queued / 2 * 1000
        return _jitter(int(min(MAX_RETRY_MS, max(MIN_RETRY_MS, estimate))))


def _jitter(milliseconds: int) -> int:
    """Up to a half more, so that clients that were refused together do not come back together."""
    return int(milliseconds * random.uniform(1.0, 1.5))
