"""A sequence whose state lies in a slot starts where a snapshot of it was made, and snapshots are made where they are worth it."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpu_executor.request import Request, Sampling
from gpu_executor.snapshots import SnapshotCache
from tests.gpu_executor.test_scheduler import BLOCK, FakeModel, alone, make_scheduler, run_all, step

SLOTS = range(100, 105)


class SnapshotMachine(RuleBasedStateMachine):
    """Slots are reserved, stored, used and dropped in any order; a model remembers what each digest's slot must be."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = SnapshotCache(SLOTS)
        self.reserved: list[int] = []
        self.stored: dict[bytes, int] = {}  # least recently used first
        self.passing: set[bytes] = set()

    def _lose(self, digest: bytes) -> None:
        del self.stored[digest]
        self.passing.discard(digest)

    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        replacing = data.draw(st.none() | st.sampled_from(sorted(self.stored))) if self.stored else None
        slot = self.cache.reserve(replacing)
        if replacing in self.passing:
            self._lose(replacing)
        elif len(self.reserved) + len(self.stored) == len(SLOTS) and self.stored:
            self._lose(next(iter(self.stored)))
        assert (slot is None) == (len(self.reserved) == len(SLOTS))
        if slot is not None:
            assert slot not in self.reserved and slot not in self.stored.values()
            self.reserved.append(slot)

    @rule(data=st.data(), name=st.integers(0, 9), passing=st.booleans())
    def store(self, data: st.DataObject, name: int, passing: bool) -> None:
        if self.reserved:
            slot, digest = self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1))), b"%d" % name
            self.cache.store(digest, slot, passing=passing)
            if digest not in self.stored:
                self.stored[digest] = slot
                if passing:
                    self.passing.add(digest)

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        if self.stored:
            digest = data.draw(st.sampled_from(sorted(self.stored)))
            assert self.cache.use(digest) == self.stored[digest]
            self.stored[digest] = self.stored.pop(digest)
            self.passing.discard(digest)

    @rule(name=st.integers(0, 9))
    def drop(self, name: int) -> None:
        self.cache.drop(b"%d" % name)
        if b"%d" % name in self.stored:
            self._lose(b"%d" % name)

    @invariant()
    def slots_balance(self) -> None:
        self.cache.check()
        names = [b"%d" % name for name in range(10)]
        assert [name in self.cache for name in names] == [name in self.stored for name in names]
        assert self.cache.longest(names) == max(
            (i + 1 for i, name in enumerate(names) if name in self.stored), default=0
        )


SnapshotMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSnapshotCache = SnapshotMachine.TestCase


def serve(scheduler, model, prompt: list[int], *, max_tokens: int = 1, n: int = 1) -> Request:
    """Runs a request to its end, alone, and holds its tokens to those of an idle scheduler."""
    request = Request(object(), prompt, Sampling(max_tokens=max_tokens, n=n))
    scheduler.add(request)
    run_all(scheduler, model)
    assert [sequence.output_token_ids for sequence in request.sequences] == alone(request)
    return request


def scheduler_and_model(**options):
    scheduler = make_scheduler(**({"num_blocks": 64, "budget": 64, "snapshots": 8} | options))
    return scheduler, FakeModel(scheduler)


def test_without_snapshots_nothing_is_shared() -> None:
    for options in ({"snapshots": 0}, {"caching": False}):
        scheduler, model = scheduler_and_model(**options)
        for _ in range(2):
            request = Request(object(), list(range(14)), Sampling(max_tokens=1, n=2))
            scheduler.add(request)
            assert [part.num_tokens for part in step(scheduler, model)] == [14, 14]
        assert request.num_cached_tokens == 0


def test_the_same_prompt_starts_at_its_last_full_block() -> None:
    scheduler, model = scheduler_and_model()
    lengths = {14: 0, 15: 12, 16: 12, 17: 16}  # the prompt of 16 ends with a block: that snapshot needs no cut
    assert {length: serve(scheduler, model, list(range(length))).num_cached_tokens for length in lengths} == lengths
    # One more block is not worth another chunk.
    assert [serve(scheduler, model, list(range(21))).num_cached_tokens for _ in range(2)] == [16, 16]


def test_sequences_of_one_request_start_behind_its_prompt() -> None:
    scheduler, model = scheduler_and_model()
    request = Request("n", list(range(7)), Sampling(max_tokens=3, n=3))
    scheduler.add(request)
    assert [[part.num_tokens for part in step(scheduler, model)] for _ in range(3)] == [[4], [3], [1, 3, 3]]
    run_all(scheduler, model)
    assert [sequence.output_token_ids for sequence in request.sequences] == alone(request)


def test_a_common_beginning_is_found_where_two_requests_part() -> None:
    scheduler, model = scheduler_and_model()
    system = list(range(21))
    cached = [serve(scheduler, model, system + [50 + user] * 9).num_cached_tokens for user in range(4)]
    assert cached == [0, 0, 20, 20]


def test_the_next_turn_of_a_conversation_starts_behind_the_last() -> None:
    scheduler, model = scheduler_and_model()
    prompt = list(range(9))
    first = serve(scheduler, model, prompt, max_tokens=30)
    second = serve(scheduler, model, [*first.sequences[0].token_ids, 9, 8, 7])
    assert second.num_cached_tokens == 36  # of 38 that were computed
    # The prompt, the last snapshot on the way of the first turn, and the second turn's.
    assert sorted(scheduler.snapshots.longest(second.sequences[0].digests[:n]) for n in range(3, 11)).count(2) == 6


def test_a_long_decode_takes_no_snapshot_but_its_own() -> None:
    scheduler, model = scheduler_and_model(snapshots=4)
    serve(scheduler, model, [5] * 12)
    serve(scheduler, model, list(range(20)), max_tokens=50)
    assert serve(scheduler, model, [5] * 12).num_cached_tokens == 8


def test_a_preempted_sequence_goes_on_from_its_last_snapshot() -> None:
    scheduler, model = scheduler_and_model()
    request = Request("r", list(range(9)), Sampling(max_tokens=20))
    scheduler.add(request)
    for _ in range(10):
        step(scheduler, model)
    computed = request.sequences[0].num_computed_tokens
    scheduler.preempt_all()
    (part,) = step(scheduler, model)
    assert part.num_tokens <= computed % BLOCK + 1 + BLOCK and part.state_from is not None
    run_all(scheduler, model)
    assert [request.sequences[0].output_token_ids] == alone(request)


def test_a_snapshot_goes_with_its_block() -> None:
    scheduler, model = scheduler_and_model()
    request = serve(scheduler, model, list(range(14)))
    cache, digest = scheduler.pool.prefix_cache, request.sequences[0].digests[2]
    assert digest in scheduler.snapshots
    cache.forget(cache.match([digest], scheduler.reach)[0][0])
    assert digest not in scheduler.snapshots
    assert serve(scheduler, model, list(range(14))).num_cached_tokens == 0


def test_the_state_that_is_read_in_a_step_may_be_replaced_in_the_same_step() -> None:
    scheduler, model = scheduler_and_model(snapshots=1)
    for _ in range(2):
        serve(scheduler, model, list(range(14)))
    scheduler.add(Request("other", [7] * 12, Sampling(max_tokens=1)))
    scheduler.add(Request("again", list(range(14)), Sampling(max_tokens=1)))
    plan = step(scheduler, model)
    assert [part.state_to for part in plan] == [8, None] and [part.state_from for part in plan] == [None, 8]
    run_all(scheduler, model)
