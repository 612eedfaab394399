"""Owns who runs in the next step and with how many tokens. It knows blocks and counts, no tensors and no text.

Every sequence has tokens whose KV is not computed yet; a step hands out a token budget among them. A prompt longer than
what is left of the budget is computed over several steps (chunked prefill); a sequence that has caught up needs one
token per step (decode). When blocks run out, the sequence that would run last gives all of its back and starts again
later (preemption by recompute); its tokens stay. Where every layer slides, blocks that the window has left are given
back as a sequence goes on.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

from forebay.block_hash import block_digest, root_digest
from gpu_executor.block_pool import BlockPool
from gpu_executor.block_reach import BlockReach
from gpu_executor.request import FinishReason, Request, Sequence
from gpu_executor.snapshots import SnapshotCache

_LEAST_SNAPSHOT_BLOCKS = 2  # that a snapshot must spare a later request, if chunks are to be cut for it


@dataclasses.dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A sequence's part of a step: its next `num_tokens` tokens, from position sequence.num_computed_tokens on."""

    sequence: Sequence
    num_tokens: int
    encodes: bool = False  # its encoder runs as well, over all of its input
    state_from: int | None = None  # slot whose state is copied to the sequence's before the step
    state_to: int | None = None  # slot that the sequence's state is copied to after the step, once all were copied from

    @property
    def samples(self) -> bool:
        """Whether the sequence has caught up after this step, so that a token is sampled for it."""
        return self.sequence.num_computed_tokens + self.num_tokens == self.sequence.num_tokens


@dataclasses.dataclass(slots=True)
class Ledger:
    """Counts of sequences; they balance at all times: admitted == waiting + running + finished + aborted."""

    num_admitted: int = 0
    num_finished: int = 0
    num_aborted: int = 0
    num_preemptions: int = 0


class Scheduler:
    """First come, first served within a priority; running sequences before waiting ones."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_prefill_tokens_beside_decode: int,
        window: int | None = None,
        num_snapshots: int | None = None,
        whole_prompts: bool = False,
    ) -> None:
        """`window`: keys that a query sees in every layer; None if some layer sees all.

        `whole_prompts`: tokens see those that follow, so that a prompt is computed in one step; it must fit into one.

        `num_snapshots`: slots after the first max_num_seqs for states of prefixes; None if all state is in blocks.
        """
        self.pool, self.block_size = pool, block_size
        self.reach, self._whole_prompts = BlockReach(block_size, window), whole_prompts
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.max_prefill_tokens_beside_decode = max_prefill_tokens_beside_decode
        self.running: list[Sequence] = []  # by order
        self.waiting: list[Sequence] = []  # by order
        self.ledger = Ledger()
        self._arrivals = itertools.count()
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self.snapshots: SnapshotCache | None = None
        if num_snapshots is not None:
            cached = num_snapshots if pool.prefix_cache is not None else 0
            self.snapshots = SnapshotCache(range(max_num_seqs, max_num_seqs + cached))
            if pool.prefix_cache is not None:
                pool.prefix_cache.on_forget = self.snapshots.drop

    # ---- requests come and go ------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Takes a request; its sequences wait until a step has room."""
        request.arrival = next(self._arrivals)
        self.ledger.num_admitted += len(request.sequences)
        for sequence in request.sequences:
            bisect.insort(self.waiting, sequence, key=_order)

    def abort(self, request: Request, index: int | None = None) -> bool:
        """Ends a request (or one of its sequences) and frees its blocks at once; whether anything was left to end."""
        ended = False
        for sequence in request.sequences:
            if sequence.finish_reason is None and index in (None, sequence.index):
                sequence.finish_reason = FinishReason.ABORT
                self._leave(sequence)
                self.ledger.num_aborted += 1
                ended = True
        return ended

    def finish(self, sequence: Sequence) -> None:
        """Frees the blocks of a sequence that has ended by itself (its finish_reason is set)."""
        self._leave(sequence)
        self.ledger.num_finished += 1

    def _leave(self, sequence: Sequence) -> None:
        queue = self.running if sequence.slot >= 0 else self.waiting
        queue.remove(sequence)
        self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.held_blocks)
        sequence.blocks, sequence.num_published, sequence.num_passed_blocks = [], 0, 0
        sequence.encoder_blocks, sequence.is_encoded = [], False
        sequence.num_computed_tokens = sequence.num_table_blocks = 0
        if sequence.slot >= 0:
            self._free_slots.append(sequence.slot)
            sequence.slot = -1

    # ---- a step --------------------------------------------------------------------------------------------------

    def schedule(self) -> list[ScheduledSequence]:
        """Who takes part in the next step. Blocks for all of its tokens are held when this returns."""
        plan = self._plan()
        return plan if self.snapshots is None else [self._with_snapshot(part) for part in plan]

    def _plan(self) -> list[ScheduledSequence]:
        plan: list[ScheduledSequence] = []
        num_preemptions = self.ledger.num_preemptions
        decoding = [s for s in self.running if s.num_tokens - s.num_computed_tokens == 1]
        prefilling = [s for s in self.running if s.num_tokens - s.num_computed_tokens > 1]
        budget = self.max_num_batched_tokens
        for sequence in decoding:
            if budget and self._reserve(sequence, 1, plan):
                plan.append(ScheduledSequence(sequence, 1))
                budget -= 1
        if plan:
            budget = min(budget, self.max_prefill_tokens_beside_decode)
        for sequence in prefilling:
            count = self._chunk(sequence, sequence.num_computed_tokens, budget)
            if count and self._reserve(sequence, count, plan):
                plan.append(ScheduledSequence(sequence, count))
                budget -= count
        if self.ledger.num_preemptions > num_preemptions:  # what was just given back must not be taken at once
            return plan
        while budget > 0 and self.waiting:
            admitted = self._admit(self.waiting[0], budget, plan)
            if admitted is None:
                break
            plan.append(admitted)
            budget -= admitted.num_tokens
            if admitted.encodes:
                budget -= len(admitted.sequence.request.encoder_token_ids)
        return plan

    def update(self, plan: SequenceOf[ScheduledSequence]) -> None:
        """Notes that a step's tokens are computed; sampled tokens are appended after this."""
        for part in plan:
            part.sequence.num_computed_tokens += part.num_tokens
            part.sequence.is_encoded = True
            self._publish(part.sequence)
            if part.state_to is not None:
                self._store_snapshot(part.sequence, part.state_to)
            self._release_passed(part.sequence)

    def _release_passed(self, sequence: Sequence) -> None:
        """Gives back the blocks that the window has left. The prefix cache knows them until they are needed."""
        first = self.reach.first_kept(sequence.num_computed_tokens)
        if first > sequence.num_passed_blocks:
            self.pool.release(sequence.blocks[sequence.num_passed_blocks : first])
            sequence.num_passed_blocks = first

    def most_blocks(self, num_tokens: int, num_encoder_tokens: int = 0) -> int:
        """Blocks that a sequence of so many tokens holds at most."""
        return self.reach.most_held(num_tokens, self.max_num_batched_tokens) + self.reach.num_blocks(num_encoder_tokens)

    def _reserve(self, sequence: Sequence, count: int, plan: list[ScheduledSequence]) -> bool:
        """Takes the blocks that `count` more tokens need, preempting from the back; False if `sequence` itself had to go."""
        if sequence.slot < 0:  # was preempted for one that comes before it
            return False
        needed = self.reach.num_blocks(sequence.num_computed_tokens + count) - len(sequence.blocks)
        while needed > 0 and (blocks := self.pool.allocate(needed)) is None:
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        if needed > 0:
            sequence.blocks += blocks
        return True

    def _admit(self, sequence: Sequence, budget: int, plan: list[ScheduledSequence]) -> ScheduledSequence | None:
        """Starts a waiting sequence, or None if it has to wait.

        An encoder runs whole, because all of its tokens see each other: the last one of a step may exceed the budget.
        """
        if self._waits_for_sibling(sequence):
            return self._admit_after(sequence, budget, plan)
        while len(self.running) >= self.max_num_seqs:
            if not self._preempt_for(sequence, plan):
                return None
        known = self._known_blocks(sequence) if self.snapshots is None else self._known_state(sequence)
        num_known_tokens = len(known) * self.block_size
        encoder_blocks = self._sibling_encoder_blocks(sequence)
        num_encoder_tokens = 0 if encoder_blocks else len(sequence.request.encoder_token_ids)
        count = self._chunk(sequence, num_known_tokens, max(1, budget - num_encoder_tokens))
        if self._whole_prompts and count < sequence.num_tokens:
            return None
        num_encoder_blocks = self.reach.num_blocks(num_encoder_tokens)
        needed = self.reach.num_blocks(num_known_tokens + count) - len(known) + num_encoder_blocks
        num_passed = self.reach.first_read(num_known_tokens)
        shared = known[num_passed:] + encoder_blocks
        while needed + self.pool.num_free_of(shared) > self.pool.num_free:
            if not self._preempt_for(sequence, plan):
                return None
        state_from = None
        if self.snapshots is not None and known:
            state_from = self.snapshots.use(sequence.digests[len(known) - 1])
        self.pool.share(shared)
        blocks = self.pool.allocate(needed)  # may take blocks before the window, whose snapshots go with them
        assert blocks is not None
        sequence.encoder_blocks = encoder_blocks or blocks[:num_encoder_blocks]
        sequence.blocks, sequence.num_passed_blocks = [*known, *blocks[num_encoder_blocks:]], num_passed
        sequence.num_computed_tokens, sequence.num_published = num_known_tokens, len(known)
        self._count_hit(sequence, num_known_tokens)
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=_order)
        sequence.slot, sequence.num_table_blocks = self._free_slots.pop(), 0
        return ScheduledSequence(sequence, count, encodes=num_encoder_tokens > 0, state_from=state_from)

    def _admit_after(self, first: Sequence, budget: int, plan: list[ScheduledSequence]) -> ScheduledSequence | None:
        """Starts the first waiting sequence that need not wait for its request's prompt."""
        for sequence in self.waiting:
            if not self._waits_for_sibling(sequence):
                return self._admit(sequence, budget, plan)
        return None

    def _preempt_for(self, sequence: Sequence, plan: list[ScheduledSequence]) -> bool:
        """Preempts the last running sequence if its priority is lower than that of `sequence` and it is not in the step."""
        if not self.running or self.running[-1].request.priority <= sequence.request.priority:
            return False
        self._preempt(self.running[-1], plan)
        return True

    def _preempt(self, victim: Sequence, plan: list[ScheduledSequence]) -> None:
        """Takes a running sequence's blocks away and lets it wait; it comes back in the order of its arrival."""
        plan[:] = [part for part in plan if part.sequence is not victim]
        self.running.remove(victim)
        self._give_back(victim)
        victim.num_preemptions += 1
        self.ledger.num_preemptions += 1
        bisect.insort(self.waiting, victim, key=_order)

    def preempt_all(self) -> None:
        """Preempts everything that runs, as if memory had run out; for tests."""
        for sequence in list(self.running):
            self._preempt(sequence, [])

    # ---- prefixes ------------------------------------------------------------------------------------------------

    def _known_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's beginning already, from a sibling or from the prefix cache.

        Those before the window of the token that follows may hold anything: what stands for them in the list is not read.
        The last token is always computed, as its logits are wanted; so are all tokens where something is asked of each.
        """
        request = sequence.request
        limit = (sequence.num_tokens - 1) // self.block_size
        if request.computes_whole_prompt and sequence is request.sequences[0]:
            return []
        donor = self._sibling_with_prompt(sequence)
        shared = donor.blocks[: self._num_shared_blocks(request)] if donor else []
        if self.pool.prefix_cache is None:
            return shared
        cached = self._cached(sequence, limit)
        return cached if len(cached) > len(shared) else shared

    def _cached(self, sequence: Sequence, limit: int) -> list[int]:
        """Blocks of the sequence's beginning that the prefix cache knows, `limit` at most."""
        first_read = None if self.reach.window is None else lambda count: self.reach.first_read(count * self.block_size)
        return self.pool.match(itertools.islice(self._digests(sequence), limit), first_read)

    def _sibling_with_prompt(self, sequence: Sequence) -> Sequence | None:
        """A running sequence of the request that has the prompt's KV, as far as one that starts behind it reads it."""
        request = sequence.request
        first = self.reach.first_read(self._num_shared_blocks(request) * self.block_size)
        for other in request.sequences:
            has_prompt = other.num_computed_tokens >= request.num_prompt_tokens and other.num_passed_blocks <= first
            if other is not sequence and other.slot >= 0 and has_prompt:
                return other
        return None

    def _num_shared_blocks(self, request: Request) -> int:
        """Blocks of the prompt that its sequences share; its last token is computed by each."""
        return (request.num_prompt_tokens - 1) // self.block_size

    def _sibling_encoder_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks of a running sequence of the request that hold the encoder's output; empty if there is none."""
        for other in sequence.request.sequences:
            if other is not sequence and other.is_encoded:
                return list(other.encoder_blocks)
        return []

    def _waits_for_sibling(self, sequence: Sequence) -> bool:
        """Whether another sequence of the request is computing what this one could share: the prompt, the encoder's output."""
        request = sequence.request
        if len(request.sequences) == 1:
            return False
        running = [other for other in request.sequences if other is not sequence and other.slot >= 0]
        if request.encoder_token_ids and running and not any(other.is_encoded for other in running):
            return True
        if request.num_prompt_tokens <= self.block_size:
            return False
        if self.snapshots is not None and not self.snapshots.num_slots:  # nothing can be shared
            return False
        if self._sibling_with_prompt(sequence) is not None:
            return False
        return any(other.num_computed_tokens < request.num_prompt_tokens for other in running)

    def _digests(self, sequence: Sequence) -> Iterator[bytes]:
        """Digests of the sequence's full blocks; computed when they are asked for, and kept."""
        yield from sequence.digests
        size = self.block_size
        while (end := (len(sequence.digests) + 1) * size) <= sequence.num_tokens:
            parent = (
                sequence.digests[-1]
                if sequence.digests
                else root_digest(sequence.request.salt, sequence.request.encoder_token_ids)
            )
            sequence.digests.append(block_digest(parent, sequence.token_ids[end - size : end]))
            yield sequence.digests[-1]

    def _publish(self, sequence: Sequence) -> None:
        """Makes the sequence's newly full blocks known to the prefix cache."""
        cache = self.pool.prefix_cache
        num_full = sequence.num_computed_tokens // self.block_size
        if cache is None or num_full <= sequence.num_published:
            return
        for index, digest in enumerate(itertools.islice(self._digests(sequence), num_full)):
            if index >= sequence.num_published:
                cache.publish(sequence.blocks[index], digest)
        sequence.num_published = num_full

    def _count_hit(self, sequence: Sequence, num_known_tokens: int) -> None:
        request, cache = sequence.request, self.pool.prefix_cache
        if cache is not None and sequence is request.sequences[0] and not sequence.num_preemptions:
            cache.num_queried_tokens += sequence.num_tokens
            cache.num_hit_tokens += num_known_tokens
            request.num_cached_tokens = min(num_known_tokens, request.num_prompt_tokens)

    # ---- states in slots -----------------------------------------------------------------------------------------

    def _known_state(self, sequence: Sequence) -> list[int]:
        """As _known_blocks, but only as far as a snapshot reaches; decides where this sequence stops for snapshots.

        It stops at the last full block, for a request with the same tokens, and where its way leaves that of an earlier
        request: others will come that have just this beginning in common, such as a system prompt.
        """
        request, snapshots, size = sequence.request, self.snapshots, self.block_size
        last = (sequence.num_tokens - 1) // size
        sequence.stops = ()
        if not snapshots.num_slots:
            return []
        num_matched, known = 0, []
        if not request.computes_whole_prompt or sequence is not request.sequences[0]:
            num_matched = len(self._cached(sequence, last))
            num_known = snapshots.longest(sequence.digests[:num_matched])
            while num_known and len(known := self._cached(sequence, num_known)) < num_known:  # its window is not there
                num_known = snapshots.longest(sequence.digests[: num_known - 1])
            known = known[:num_known]
        least = len(known) + (_LEAST_SNAPSHOT_BLOCKS if len(request.sequences) == 1 else 1)
        sequence.stops = tuple(sorted({count * size for count in (num_matched, last) if count >= least}))
        return known

    def _chunk(self, sequence: Sequence, start: int, budget: int) -> int:
        """How many of the sequence's tokens from `start` on to compute at once: up to the next stop, or to a whole block."""
        end = min(sequence.num_tokens, start + budget)
        if self.snapshots is not None and self.snapshots.num_slots:
            stop = next((stop for stop in sequence.stops if start < stop < end), None)
            whole = end // self.block_size * self.block_size
            if stop is not None:
                end = stop
            elif end < sequence.num_tokens and start < whole:
                end = whole
        return end - start

    def _with_snapshot(self, part: ScheduledSequence) -> ScheduledSequence:
        """The part with a slot for its state after the step, if it ends with a full block and that state is not known."""
        sequence = part.sequence
        num_blocks, rest = divmod(sequence.num_computed_tokens + part.num_tokens, self.block_size)
        if rest or not self.snapshots.num_slots:
            return part
        digest = next(itertools.islice(self._digests(sequence), num_blocks - 1, None))
        if digest in self.snapshots:
            return part
        return dataclasses.replace(part, state_to=self.snapshots.reserve(sequence.passing_snapshot))

    def _store_snapshot(self, sequence: Sequence, slot: int) -> None:
        """Lets others find the state after the sequence's last full block."""
        digest = sequence.digests[sequence.num_computed_tokens // self.block_size - 1]
        passing = sequence.num_computed_tokens not in sequence.stops
        self.snapshots.store(digest, slot, passing=passing)
        sequence.passing_snapshot = digest if passing else None

    # ---- counts --------------------------------------------------------------------------------------------------

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of waiting sequences and of their encoders, all of which may have to be computed."""
        return sum(sequence.num_tokens + len(sequence.request.encoder_token_ids) for sequence in self.waiting)

    def check(self) -> None:
        """Raises AssertionError when the ledger, the queues and the blocks disagree; for tests and debugging."""
        ledger = self.ledger
        assert ledger.num_admitted == len(self.waiting) + len(self.running) + ledger.num_finished + ledger.num_aborted
        self.pool.check()
        held = {block for sequence in self.running for block in sequence.held_blocks}
        assert len(held) == self.pool.num_used, "a block is held by nobody who runs"
        assert all(not sequence.blocks for sequence in self.waiting)
        if self.snapshots is not None:
            self.snapshots.check()
        assert len({s.slot for s in self.running}) == len(self.running) == self.max_num_seqs - len(self._free_slots)


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
