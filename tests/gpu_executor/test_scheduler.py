"""Every admitted sequence ends exactly once, no block leaks, none is shared wrongly, at any budget and memory.

The model here is a function of the tokens before a position, written into blocks as a real one writes KV: reading a
block that was shared or reused wrongly gives other content, and the test sees it. Where the scheduler counts with states
in slots, a slot remembers the tokens that went into it.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from forebay.block_hash import short_hash
from gpu_executor.block_pool import BlockPool
from gpu_executor.block_reach import BlockReach
from gpu_executor.request import FinishReason, Request, Sampling, Sequence
from gpu_executor.scheduler import ScheduledSequence, Scheduler

BLOCK = 4


class FakeModel:
    """Writes (token, group, all before it) into slots and checks that a sequence reads back its own tokens in each group."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.slots: dict[int, tuple[int, ...]] = {}
        self.states: dict[int, list[int]] = {}

    def run(self, plan: list[ScheduledSequence]) -> None:
        written: set[int] = set()
        for part in plan:
            sequence = part.sequence
            if part.encodes:
                self.encode(sequence, written)
            for group, blocks in enumerate(sequence.blocks):
                for position in range(sequence.num_computed_tokens, sequence.num_computed_tokens + part.num_tokens):
                    slot = blocks[position // BLOCK] * BLOCK + position % BLOCK
                    assert slot not in written, "two sequences, or two groups, write one slot"
                    written.add(slot)
                    self.slots[slot] = (sequence.token_ids[position], group, _content(sequence, position))
        for part in plan:
            sequence = part.sequence
            for group, blocks in enumerate(sequence.blocks):
                first = sequence.num_computed_tokens - (self.scheduler.reach.windows[group] or 10**6) + 1
                for position in range(max(0, first), sequence.num_computed_tokens + part.num_tokens):
                    slot = blocks[position // BLOCK] * BLOCK + position % BLOCK
                    assert self.slots[slot][1:] == (group, _content(sequence, position)), "foreign KV is read"
            for index, token_id in enumerate(sequence.request.encoder_token_ids):
                slot = sequence.encoder_blocks[index // BLOCK] * BLOCK + index % BLOCK
                assert self.slots[slot] == (token_id, hash(tuple(sequence.request.encoder_token_ids)))
        if self.scheduler.snapshots is not None:
            self.run_states(plan)

    def run_states(self, plan: list[ScheduledSequence]) -> None:
        """As the runner does: copies into the sequences' slots, the step, copies out of them."""
        for part in plan:
            if part.state_from is not None:
                self.states[part.sequence.slot] = self.states[part.state_from]
        for part in plan:
            sequence, start = part.sequence, part.sequence.num_computed_tokens
            before = self.states[sequence.slot] if start else []
            assert before == sequence.token_ids[:start], "a sequence goes on from a state that is not its own"
            self.states[sequence.slot] = sequence.token_ids[: start + part.num_tokens]
        for part in plan:
            if part.state_to is not None:
                assert part.state_to >= self.scheduler.max_num_seqs
                self.states[part.state_to] = self.states[part.sequence.slot]

    def encode(self, sequence: Sequence, written: set[int]) -> None:
        token_ids = sequence.request.encoder_token_ids
        assert len(sequence.encoder_blocks) == -(-len(token_ids) // BLOCK)
        for index, token_id in enumerate(token_ids):
            slot = sequence.encoder_blocks[index // BLOCK] * BLOCK + index % BLOCK
            assert slot not in written, "two sequences write one slot"
            written.add(slot)
            self.slots[slot] = (token_id, hash(tuple(token_ids)))

    def poison_free_blocks(self) -> None:
        """What nobody holds and nobody can find must not be read again before it is written."""
        pool = self.scheduler.pool
        held = {block for sequence in self.scheduler.running for block in sequence.held_blocks}
        for block in range(pool.num_blocks):
            if block not in held and not (pool.prefix_cache and pool.prefix_cache.knows(block)):
                for slot in range(block * BLOCK, (block + 1) * BLOCK):
                    self.slots.pop(slot, None)

    def next_token(self, token_ids: list[int]) -> int:
        return hash(tuple(token_ids)) % 7


def _content(sequence: Sequence, position: int) -> int:
    """What a position's KV depends on."""
    return hash((tuple(sequence.request.encoder_token_ids), tuple(sequence.token_ids[: position + 1])))


def make_scheduler(
    num_blocks: int = 32,
    *,
    caching: bool = True,
    seqs: int = 8,
    budget: int = 16,
    beside: int = 8,
    windows: tuple[int | None, ...] = (None,),
    snapshots: int | None = None,
) -> Scheduler:
    return Scheduler(
        BlockPool(num_blocks, prefix_caching=caching),
        block_size=BLOCK,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_prefill_tokens_beside_decode=beside,
        windows=windows,
        num_snapshots=snapshots,
    )


def step(scheduler: Scheduler, model: FakeModel) -> list[ScheduledSequence]:
    plan = scheduler.schedule()
    encoded = [len(part.sequence.request.encoder_token_ids) for part in plan if part.encodes]
    assert sum(part.num_tokens for part in plan) + sum(encoded[:-1]) <= scheduler.max_num_batched_tokens
    assert all(part.num_tokens > 0 for part in plan)
    assert len({id(part.sequence) for part in plan}) == len(plan)
    scheduler.check()
    for part in plan:
        held = len(part.sequence.held_blocks) - len(part.sequence.encoder_blocks)
        assert held <= scheduler.most_blocks(part.sequence.num_tokens)
        assert held <= scheduler.reach.most_held(part.sequence.num_tokens, part.num_tokens)
    model.run(plan)
    samples = [part.sequence for part in plan if part.samples]
    scheduler.update(plan)
    for sequence in samples:
        sequence.append(model.next_token(sequence.token_ids))
        if sequence.finish_reason is not None:
            scheduler.finish(sequence)
    scheduler.check()
    model.poison_free_blocks()
    return plan


def run_all(scheduler: Scheduler, model: FakeModel, limit: int = 3000) -> None:
    for _ in range(limit):
        if not scheduler.running and not scheduler.waiting:
            return
        step(scheduler, model)
    raise AssertionError("the scheduler makes no progress")


def alone(request: Request) -> list[list[int]]:
    """What each sequence generates with nobody else there."""
    outputs = []
    for _ in request.sequences:
        tokens = list(request.prompt_token_ids)
        for _ in range(request.sampling.max_tokens):
            tokens.append(hash(tuple(tokens)) % 7)
            if tokens[-1] in request.sampling.stop_token_ids:
                break
        outputs.append(tokens[len(request.prompt_token_ids) :])
    return outputs


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=18)  # few different tokens: many shared beginnings
requests = st.builds(
    lambda *values: values,
    prompts, st.integers(1, 6), st.integers(1, 3), st.integers(-1, 1), st.sets(st.integers(0, 6), max_size=1),
    st.just([]) | st.lists(st.integers(0, 1), min_size=1, max_size=9),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    asked=st.lists(requests, min_size=1, max_size=14),
    spare_blocks=st.integers(0, 10),
    caching=st.booleans(),
    seqs=st.integers(1, 6),
    budget=st.integers(6, 40),
    beside=st.integers(1, 16),
    windows=st.lists(st.none() | st.integers(1, 14), min_size=1, max_size=4).map(tuple),
    snapshots=st.none() | st.integers(0, 6),
)
def test_every_sequence_ends_once_with_the_tokens_it_has_alone(
    data, asked, spare_blocks, caching, seqs, budget, beside, windows, snapshots
) -> None:
    num_blocks = BlockReach(BLOCK, windows).most_held(24, budget) + 3 + spare_blocks  # of the longest request
    options = {"caching": caching, "seqs": seqs, "budget": budget, "beside": beside, "windows": windows}
    scheduler = make_scheduler(num_blocks, snapshots=snapshots, **options)
    model = FakeModel(scheduler)
    made = []
    for key, (prompt, max_tokens, n, priority, stop, encoder) in enumerate(asked):
        sampling = Sampling(max_tokens=max_tokens, n=n, stop_token_ids=frozenset(stop))
        made.append(Request(key, prompt, sampling, priority=priority, encoder_token_ids=encoder))
        scheduler.add(made[-1])
        for _ in range(data.draw(st.integers(0, 2))):
            step(scheduler, model)
        if data.draw(st.integers(0, 5)) == 0:
            scheduler.preempt_all()
    aborted = data.draw(st.sets(st.integers(0, len(made) - 1), max_size=2))
    for index in aborted:
        scheduler.abort(made[index])
        scheduler.check()
    run_all(scheduler, model)
    assert scheduler.pool.num_used == 0
    assert scheduler.ledger.num_admitted == scheduler.ledger.num_finished + scheduler.ledger.num_aborted
    for index, request in enumerate(made):
        if index not in aborted:
            assert [sequence.output_token_ids for sequence in request.sequences] == alone(request)
        assert all(sequence.finish_reason is not None for sequence in request.sequences)


def test_preemption_gives_the_block_to_the_request_that_came_first() -> None:
    scheduler = make_scheduler(4, caching=False)
    model = FakeModel(scheduler)
    first, second = (Request(k, [1] * 7, Sampling(max_tokens=8)) for k in "ab")
    scheduler.add(first)
    scheduler.add(second)
    while not scheduler.ledger.num_preemptions:
        step(scheduler, model)
    assert scheduler.waiting == second.sequences and scheduler.running == first.sequences
    run_all(scheduler, model)
    assert first.sequences[0].output_token_ids == alone(first)[0]
    assert second.sequences[0].output_token_ids == alone(second)[0]


def test_a_more_urgent_request_takes_the_place_of_a_less_urgent_one() -> None:
    scheduler = make_scheduler(32, seqs=1)
    model = FakeModel(scheduler)
    slow = Request("slow", [1], Sampling(max_tokens=20), priority=5)
    scheduler.add(slow)
    step(scheduler, model)
    urgent = Request("urgent", [2], Sampling(max_tokens=2), priority=-5)
    scheduler.add(urgent)
    step(scheduler, model)
    step(scheduler, model)
    assert urgent.finished and not slow.finished
    run_all(scheduler, model)
    assert slow.finished


def test_sequences_of_one_request_share_the_blocks_of_its_prompt() -> None:
    scheduler = make_scheduler(64, caching=False, budget=64)
    model = FakeModel(scheduler)
    request = Request("n", [1, 2, 3] * 4 + [1], Sampling(max_tokens=3, n=4))
    scheduler.add(request)
    step(scheduler, model)
    step(scheduler, model)
    assert all(sequence.blocks[0][:3] == request.sequences[0].blocks[0][:3] for sequence in request.sequences)
    assert scheduler.pool.num_used == 3 + 4
    run_all(scheduler, model)


def test_a_known_prefix_is_not_computed_again_but_the_last_token_is() -> None:
    scheduler = make_scheduler()
    model = FakeModel(scheduler)
    for key, prompt in (("cold", [1] * 12), ("warm", [1] * 12)):
        request = Request(key, prompt, Sampling(max_tokens=1))
        scheduler.add(request)
        plan = step(scheduler, model)
        assert plan[0].num_tokens == (12 if key == "cold" else 4)
    assert request.num_cached_tokens == 8
    assert scheduler.pool.prefix_cache.num_hit_tokens == 8


def test_another_salt_shares_nothing() -> None:
    scheduler = make_scheduler()
    model = FakeModel(scheduler)
    for salt in (b"one", b"two"):
        request = Request(salt, [1] * 12, Sampling(max_tokens=1), salt=salt)
        scheduler.add(request)
        assert step(scheduler, model)[0].num_tokens == 12
    assert request.num_cached_tokens == 0


def test_decodes_go_on_while_a_long_prompt_arrives_in_bounded_chunks() -> None:
    scheduler = make_scheduler(64, budget=32, beside=5)
    model = FakeModel(scheduler)
    chat = Request("chat", [1], Sampling(max_tokens=30))
    scheduler.add(chat)
    step(scheduler, model)
    scheduler.add(Request("long", [2] * 23, Sampling(max_tokens=1)))
    for _ in range(4):
        plan = step(scheduler, model)
        assert plan[0].sequence is chat.sequences[0] and [part.num_tokens for part in plan[1:]] == [5]


@pytest.mark.parametrize("when", ["waiting", "prefilling", "decoding"])
def test_abort_frees_blocks_at_once(when: str) -> None:
    scheduler = make_scheduler(64, caching=False, budget=8)
    model = FakeModel(scheduler)
    request = Request("r", [1] * 20, Sampling(max_tokens=9))
    scheduler.add(request)
    for _ in range({"waiting": 0, "prefilling": 1, "decoding": 4}[when]):
        step(scheduler, model)
    assert scheduler.abort(request) and not scheduler.abort(request)
    assert scheduler.pool.num_used == 0 and request.sequences[0].finish_reason is FinishReason.ABORT
    scheduler.check()
    assert scheduler.schedule() == []


def test_a_window_bounds_the_blocks_of_a_sequence_of_any_length() -> None:
    scheduler = make_scheduler(5, caching=False, budget=8, windows=(9,))
    model = FakeModel(scheduler)
    request = Request("long", [1, 2, 3] * 50, Sampling(max_tokens=200))
    assert scheduler.most_blocks(350) == 5
    scheduler.add(request)
    run_all(scheduler, model)
    assert request.sequences[0].output_token_ids == alone(request)[0]
    assert scheduler.pool.num_used == 0 and scheduler.ledger.num_preemptions == 0


def test_a_prefix_whose_window_is_gone_is_not_found_but_a_shorter_one_is() -> None:
    scheduler = make_scheduler(9, budget=64, windows=(5,))
    model = FakeModel(scheduler)
    prompt = list(range(32))
    first = Request("first", prompt, Sampling(max_tokens=1))
    scheduler.add(first)
    step(scheduler, model)
    cache, digests = scheduler.pool.prefix_cache, first.sequences[0].digests
    (blocks,) = cache.match(digests, scheduler.reach)
    assert len(set(blocks)) == 8
    cache.forget(blocks[0])  # before every window that matters
    cache.forget(blocks[6])  # in the window of a query at position 28
    again = Request("again", prompt, Sampling(max_tokens=1))
    scheduler.add(again)
    plan = step(scheduler, model)
    assert plan[0].num_tokens == 32 - 6 * BLOCK and again.num_cached_tokens == 6 * BLOCK
    assert again.finished and again.sequences[0].output_token_ids == alone(again)[0]


def test_each_group_of_layers_holds_the_blocks_of_its_own_window() -> None:
    scheduler = make_scheduler(100, caching=False, budget=8, windows=(None, 9, 3))
    model = FakeModel(scheduler)
    request = Request("long", [1, 2, 3] * 50, Sampling(max_tokens=200))
    (sequence,) = request.sequences
    assert scheduler.most_blocks(350) == 88 + 5 + 4
    scheduler.add(request)
    while sequence.num_computed_tokens < 300:
        step(scheduler, model)
    held = [len(blocks) - passed for blocks, passed in zip(sequence.blocks, sequence.num_passed_blocks, strict=True)]
    assert held == [75, 3, 2] and scheduler.pool.num_used == 80
    run_all(scheduler, model)
    assert sequence.output_token_ids == alone(request)[0]
    assert scheduler.pool.num_used == 0 and scheduler.ledger.num_preemptions == 0


@pytest.mark.parametrize(("group", "index", "num_known"), [
    (0, 0, 0), (0, 4, 4), (1, 0, 7), (1, 4, 7), (1, 5, 5), (1, 6, 6), (2, 5, 7), (2, 6, 6)])  # fmt: skip
def test_a_prefix_is_known_as_far_as_every_group_has_what_its_window_reads(
    group: int, index: int, num_known: int
) -> None:
    scheduler = make_scheduler(24, budget=64, windows=(None, 2 * BLOCK, 5))
    model = FakeModel(scheduler)
    prompt = list(range(8 * BLOCK))
    first = Request("first", prompt, Sampling(max_tokens=1))
    scheduler.add(first)
    step(scheduler, model)
    cache = scheduler.pool.prefix_cache
    blocks = cache.match(first.sequences[0].digests, scheduler.reach)
    assert len({block for group_blocks in blocks for block in group_blocks}) == 24
    cache.forget(blocks[group][index])
    again = Request("again", prompt, Sampling(max_tokens=1))
    scheduler.add(again)
    assert step(scheduler, model)[0].num_tokens == (8 - num_known) * BLOCK
    assert again.num_cached_tokens == num_known * BLOCK and again.sequences[0].output_token_ids == alone(again)[0]


def test_frontends_are_told_of_the_group_that_sees_furthest() -> None:
    scheduler = make_scheduler(24, budget=64, windows=(None, 5))
    model = FakeModel(scheduler)
    request = Request("r", list(range(12)), Sampling(max_tokens=1))
    scheduler.add(request)
    step(scheduler, model)
    cache, hashes = scheduler.pool.prefix_cache, [short_hash(digest) for digest in request.sequences[0].digests]
    assert cache.take_events() == (hashes, []) and sorted(cache.known_hashes()) == sorted(hashes)
    full, sliding = cache.match(request.sequences[0].digests, scheduler.reach)
    cache.forget(sliding[0])
    assert cache.take_events() == ([], []) and len(cache.known_hashes()) == 3
    cache.forget(full[0])
    assert cache.take_events() == ([], hashes[:1]) and sorted(cache.known_hashes()) == sorted(hashes[1:])


@pytest.mark.parametrize("prompt_length", range(9, 18))
def test_sequences_of_one_request_share_the_window_of_its_prompt(prompt_length: int) -> None:
    scheduler = make_scheduler(64, caching=False, budget=64, windows=(BLOCK,))
    model = FakeModel(scheduler)
    request = Request("n", list(range(prompt_length)), Sampling(max_tokens=9, n=3))
    scheduler.add(request)
    step(scheduler, model)
    plan = step(scheduler, model)
    computed_again = (prompt_length - 1) % BLOCK + 1
    assert [part.num_tokens for part in plan] == [1, computed_again, computed_again]
    run_all(scheduler, model)
    assert [sequence.output_token_ids for sequence in request.sequences] == alone(request)


def test_a_sequence_does_not_wait_for_siblings_whose_prompt_has_left_the_window() -> None:
    scheduler = make_scheduler(64, caching=False, seqs=2, budget=64, windows=(2,))
    model = FakeModel(scheduler)
    scheduler.add(Request("before", [1], Sampling(max_tokens=9)))
    request = Request("n", list(range(12)), Sampling(max_tokens=20, n=2))
    scheduler.add(request)
    for _ in range(9):
        step(scheduler, model)
    assert [part.num_tokens for part in step(scheduler, model)] == [1, 8]  # the prompt's first chunk, once more


def test_encoders_count_against_the_budget_and_the_last_one_may_exceed_it() -> None:
    scheduler = make_scheduler(64, budget=20)
    model = FakeModel(scheduler)
    for key in "abcd":
        scheduler.add(Request(key, [1], Sampling(max_tokens=9), encoder_token_ids=[2] * 12))
    assert [part.sequence.request.key for part in step(scheduler, model) if part.encodes] == ["a", "b"]
    assert [part.sequence.request.key for part in step(scheduler, model) if part.encodes] == ["c"]  # beside decodes: 8
    assert [part.sequence.request.key for part in step(scheduler, model) if part.encodes] == ["d"]
    assert scheduler.pool.num_used == 4 * (3 + 1)


def test_sequences_of_one_request_share_the_encoders_blocks_until_the_last_one_ends() -> None:
    scheduler = make_scheduler(64, caching=False)
    model = FakeModel(scheduler)
    request = Request("n", [1], Sampling(max_tokens=4, n=3), encoder_token_ids=[2] * 9)
    scheduler.add(request)
    assert [part.encodes for part in step(scheduler, model)] == [True]
    assert [part.encodes for part in step(scheduler, model)] == [False] * 3
    assert scheduler.pool.num_used == 3 + 3
    scheduler.abort(request, 0)
    assert scheduler.pool.num_used == 3 + 2
    scheduler.preempt_all()
    assert scheduler.pool.num_used == 0
    assert [part.encodes for part in step(scheduler, model)] == [True]
    run_all(scheduler, model)
    assert scheduler.pool.num_used == 0


def test_other_encoder_inputs_share_nothing() -> None:
    scheduler = make_scheduler()
    model = FakeModel(scheduler)
    for encoder in ([1, 2], [1, 3], []):
        scheduler.add(Request(tuple(encoder), [1] * 12, Sampling(max_tokens=1), encoder_token_ids=encoder))
        assert step(scheduler, model)[0].num_tokens == 12
    again = Request("again", [1] * 12, Sampling(max_tokens=1), encoder_token_ids=[1, 3])
    scheduler.add(again)
    plan = step(scheduler, model)
    assert plan[0].num_tokens == 4 and plan[0].encodes and again.num_cached_tokens == 8
