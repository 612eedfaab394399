"""A session is opened, kept alive, opened again after it broke, and closed for good."""

from __future__ import annotations

import asyncio

import grpc

from forebay.executor.v1 import executor_pb2 as wire
from frontend.demultiplexer import ProtocolError
from frontend.executor_client import ExecutorClient, SessionSettings, State
from frontend.flight import Flight
from tests.frontend.doubles import RecordingSink
from tests.frontend.fake_executor import WAIT_S, FakeExecutor, expected_tokens
from tests.frontend.harness import tier, until
from tests.frontend.session_bench import WELCOME, Events, client_to


def new_flight(**sampling: int) -> Flight:
    return Flight([1, 2, 3], wire.SamplingParams(**{"max_tokens": 4, "seed": 7, **sampling}), RecordingSink())


async def test_request_runs_over_a_session() -> None:
    async with client_to(FakeExecutor(auto=True)) as (client, events):
        await until(lambda: client.ready)
        flight = new_flight()
        client.submit(flight)
        await until(lambda: flight.done)
        assert flight.token_ids == [expected_tokens(7, 0, 4)]
        assert (flight.owner, client.num_flights, client.load.num_own_sequences) == (None, 0, 0)
        assert events.states == [State.READY]


async def test_aborted_flight_is_off_at_once_and_only_its_owner_aborts_it() -> None:
    executor = FakeExecutor()
    async with client_to(executor) as (client, events):
        await until(lambda: client.ready)
        flight = new_flight()
        client.abort(flight)  # not aboard: nothing to do
        client.submit(flight)
        client.abort(flight)
        client.abort(flight)
        assert (client.num_flights, client.load.num_own_sequences) == (0, 0)
        await executor.saw(lambda: len(executor.aborts) == 1 and not executor.num_aboard)
        await executor.step()
        assert not flight.started and not events.lost


async def test_lease_is_renewed_several_times_before_it_ends() -> None:
    executor = FakeExecutor(lease_ms=60)
    async with client_to(executor) as (client, _):
        await executor.saw(lambda: executor.num_renews >= 5)
        assert client.ready and executor.num_sessions == 1


async def test_closing_ends_the_session_at_the_executor() -> None:
    executor = FakeExecutor()
    async with client_to(executor) as (client, events):
        await until(lambda: client.ready)
        flight = new_flight()
        client.submit(flight)
        await executor.saw(lambda: executor.num_aboard == 1)
        await client.close()
        assert events.lost == [(flight, True)]
        await executor.saw(lambda: not executor.sessions)


async def test_session_is_opened_again_with_new_handles() -> None:
    executor = FakeExecutor()
    async with client_to(executor) as (client, events):
        await until(lambda: client.ready)
        flight = new_flight()
        client.submit(new_flight())
        client.submit(flight)
        await executor.saw(lambda: executor.num_aboard == 2)
        executor.break_sessions()
        await until(lambda: len(events.lost) == 2)
        await until(lambda: client.ready)
        client.submit(flight)
        await executor.saw(lambda: len(executor.submits) == 3)
        assert (executor.submits[-1].handle, executor.submits[-1].epoch) == (1, 2)
        assert events.states == [State.READY, State.CONNECTING, State.READY]


async def test_draining_executor_takes_nothing_new_and_its_end_is_nobodys_fault() -> None:
    executor = FakeExecutor()
    async with client_to(executor) as (client, events):
        await until(lambda: client.ready)
        flight = new_flight()
        client.submit(flight)
        executor.drain()
        await until(lambda: client.state is State.DRAINING)
        assert not client.ready
        executor.break_sessions()
        await until(lambda: events.lost == [(flight, False)])


async def test_session_that_breaks_as_its_client_is_closed_leaves_no_error_behind() -> None:
    sessions: list[asyncio.Task] = []

    class Breaking(ExecutorClient):
        async def _session(self) -> None:
            sessions.append(asyncio.current_task())
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ProtocolError("the test says so") from None

    client = Breaking("none:1", SessionSettings("test", wire.Fingerprint()), Events())
    client.start()
    await until(lambda: len(sessions) == 1)
    await client.close()
    assert not sessions[0]._log_traceback, "nobody asked for its exception, which asyncio will complain of"


async def test_welcome_that_comes_as_the_client_is_closed_does_not_keep_it_open() -> None:
    answer = asyncio.Event()

    class Answered(ExecutorClient):
        async def _open(self, call: grpc.aio.StreamStreamCall) -> wire.Welcome:
            await answer.wait()
            return WELCOME

    executor = FakeExecutor()
    executor.welcomes = False
    await executor.start()
    client = Answered(executor.address, SessionSettings("test", wire.Fingerprint()), Events())
    client.start()
    await until(lambda: len(answer._waiters) == 1)
    answer.set()
    closing = asyncio.create_task(client.close())
    await asyncio.wait({closing}, timeout=WAIT_S)
    await executor.kill()
    assert closing.done()


async def test_frontend_says_who_it_is_and_what_it_holds() -> None:
    hellos: list[wire.Hello] = []

    class Listening(FakeExecutor):
        async def Session(self, requests, context):
            hellos.append((await anext(aiter(requests))).hello)
            yield wire.SessionResponse(welcome=self._welcome())

    async with tier(Listening(), ready=0):
        await until(lambda: bool(hellos))
    assert hellos[0].frontend_id == "frontend-under-test"
    assert (hellos[0].fingerprint.model_digest, hellos[0].fingerprint.tokenizer_digest) == ("digest", "words")
