"""However a call ends, and wherever it is then, nothing of it is left at the executor or in the frontend."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from forebay.errors import Unavailable
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import generation_pb2 as api
from forebay.v1 import generation_pb2_grpc
from forebay.v1.errors_pb2 import ErrorReason
from tests.frontend.fake_executor import WAIT_S, FakeExecutor, expected_tokens
from tests.frontend.harness import Stream, Tier, client_channel, error_of, stream_request, tier, until

SEED = 42
SHORT_S = 0.3  # a deadline; what is tested holds wherever it finds the call
PROMPT = "hello"
# More output than a client's window of 64 KiB takes: about 16 * 30 tokens of 270 bytes.
LARGE = {"n": 16, "logprobs": 20, "max_tokens": 30}

Begin = Callable[..., Stream]


@contextlib.asynccontextmanager
async def encoding(up: Tier, begin: Begin) -> AsyncIterator[Stream]:
    """In a thread of the tokenizer."""
    up.preprocessor.gate.clear()
    try:
        call = begin()
        await until(lambda: up.preprocessor.num_encoded or up.ledger.expired)
        yield call
    finally:
        up.preprocessor.gate.set()


@contextlib.asynccontextmanager
async def queued(up: Tier, begin: Begin) -> AsyncIterator[Stream]:
    """Behind one that runs; the tier lets one run at a time."""
    first = up.stream(max_tokens=1, prompt="first")
    await up.executor.saw(lambda: up.executor.num_aboard == 1)
    call = begin()
    await until(lambda: up.ledger.queued or up.ledger.expired)
    yield call
    await up.executor.step()
    await first.read()


@contextlib.asynccontextmanager
async def without_executor(up: Tier, begin: Begin) -> AsyncIterator[Stream]:
    """Waiting for an executor to come back."""
    await up.executor.kill()
    await up.until_ready(0)
    call = begin()
    await until(lambda: up.server.dispatcher.num_flights or up.ledger.expired)
    yield call


@contextlib.asynccontextmanager
async def submitted(up: Tier, begin: Begin, **sampling: int) -> AsyncIterator[Stream]:
    """At the executor, before its first token."""
    call = begin(**sampling)
    await until(lambda: up.executor.num_aboard or up.ledger.expired)
    yield call


@contextlib.asynccontextmanager
async def running(up: Tier, begin: Begin) -> AsyncIterator[Stream]:
    """Between two tokens."""
    async with submitted(up, begin) as call:
        await up.executor.step(3)
        yield call


@contextlib.asynccontextmanager
async def finished(up: Tier, begin: Begin) -> AsyncIterator[Stream]:
    """After the last token, with more to be written than the client's window takes."""
    async with submitted(up, begin, **LARGE) as call:
        while up.executor.num_aboard:
            await up.executor.step()
            await asyncio.sleep(0)
        await until(lambda: not up.server.dispatcher.num_flights)
        yield call


STATES = (encoding, without_executor, submitted, running, finished)
in_each_state_but_queued = pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
in_each_state = pytest.mark.parametrize("state", (*STATES, queued), ids=lambda state: state.__name__)
SETTINGS = {"max_concurrent_requests": 1, "executor_wait_s": 60.0, "max_unsent_bytes": 1 << 30}


async def check_nothing_left(up: Tier, state: Callable) -> None:
    """The executor is told of the end if, and only if, it still ran the request."""
    await until(lambda: not up.ledger.in_flight)
    assert up.ledger.balanced and not up.server.dispatcher.num_flights
    await up.executor.saw(lambda: not up.executor.num_aboard)
    ours = {submit.handle for submit in up.executor.submits if len(submit.prompt_token_ids) == len(PROMPT)}
    whole = [abort.handle for abort in up.executor.aborts if not abort.HasField("sequence_index")]
    assert len(whole) == len(up.executor.aborts) == (state in (submitted, running)) and ours.issuperset(whole)


@in_each_state
async def test_cancelled_call_leaves_nothing(state: Callable) -> None:
    async with tier(FakeExecutor(), **SETTINGS) as up:
        async with state(up, lambda **sampling: up.stream(prompt=PROMPT, **sampling)) as call:
            call.call.cancel()
            await until(lambda: up.ledger.cancelled == 1)
        await check_nothing_left(up, state)


@in_each_state
async def test_call_whose_client_is_gone_leaves_nothing(state: Callable) -> None:
    async with tier(FakeExecutor(), **SETTINGS) as up:
        channel = client_channel(up.port)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        async with state(up, lambda **sampling: Stream(stub.StreamGenerate(stream_request(PROMPT, **sampling)))):
            await channel.close()
            await until(lambda: up.ledger.cancelled == 1)
        await check_nothing_left(up, state)


@in_each_state
async def test_call_whose_deadline_passes_leaves_nothing(state: Callable) -> None:
    async with tier(FakeExecutor(), **SETTINGS) as up:
        async with state(up, lambda **sampling: up.stream(timeout=SHORT_S, prompt=PROMPT, **sampling)) as call:
            # By the server's clock or by the client's cancellation, whichever is first.
            await until(lambda: up.ledger.expired + up.ledger.cancelled == 1)
            assert (await call.error()).code == "DEADLINE_EXCEEDED"
        await until(lambda: not up.ledger.in_flight)
        await up.executor.saw(lambda: not up.executor.num_aboard)


@in_each_state_but_queued  # where the one in front would expire too
async def test_servers_own_time_limit_ends_a_call_wherever_it_is(state: Callable) -> None:
    async with tier(FakeExecutor(), default_timeout_s=SHORT_S, **SETTINGS) as up:
        async with state(up, lambda **sampling: up.stream(prompt=PROMPT, **sampling)) as call:
            await until(lambda: up.ledger.expired == 1)
            error = await call.error()
        assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED)
        assert error.message == f"the request took longer than {SHORT_S:.3f} s"
        assert up.ledger.expired == 1
        assert call.token_ids() == expected_tokens(SEED, 0, len(call.token_ids()))
        await up.executor.saw(lambda: not up.executor.num_aboard)


async def test_unary_call_that_is_cancelled_leaves_nothing() -> None:
    async with tier(FakeExecutor()) as up:
        call = up.generation.Generate(api.GenerateRequest(prompt=stream_request().prompt))
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        call.cancel()
        await until(lambda: up.ledger.cancelled == 1)
        await up.executor.saw(lambda: not up.executor.num_aboard)


async def test_unary_call_that_takes_too_long_leaves_nothing() -> None:
    async with tier(FakeExecutor(), default_timeout_s=SHORT_S) as up:
        error = await error_of(up.generate())
        assert error.reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
        await up.executor.saw(lambda: not up.executor.num_aboard)


@pytest.mark.parametrize(
    ("default_timeout_s", "timeout", "most_s"), [(3600.0, 60.0, 60), (30.0, 600.0, 30), (30.0, None, 30)]
)
async def test_earlier_of_deadline_and_limit_travels_to_the_executor_as_remaining_time(
    default_timeout_s: float, timeout: float | None, most_s: int
) -> None:
    async with tier(default_timeout_s=default_timeout_s) as up:
        await up.generate(timeout=timeout)
        assert (most_s - 2 * WAIT_S) * 1000 < up.executor.submits[0].timeout_ms <= most_s * 1010  # gRPC rounds up


async def test_executor_that_tells_that_the_deadline_passed_ends_the_request_as_expired() -> None:
    async with tier(FakeExecutor()) as up:
        up.executor.rejection = wire.Rejected(
            code=grpc.StatusCode.DEADLINE_EXCEEDED.value[0], reason=ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
        )
        error = await error_of(up.generate())
        assert error.code == "DEADLINE_EXCEEDED" and up.ledger.expired == 1


async def test_slow_reader_is_cut_off_while_others_go_on() -> None:
    async with tier(max_unsent_bytes=20_000) as up:
        slow = up.stream(**{**LARGE, "max_tokens": 50_000})
        other = await up.stream(n=2, max_tokens=500).read()
        assert other.token_ids(1) == expected_tokens(SEED, 1, 500)
        await until(lambda: up.ledger.failed == 1)
        assert (await up.generate()).usage.completion_tokens == 8
        error = await slow.error()  # after what was on its way
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", ErrorReason.ERROR_REASON_SLOW_READER)
        assert error.message == "the client has not read more than 20000 bytes of its stream"
        assert slow.token_ids(7) == expected_tokens(SEED, 7, len(slow.token_ids(7))) != []
        await up.executor.saw(lambda: not up.executor.num_aboard)


async def test_reader_that_is_too_slow_for_the_first_message_is_told_so() -> None:
    async with tier(max_unsent_bytes=1_000) as up:
        error = await up.stream(**{**LARGE, "max_tokens": 50_000}).error()
        assert error.reason == ErrorReason.ERROR_REASON_SLOW_READER


async def test_call_whose_time_is_up_while_its_first_message_is_written_is_told_so() -> None:
    async with tier(default_timeout_s=SHORT_S) as up:
        stream = up.stream(prompt=[1] * 1000, prompt_logprobs=20)  # more than the window takes
        await until(lambda: up.ledger.expired == 1)
        assert (await stream.error()).reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED


async def test_call_that_ends_while_its_headers_are_sent_waits_for_them() -> None:
    class Context:
        """A client whose connection takes the headers when the test says so."""

        begun, go_on, done = asyncio.Event(), asyncio.Event(), False

        def time_remaining(self) -> None:
            return None

        async def send_initial_metadata(self, metadata: tuple) -> None:
            self.begun.set()
            await self.go_on.wait()
            self.done = True

    async with tier() as up:
        context, ended = Context(), Unavailable("the test ends it")
        call = asyncio.create_task(up.server._generation.StreamGenerate(stream_request(), context))
        await context.begun.wait()
        up.server._scopes.end_all(ended)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not call.done(), "gRPC can send no status while headers are under way"
        context.go_on.set()
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value is ended and context.done


async def test_reader_that_pauses_within_the_limit_loses_nothing() -> None:
    async with tier(FakeExecutor(), **SETTINGS) as up, finished(up, lambda **sampling: up.stream(**sampling)) as call:
        await call.read()
        for index in range(LARGE["n"]):
            assert call.token_ids(index) == expected_tokens(SEED, index, LARGE["max_tokens"])
        assert up.ledger.done == 1
