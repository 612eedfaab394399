"""What cross attention reads of media is made in a sequence's first step, from features that are all there, and held once."""

from __future__ import annotations

import hashlib

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gpu_executor.block_pool import BlockPool
from gpu_executor.encoder_cache import EncoderCache
from gpu_executor.media import MediaInput
from gpu_executor.media_layout import lay_out
from gpu_executor.media_reach import CrossMediaReach
from gpu_executor.request import Request, Sampling
from gpu_executor.scheduler import ScheduledSequence, Scheduler

BLOCK, MAX_TILES, TILE_ROWS = 4, 2, 3
ITEM_ROWS = MAX_TILES * TILE_ROWS


def request_of(key: int, length: int, items: dict[int, str], *, max_tokens: int = 2, n: int = 1) -> Request:
    """`items`: names by their token; equal names have equal features."""
    media = [MediaInput("image", hashlib.sha256(name.encode()).digest(), ((at, 1),), {}) for at, name in items.items()]
    request = Request(key, [1] * length, Sampling(max_tokens=max_tokens, n=n), media=media)
    if items:
        tiles = [1 + len(name) % MAX_TILES for name in items.values()]
        request.media_layout = lay_out(list(items), tiles, max_tiles=MAX_TILES, tile_rows=TILE_ROWS, block_size=BLOCK)
    return request


def scheduler_of(
    *, budget: int = 16, num_blocks: int = 60, max_rows: int = 4 * ITEM_ROWS, groups: int = 2
) -> Scheduler:
    return Scheduler(
        BlockPool(num_blocks),
        block_size=BLOCK,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        max_prefill_tokens_beside_decode=budget,
        windows=(None,) * groups,
        media=CrossMediaReach(EncoderCache(max_rows), budget, ITEM_ROWS),
    )


def run_step(scheduler: Scheduler) -> list[ScheduledSequence]:
    """As the engine does; checks that sequences have what they read, and that it is made when its features are there."""
    plan = scheduler.schedule()
    cache = scheduler.media.cache
    for found in scheduler.media.to_compute(part.sequence for part in plan):
        cache.put(found.digest, found.digest)
    for part in plan:
        sequence, request = part.sequence, part.sequence.request
        assert len(sequence.encoder_blocks) == request.num_encoder_blocks(BLOCK)
        if request.media:
            assert part.encodes or request.is_encoded
        if part.encodes:
            assert all(cache[found.digest] == found.digest for found in request.media)
    scheduler.update(plan)
    assert not any(sequence.held_media for sequence in scheduler.running)
    for part in plan:
        sequence = part.sequence
        if sequence.num_computed_tokens == sequence.num_tokens:
            sequence.append(7)
            if sequence.finish_reason is not None:
                scheduler.finish(sequence)
    scheduler.check()
    return plan


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    found = []
    for key in range(draw(st.integers(1, 6))):
        items = draw(st.dictionaries(st.integers(0, 12), st.sampled_from(["a", "bb", "c", "dd", "e"]), max_size=4))
        length = 1 + max([draw(st.integers(0, 20)), *items])
        n, max_tokens = draw(st.integers(1, 2)), draw(st.integers(1, 6))
        found.append(request_of(key, length, dict(sorted(items.items())), max_tokens=max_tokens, n=n))
    return found


@settings(max_examples=100, deadline=None)
@given(requests(), st.integers(1, 30), st.integers(4, 6), st.integers(3, 50))
def test_every_request_ends_and_holds_nothing(
    given_requests: list[Request], budget: int, max_items: int, preempt_every: int
) -> None:
    scheduler = scheduler_of(budget=budget, max_rows=max_items * ITEM_ROWS)
    for request in given_requests:
        scheduler.add(request)
    for step in range(2000):
        if not scheduler.waiting and not scheduler.running:
            break
        if step < 60 and step % preempt_every == preempt_every - 1:  # later all are left to end
            scheduler.preempt_all()
        run_step(scheduler)
    assert all(request.finished for request in given_requests)
    assert scheduler.pool.num_used == 0


def test_a_request_with_more_features_than_a_step_should_compute_comes_first_in_one() -> None:
    scheduler = scheduler_of(budget=8)
    first, second = request_of(0, 3, {0: "a"}), request_of(1, 3, {0: "b", 1: "c"})
    for request in (first, second):
        scheduler.add(request)
    assert [part.sequence.request.key for part in run_step(scheduler)] == [0]
    assert [part.sequence.request.key for part in run_step(scheduler)] == [0, 1]


@pytest.mark.parametrize("ends", ["abort", "preempt"])
def test_what_was_held_for_a_step_that_did_not_come_is_let_go(ends: str) -> None:
    scheduler = scheduler_of()
    request = request_of(0, 3, {0: "a", 2: "b"})
    scheduler.add(request)
    assert scheduler.schedule() and scheduler.media.cache.num_rows == 2 * ITEM_ROWS
    if ends == "abort":
        scheduler.abort(request)
    else:
        scheduler.preempt_all()
    assert scheduler.media.cache.num_rows == 0
    scheduler.check()


def test_sequences_of_a_request_share_what_they_read() -> None:
    scheduler = scheduler_of()
    request = request_of(0, 3, {0: "a"}, n=2, max_tokens=4)
    scheduler.add(request)
    assert len(run_step(scheduler)) == 1
    (_, second) = run_step(scheduler)
    assert not second.encodes and second.sequence.encoder_blocks == request.sequences[0].encoder_blocks
