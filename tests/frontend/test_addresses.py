"""With dns:///, executors come and go with their addresses: new ones are used, old ones finish what they have."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from frontend import resolver
from tests.frontend.fake_executor import FakeExecutor, expected_tokens
from tests.frontend.harness import Tier, tier, until

SEED = 42


class Names:
    """The name service: what a test says is what the next look-up finds."""

    def __init__(self) -> None:
        self.executors: list[FakeExecutor] = []
        self.num_lookups = 0

    async def look_up(self, name: str) -> tuple[str, ...]:
        assert name == "executors:50061"
        self.num_lookups += 1
        return tuple(sorted(executor.address for executor in self.executors))

    async def say(self, *executors: FakeExecutor) -> None:
        """Returns when the frontend has heard of the change."""
        self.executors = list(executors)
        heard = self.num_lookups + 2  # the next one may have begun before
        await until(lambda: self.num_lookups >= heard)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(resolver, "look_up", names.look_up)
    return names


@contextlib.asynccontextmanager
async def named_tier(names: Names, *executors: FakeExecutor) -> AsyncIterator[Tier]:
    """A tier whose executors are found by name, the first one to begin with."""
    names.executors = [executors[0]]
    async with tier(*executors, ready=0, executors="dns:///executors:50061", dns_refresh_s=0.005) as up:
        await up.until_ready(1)
        yield up


def addresses(up: Tier) -> set[str]:
    return set(up.server.dispatcher._clients)


async def test_new_address_is_used(names: Names) -> None:
    old, new = FakeExecutor(), FakeExecutor()
    async with named_tier(names, old, new) as up:
        first = up.stream(max_tokens=1)
        await old.saw(lambda: len(old.submits) == 1)
        await names.say(old, new)
        await up.until_ready(2)
        second = up.stream(max_tokens=1)
        await new.saw(lambda: len(new.submits) == 1)
        old.auto = new.auto = True
        assert (await first.read()).token_ids() == (await second.read()).token_ids() == expected_tokens(SEED, 0, 1)


async def test_address_that_is_gone_finishes_what_it_has_and_is_forgotten(names: Names) -> None:
    old, new = FakeExecutor(), FakeExecutor(auto=True)
    async with named_tier(names, old, new) as up:
        stream = up.stream(max_tokens=3)
        await old.saw(lambda: old.num_aboard == 1)
        await old.step()
        await names.say(new)
        await until(lambda: up.server.dispatcher._clients[new.address].ready)
        assert up.server.dispatcher.num_ready == 1
        for _ in range(4):
            await up.generate()
        assert (len(old.submits), len(new.submits)) == (1, 4)
        await old.step(2)
        assert (await stream.read()).token_ids() == expected_tokens(SEED, 0, 3)
        await until(lambda: addresses(up) == {new.address})
        await old.saw(lambda: not old.sessions)


async def test_executor_that_dies_after_its_address_is_gone_is_not_dialled_again(names: Names) -> None:
    old, new = FakeExecutor(), FakeExecutor(auto=True)
    async with named_tier(names, old, new) as up:
        stream = up.stream(max_tokens=3)
        await old.saw(lambda: old.num_aboard == 1)
        await old.step()
        await names.say(new)
        await up.until_ready(1)
        await old.kill()
        assert (await stream.read()).token_ids() == expected_tokens(SEED, 0, 3)
        await until(lambda: addresses(up) == {new.address})


async def test_address_that_comes_back_while_it_finishes_is_used_again(names: Names) -> None:
    old, new = FakeExecutor(), FakeExecutor()
    async with named_tier(names, old, new) as up:
        stream = up.stream(max_tokens=3)
        await old.saw(lambda: old.num_aboard == 1)
        await names.say(new)
        await until(lambda: up.server.dispatcher._clients[new.address].ready)
        await names.say(old, new)
        await up.until_ready(2)
        old.auto = new.auto = True
        await stream.read()
        assert old.num_sessions == 1, "its session never ended"


async def test_no_address_at_all_changes_nothing(names: Names) -> None:
    async with named_tier(names, FakeExecutor(auto=True)) as up:
        await names.say()
        await up.generate()
        assert up.server.dispatcher.num_ready == 1


async def test_address_that_goes_and_comes_and_goes_is_forgotten_once(
    names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = FakeExecutor(), FakeExecutor(auto=True)
    async with named_tier(names, old, new) as up:
        stream = up.stream(max_tokens=1)
        await old.saw(lambda: old.num_aboard == 1)
        for present in (False, True, False, True, False):
            await names.say(*([old] if present else []), new)
        await old.step()
        await stream.read()
        await until(lambda: addresses(up) == {new.address})
        await until(lambda: len(up.server.dispatcher._tasks) == 1)  # which looks the name up
        assert "a task of the dispatcher failed" not in caplog.text
        await names.say(old, new)
        await up.until_ready(2)
