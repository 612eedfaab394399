"""Owns fetching of media from URLs: from allowed hosts alone, and never from an address inside the operator's network.

What a URL means is decided once. It is matched whole against the one form that is taken, its host is looked up once, and the
connection goes to an address of that answer, so that nothing can differ between what was checked and what is dialled. A
redirect is a new URL, and checked as one. Every refusal has the same text: it is not to tell what is where.
"""

from __future__ import annotations

import http.client
import ipaddress
import logging
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media.limits import too_large

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 3
MAX_URL_CHARS = 4_096
TIMEOUT_SECONDS = 20.0  # of it all
_BLOCK_BYTES = 1 << 16
_HOST = r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?:\*\.)?{_HOST}")
# https, a name with a dot (no address, no user, no port but 443), and printable ASCII without what parsers disagree about.
_URL = re.compile(rf"https://(?P<host>{_HOST})(?::443)?(?P<target>(?:[/?][!$-;=?-Z_a-z~%]*)?)", re.IGNORECASE)
_REDIRECTS = (301, 302, 303, 307, 308)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], list[str]]  # a host's addresses
Connect = Callable[[str, str, float], socket.socket]  # (host, address, seconds): an encrypted connection to that host


class UrlFetcher:
    """Fetches files; a call is `fetch(url, max_bytes)`. Threads may share one.

    `domains` are names of hosts, or "*.example.com" for all below one. Proxies of the environment are not used.
    """

    def __init__(
        self,
        domains: tuple[str, ...],
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        """Raises ValueError for a domain that is none."""
        for domain in domains:
            if not _DOMAIN.fullmatch(domain.lower()):
                raise ValueError(f"{domain!r} is not the name of a host, nor *.NAME")
        self._domains = tuple(domain.lower() for domain in domains)
        self._timeout_seconds = timeout_seconds
        self._resolve, self._connect = resolve or _addresses_of, connect or _connected

    def __call__(self, url: str, max_bytes: int) -> bytes:
        """The file; raises InvalidRequest: MEDIA_FETCH, or MEDIA_TOO_LARGE."""
        deadline = time.monotonic() + self._timeout_seconds
        try:
            for _ in range(MAX_REDIRECTS + 1):
                found = self._get(url, max_bytes, deadline)
                if isinstance(found, bytes):
                    return found
                url = found
            raise _Refused("too many redirects")
        except (_Refused, OSError, http.client.HTTPException, ValueError) as error:
            logger.info("media not fetched: %s", error if isinstance(error, _Refused) else type(error).__name__)
            raise InvalidRequest(
                "the file cannot be fetched from its URL", ErrorReason.ERROR_REASON_MEDIA_FETCH
            ) from None

    def _get(self, url: str, max_bytes: int, deadline: float) -> bytes | str:
        """The file, or the URL that the answer leads to."""
        host, target = self._checked(url)
        address = _public(self._resolve(host))
        connection = http.client.HTTPConnection(host, 443)
        connection.sock = self._connect(host, address, _remaining(deadline))
        with _ended_at(deadline, connection.sock):
            try:
                headers = {"Host": host, "Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "forebay"}
                connection.request("GET", target, headers=headers)
                answer = connection.getresponse()
                if answer.status in _REDIRECTS:
                    return urllib.parse.urljoin(url, answer.headers.get("Location", ""))
                if answer.status != http.client.OK:
                    raise _Refused(f"status {answer.status}")
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise _Refused("a file that is compressed on its way")
                return _body(answer, max_bytes, deadline)
            finally:
                connection.close()

    def _checked(self, url: str) -> tuple[str, str]:
        """Host and target of a URL from an allowed host."""
        match = _URL.fullmatch(url) if len(url) <= MAX_URL_CHARS else None
        if match is None:
            raise _Refused("not a URL that is taken")
        host, target = match["host"].lower(), match["target"]
        if not any(host == domain or (domain[0] == "*" and host.endswith(domain[1:])) for domain in self._domains):
            raise _Refused("a host that is not allowed")
        return host, target if target.startswith("/") else f"/{target}"


class _Refused(Exception):
    """Why a URL is not fetched, for the operator's log."""


def _body(answer: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    if answer.length is not None and answer.length > max_bytes:
        raise too_large(f"the file has {answer.length:,} bytes; at most {max_bytes:,} are taken")
    parts, count = [], 0
    while block := answer.read1(_BLOCK_BYTES):
        count += len(block)
        if count > max_bytes:
            raise too_large(f"the file has more than the {max_bytes:,} bytes that are taken")
        _remaining(deadline)
        parts.append(block)
    _remaining(deadline)  # else a connection that was cut looks like a file that has ended
    if answer.length:  # what was promised and did not come
        raise _Refused("a file that is not complete")
    return b"".join(parts)


def _public(addresses: list[str]) -> str:
    """The first address; all of them have to be of the public internet."""
    found = [ipaddress.ip_address(address) for address in addresses]
    if not found or not all(map(_is_public, found)):
        raise _Refused("a host with an address that is not public")
    return addresses[0]


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or _nat64(address)
        if address.teredo is not None or (inner is not None and not _is_public(inner)):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a gateway would dial (RFC 6052, 64:ff9b::/96)."""
    if address in ipaddress.IPv6Network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _addresses_of(host: str) -> list[str]:
    return [found[4][0] for found in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def _connected(host: str, address: str, seconds: float) -> socket.socket:
    plain = socket.create_connection((address, 443), timeout=seconds)
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _Refused("a host that is too slow")
    return left


@contextmanager
def _ended_at(deadline: float, connection: socket.socket) -> Iterator[None]:
    """Cuts the connection at the deadline, however a host spreads its bytes until then."""

    def cut() -> None:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended by itself

    timer = threading.Timer(_remaining(deadline), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
