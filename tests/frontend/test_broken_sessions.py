"""An executor that cannot be reached or breaks the protocol is left, with its reason logged, and tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from forebay.executor.v1 import executor_pb2 as wire
from frontend import executor_client as module
from frontend.executor_client import MAX_RETRY_S, ExecutorClient, SessionSettings, State
from tests.frontend.fake_executor import FakeExecutor
from tests.frontend.harness import until
from tests.frontend.session_bench import WELCOME, Events, client_to

STEP = wire.SessionResponse(step=wire.StepFrame(step=1))


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
