"""Owns the flags that reach a server and that choose tokens, which the client's verbs share."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from forebay.client import Client
from forebay.client_channel import DEFAULT_SERVER, ChannelSettings, channel_settings
from forebay.errors import Unavailable
from forebay.flags import ConfigError
from forebay.sampling_params import SamplingParams
from forebay.v1.errors_pb2 import ErrorReason


def add_connection_flags(parser: argparse.ArgumentParser) -> None:
    """--server and how to reach it."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--server", metavar="HOST:PORT", default=os.environ.get("FOREBAY_SERVER", DEFAULT_SERVER),
        help="where the server is, also FOREBAY_SERVER (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this long (default: never)")
    group.add_argument("--tls", action="store_true", help="connect with TLS")
    group.add_argument(
        "--ca-file", metavar="FILE", help="certificates to trust instead of the system's, PEM; means --tls"
    )
    group.add_argument("--cert-file", metavar="FILE", help="own certificate chain, PEM, with --key-file")
    group.add_argument("--key-file", metavar="FILE", help="own private key, PEM")
    group.add_argument(
        "--metadata", metavar="NAME=VALUE", action="append", default=[], help="a header for every call; may be repeated"
    )


def connection(arguments: argparse.Namespace) -> dict[str, object]:
    """The arguments of a Client, target apart; raises ConfigError."""
    pairs = [item.partition("=") for item in arguments.metadata]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise ConfigError(f"--metadata {name!r}: expected NAME=VALUE")
    if bool(arguments.cert_file) != bool(arguments.key_file):
        raise ConfigError("--cert-file and --key-file go together")
    return {
        "metadata": [(name, value) for name, _, value in pairs],
        "secure": arguments.tls,
        "root_certificates": _read(arguments.ca_file, "--ca-file"),
        "certificate_chain": _read(arguments.cert_file, "--cert-file"),
        "private_key": _read(arguments.key_file, "--key-file"),
    }


@contextlib.contextmanager
def connect(arguments: argparse.Namespace) -> Iterator[Client]:
    """A client of the server that the flags name; where nobody is there, the error says what to do about it."""
    client = Client(arguments.server, timeout=arguments.timeout, **connection(arguments))
    with client, explain_unreachable(arguments.server):
        yield client


@contextlib.contextmanager
def explain_unreachable(server: str) -> Iterator[None]:
    """Adds to an error of the connection itself, for which no server gave a reason, where it was and what to do."""
    try:
        yield
    except Unavailable as error:
        if error.reason != ErrorReason.ERROR_REASON_UNSPECIFIED:
            raise
        problem = error.message.rpartition(": ")[2] or error.message
        raise Unavailable(
            f"{server} cannot be reached ({problem}); start a server with `forebay serve MODEL`, or name one with --server",
            error.reason,
        ) from None


def channel(arguments: argparse.Namespace) -> ChannelSettings:
    """The settings of a channel to that server, for services that Client does not know; calls are not tried again."""
    return channel_settings(retry=False, **connection(arguments))


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    """--model and how tokens are chosen; what is left out is the model's own default."""
    parser.add_argument("--model", default="", metavar="NAME", help="served name of the model (default: the only one)")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="lower runs earlier (default: 0)")
    group = parser.add_argument_group("sampling", "What is left out is the model's own default.")
    for name, kind, metavar, text in _SAMPLING:
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, metavar=metavar, help=text)
    group.add_argument("--stop", action="append", metavar="TEXT", help="stop before this text; may be repeated")
    group.add_argument("--ignore-eos", action="store_true", help="go on past the model's own end")


_SAMPLING = (
    ("max_tokens", int, "N", "tokens to generate at most (default: as many as the context has room for)"),
    ("min_tokens", int, "N", "tokens to generate before anything may stop"),
    ("temperature", float, "X", "0 takes the likeliest token; above, the larger the more random"),
    ("top_k", int, "N", "choose among the N likeliest tokens; 0: all"),
    ("top_p", float, "X", "choose among the likeliest tokens that have this probability together"),
    ("min_p", float, "X", "choose among tokens with at least this share of the likeliest one's probability"),
    ("presence_penalty", float, "X", "lower the chance of tokens that were generated"),
    ("frequency_penalty", float, "X", "the same, by how often they were"),
    ("repetition_penalty", float, "X", "above 1: lower the chance of tokens of prompt and output"),
    ("seed", int, "N", "makes the random choice repeatable"),
)


def sampling(arguments: argparse.Namespace, **others: object) -> SamplingParams:
    """The parameters that the flags give."""
    given = {name: getattr(arguments, name) for name, *_ in _SAMPLING if getattr(arguments, name) is not None}
    return SamplingParams(stop=arguments.stop, ignore_eos=arguments.ignore_eos, **given, **others)


def _read(path: str | None, flag: str) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from error
