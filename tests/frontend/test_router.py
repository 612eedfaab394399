"""A request goes where it costs least: few sequences, few waiting tokens, and a prefix that is there already."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.block_hash import block_digests, short_hash
from forebay.executor.v1 import executor_pb2 as wire
from frontend.flight import Flight
from frontend.router import MAX_PREFIX_TOKENS, TOKENS_PER_SEQUENCE, ExecutorLoad, PrefixIndex, pick, prefix_hashes

BLOCK_SIZE = 4


def load_of(num_blocks: int = 64, *, prefix_caching: bool = True, block_size: int = BLOCK_SIZE) -> ExecutorLoad:
    return ExecutorLoad(wire.Welcome(block_size=block_size, num_blocks=num_blocks, prefix_caching=prefix_caching))


def flight_of(prompt: list[int], salt: bytes = b"") -> Flight:
    return Flight(prompt, wire.SamplingParams(max_tokens=1), sink=None, cache_salt=salt)


def test_idle_executor_costs_the_prompt() -> None:
    assert load_of().cost(flight_of([1] * 10)) == 10


def test_own_sequences_and_those_of_other_frontends_count_once() -> None:
    load = load_of()
    load.num_own_sequences = 3
    load.report(wire.Load(num_running=4, num_waiting=1, num_waiting_tokens=100))  # 3 ours, 2 of others
    assert load.cost(flight_of([1] * 10)) == 100 + 5 * TOKENS_PER_SEQUENCE + 10
    load.num_own_sequences = 0  # ours ended, and no new report yet
    assert load.cost(flight_of([1] * 10)) == 100 + 2 * TOKENS_PER_SEQUENCE + 10


def test_report_that_does_not_know_our_newest_requests_yet_takes_nothing_off() -> None:
    load = load_of()
    load.num_own_sequences = 5
    load.report(wire.Load(num_running=2))
    assert load.cost(flight_of([1])) == 5 * TOKENS_PER_SEQUENCE + 1


def test_cached_prefix_is_taken_off_the_cost_block_by_block() -> None:
    load, prompt = load_of(), list(range(11))  # two full blocks and three tokens
    hashes = [short_hash(digest) for digest in block_digests(prompt, BLOCK_SIZE)]
    load.learn(wire.CacheEvents(stored=hashes))
    assert load.cost(flight_of(prompt)) == 11 - 8
    load.learn(wire.CacheEvents(removed=hashes[1:]))
    assert load.cost(flight_of(prompt)) == 11 - 4
    load.learn(wire.CacheEvents(removed=hashes[:1]))
    assert load.cost(flight_of(prompt)) == 11


def test_block_that_is_removed_and_stored_in_one_frame_is_there() -> None:
    load, prompt = load_of(), [1, 2, 3, 4]
    hashes = [short_hash(digest) for digest in block_digests(prompt, BLOCK_SIZE)]
    load.learn(wire.CacheEvents(stored=hashes, removed=hashes))
    assert load.cost(flight_of(prompt)) == 0


def test_sent_request_attracts_those_with_the_same_beginning_before_the_executor_reports() -> None:
    load = load_of()
    load.expect(flight_of([1, 2, 3, 4, 5]))
    assert load.cost(flight_of([1, 2, 3, 4, 9, 9])) == 2
    assert load.cost(flight_of([1, 2, 3, 4, 9, 9], salt=b"tenant")) == 6


@pytest.mark.parametrize("load", [load_of(prefix_caching=False), load_of(block_size=0)], ids=["off", "no-blocks"])
def test_executor_without_prefix_cache_is_not_believed_to_hold_prefixes(load: ExecutorLoad) -> None:
    load.expect(flight_of([1, 2, 3, 4]))
    load.learn(wire.CacheEvents(stored=[1, 2, 3]))
    assert load.cost(flight_of([1, 2, 3, 4])) == 4


def test_least_cost_is_picked() -> None:
    busy, idle, waiting = load_of(), load_of(), load_of()
    busy.report(wire.Load(num_running=1))
    waiting.report(wire.Load(num_waiting_tokens=1))
    assert {pick([busy, idle, waiting], flight_of([1])) for _ in range(20)} == {1}


def test_prefix_outweighs_load_until_the_queue_is_longer_than_the_prefix() -> None:
    holder, other, prompt = load_of(num_blocks=1000), load_of(), list(range(3 * TOKENS_PER_SEQUENCE))
    holder.expect(flight_of(prompt))
    holder.num_own_sequences = 2
    assert pick([other, holder], flight_of(prompt)) == 1
    holder.num_own_sequences = 4
    assert pick([other, holder], flight_of(prompt)) == 0


def test_equal_executors_share_the_requests() -> None:
    loads = [load_of() for _ in range(3)]
    assert {pick(loads, flight_of([1])) for _ in range(200)} == {0, 1, 2}


def test_hashes_are_computed_once_per_block_size_and_up_to_a_limit() -> None:
    flight = flight_of(list(range(MAX_PREFIX_TOKENS + 100)))
    assert prefix_hashes(flight, 16) is prefix_hashes(flight, 16)
    assert len(prefix_hashes(flight, 16)) == MAX_PREFIX_TOKENS // 16
    assert prefix_hashes(flight, 32) != prefix_hashes(flight, 16)


def test_prefix_that_is_too_long_for_the_index_is_forgotten_from_its_end() -> None:
    load, prompt = load_of(num_blocks=10), list(range(100))
    load.expect(flight_of(prompt))
    assert load.cost(flight_of(prompt)) == 100 - 10 * BLOCK_SIZE


@given(
    max_blocks=st.integers(0, 8),
    events=st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 12), max_size=10)), max_size=30),
    prompt=st.lists(st.integers(0, 12), max_size=12),
)
def test_index_forgets_the_least_recently_seen(
    max_blocks: int, events: list[tuple[bool, list[int]]], prompt: list[int]
) -> None:
    index, known = PrefixIndex(max_blocks), OrderedDict()
    for stored, hashes in events:
        (index.add if stored else index.remove)(hashes)
        for value in reversed(hashes):
            known.pop(value, None)
            if stored:
                known[value] = None
        for value in list(known)[: -max(1, max_blocks)]:
            del known[value]
        assert len(index) == len(known)
    leading = next((count for count, value in enumerate(prompt) if value not in known), len(prompt))
    assert index.num_leading(prompt) == leading
