"""A session is opened, kept alive, and opened again; an executor that breaks the protocol is left, with its reason logged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from forebay.executor.v1 import executor_pb2 as wire
from frontend import executor_client as module
from frontend.executor_client import MAX_RETRY_S, ExecutorClient, SessionSettings, State
from frontend.flight import Flight
from tests.frontend.doubles import RecordingSink
from tests.frontend.fake_executor import WAIT_S, FakeExecutor, expected_tokens
from tests.frontend.harness import tier, until

WELCOME = wire.Welcome(fingerprint=wire.Fingerprint(vocab_size=100), lease_ms=10_000, block_size=4, num_blocks=8)
STEP = wire.SessionResponse(step=wire.StepFrame(step=1))


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
    settings = {"connect_timeout_s": 2.0, "refused_retry_s": 0.01, **settings}
    client = ExecutorClient(executor.address, SessionSettings("test", fingerprint, **settings), events)
    client.start()
    try:
        yield client, events
    finally:
        await client.close()
        await executor.kill()


class ScriptedExecutor(FakeExecutor):
    """Answers each session with the same messages, whatever they are, and then waits, or ends with OK."""

    def __init__(self, *messages: bytes, ends: bool = False) -> None:
        super().__init__()
        self.messages, self.ends = messages, ends

    async def start(self) -> ScriptedExecutor:
        handler = grpc.stream_stream_rpc_method_handler(self.Session)
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        service = grpc.method_handlers_generic_handler("forebay.executor.v1.ExecutorService", {"Session": handler})
        self._server.add_generic_rpc_handlers((service,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def Session(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        self.num_sessions += 1
        await anext(aiter(requests), None)
        for message in self.messages:
            yield message
        if not self.ends:
            await asyncio.Event().wait()


def welcome_then(*responses: wire.SessionResponse | bytes) -> list[bytes]:
    first = wire.SessionResponse(welcome=WELCOME)
    return [r if isinstance(r, bytes) else r.SerializeToString() for r in (first, *responses)]


def new_flight(**sampling: int) -> Flight:
    return Flight([1, 2, 3], wire.SamplingParams(**{"max_tokens": 4, "seed": 7, **sampling}), RecordingSink())


# ---- its life ----------------------------------------------------------------------------------------------------


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


# ---- an executor that does not keep to the protocol ---------------------------------------------------------------

BROKEN: dict[str, tuple[Callable[[], FakeExecutor], str]] = {
    "not-a-message": (lambda: ScriptedExecutor(*welcome_then(b"\xff\xff")), "a message that is not a SessionResponse"),
    "first-not-a-message": (lambda: ScriptedExecutor(b"\xff\xff"), "a message that is not a SessionResponse"),
    "no-welcome": (lambda: ScriptedExecutor(STEP.SerializeToString()), "the first message is not Welcome"),
    "two-welcomes": (
        lambda: ScriptedExecutor(*welcome_then(wire.SessionResponse(welcome=WELCOME))),
        "a second Welcome",
    ),
    "unequal-lists": (
        lambda: ScriptedExecutor(*welcome_then(wire.SessionResponse(step=wire.StepFrame(handles=[1])))),
        "a step frame's lists differ in length",
    ),
    "says-lost": (
        lambda: ScriptedExecutor(
            *welcome_then(
                wire.SessionResponse(rejected=wire.Rejected(reason="ERROR_REASON_EXECUTOR_LOST", message="ECC"))
            )
        ),
        "the executor cannot go on: ECC",
    ),
    "ends": (lambda: ScriptedExecutor(*welcome_then(), ends=True), "the stream ended"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_broken_session_is_left_with_its_reason_and_tried_again(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = BROKEN[case]
    executor = make()
    async with client_to(executor):
        await until(lambda: executor.num_sessions >= 2)
    records = [record for record in caplog.records if record.name == module.logger.name]
    warnings = [record for record in records if record.levelno == logging.WARNING]
    assert warnings and all(f"no session with executor {executor.address}: " in r.getMessage() for r in warnings)
    assert warnings[0].getMessage() == f"no session with executor {executor.address}: {reason}"
    assert not any(record.levelno > logging.WARNING for record in records), "nothing is a defect of ours"


async def test_executor_that_cannot_be_dialled_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    executor = FakeExecutor()
    async with client_to(executor) as (client, _):
        await until(lambda: client.ready)
        await executor.kill()
        await until(lambda: "UNAVAILABLE: " in caplog.text)
        await executor.start()
        await until(lambda: client.ready)


async def test_messages_about_requests_that_are_gone_are_passed_over() -> None:
    late = [
        wire.SessionResponse(accepted=wire.Accepted(handle=9)),
        wire.SessionResponse(rejected=wire.Rejected(handle=9, code=13)),
        wire.SessionResponse(aborted=wire.Aborted(handle=9)),
        wire.SessionResponse(),  # a kind that a newer executor may have
        wire.SessionResponse(draining=wire.Draining()),
    ]
    async with client_to(ScriptedExecutor(*welcome_then(*late))) as (client, events):
        await until(lambda: client.state is State.DRAINING)
        assert not events.refused and client.load.num_own_sequences == 0


async def test_executor_that_is_down_after_it_was_refused_is_dialled_as_any_other() -> None:
    executor = FakeExecutor(model_digest="other")
    async with client_to(executor) as (client, events):
        await until(lambda: client.state is State.REFUSED)
        await executor.kill()
        await until(lambda: client.state is State.CONNECTING)  # and so waits seconds at most, not refused_retry_s
        assert not events.states


async def test_executor_that_does_not_answer_hello_is_given_up_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    executor = FakeExecutor()
    executor.welcomes = False
    async with client_to(executor, connect_timeout_s=0.05) as (client, events):
        await executor.saw(lambda: executor.num_sessions >= 2)
        assert client.state is State.CONNECTING and not events.states
        assert f"no session with executor {executor.address}: no Welcome within 0.05 s" in caplog.text
        executor.welcomes = True
        await until(lambda: client.ready)


async def test_waits_between_attempts_grow_to_a_limit_and_begin_anew_after_a_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    client = ExecutorClient("none:1", SessionSettings("test", wire.Fingerprint()), Events())

    async def attempt() -> None:
        if len(waits) == 9:
            client._begin(WELCOME)
        raise module.ProtocolError("the test says so")

    monkeypatch.setattr(client, "_session", attempt)
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(asyncio, "sleep", note)
    client.start()
    while len(waits) < 12:
        await sleep(0)
    await client.close()
    assert waits[:12] == [0.2, 0.4, 0.8, 1.6, 3.2, *[MAX_RETRY_S] * 4, 0.1, 0.2, 0.4]


async def test_session_that_breaks_as_its_client_is_closed_leaves_no_error_behind() -> None:
    sessions: list[asyncio.Task] = []

    class Breaking(ExecutorClient):
        async def _session(self) -> None:
            sessions.append(asyncio.current_task())
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise module.ProtocolError("the test says so") from None

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
