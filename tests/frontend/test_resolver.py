"""--executors is read strictly, and a name is looked up again and again without losing executors to a bad answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable

import pytest

from frontend import resolver
from frontend.resolver import look_up, parse_executors, watch


@pytest.mark.parametrize(
    ("text", "name", "addresses"),
    [
        ("one:1", None, ("one:1",)),
        (" one:1 , two:65535 ,, one:1,", None, ("one:1", "two:65535")),
        ("[::1]:50061", None, ("[::1]:50061",)),
        ("unix:/run/executor.sock,one:1", None, ("unix:/run/executor.sock", "one:1")),
        ("dns:///executors.default.svc:50061", "executors.default.svc:50061", ()),
    ],
)
def test_addresses_are_read(text: str, name: str | None, addresses: tuple[str, ...]) -> None:
    assert parse_executors(text) == (name, addresses)


@pytest.mark.parametrize(
    "text", ["one", "one:", ":1", "one:0", "one:65536", "one:-1", "one:x", "dns:///one", "one:1,two"]
)
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    part = text.removeprefix("dns:///").rpartition(",")[2]
    with pytest.raises(ValueError, match=f"--executors: {part!r} is not host:port"):
        parse_executors(text)


@pytest.mark.parametrize(
    "text", ["http://one:1", "grpc://one:1", "dns://one:1", "dns:///one:1,two:1", "dns:///one:1,dns:///two:1", "o ne:1"]
)
def test_urls_lists_of_names_and_spaces_are_no_hosts(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        parse_executors(text)


@pytest.mark.parametrize("text", ["", " , ,"])
def test_no_address_at_all_is_refused_with_what_it_takes(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no server; it takes host:port,… or dns:///name:port"):
        parse_executors(text)


async def test_all_addresses_of_a_name_are_found_once_and_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def getaddrinfo(host: str, port: int, **options: object) -> list[tuple]:
        asked.append((host, port))
        v6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::2", port, 0, 0))
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.2", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port)),
            v6,
            v6,
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert await look_up("executors:50061") == ("10.0.0.1:50061", "10.0.0.2:50061", "[fd00::2]:50061")
    await look_up("[fd00::2]:50061")
    assert asked == [("executors", 50061), ("fd00::2", 50061)]


async def changes(answers: Iterable[tuple[str, ...] | Exception], monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What `watch` tells for these answers of the name service, one after the other."""
    told: list[tuple[str, ...]] = []
    left = iter(answers)
    over = asyncio.Event()

    async def answer(name: str) -> tuple[str, ...]:
        try:
            found = next(left)
        except StopIteration:
            over.set()
            await asyncio.Event().wait()
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(resolver, "look_up", answer)
    task = asyncio.create_task(watch("executors:1", 0, told.append))
    ended = asyncio.create_task(over.wait())
    await asyncio.wait({task, ended}, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task  # raises what ended it, if it did not live on
    assert over.is_set()
    return told


async def test_only_changes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [("a:1",), ("a:1",), ("a:1", "b:1"), ("b:1",), ("b:1",)]
    assert await changes(answers, monkeypatch) == [("a:1",), ("a:1", "b:1"), ("b:1",)]


async def test_bad_and_empty_answers_keep_the_last_good_ones_and_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [OSError("no such name"), OSError("no such name"), ()]
    with caplog.at_level(logging.WARNING):
        told = await changes([("a:1",), *bad, ("a:1",), *bad, ("b:1",)], monkeypatch)
    assert told == [("a:1",), ("b:1",)]
    assert [record.getMessage() for record in caplog.records] == [
        "cannot look up executors:1: no such name; keeping 1 addresses"
    ] * 2


async def test_name_that_is_not_known_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await changes([OSError("not yet"), OSError("not yet"), ("a:1",)], monkeypatch) == [("a:1",)]


async def test_name_that_no_lookup_takes_fails_as_one_that_is_not_there() -> None:
    name = f"{'x' * 64}.example:1"  # a label of a name has 63 letters at most
    with pytest.raises(OSError, match="label"):
        await look_up(name)
