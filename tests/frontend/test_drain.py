"""A server that shuts down finishes what runs, takes nothing new, and ends the rest with UNAVAILABLE when time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2

from forebay.errors import ForebayError
from forebay.v1 import model_pb2, pooling_pb2, prompt_pb2, tokenizer_pb2
from forebay.v1.errors_pb2 import ErrorReason
from frontend.server import LIVENESS, SERVICE_NAMES
from tests.frontend.fake_executor import WAIT_S, FakeExecutor, expected_tokens
from tests.frontend.harness import Tier, error_of, tier, until

SEED = 42
LARGE = {"n": 16, "logprobs": 20, "max_tokens": 30}  # more than a client's window takes


def begin_drain(up: Tier, grace_s: float = 60.0) -> asyncio.Task[None]:
    return asyncio.create_task(up.server.drain(grace_s))


def check_draining(error: ForebayError) -> None:
    assert (error.code, error.reason) == ("UNAVAILABLE", ErrorReason.ERROR_REASON_DRAINING)
    assert error.retry_after_ms >= 1000


async def test_what_runs_and_what_waits_finishes_and_drain_returns_then() -> None:
    async with tier(FakeExecutor(), max_concurrent_requests=1) as up:
        running = up.stream(max_tokens=3, prompt=[1])
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        waiting = up.stream(max_tokens=3, prompt=[2])
        await until(lambda: up.ledger.queued == 1)
        drained = begin_drain(up)
        await until(lambda: up.server.admission.draining)
        await up.executor.step(2)
        assert not drained.done()
        up.executor.auto = True
        for stream in (running, waiting):
            assert (await stream.read()).token_ids() == expected_tokens(SEED, 0, 3)
        await asyncio.wait_for(drained, WAIT_S)
        assert up.ledger.done == 2


async def test_server_without_requests_drains_at_once() -> None:
    async with tier() as up:
        await asyncio.wait_for(begin_drain(up), WAIT_S)
        await asyncio.wait_for(begin_drain(up, grace_s=0), WAIT_S)


PROMPT = prompt_pb2.Prompt(text="hello")
CALLS: dict[str, Callable[[Tier], object]] = {
    "Generate": lambda up: up.generate(),
    "Embed": lambda up: up.pooling.Embed(pooling_pb2.EmbedRequest(inputs=[PROMPT])),
    "Classify": lambda up: up.pooling.Classify(pooling_pb2.ClassifyRequest(inputs=[PROMPT])),
    "Score": lambda up: up.pooling.Score(pooling_pb2.ScoreRequest(queries=[PROMPT], documents=[PROMPT])),
    "Reward": lambda up: up.pooling.Reward(pooling_pb2.RewardRequest(inputs=[PROMPT])),
    "Tokenize": lambda up: up.tokenizer.Tokenize(tokenizer_pb2.TokenizeRequest(prompt=PROMPT)),
    "Detokenize": lambda up: up.tokenizer.Detokenize(tokenizer_pb2.DetokenizeRequest(token_ids=[1])),
    "RenderChat": lambda up: up.tokenizer.RenderChat(tokenizer_pb2.RenderChatRequest()),
    "ListModels": lambda up: up.models.ListModels(model_pb2.ListModelsRequest()),
    "GetModel": lambda up: up.models.GetModel(model_pb2.GetModelRequest()),
}


async def test_new_calls_of_every_method_are_refused_and_say_when_to_come_back() -> None:
    services = map(descriptor_pool.Default().FindServiceByName, SERVICE_NAMES)
    assert {method.name for service in services for method in service.methods} == {*CALLS, "StreamGenerate"}
    async with tier() as up:
        await begin_drain(up)
        for call in CALLS.values():
            check_draining(await error_of(call(up)))
        check_draining(await up.stream().error())
        assert not up.executor.submits and up.ledger.balanced


async def test_health_says_so_at_once_and_liveness_does_not_change() -> None:
    async with tier(FakeExecutor()) as up:
        stream = up.stream(max_tokens=1)
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        watch = up.health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        drained = begin_drain(up)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        for name in SERVICE_NAMES:
            assert not await up.serving(name)
        assert await up.serving(LIVENESS) and not drained.done()
        await up.executor.step()
        await stream.read()
        await drained


async def test_executor_that_comes_while_it_drains_does_not_make_it_serve_again() -> None:
    async with tier(FakeExecutor()) as up:
        await begin_drain(up)
        await up.executor.kill()
        await up.until_ready(0)
        await up.executor.start()
        await up.until_ready(1)
        assert not await up.serving()


async def test_grace_that_passes_ends_what_runs_with_what_it_has() -> None:
    async with tier(FakeExecutor(), max_concurrent_requests=2) as up:
        stream, unary = up.stream(max_tokens=50), asyncio.create_task(error_of(up.generate(max_tokens=50)))
        await up.executor.saw(lambda: up.executor.num_aboard == 2)
        waiting = up.stream()
        await until(lambda: up.ledger.queued == 1)
        await up.executor.step(3)
        await stream.read(until_tokens=3)
        await begin_drain(up, grace_s=0)
        for error in (await stream.error(), await unary, await waiting.error()):
            check_draining(error)
            assert error.message == "the server shut down before the request was finished"
        assert stream.token_ids() == expected_tokens(SEED, 0, 3)
        await up.executor.saw(lambda: not up.executor.num_aboard)
        assert up.ledger.failed == 3


async def test_grace_that_passes_ends_requests_that_wait_for_an_executor() -> None:
    async with tier(FakeExecutor(), executor_wait_s=60.0) as up:
        await up.executor.kill()
        await up.until_ready(0)
        stream = up.stream()
        await until(lambda: up.server.dispatcher.num_flights == 1)
        await begin_drain(up, grace_s=0)
        check_draining(await stream.error())


async def test_grace_that_passes_ends_the_calls_of_clients_that_do_not_read() -> None:
    async with tier(FakeExecutor(), max_unsent_bytes=1 << 30) as up:
        stream = up.stream(**LARGE)
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        while up.executor.num_aboard:
            await up.executor.step()
            await asyncio.sleep(0)
        await until(lambda: not up.server.dispatcher.num_flights)
        await begin_drain(up, grace_s=0)
        await until(lambda: not up.ledger.in_flight)
        check_draining(await stream.error())
        assert 0 < len(stream.token_ids()) < LARGE["max_tokens"]


@pytest.mark.parametrize("where", ["tokenizer", "facts"])
async def test_grace_that_passes_ends_requests_that_are_not_launched_yet(where: str) -> None:
    executor = FakeExecutor()
    executor.welcomes = where == "tokenizer"
    async with tier(executor, ready=int(executor.welcomes), executor_wait_s=60.0) as up:
        up.preprocessor.gate.clear()
        stream = up.stream()
        await until(lambda: up.ledger.running == 1)
        await begin_drain(up, grace_s=0)
        check_draining(await asyncio.wait_for(stream.error(), WAIT_S))
        up.preprocessor.gate.set()
        assert not executor.submits
