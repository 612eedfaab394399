"""The session: one frame per step, exact aborts, leases, drain, and one clear answer to whatever is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.executor.v1 import executor_pb2 as wire
from forebay.executor.v1 import executor_pb2_grpc
from forebay.rpc import error_from_rpc
from gpu_executor.config import ExecutorConfig
from gpu_executor.service import SERVICE, ExecutorServer
from tests.gpu_executor.fake_runner import NAN_TOKEN, FakeRunner, continuation, make_engine, make_info

TIMEOUT = 10


class Tier:
    """An executor with a fake model, whose steps a test may let go one by one."""

    def __init__(self, *, gated: bool = False, lease_ms: int = 10_000) -> None:
        self.gate = threading.Semaphore(0) if gated else None
        self.runner = FakeRunner(self.gate)
        self.engine = make_engine(self.runner)
        self.server = ExecutorServer(ExecutorConfig(model="fake", listen="127.0.0.1:0", lease_ms=lease_ms))

    def let_go(self, steps: int) -> None:
        for _ in range(steps):
            self.gate.release()


@contextlib.asynccontextmanager
async def running(**options) -> AsyncIterator[tuple[Tier, grpc.aio.Channel]]:
    tier = Tier(**options)
    await tier.server.listen()
    tier.servicer = await tier.server.serve(tier.engine, make_info(tier.engine))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tier.server.port}") as channel:
        yield tier, channel
    if tier.gate is not None:
        tier.let_go(10_000)
    await tier.server.drain(0)


async def open_session(channel: grpc.aio.Channel, **fingerprint) -> grpc.aio.StreamStreamCall:
    call = executor_pb2_grpc.ExecutorServiceStub(channel).Session()
    await call.write(
        wire.SessionRequest(hello=wire.Hello(frontend_id="test", fingerprint=wire.Fingerprint(**fingerprint)))
    )
    return call


async def read(call: grpc.aio.StreamStreamCall, kind: str) -> wire.SessionResponse:
    """The next message of a kind; frames without tokens and others are passed over."""
    while True:
        message = await asyncio.wait_for(call.read(), TIMEOUT)
        assert message is not grpc.aio.EOF, f"the session ended before {kind}"
        if message.WhichOneof("kind") == kind and (kind != "step" or message.step.handles or message.step.finishes):
            return message


async def submit(call: grpc.aio.StreamStreamCall, handle: int, prompt: list[int], **fields) -> None:
    sampling = wire.SamplingParams(**({"max_tokens": 4} | fields.pop("sampling", {})))
    await call.write(
        wire.SessionRequest(submit=wire.Submit(handle=handle, prompt_token_ids=prompt, sampling=sampling, **fields))
    )


async def collect(call: grpc.aio.StreamStreamCall, num_finishes: int) -> tuple[dict, list[wire.StepFrame]]:
    """Tokens by (handle, sequence) until so many sequences have ended, and the frames they came in."""
    tokens: dict = {}
    frames = []
    while num_finishes:
        frame = (await read(call, "step")).step
        frames.append(frame)
        counts, ids = frame.num_tokens or [1] * len(frame.handles), list(frame.token_ids)
        for handle, index, first, count in zip(
            frame.handles, frame.sequence_indexes, frame.token_indexes, counts, strict=True
        ):
            mine = tokens.setdefault((handle, index), [])
            assert first == len(mine), "a token is missing or came twice"
            mine += ids[:count]
            del ids[:count]
        num_finishes -= len(frame.finishes)
    return tokens, frames


async def failure(call: grpc.aio.StreamStreamCall):
    with pytest.raises(grpc.RpcError) as caught:
        while await asyncio.wait_for(call.read(), TIMEOUT) is not grpc.aio.EOF:
            pass
    return error_from_rpc(caught.value)


async def test_welcome_tells_what_the_executor_holds() -> None:
    async with running() as (_, channel):
        welcome = (await read(await open_session(channel), "welcome")).welcome
        assert (welcome.max_model_len, welcome.block_size, welcome.num_blocks) == (128, 4, 64)
        assert welcome.fingerprint.vocab_size == 100 and list(welcome.eos_token_ids) == [98]


async def test_one_frame_per_step_however_many_sequences_run() -> None:
    async with running(gated=True) as (tier, channel):
        call = await open_session(channel)
        for handle in range(6):
            await submit(call, handle, [handle + 1, 2], sampling={"max_tokens": 5})
        frames = []
        while sum(len(frame.finishes) for frame in frames) < 6:  # the first step may have begun with fewer than six
            tier.let_go(1)
            frames.append((await read(call, "step")).step)
        outbox = next(iter(tier.servicer.sessions)).outbox
        assert len(frames) == tier.engine.num_steps == tier.servicer.num_steps_with_tokens
        assert outbox.num_merged_steps == 0
        assert max(len(frame.handles) for frame in frames) >= 5
        assert len({frame.step for frame in frames}) == len(frames)


async def test_tokens_of_all_requests_arrive_in_order_and_once() -> None:
    async with running() as (_, channel):
        call = await open_session(channel)
        for handle in range(20):
            await submit(call, handle, [handle, 1], epoch=3, sampling={"max_tokens": handle + 1, "n": 2})
        tokens, frames = await collect(call, 40)
        assert tokens == {(h, i): continuation([h, 1], h + 1) for h in range(20) for i in range(2)}
        assert {epoch for frame in frames for epoch in frame.epochs} == {3}


async def test_steps_are_merged_while_the_frontend_does_not_read() -> None:
    async with running(gated=True) as (tier, channel):
        call = await open_session(channel)
        await submit(call, 0, [1], sampling={"max_tokens": 100})
        await read(call, "accepted")
        outbox = next(iter(tier.servicer.sessions)).outbox
        outbox._ready.set = lambda: None  # the stream takes nothing
        tier.let_go(100)
        async with asyncio.timeout(TIMEOUT):
            while tier.engine.has_work:
                await asyncio.sleep(0.01)
        del outbox._ready.set
        outbox._ready.set()
        tokens, frames = await collect(call, 1)
        assert tokens[0, 0] == continuation([1], 100)
        assert outbox.num_merged_steps > 50 and len(frames) < 20


async def test_abort_frees_blocks_within_a_step_and_is_idempotent() -> None:
    async with running(gated=True) as (tier, channel):
        call = await open_session(channel)
        await submit(call, 0, [1] * 30, sampling={"max_tokens": 90})
        await read(call, "accepted")
        tier.let_go(2)
        await read(call, "step")
        abort = wire.SessionRequest(abort=wire.Abort(handle=0))
        await call.write(abort)
        await call.write(abort)
        tier.let_go(1)
        assert (await read(call, "aborted")).aborted.was_running
        assert not (await read(call, "aborted")).aborted.was_running
        assert tier.engine.scheduler.pool.num_used == 0 and not tier.engine.requests


async def test_abort_that_comes_before_its_submit_holds() -> None:
    async with running() as (_, channel):
        call = await open_session(channel)
        await call.write(wire.SessionRequest(abort=wire.Abort(handle=5)))
        await read(call, "aborted")
        await submit(call, 5, [1])
        await submit(call, 6, [1])
        assert (await read(call, "accepted")).accepted.handle == 6


@pytest.mark.parametrize("how", ["cancel", "half-close", "lease"])
async def test_requests_of_a_frontend_that_is_gone_end(how: str) -> None:
    async with running(gated=True, lease_ms=300 if how == "lease" else 10_000) as (tier, channel):
        call = await open_session(channel)
        await submit(call, 0, [1] * 30, sampling={"max_tokens": 90})
        await read(call, "accepted")
        tier.let_go(2)
        await read(call, "step")
        if how == "cancel":
            call.cancel()
        elif how == "half-close":
            await call.done_writing()
        async with asyncio.timeout(TIMEOUT):
            while tier.engine.requests:
                tier.let_go(1)
                await asyncio.sleep(0.01)
        assert tier.engine.scheduler.pool.num_used == 0
        if how == "lease":
            assert (await failure(call)).code == "FAILED_PRECONDITION"


async def test_a_frontend_that_renews_keeps_its_requests() -> None:
    async with running(gated=True, lease_ms=400) as (tier, channel):
        call = await open_session(channel)
        await submit(call, 0, [1], sampling={"max_tokens": 3})
        for _ in range(8):
            await call.write(wire.SessionRequest(renew=wire.Renew()))
            await asyncio.sleep(0.1)
        tier.let_go(3)
        tokens, _ = await collect(call, 1)
        assert tokens[0, 0] == continuation([1], 3)


async def test_bad_requests_are_rejected_one_by_one_and_the_session_goes_on() -> None:
    cases = [
        ({"prompt": []}, "EMPTY_PROMPT"),
        ({"prompt": [1, 100]}, "TOKEN_OUT_OF_RANGE"),
        ({"prompt": [1] * 127}, "TOO_LONG"),
        ({"prompt": [1], "sampling": {"temperature": float("nan")}}, "SAMPLING_OUT_OF_RANGE"),
        ({"prompt": [1], "sampling": {"top_p": 0.0}}, "SAMPLING_OUT_OF_RANGE"),
        ({"prompt": [1], "sampling": {"n": 129}}, "SAMPLING_OUT_OF_RANGE"),
        ({"prompt": [1], "sampling": {"max_tokens": 0}}, "SAMPLING_OUT_OF_RANGE"),
        ({"prompt": [1], "sampling": {"logprobs": 21}}, "SAMPLING_OUT_OF_RANGE"),
        ({"prompt": [1], "sampling": {"logit_bias_ids": [1], "logit_bias_values": []}}, "SAMPLING_OUT_OF_RANGE"),
        ({"prompt": [1], "sampling": {"allowed_token_ids": [100]}}, "TOKEN_OUT_OF_RANGE"),
        ({"prompt": [1], "sampling": {"stop_token_ids": [2**31]}}, "TOKEN_OUT_OF_RANGE"),
    ]
    async with running() as (_, channel):
        call = await open_session(channel)
        for handle, (fields, reason) in enumerate(cases):
            fields = dict(fields)
            await submit(call, handle, fields.pop("prompt"), **fields)
            rejected = (await read(call, "rejected")).rejected
            assert rejected.handle == handle and wire.forebay_dot_v1_dot_errors__pb2.ErrorReason.Name(
                rejected.reason
            ).endswith(reason)
            assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        await submit(call, len(cases), [1, 2])
        tokens, _ = await collect(call, 1)
        assert tokens == {(len(cases), 0): continuation([1, 2], 4)}


async def test_values_that_are_not_numbers_and_deadlines_end_one_request() -> None:
    async with running() as (_, channel):
        call = await open_session(channel)
        await submit(call, 0, [1, NAN_TOKEN])
        assert (await read(call, "rejected")).rejected.code == grpc.StatusCode.ABORTED.value[0]
        await submit(call, 1, [1], timeout_ms=0)
        assert (await read(call, "rejected")).rejected.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@pytest.mark.parametrize("field", ["model_digest", "tokenizer_digest", "vocab_size", "processor_version"])
async def test_another_fingerprint_is_refused_by_name(field: str) -> None:
    async with running() as (_, channel):
        call = await open_session(channel, **{field: "x" if "digest" in field else 7})
        error = await failure(call)
        assert (
            error.code == "FAILED_PRECONDITION"
            and error.reason_name == "FINGERPRINT_MISMATCH"
            and field in error.message
        )


async def test_what_breaks_the_protocol_ends_the_session_with_a_reason() -> None:
    async with running() as (_, channel):
        call = executor_pb2_grpc.ExecutorServiceStub(channel).Session()
        await call.write(wire.SessionRequest(renew=wire.Renew()))
        assert "begins with Hello" in (await failure(call)).message
        call = await open_session(channel)
        await submit(call, 3, [1])
        await submit(call, 3, [1])
        assert "used before" in (await failure(call)).message
        raw = channel.stream_stream(f"/{SERVICE.full_name}/Session")()
        await raw.write(b"\xff\xff\xff")
        error = await failure(raw)
        assert error.code == "INVALID_ARGUMENT" and error.reason_name == "MALFORMED_MESSAGE"


async def test_drain_finishes_what_runs_and_refuses_what_is_new() -> None:
    async with running(gated=True) as (tier, channel):
        call = await open_session(channel)
        await submit(call, 0, [1], sampling={"max_tokens": 6})
        await read(call, "accepted")
        draining = asyncio.ensure_future(tier.server.drain(TIMEOUT))
        await read(call, "draining")
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE.full_name):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        await submit(call, 1, [1])
        rejected = (await read(call, "rejected")).rejected
        assert rejected.code == grpc.StatusCode.UNAVAILABLE.value[0] and rejected.retry_after_ms
        tier.let_go(6)
        tokens, _ = await collect(call, 1)
        assert tokens == {(0, 0): continuation([1], 6)}
        await asyncio.wait_for(draining, TIMEOUT)


async def test_not_serving_while_the_model_loads() -> None:
    tier = Tier()
    await tier.server.listen()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tier.server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await failure(await open_session(channel))).code == "UNAVAILABLE"
        await tier.server.serve(tier.engine, make_info(tier.engine))
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    await tier.server.drain(0)


async def test_an_engine_that_fails_tells_every_frontend_and_ends() -> None:
    async with running(gated=True) as (tier, channel):
        call = await open_session(channel)
        await submit(call, 0, [1])
        await read(call, "accepted")
        tier.runner.error = RuntimeError("a device fault")
        tier.let_go(1)
        rejected = (await read(call, "rejected")).rejected
        assert rejected.code == grpc.StatusCode.UNAVAILABLE.value[0] and "device fault" not in rejected.message
        await asyncio.wait_for(tier.servicer.died.wait(), TIMEOUT)
