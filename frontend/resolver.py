"""Owns where the executors are: reads --executors, and looks names up again and again."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable

logger = logging.getLogger(__name__)

ADDRESS = re.compile(r"[^\s/,]+:([0-9]{1,5})")


def parse_executors(text: str, *, flag: str = "--executors") -> tuple[str | None, tuple[str, ...]]:
    """(name:port to look up, ()) for dns:///name:port, else (None, the addresses); raises ValueError."""
    if text.startswith("dns:///"):
        name = text.removeprefix("dns:///")
        _check_address(name, flag)
        return name, ()
    addresses = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not addresses:
        raise ValueError(f"{flag} names no server; it takes host:port,… or dns:///name:port")
    for address in addresses:
        if not address.startswith("unix:"):
            _check_address(address, flag)
    return None, addresses


def _check_address(address: str, flag: str) -> None:
    match = ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise ValueError(f"{flag}: {address!r} is not host:port")


async def look_up(name: str) -> tuple[str, ...]:
    """All addresses of name:port, sorted, each as gRPC dials it; raises OSError."""
    host, _, port = name.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a name that DNS cannot even ask for
        raise OSError(str(error)) from error
    return tuple(sorted({_join(family, address[0], address[1]) for family, *_, address in found}))


def _join(family: int, host: str, port: int) -> str:
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"


async def watch(name: str, every_s: float, changed: Callable[[tuple[str, ...]], None]) -> None:
    """Looks the name up for ever and tells when its addresses change; keeps the last good ones when there are none."""
    last: tuple[str, ...] = ()
    failing = False
    while True:
        try:
            addresses = await look_up(name)
        except OSError as error:
            addresses = ()
            if not failing:
                logger.warning("cannot look up %s: %s; keeping %d addresses", name, error, len(last))
        failing = not addresses
        if addresses and addresses != last:
            logger.info("%s is now %s", name, ", ".join(addresses))
            last = addresses
            changed(addresses)
        await asyncio.sleep(every_s)
