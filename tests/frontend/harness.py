"""Owns a whole CPU tier for tests: a frontend with fake executors behind it and stubs in front, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.errors import ForebayError
from forebay.executor.v1 import executor_pb2 as wire
from forebay.rpc import error_from_rpc
from forebay.v1 import generation_pb2 as api
from forebay.v1 import (
    generation_pb2_grpc,
    model_pb2_grpc,
    pooling_pb2_grpc,
    prompt_pb2,
    sampling_pb2,
    tokenizer_pb2_grpc,
)
from frontend.config import FrontendConfig
from frontend.executor_client import SessionSettings
from frontend.model_catalogue import ServedModel
from frontend.server import FrontendServer
from tests.frontend.doubles import FakePreprocessor, FakeText, fake_resolve_sampling
from tests.frontend.fake_executor import WAIT_S, FakeExecutor


class Tier:
    """What a test holds of a running tier."""

    def __init__(
        self, server: FrontendServer, port: int, executors: list[FakeExecutor], channel: grpc.aio.Channel
    ) -> None:
        self.server, self.port, self.executors, self.channel = server, port, executors, channel
        self.preprocessor: FakePreprocessor
        self.generation = generation_pb2_grpc.GenerationServiceStub(channel)
        self.pooling = pooling_pb2_grpc.PoolingServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)
        self.tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    @property
    def executor(self) -> FakeExecutor:
        return self.executors[0]

    @property
    def ledger(self):
        return self.server.admission.ledger

    async def serving(self, name: str = "") -> bool:
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=name))
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    async def until_ready(self, num: int) -> None:
        await until(lambda: self.server.dispatcher.num_ready == num)

    def stream(self, timeout: float | None = None, **fields: Any) -> Stream:
        return Stream(self.generation.StreamGenerate(stream_request(**fields), timeout=timeout))

    async def generate(self, timeout: float | None = WAIT_S, **fields: Any) -> api.GenerateResponse:
        fields = {
            name: getattr(stream_request(**fields), name)
            for name in ("model", "prompt", "sampling", "priority", "request_id")
        }
        return await self.generation.Generate(api.GenerateRequest(**fields), timeout=timeout)


class Stream:
    """A StreamGenerate call as a test reads it."""

    def __init__(self, call: grpc.aio.UnaryStreamCall) -> None:
        self.call = call
        self.messages: list[api.StreamGenerateResponse] = []

    async def read(self, until_tokens: int | None = None) -> Stream:
        """Reads to the end, or until so many tokens of sequence 0 have come."""
        async with asyncio.timeout(WAIT_S):
            while until_tokens is None or len(self.token_ids()) < until_tokens:
                message = await self.call.read()
                if message is grpc.aio.EOF:
                    return self
                self.messages.append(message)
        return self

    def deltas(self, index: int = 0) -> list[api.SequenceDelta]:
        return [delta for message in self.messages for delta in message.deltas if delta.index == index]

    def token_ids(self, index: int = 0) -> list[int]:
        return [token_id for delta in self.deltas(index) for token_id in delta.token_ids]

    def text(self, index: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas(index))

    async def error(self) -> ForebayError:
        """The error that the call ends with, after what it still sends."""
        try:
            await self.read()
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error)
        code, details = await self.call.code(), await self.call.details()
        assert code is not grpc.StatusCode.OK, "the call succeeded"
        return error_from_rpc(grpc.aio.AioRpcError(code, None, await self.call.trailing_metadata(), details))


async def error_of(awaitable: Any) -> ForebayError:
    """The error that a unary call ends with."""
    try:
        await awaitable
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    raise AssertionError("the call succeeded")


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until the condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


def stream_request(
    prompt: str | list[int] = "hello", model: str = "", priority: int = 0, request_id: str = "", **sampling: Any
) -> api.StreamGenerateRequest:
    """A request with these sampling parameters."""
    sampling = {"max_tokens": 8, **sampling}
    if isinstance(prompt, str):
        message = prompt_pb2.Prompt(text=prompt)
    else:
        message = prompt_pb2.Prompt(token_ids=prompt_pb2.TokenIds(ids=prompt))
    return api.StreamGenerateRequest(
        model=model,
        prompt=message,
        sampling=sampling_pb2.SamplingParams(**sampling),
        priority=priority,
        request_id=request_id,
    )


def client_channel(port: int) -> grpc.aio.Channel:
    """A client's connection of its own, whose window stays as small as it begins (64 KiB)."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0))
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)


@contextlib.asynccontextmanager
async def tier(
    *executors: FakeExecutor,
    ready: int | None = None,
    session: dict[str, Any] | None = None,
    preprocessor: Any = None,
    **settings: Any,
) -> AsyncIterator[Tier]:
    """A tier with these executors (one that runs by itself, if none is given); at the end nothing may be left in it.

    The preprocessor is a FakePreprocessor unless another one is given.
    """
    executors = executors or (FakeExecutor(auto=True),)
    for executor in executors:
        await executor.start()
    addresses = ",".join(executor.address for executor in executors)
    settings = {"executors": addresses, "port": 0, "executor_wait_s": 2.0, **settings}
    config = FrontendConfig(model="tiny", **settings)
    fake = FakePreprocessor()
    preprocessor = preprocessor or fake
    model = ServedModel(("tiny", "also-tiny"), "FakeForCausalLM", "digest", preprocessor)
    fingerprint = wire.Fingerprint(model_digest="digest", tokenizer_digest="words")
    defaults = {"stall_s": config.executor_stall_s, "connect_timeout_s": 60.0, "refused_retry_s": 0.05}
    server = FrontendServer(
        config,
        model,
        SessionSettings("frontend-under-test", fingerprint, **{**defaults, **(session or {})}),
        resolve_sampling=fake_resolve_sampling,
        make_text=FakeText,
    )
    try:
        port = await server.start()
        async with client_channel(port) as channel:
            up = Tier(server, port, list(executors), channel)
            up.preprocessor = preprocessor
            await up.until_ready(len(executors) if ready is None else ready)
            yield up
            await asyncio.wait_for(server.admission.idle(), WAIT_S)
            assert server.admission.ledger.balanced
            assert not server.dispatcher.num_flights
    finally:
        fake.gate.set()
        await server.stop()
        for executor in executors:
            await executor.kill()
