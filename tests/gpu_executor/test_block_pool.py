"""Blocks are counted right whatever happens to them."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import example, given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpu_executor.block_pool import BlockPool
from gpu_executor.block_reach import BlockReach

WHOLE = BlockReach(4)


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share, publish and release blocks in any order; a model counts beside the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.holders: list[list[int]] = []
        self.published: dict[bytes, int] = {}
        self.counter = 0

    @rule(count=st.integers(0, 14))
    def allocate(self, count: int) -> None:
        free = self.pool.num_free
        blocks = self.pool.allocate(count)
        assert (blocks is None) == (count > free)
        if blocks is not None:
            assert len(set(blocks)) == count
            held = {block for holder in self.holders for block in holder}
            assert not held & set(blocks), "a held block was given out"
            self.published = {d: b for d, b in self.published.items() if b not in blocks}
            self.holders.append(blocks)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.holders:
            self.pool.release(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        if self.holders and (blocks := data.draw(st.sampled_from(self.holders))):
            block = data.draw(st.sampled_from(blocks))
            if block not in self.published.values():
                self.counter += 1
                digest = self.counter.to_bytes(32, "little")
                self.pool.prefix_cache.publish(block, digest)
                self.published[digest] = block

    @rule(data=st.data())
    def reuse(self, data: st.DataObject) -> None:
        if self.published:
            digest = data.draw(st.sampled_from(sorted(self.published)))
            (blocks,) = self.pool.match([digest, b"unknown"], WHOLE)
            assert blocks == [self.published[digest]]
            self.pool.share(blocks)
            self.holders.append(blocks)

    @invariant()
    def counts_balance(self) -> None:
        self.pool.check()
        held = {block for holder in self.holders for block in holder}
        assert self.pool.num_used == len(held)
        for digest, block in self.published.items():
            assert self.pool.match([digest], WHOLE) == [[block]]


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


@settings(max_examples=300, deadline=None)
@given(
    windows=st.lists(st.none() | st.integers(1, 24), min_size=1, max_size=3),
    num_blocks=st.integers(0, 12),
    missing=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 11)), max_size=4),
)
@example(windows=[5, 21], num_blocks=8, missing={(0, 4), (1, 3)})  # the later gap matters less long
def test_the_longest_beginning_is_found_all_of_whose_windows_are_known(
    windows: list[int | None], num_blocks: int, missing: set[tuple[int, int]]
) -> None:
    pool, reach = BlockPool(36), BlockReach(4, tuple(windows))
    digests = [bytes([i]) * 32 for i in range(num_blocks)]
    wanted = {}
    for group, index in itertools.product(range(len(windows)), range(num_blocks)):
        if (group, index) not in missing:
            (wanted[group, index],) = pool.allocate(1)
            pool.prefix_cache.publish(wanted[group, index], digests[index], group)

    def can_start_behind(count: int) -> bool:
        firsts = reach.first_read(4 * count)
        return all((group, i) in wanted for group, first in enumerate(firsts) for i in range(first, count))

    longest = max(count for count in range(num_blocks + 1) if can_start_behind(count))
    assert pool.match(digests, reach) == [
        [wanted.get((group, i), 0) for i in range(longest)] for group in range(len(windows))
    ]


def test_unpublished_free_blocks_are_taken_before_published_ones() -> None:
    pool = BlockPool(3)
    first, second, third = pool.allocate(3)
    pool.prefix_cache.publish(first, b"a" * 32)
    pool.release([first])
    pool.release([second])
    pool.release([third])
    assert set(pool.allocate(2)) == {second, third}
    assert pool.match([b"a" * 32], WHOLE) == [[first]]


def test_oldest_prefix_is_forgotten_first() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    for block, digest in ((first, b"a" * 32), (second, b"b" * 32)):
        pool.prefix_cache.publish(block, digest)
    pool.release([second])
    pool.release([first])
    pool.allocate(1)
    assert pool.match([b"b" * 32], WHOLE) == [[]] and pool.match([b"a" * 32], WHOLE) == [[first]]


def test_events_tell_what_was_stored_and_removed() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.prefix_cache.publish(block, b"\1" + b"\0" * 31)
    pool.release([block])
    assert pool.prefix_cache.take_events() == ([1], [])
    pool.allocate(1)
    assert pool.prefix_cache.take_events() == ([], [1])
    assert pool.prefix_cache.take_events() == ([], [])
