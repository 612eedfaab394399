"""Features are there when a token needs them, no more of them than fit, and nothing is held when all is done."""

from __future__ import annotations

import hashlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from forebay.block_hash import MediaMap, block_digests
from forebay.errors import InvalidRequest
from gpu_executor.block_pool import BlockPool
from gpu_executor.encoder_cache import EncoderCache
from gpu_executor.media import MediaInput, check_media, check_positions
from gpu_executor.media_batch import axes_of
from gpu_executor.media_reach import MediaReach
from gpu_executor.request import Request, Sampling
from gpu_executor.scheduler import ScheduledSequence, Scheduler

BLOCK, MOST_ROWS = 4, 12


def item(name: str, *spans: tuple[int, int]) -> MediaInput:
    return MediaInput("image", hashlib.sha256(name.encode()).digest(), spans, {})


def scheduler_of(
    *, num_blocks: int = 40, budget: int = 16, max_rows: int = MOST_ROWS, caching: bool = True
) -> Scheduler:
    return Scheduler(
        BlockPool(num_blocks, prefix_caching=caching),
        block_size=BLOCK,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        max_prefill_tokens_beside_decode=budget,
        media=MediaReach(EncoderCache(max_rows), budget),
    )


def run_step(scheduler: Scheduler) -> list[ScheduledSequence]:
    """As the engine does; checks that whatever a token stands for is in the cache when it is computed."""
    plan = scheduler.schedule()
    cache = scheduler.media.cache
    for found in scheduler.media.to_compute(part.sequence for part in plan):
        cache.put(found.digest, found.digest)
    for part in plan:
        sequence = part.sequence
        start = sequence.num_computed_tokens
        for index, found in enumerate(sequence.request.media):
            if found.first_row(start, start + part.num_tokens) is not None:
                assert index in sequence.held_media
                assert cache[found.digest] == found.digest
    scheduler.update(plan)
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
        media, length = [], draw(st.integers(0, 5))
        for _ in range(draw(st.integers(0, 3))):
            spans, left = [], draw(st.integers(1, MOST_ROWS))
            name = f"{draw(st.integers(0, 2))} of {left}"
            while left:
                count = draw(st.integers(1, left))
                spans.append((length, count))
                length += count + draw(st.integers(0, 3))
                left -= count
            media.append(item(name, *spans))
        length = max(length + draw(st.integers(0, 5)), 1, *(one.end for one in media)) if media else max(length, 1)
        n = draw(st.integers(1, 2))
        found.append(Request(key, [1] * length, Sampling(max_tokens=draw(st.integers(1, 6)), n=n), media=media))
    return found


@settings(max_examples=100, deadline=None)
@given(requests(), st.integers(1, 20), st.integers(MOST_ROWS, 2 * MOST_ROWS), st.booleans(), st.integers(3, 50))
def test_every_request_ends_and_holds_nothing(
    given_requests: list[Request], budget: int, max_rows: int, caching: bool, preempt_every: int
) -> None:
    scheduler = scheduler_of(budget=budget, max_rows=max_rows, caching=caching, num_blocks=60)
    for request in given_requests:
        scheduler.add(request)
    for step in range(2000):
        if not scheduler.waiting and not scheduler.running:
            break
        if step < 60 and step % preempt_every == preempt_every - 1:  # later all are left to end
            scheduler.preempt_all()
        run_step(scheduler)
    assert all(request.finished for request in given_requests)
    assert all(not sequence.held_media for request in given_requests for sequence in request.sequences)
    cache = scheduler.media.cache
    assert cache.num_rows <= max_rows
    assert scheduler.pool.num_used == 0


def test_a_chunk_ends_before_an_item_that_has_no_room() -> None:
    scheduler = scheduler_of(max_rows=6)
    scheduler.add(Request(0, [1] * 20, Sampling(max_tokens=1), media=[item("a", (2, 4)), item("b", (9, 5))]))
    assert [part.num_tokens for part in run_step(scheduler)] == [9]
    assert [part.num_tokens for part in run_step(scheduler)] == [11]


def test_an_aborted_request_lets_go_of_features_that_were_never_computed() -> None:
    scheduler = scheduler_of()
    request = Request(0, [1] * 20, Sampling(max_tokens=1), media=[item("a", (2, 4))])
    scheduler.add(request)
    assert scheduler.schedule()
    assert scheduler.media.cache.num_rows == 4
    scheduler.abort(request)
    assert scheduler.media.cache.num_rows == 0


def test_features_stay_for_a_later_request_until_others_need_the_room() -> None:
    cache = EncoderCache(10)
    assert cache.hold(b"a", 6)
    cache.put(b"a", "features")
    cache.release(b"a")
    assert b"a" in cache
    assert not cache.hold(b"c", 11)
    assert b"a" in cache
    assert cache.hold(b"b", 5)
    assert b"a" not in cache
    assert not cache.hold(b"d", 6)


def test_a_whole_prompt_is_taken_in_one_step_whatever_the_budget() -> None:
    scheduler = scheduler_of(budget=5)
    request = Request(0, [1] * 18, Sampling(max_tokens=3), media=[item("a", (0, 8))])
    request.prompt_is_whole = True
    scheduler.add(request)
    assert [part.num_tokens for part in run_step(scheduler)] == [18]
    scheduler.preempt_all()
    # What was generated does not see the prompt's tokens as they see each other: it is computed behind them.
    assert [part.num_tokens for part in run_step(scheduler)] in ([18], [2])


def test_equal_ids_with_other_media_have_other_digests() -> None:
    def digests(*spans: tuple[int, int, bytes]) -> list[bytes]:
        return list(block_digests([5] * 12, 4, media=MediaMap(spans)))

    plain, a, b = digests(), digests((5, 2, b"a" * 32)), digests((5, 2, b"b" * 32))
    assert plain[0] == a[0] == b[0]
    assert len({plain[1], a[1], b[1]}) == 3
    assert digests((5, 2, b"a" * 32)) == a
    assert digests((6, 2, b"a" * 32))[1] != a[1]
    assert digests((5, 1, b"a" * 32))[1] != a[1]


def test_features_are_found_by_token() -> None:
    tokens, features = item("a", (2, 3), (8, 2)).rows(3, 9)
    assert tokens.tolist() == [3, 4, 8]
    assert features.tolist() == [1, 2, 3]


def test_positions_behind_the_prompt_go_on_from_the_largest() -> None:
    positions = np.array([[0, 1, 1, 1, 2], [0, 1, 2, 1, 3], [0, 1, 1, 2, 4]])
    first = Request(0, [1] * 5, Sampling(max_tokens=9), positions=positions)
    second = Request(1, [1] * 3, Sampling(max_tokens=9))
    first.sequences[0].token_ids += [1] * 4
    first.sequences[0].num_computed_tokens = 3
    plan = [ScheduledSequence(first.sequences[0], 4), ScheduledSequence(second.sequences[0], 2)]
    axes = axes_of(plan, np.array([3, 4, 5, 6, 0, 1]), np.array([0, 4, 6]))
    assert axes.tolist() == [[1, 2, 5, 6, 0, 1], [1, 3, 5, 6, 0, 1], [2, 4, 5, 6, 0, 1]]


@pytest.mark.parametrize(
    ("media", "problem"),
    [
        ([item("a", (3, 4))], "outside the prompt"),
        ([item("a", (0, 2)), item("b", (1, 2))], "out of order"),
        ([item("a", (0, 0))], "empty span"),
        ([item("a")], "empty span"),
        ([item("a", (0, 5))], "5 features"),
        ([MediaInput("audio", b"", ((0, 1),), {})], "takes image"),
    ],
    ids=["behind-the-end", "overlapping", "empty", "none", "too-many", "other-modality"],
)
def test_what_could_hurt_the_engine_is_refused(media: list[MediaInput], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        check_media(media, 6, modalities=("image",), hidden_size=8, max_features=4)


def test_positions_outside_the_context_are_refused() -> None:
    check_positions(np.array([[0, 1, 2]]), 3, 5, 7)
    for positions in ([[0, 1, 3]], [[-1, 0, 1]], [[0, 1]], [[0, 1, 2]] * 2):
        with pytest.raises(InvalidRequest):
            check_positions(np.array(positions), 3, 5, 7)
