"""Every reason in errors.proto can be met by a frontend's client, or is listed with who gives it."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import grpc
import pytest

from forebay.errors import FailedPrecondition, ForebayError
from forebay.executor.v1 import executor_pb2 as wire
from forebay.rpc import error_from_rpc
from forebay.v1 import tokenizer_pb2
from forebay.v1.errors_pb2 import ErrorReason
from forebay.v1.model_pb2 import MODEL_TASK_EMBED
from tests.frontend.fake_executor import FakeExecutor
from tests.frontend.harness import Tier, error_of, tier, until
from tests.protos.proto_files import comments, enums, files

# Those that only the other tiers give, and what the frontend makes of them.
ELSEWHERE = {
    "UNKNOWN_ARCHITECTURE": "the executor's start: its process exits, and nobody is served",
    "BAD_CHECKPOINT": "the start of either process: it exits",
    "FINGERPRINT_MISMATCH": "a session's opening: logged by the frontend, which does not use that executor",
    "CANCELLED": "a caller that cancelled, who knows: gRPC gives CANCELLED by itself",
    "NUMERIC": "the executor, for one request: passed on as it is",
    "MEDIA_DECODE": "tests/preprocess/media",
    "MEDIA_TOO_LARGE": "tests/preprocess/media",
    "MEDIA_COUNT": "tests/preprocess/processors",
    "MEDIA_UNUSABLE": "tests/preprocess/processors",
    "MEDIA_FETCH": "tests/preprocess/media",
}
# The reason in ErrorInfo is the executor's own in these; the frontend passes on whatever it is.
PASSED_ON = {
    "NUMERIC": "ABORTED",
    "NOT_OFFERED": "UNIMPLEMENTED",
    "INTERNAL": "INTERNAL",
    "TOO_LONG": "INVALID_ARGUMENT",
}

REACHED: dict[str, Callable[[], Awaitable[ForebayError]]] = {}


def reaches(name: str) -> Callable:
    """Marks the function whose call ends with this reason."""

    def mark(function: Callable[[], Awaitable[ForebayError]]) -> Callable:
        REACHED[name] = function
        return function

    return mark


def reaches_by(name: str, **fields: object) -> None:
    """The same for a request that is refused for what it says."""

    async def generate() -> ForebayError:
        async with tier() as up:
            return await error_of(up.generate(**fields))

    REACHED[name] = generate


reaches_by("EMPTY_PROMPT", prompt="")
reaches_by("TOO_LONG", max_tokens=2**31)
reaches_by("TOKEN_OUT_OF_RANGE", prompt=[1000])
reaches_by("SAMPLING_OUT_OF_RANGE", truncate_prompt_tokens=0)
reaches_by("INVALID_FIELD", priority=5000)
reaches_by("MODEL_NOT_FOUND", model="other")


@contextlib.asynccontextmanager
async def aboard(**settings: object):
    """A tier whose executor has a request, and that request."""
    async with tier(FakeExecutor(), **settings) as up:
        stream = up.stream(request_id="mine", max_tokens=2)
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        yield up, stream


async def finish(up: Tier) -> None:
    up.executor.auto = True
    await until(lambda: not up.ledger.in_flight)


@reaches("MALFORMED_MESSAGE")
async def _malformed() -> ForebayError:
    async with tier() as up:
        return await error_of(up.channel.unary_unary("/forebay.v1.GenerationService/Generate")(b"\xff"))


@reaches("DUPLICATE_REQUEST")
async def _duplicate() -> ForebayError:
    async with aboard() as (up, _):
        error = await error_of(up.generate(request_id="mine"))
        await finish(up)
        return error


@reaches("QUEUE_FULL")
async def _queue_full() -> ForebayError:
    async with aboard(max_concurrent_requests=1, max_queue_size=0) as (up, _):
        error = await error_of(up.generate())
        await finish(up)
        return error


@reaches("SLOW_READER")
async def _slow_reader() -> ForebayError:
    async with tier(max_unsent_bytes=1000) as up:
        stream = up.stream(n=16, logprobs=20, max_tokens=50_000)
        await until(lambda: up.ledger.failed == 1)
        return await stream.error()


@reaches("DEADLINE_EXCEEDED")
async def _deadline() -> ForebayError:
    async with tier(FakeExecutor(), default_timeout_s=0.05) as up:
        return await error_of(up.generate())


@reaches("DRAINING")
async def _draining() -> ForebayError:
    async with tier() as up:
        await up.server.drain(0)
        return await error_of(up.generate())


@reaches("NO_EXECUTOR")
async def _no_executor() -> ForebayError:
    async with tier(FakeExecutor(), executor_wait_s=0.05) as up:
        await up.executor.kill()
        await up.until_ready(0)
        return await error_of(up.generate())


@reaches("EXECUTOR_LOST")
async def _executor_lost() -> ForebayError:
    async with aboard(executor_wait_s=0.05) as (up, stream):
        await up.executor.kill()
        return await stream.error()


async def of_text_side(reason: int, service: str) -> ForebayError:
    def refuse(*_: object, **__: object) -> None:
        raise FailedPrecondition("not with this model", reason)

    async with tier() as up:
        up.preprocessor.encode = up.preprocessor.render_chat = refuse
        if service == "chat":
            return await error_of(up.tokenizer.RenderChat(tokenizer_pb2.RenderChatRequest()))
        return await error_of(up.generate())


@reaches("NOT_OFFERED")
async def _not_offered() -> ForebayError:
    async with tier(FakeExecutor(tasks=[MODEL_TASK_EMBED])) as up:
        return await error_of(up.generate())


@reaches("NO_TOKENIZER")
async def _no_tokenizer() -> ForebayError:
    return await of_text_side(ErrorReason.ERROR_REASON_NO_TOKENIZER, "text")


@reaches("CHAT_TEMPLATE")
async def _chat_template() -> ForebayError:
    return await of_text_side(ErrorReason.ERROR_REASON_CHAT_TEMPLATE, "chat")


@reaches("INTERNAL")
async def _internal() -> ForebayError:
    async with tier() as up:
        up.preprocessor.encode = None
        return await error_of(up.generate())


def documented_codes() -> dict[str, str]:
    """The gRPC code that errors.proto gives for each reason."""
    for file in files():
        for path, name, enum in enums(file):
            if name == "forebay.v1.ErrorReason":
                said = {value.name: comments(file)[(*path, 2, index)] for index, value in enumerate(enum.value)}
                del said["ERROR_REASON_UNSPECIFIED"]
                return {key.removeprefix("ERROR_REASON_"): text.partition(": ")[0] for key, text in said.items()}
    raise AssertionError("there is no forebay.v1.ErrorReason")


def test_each_reason_is_reached_here_or_given_elsewhere() -> None:
    assert {*REACHED, *ELSEWHERE} == set(documented_codes())
    assert not set(REACHED) & set(ELSEWHERE)


@pytest.mark.parametrize("name", REACHED)
async def test_reason_is_reached_with_its_code(name: str) -> None:
    error = await REACHED[name]()
    assert (error.reason_name, error.code) == (name, documented_codes()[name])
    assert error.message
    assert (error.retry_after_ms is not None) == (name in ("QUEUE_FULL", "DRAINING", "NO_EXECUTOR", "EXECUTOR_LOST"))


@pytest.mark.parametrize("name", PASSED_ON)
async def test_reason_of_an_executor_is_passed_on_with_its_words(name: str) -> None:
    async with tier(FakeExecutor()) as up:
        code = grpc.StatusCode[PASSED_ON[name]].value[0]
        up.executor.rejection = wire.Rejected(reason=f"ERROR_REASON_{name}", code=code, message="said by the executor")
        error = await error_of(up.generate())
        assert (error.reason_name, error.code, error.message) == (name, PASSED_ON[name], "said by the executor")


async def test_caller_that_cancelled_is_told_so_by_grpc() -> None:
    async with aboard() as (up, stream):
        stream.call.cancel()
        assert await stream.call.code() is grpc.StatusCode.CANCELLED
        await until(lambda: up.ledger.cancelled == 1)


def test_error_that_no_server_of_ours_gave_has_no_reason() -> None:
    error = error_from_rpc(grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, None, None, "connection refused"))
    assert error.reason == ErrorReason.ERROR_REASON_UNSPECIFIED and error.code == "UNAVAILABLE"
