"""Owns the guard around every RPC: parsing requests, turning our errors into statuses with details, and back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import message, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from forebay.errors import DOMAIN, ForebayError, InvalidRequest, error_of
from forebay.v1.errors_pb2 import ErrorReason

logger = logging.getLogger(__name__)

# Detected: a dead peer within 20 s + 10 s. In current cores ping_timeout_ms rules over keepalive_timeout_ms: both are set.
KEEPALIVE_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)


_REASONS = dict(ErrorReason.items())


def status_of(error: ForebayError) -> status_pb2.Status:
    """The google.rpc.Status of an error: code, message, ErrorInfo, and BadRequest or RetryInfo where they apply."""
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN))
    if error.fields:
        violations = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in error.fields]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def error_from_rpc(rpc_error: grpc.RpcError) -> ForebayError:
    """The error that a server of ours (or the gRPC core) answered with."""
    code, text = rpc_error.code(), rpc_error.details() or rpc_error.code().name
    reason, retry_after_ms, fields = ErrorReason.ERROR_REASON_UNSPECIFIED, None, ()
    try:
        status = rpc_status.from_call(rpc_error)
    except ValueError:  # details that disagree with the code: a proxy rewrote one of them
        status = None
    for detail in status.details if status else ():
        info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason = _REASONS.get(f"ERROR_REASON_{info.reason}", reason)  # a newer server may have more of them
        elif detail.Unpack(retry):
            retry_after_ms = retry.retry_delay.ToMilliseconds()
        elif detail.Unpack(bad):
            fields = tuple((violation.field, violation.description) for violation in bad.field_violations)
    error = error_of(code.name, text, reason, retry_after_ms)
    error.fields = fields
    return error


def add_service(server: grpc.aio.Server, service: ServiceDescriptor, servicer: Any) -> None:
    """Registers a servicer whose methods are async functions of (request, context).

    A streaming method is an async generator, or a coroutine that calls `context.write` itself.

    Requests are parsed here and not in the library, so that malformed bytes give INVALID_ARGUMENT and not UNKNOWN;
    a `ForebayError` raised by a method becomes its status, anything else is logged and becomes INTERNAL.
    """
    handlers = {m.name: _handler(m, getattr(servicer, m.name)) for m in service.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def _handler(method: MethodDescriptor, behaviour: Callable[..., Any]) -> grpc.RpcMethodHandler:
    parse = functools.partial(parse_request, message_factory.GetMessageClass(method.input_type))
    serialize = message_factory.GetMessageClass(method.output_type).SerializeToString

    if method.server_streaming:
        # A coroutine that writes, not a generator: when a write fails, gRPC drops a generator without closing it, and
        # the servicer's `finally` would run whenever the garbage collector comes by.
        async def stream(request: Any, context: grpc.aio.ServicerContext) -> None:
            try:
                parsed = _parse_stream(request, parse) if method.client_streaming else parse(request)
                responses = behaviour(parsed, context)
                if not inspect.isasyncgen(responses):
                    await responses  # the servicer writes itself
                    return
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await context.write(response)
            except ForebayError as error:
                await _abort(context, error)
            except Exception as error:
                await _abort_unexpected(context, method, error)

        make = (
            grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, request_deserializer=None, response_serializer=serialize)

    async def unary(request: bytes, context: grpc.aio.ServicerContext) -> message.Message:
        try:
            return await _awaited(behaviour(parse(request), context))
        except ForebayError as error:
            await _abort(context, error)
        except Exception as error:
            await _abort_unexpected(context, method, error)
        raise AssertionError("abort returns never")

    return grpc.unary_unary_rpc_method_handler(unary, request_deserializer=None, response_serializer=serialize)


async def _awaited(result: Awaitable[message.Message]) -> message.Message:
    return await result


async def _parse_stream(
    requests: AsyncIterator[bytes], parse: Callable[[bytes], message.Message]
) -> AsyncIterator[message.Message]:
    async for request in requests:
        yield parse(request)


def parse_request(kind: type[message.Message], data: bytes) -> message.Message:
    """Parses a request, or raises InvalidRequest that names the message and repeats none of its bytes."""
    request = kind()
    try:
        request.ParseFromString(data)
    except (message.DecodeError, RecursionError, UnicodeDecodeError, ValueError):
        raise InvalidRequest(
            f"the request is not a valid {kind.DESCRIPTOR.full_name}: malformed protobuf or text that is not UTF-8",
            ErrorReason.ERROR_REASON_MALFORMED_MESSAGE,
        ) from None
    return request


async def _abort(context: grpc.aio.ServicerContext, error: ForebayError) -> None:
    status = rpc_status.to_status(status_of(error))
    trailers = tuple(status.trailing_metadata or ())
    if error.retry_after_ms is not None:  # gRPC's own retry policy reads this one
        trailers += (("grpc-retry-pushback-ms", str(error.retry_after_ms)),)
    await context.abort(status.code, status.details, trailers)


async def _abort_unexpected(context: grpc.aio.ServicerContext, method: MethodDescriptor, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, grpc.aio.InternalError):  # a write that was under way when the caller left
        raise asyncio.CancelledError from error
    logger.error("%s failed", method.full_name, exc_info=error)
    await _abort(context, ForebayError("an internal error; the server's log has the details"))
