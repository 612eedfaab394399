"""Owns the channel between a client and a frontend: limits, keepalive, TLS, and what is tried again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from forebay.rpc import KEEPALIVE_OPTIONS
from forebay.v1 import generation_pb2, model_pb2, pooling_pb2, tokenizer_pb2

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_MAX_MESSAGE_BYTES = 64 << 20  # above the server's own limit: its answer says more than ours would

Metadata = Mapping[str, str] | Sequence[tuple[str, str | bytes]]

_SERVICES = [
    service.full_name
    for file in (generation_pb2, model_pb2, pooling_pb2, tokenizer_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]

# gRPC tries again by itself, and never after the first message of an answer. A server that says when to come back
# (RetryInfo) is obeyed. round_robin matters for names with several addresses, such as dns:///frontends:50051.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": name} for name in _SERVICES],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """How to speak with a server. `credentials` None is plaintext; `metadata` goes with every call."""

    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, int | str], ...]
    metadata: tuple[tuple[str, str | bytes], ...]


def channel_settings(
    *,
    secure: bool = False,
    root_certificates: bytes | None = None,
    private_key: bytes | None = None,
    certificate_chain: bytes | None = None,
    metadata: Metadata = (),
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    retry: bool = True,
) -> ChannelSettings:
    """The settings of a client's arguments; see Client. Raises ValueError for a key without its certificates."""
    if (private_key is None) != (certificate_chain is None):
        raise ValueError("private_key and certificate_chain go together")
    credentials = None
    if secure or root_certificates is not None or private_key is not None:
        credentials = grpc.ssl_channel_credentials(root_certificates, private_key, certificate_chain)
    options = (
        *KEEPALIVE_OPTIONS,
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.enable_retries", int(retry)),
    )
    pairs = metadata.items() if isinstance(metadata, Mapping) else metadata
    return ChannelSettings(credentials, options, tuple((name.lower(), value) for name, value in pairs))
