"""Requests that no executor can take wait in order, for a while and no longer."""

from __future__ import annotations

import asyncio
import time

import pytest

from forebay.errors import ResourceExhausted
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1.errors_pb2 import ErrorReason
from frontend import dispatcher as module
from frontend.dispatcher import Dispatcher
from frontend.executor_client import SessionSettings
from frontend.flight import Flight
from frontend.router import ExecutorLoad
from tests.frontend.doubles import RecordingSink
from tests.frontend.harness import until


class StubClient:
    """An executor client that takes what it is given and says nothing."""

    def __init__(self, address: str, *, ready: bool = True) -> None:
        self.address, self.ready, self.retired = address, ready, False
        self.welcome = wire.Welcome(max_model_len=100)
        self.load = ExecutorLoad(self.welcome)
        self.submitted: list[Flight] = []
        self.num_flights = 0

    def submit(self, flight: Flight) -> None:
        flight.submission(len(self.submitted) + 1)
        self.submitted.append(flight)


def dispatcher_of(*clients: StubClient, wait_s: float = 60.0) -> Dispatcher:
    dispatcher = Dispatcher("none:1", SessionSettings("test", wire.Fingerprint()), wait_s=wait_s)
    dispatcher._clients = {client.address: client for client in clients}
    return dispatcher


def new_flight() -> Flight:
    return Flight([1, 2, 3], wire.SamplingParams(max_tokens=4), RecordingSink())


def reason_of(flight: Flight) -> int | None:
    return flight.sink.errors[0].reason if flight.sink.errors else None


async def test_requests_that_waited_are_sent_in_the_order_in_which_they_came() -> None:
    client = StubClient("a:1", ready=False)
    dispatcher = dispatcher_of(client)
    flights = [new_flight() for _ in range(50)]
    for flight in flights:
        dispatcher.launch(flight)
    client.ready = True
    dispatcher.state_changed(client)
    assert client.submitted == flights and not dispatcher.num_flights


async def test_first_ready_executor_and_the_last_one_lost_are_told_once() -> None:
    one, two = StubClient("a:1", ready=False), StubClient("b:1", ready=False)
    dispatcher, told = dispatcher_of(one, two), []
    dispatcher.on_change = told.append
    for client, ready in [(one, True), (two, True), (one, False), (two, False), (two, True)]:
        client.ready = ready
        dispatcher.state_changed(client)
        dispatcher.state_changed(client)
    assert told == [True, False, True]


async def test_released_request_is_not_sent_any_more() -> None:
    client = StubClient("a:1", ready=False)
    dispatcher, flight = dispatcher_of(client), new_flight()
    dispatcher.launch(flight)
    dispatcher.release(flight)
    dispatcher.release(flight)
    client.ready = True
    dispatcher.state_changed(client)
    assert not client.submitted and not flight.sink.errors


async def test_wait_begins_anew_once_an_executor_has_accepted() -> None:
    client = StubClient("a:1", ready=False)
    dispatcher, flight = dispatcher_of(client, wait_s=0.02), new_flight()
    dispatcher.launch(flight)
    first = flight.wait_until
    flight.wait_until = None  # as Accepted does
    dispatcher.launch(flight)
    assert flight.wait_until > first
    await until(lambda: bool(flight.sink.errors))
    assert time.monotonic() >= flight.wait_until


async def test_request_that_was_aboard_when_its_wait_ended_does_not_wait_for_ever() -> None:
    client = StubClient("a:1", ready=False)
    dispatcher, flight = dispatcher_of(client, wait_s=0.02), new_flight()
    dispatcher.launch(flight)
    client.ready = True
    dispatcher.state_changed(client)
    assert client.submitted == [flight]  # which is never accepted
    await until(lambda: time.monotonic() > flight.wait_until + 0.02)
    client.ready = False
    dispatcher.flight_lost(flight, client, blamed=True)
    await until(lambda: reason_of(flight) == ErrorReason.ERROR_REASON_EXECUTOR_LOST)
    assert not dispatcher.num_flights


async def test_executor_that_had_no_room_is_asked_again_when_the_others_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REFUSED_PAUSE_MS", 1)
    full, other = StubClient("a:1"), StubClient("b:1")
    dispatcher, flight = dispatcher_of(full, other), new_flight()
    full.submit(flight)
    dispatcher.flight_refused(flight, full, ResourceExhausted("full"))
    assert other.submitted == [flight]
    other.ready = False
    dispatcher.flight_lost(flight, other, blamed=False)
    await until(lambda: full.submitted == [flight, flight])


async def test_caller_that_leaves_as_the_model_becomes_known_has_left() -> None:
    client = StubClient("a:1", ready=False)
    dispatcher = dispatcher_of(client)
    caller = asyncio.create_task(dispatcher.wait_for_facts())
    await until(lambda: len(dispatcher._facts_known._waiters) == 1)
    client.ready = True
    dispatcher.state_changed(client)
    caller.cancel()
    await asyncio.wait({caller})
    assert caller.cancelled()
