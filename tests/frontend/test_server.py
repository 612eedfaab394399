"""The server tells how it is, what it offers and what it cannot read, on every method of every service."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from forebay.errors import ForebayError
from forebay.rpc import error_from_rpc
from forebay.v1 import generation_pb2_grpc
from forebay.v1.errors_pb2 import ErrorReason
from frontend.server import HARD_METADATA_BYTES, HEALTH, LIVENESS, REFLECTION, SERVICE_NAMES
from tests.frontend.fake_executor import WAIT_S, FakeExecutor
from tests.frontend.harness import Stream, Tier, client_channel, error_of, stream_request, tier

METHODS = {
    f"/{name}/{method.name}": method
    for name in (*SERVICE_NAMES, HEALTH.full_name, REFLECTION.full_name)
    for method in descriptor_pool.Default().FindServiceByName(name).methods
}
READY_NAMES = ("", *SERVICE_NAMES)


async def error_of_bytes(up: Tier, path: str, data: bytes) -> ForebayError:
    """The error that a method gives for these bytes."""
    method = METHODS[path]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(up.channel, kind)(path)(iter([data]) if method.client_streaming else data, timeout=WAIT_S)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    raise AssertionError("the call succeeded")


# ---- health and reflection ---------------------------------------------------------------------------------------


async def test_serves_while_there_is_an_executor_and_lives_all_the_time() -> None:
    async with tier(FakeExecutor(), ready=1) as up:
        for name in (*READY_NAMES, LIVENESS):
            assert await up.serving(name), name
        await up.executor.kill()
        await up.until_ready(0)
        for name in READY_NAMES:
            assert not await up.serving(name), name
        assert await up.serving(LIVENESS)
        await up.executor.start()
        await up.until_ready(1)
        for name in READY_NAMES:
            assert await up.serving(name), name


async def test_does_not_serve_before_the_first_executor() -> None:
    executor = FakeExecutor()
    executor.welcomes = False
    async with tier(executor, ready=0) as up:
        await executor.saw(lambda: executor.num_sessions == 1)
        assert not await up.serving() and await up.serving(LIVENESS)


async def test_draining_executor_is_none_to_serve_with() -> None:
    async with tier(FakeExecutor()) as up:
        up.executor.drain()
        await up.until_ready(0)
        assert not await up.serving()


async def test_watcher_is_told_of_each_change() -> None:
    async with tier(FakeExecutor()) as up:
        watch = up.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAMES[0]))
        seen = [(await watch.read()).status]
        await up.executor.kill()
        seen.append((await watch.read()).status)
        await up.executor.start()
        seen.append((await watch.read()).status)
        watch.cancel()
        kinds = health_pb2.HealthCheckResponse
        assert seen == [kinds.SERVING, kinds.NOT_SERVING, kinds.SERVING]


async def test_health_of_a_service_that_is_not_here_is_not_found() -> None:
    async with tier() as up:
        call = up.health.Check(health_pb2.HealthCheckRequest(service="forebay.v1.Nothing"))
        assert (await error_of(call)).code == "NOT_FOUND"


async def test_reflection_lists_the_services_and_describes_them() -> None:
    async with tier() as up:
        stub = reflection_pb2_grpc.ServerReflectionStub(up.channel)
        ask = reflection_pb2.ServerReflectionRequest
        requests = [ask(list_services=""), *(ask(file_containing_symbol=name) for name in SERVICE_NAMES)]
        call = stub.ServerReflectionInfo(iter(requests), timeout=WAIT_S)
        listed, *files = [answer async for answer in call]
        names = {service.name for service in listed.list_services_response.service}
        assert names == {*SERVICE_NAMES, HEALTH.full_name, REFLECTION.full_name}
        assert all(answer.file_descriptor_response.file_descriptor_proto for answer in files)


# ---- what cannot be read -----------------------------------------------------------------------------------------

MALFORMED = {
    "truncated": b"\x0a\x05a",
    "bad-tag": b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    "deep": b"\x0b" * 500,
}
NOT_UTF8 = b"\x0a\x02\xc3\x28"  # field 1 of every request that has a string there


@pytest.mark.parametrize("path", METHODS)
async def test_malformed_bytes_are_the_callers_mistake_on_every_method(path: str) -> None:
    async with tier() as up:
        cases = dict(MALFORMED)
        if METHODS[path].input_type.fields:
            cases["utf-8"] = NOT_UTF8
        for case, data in cases.items():
            error = await error_of_bytes(up, path, data)
            got = (error.code, error.reason)
            assert got == ("INVALID_ARGUMENT", ErrorReason.ERROR_REASON_MALFORMED_MESSAGE), case
            assert METHODS[path].input_type.full_name in error.message
        assert await up.serving()


async def test_requests_all_have_text_in_field_1_where_they_have_fields() -> None:
    for method in METHODS.values():  # what the test above relies on
        fields = method.input_type.fields_by_number
        assert not fields or fields[1].type == fields[1].TYPE_STRING, method.full_name


async def test_unknown_methods_and_services_are_unimplemented() -> None:
    async with tier() as up:
        for path in ("/forebay.v1.GenerationService/Nothing", "/forebay.v1.Nothing/Generate", "/"):
            error = await error_of(up.channel.unary_unary(path)(b"", timeout=WAIT_S))
            assert error.code == "UNIMPLEMENTED", path


async def test_message_over_the_limit_is_refused_and_one_under_it_is_taken() -> None:
    async with tier(max_message_bytes=4096, max_queue_size=0) as up:
        await up.generate(prompt="x" * 3000, max_tokens=1)
        error = await error_of(up.generate(prompt="x" * 5000, max_tokens=1))
        assert error.code == "RESOURCE_EXHAUSTED" and "4096" in error.message
        assert up.ledger.arrived == 1


async def test_answer_over_the_limit_ends_the_call_and_leaves_nothing() -> None:
    large = {"n": 16, "logprobs": 20, "max_tokens": 50}
    async with tier(max_message_bytes=1024) as up:
        assert (await error_of(up.generate(**large))).code == "RESOURCE_EXHAUSTED"
        assert (await up.stream(**large).error()).code == "RESOURCE_EXHAUSTED"
        await up.executor.saw(lambda: not up.executor.num_aboard)
        await up.generate()


@pytest.mark.parametrize(("num_bytes", "code"), [(4_000, None), (HARD_METADATA_BYTES + 1_000, "RESOURCE_EXHAUSTED")])
async def test_metadata_over_the_limit_is_refused(num_bytes: int, code: str | None) -> None:
    async with tier() as up:
        call = up.health.Check(health_pb2.HealthCheckRequest(), metadata=(("x-long", "x" * num_bytes),))
        if code is None:
            await call
        else:
            assert (await error_of(call)).code == code


async def test_one_connection_takes_so_many_calls_at_once_and_another_one_as_many() -> None:
    async with tier(FakeExecutor(), max_concurrent_streams=2) as up, client_channel(up.port) as channel:
        streams = []
        for num in (1, 2):
            streams.append(up.stream(max_tokens=1))
            await up.executor.saw(lambda num=num: up.executor.num_aboard == num)
        waiting = up.stream(max_tokens=1)
        other = Stream(generation_pb2_grpc.GenerationServiceStub(channel).StreamGenerate(stream_request(max_tokens=1)))
        await up.executor.saw(lambda: up.executor.num_aboard == 3)
        assert up.ledger.arrived == 3
        waiting.call.cancel()
        await up.executor.step()
        for stream in (*streams, other):
            assert len((await stream.read()).token_ids()) == 1


# ---- the address -------------------------------------------------------------------------------------------------


async def test_port_that_is_in_use_is_an_os_error_that_names_it() -> None:
    async with tier() as up:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{up.port}: "):
            async with tier(port=up.port):
                pass
        await up.generate()


async def test_address_that_is_not_ours_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0"):
        async with tier(host="192.0.2.1"):
            pass
