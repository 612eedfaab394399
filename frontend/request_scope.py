"""Owns a request's life: how it is let in, how long it may take, and how its end is booked."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import grpc

from forebay.errors import DeadlineExceeded, ForebayError, InvalidRequest
from frontend.admission import Admission, Outcome
from frontend.model_catalogue import ServedModel

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
MAX_PRIORITY = 1_000


class AdmissibleRequest(Protocol):
    """What requests to generate and to pool have in common."""

    model: str
    priority: int
    request_id: str


@dataclass(frozen=True, slots=True)
class RequestScope:
    """A request that may run: its name, its place among others, and when it ends at the latest."""

    request_id: str
    priority: int
    deadline: float  # of time.monotonic()


class RequestScopes:
    """Lets requests in one by one, whatever they ask for, and can end all of them."""

    def __init__(self, model: ServedModel, admission: Admission, default_timeout_s: float) -> None:
        self._model, self._admission, self._default_timeout_s = model, admission, default_timeout_s
        self._limits: set[asyncio.Timeout] = set()  # of every request that is here, wherever it is
        self._end: ForebayError | None = None

    def end_all(self, error: ForebayError) -> None:
        """Ends every request with an error, now."""
        self._end = error
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(0)

    @contextlib.asynccontextmanager
    async def enter(self, request: AdmissibleRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[RequestScope]:
        """Waits for a slot; who is inside has it until it leaves, or its deadline passes.

        Raises what Admission.admit raises, NotFound for another model's name, InvalidRequest, and DeadlineExceeded.
        """
        self._admission.check_open()
        self._model.check_name(request.model)
        request_id = _checked_request_id(request.request_id)
        _check_priority(request.priority)
        remaining_s = context.time_remaining()
        timeout_s = self._default_timeout_s if remaining_s is None else min(remaining_s, self._default_timeout_s)
        deadline = time.monotonic() + timeout_s

        ticket = self._admission.admit(request_id, request.priority)
        outcome = Outcome.FAILED
        limit = asyncio.timeout(timeout_s)
        self._limits.add(limit)
        try:
            async with limit:
                await ticket.slot()
                yield RequestScope(request_id, request.priority, deadline)
            outcome = Outcome.DONE
        except TimeoutError:
            if not limit.expired():
                raise
            if self._end is not None:
                raise self._end from None
            outcome = Outcome.EXPIRED
            raise DeadlineExceeded(f"the request took longer than {timeout_s:.3f} s") from None
        except (asyncio.CancelledError, grpc.aio.InternalError):  # the latter from a write to a client that is gone
            outcome = Outcome.CANCELLED if time.monotonic() < deadline else Outcome.EXPIRED
            raise
        except DeadlineExceeded:
            outcome = Outcome.EXPIRED
            raise
        finally:
            self._limits.discard(limit)
            ticket.close(outcome)


def _checked_request_id(request_id: str) -> str:
    if not request_id:
        return uuid.uuid4().hex
    if not REQUEST_ID.fullmatch(request_id):
        rule = 'letters, digits, ".", "_" and "-", at most 128'
        raise InvalidRequest(f"request_id can have {rule}", fields=(("request_id", rule),))
    return request_id


def _check_priority(priority: int) -> None:
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        rule = f"must be {-MAX_PRIORITY} to {MAX_PRIORITY}"
        raise InvalidRequest(f"priority is {priority}; it {rule}", fields=(("priority", rule),))
