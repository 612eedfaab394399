"""Owns one executor client by itself: started against an executor, with everything that it tells remembered."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from forebay.executor.v1 import executor_pb2 as wire
from frontend.executor_client import ExecutorClient, SessionSettings, State
from frontend.flight import Flight
from tests.frontend.fake_executor import FakeExecutor

WELCOME = wire.Welcome(fingerprint=wire.Fingerprint(vocab_size=100), lease_ms=10_000, block_size=4, num_blocks=8)


class Events:
    """What a client told."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.lost: list[tuple[Flight, bool]] = []
        self.refused: list[tuple[Flight, str]] = []

    def check_welcome(self, client: ExecutorClient, welcome: wire.Welcome) -> None:
        pass

    def state_changed(self, client: ExecutorClient) -> None:
        self.states.append(client.state)

    def flight_lost(self, flight: Flight, client: ExecutorClient, *, blamed: bool) -> None:
        self.lost.append((flight, blamed))

    def flight_refused(self, flight: Flight, client: ExecutorClient, error: Exception) -> None:
        self.refused.append((flight, error.code))


@contextlib.asynccontextmanager
async def client_to(executor: FakeExecutor, **settings: float) -> AsyncIterator[tuple[ExecutorClient, Events]]:
    """A client of its own, started; the executor is started too."""
    await executor.start()
    events = Events()
    fingerprint = wire.Fingerprint(model_digest="digest")
    settings = {"connect_timeout_s": 60.0, "refused_retry_s": 0.01, **settings}
    client = ExecutorClient(executor.address, SessionSettings("test", fingerprint, **settings), events)
    client.start()
    try:
        yield client, events
    finally:
        await client.close()
        await executor.kill()
