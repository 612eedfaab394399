"""Owns `forebay health`: one question to grpc.health.v1, answered by the exit status too, for probes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.cli.client_flags import add_connection_flags, channel, explain_unreachable
from forebay.cli.parser import VerbParser
from forebay.client_channel import ChannelSettings
from forebay.errors import ForebayError, NotFound
from forebay.rpc import error_from_rpc

TIMEOUT_S = 5.0


def main(arguments: Sequence[str]) -> int:
    """0 if the server serves; 1 if it does not, or does not say."""
    parser = VerbParser("health", "Asks a frontend or an executor whether it serves. The exit status is 0 if it does.")
    parser.add_argument(
        "--service", default="", metavar="NAME",
        help='service to ask for, such as forebay.v1.GenerationService, or "liveness" of a frontend (default: all)',
    )  # fmt: skip
    add_connection_flags(parser)
    parser.set_defaults(timeout=TIMEOUT_S)
    parsed = parser.parse_args(arguments)
    try:
        with explain_unreachable(parsed.server):
            status = _status(parsed.server, parsed.service, parsed.timeout, channel(parsed))
    except NotFound:
        print(f"forebay health: {parsed.server} has no service {parsed.service!r}", file=sys.stderr)
        return 1
    except ForebayError as error:
        print(f"forebay health: {error.message}", file=sys.stderr)
        return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
    return 0 if status == health_pb2.HealthCheckResponse.SERVING else 1


def _status(server: str, service: str, timeout_s: float, settings: ChannelSettings) -> int:
    if settings.credentials is None:
        opened = grpc.insecure_channel(server, settings.options)
    else:
        opened = grpc.secure_channel(server, settings.credentials, settings.options)
    request = health_pb2.HealthCheckRequest(service=service)
    with opened:
        try:
            stub = health_pb2_grpc.HealthStub(opened)
            return stub.Check(request, timeout=timeout_s, metadata=settings.metadata).status
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
