"""Owns who runs in the next step and with how many tokens. It knows blocks and counts, no tensors and no text.

Every sequence has tokens whose KV is not computed yet; a step hands out a token budget among them. A prompt longer than
what is left of the budget is computed over several steps (chunked prefill); a sequence that has caught up needs one
token per step (decode). When blocks run out, the sequence that would run last gives all of its back and starts again
later (preemption by recompute); its tokens stay. Layers are in groups with blocks of their own, all out of one pool; where
a group's layers slide, blocks that the window has left are given back as a sequence goes on.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence as SequenceOf

from gpu_executor.block_pool import BlockPool
from gpu_executor.block_reach import BlockReach
from gpu_executor.media_reach import MediaReach
from gpu_executor.prefix_sharing import PrefixSharing
from gpu_executor.request import FinishReason, Request, Sequence
from gpu_executor.snapshots import SnapshotCache


@dataclasses.dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A sequence's part of a step: its next `num_tokens` tokens, from position sequence.num_computed_tokens on."""

    sequence: Sequence
    num_tokens: int
    encodes: bool = False  # what cross attention reads of its encoder's input, or of its media, is made as well
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
        windows: tuple[int | None, ...] = (None,),
        num_snapshots: int | None = None,
        whole_prompts: bool = False,
        media: MediaReach | None = None,
    ) -> None:
        """`windows`: of each group of layers, keys that a query sees; None if it sees all. The first group sees furthest.

        `whole_prompts`: tokens see those that follow, so that a prompt is computed in one step; it must fit into one.

        `media` holds the features of media in prompts; None for models that take text alone.

        `num_snapshots`: slots after the first max_num_seqs for states of prefixes; None if all state is in blocks.
        """
        self.pool, self.block_size = pool, block_size
        self.reach, self._whole_prompts = BlockReach(block_size, windows), whole_prompts
        self.media = media
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
        self._sharing = PrefixSharing(pool, self.reach, block_size, self.snapshots)

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
        self._release_media(sequence)
        self.pool.release(sequence.held_blocks)
        sequence.blocks, sequence.num_published, sequence.num_passed_blocks = [], 0, []
        sequence.encoder_blocks, sequence.is_encoded = [], False
        sequence.num_computed_tokens = sequence.num_table_blocks = 0
        if sequence.slot >= 0:
            self._free_slots.append(sequence.slot)
            sequence.slot = -1

    # ---- a step --------------------------------------------------------------------------------------------------

    def schedule(self) -> list[ScheduledSequence]:
        """Who takes part in the next step. Blocks for all of its tokens are held when this returns."""
        plan = self._plan()
        if self.snapshots is None:
            return plan
        slots = [self._sharing.slot_for_state(part.sequence, part.num_tokens) for part in plan]
        return [dataclasses.replace(part, state_to=slot) for part, slot in zip(plan, slots, strict=True)]

    def _plan(self) -> list[ScheduledSequence]:
        if self.media is not None:
            self.media.begin_step()
        plan: list[ScheduledSequence] = []
        num_preemptions = self.ledger.num_preemptions
        decoding = [s for s in self.running if s.num_tokens - s.num_computed_tokens == 1]
        prefilling = [s for s in self.running if s.num_tokens - s.num_computed_tokens > 1]
        budget = self.max_num_batched_tokens
        for sequence in decoding:
            if budget and self._chunk(sequence, sequence.num_computed_tokens, 1) and self._reserve(sequence, 1, plan):
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

    def _chunk(self, sequence: Sequence, start: int, budget: int) -> int:
        """How many of the sequence's tokens from `start` on a step takes; what they need of media is held then.

        A prompt whose tokens all see each other is taken whole: the last one of a step may exceed the budget.
        """
        request = sequence.request
        if request.prompt_is_whole and start < request.num_prompt_tokens:
            wanted = request.num_prompt_tokens - start
            count = wanted if budget else 0
        else:
            wanted, count = 1, self._sharing.chunk(sequence, start, budget)
        if self.media is not None and count:
            count = self.media.limit(sequence, start, count)
        return count if count >= wanted else 0

    def _release_media(self, sequence: Sequence) -> None:
        if self.media is not None:
            self.media.release(sequence)

    def update(self, plan: SequenceOf[ScheduledSequence]) -> None:
        """Notes that a step's tokens are computed; sampled tokens are appended after this."""
        for part in plan:
            part.sequence.num_computed_tokens += part.num_tokens
            part.sequence.is_encoded = True
            self._sharing.publish(part.sequence, part.state_to)
            if self.reach.slides:
                self._release_passed(part.sequence)
            if self.media is not None:
                self.media.release_passed(part.sequence)

    def _release_passed(self, sequence: Sequence) -> None:
        """Gives back the blocks that a window has left. The prefix cache knows them until they are needed."""
        num_passed = sequence.num_passed_blocks
        for group, first in enumerate(self.reach.first_kept(sequence.num_computed_tokens)):
            if first > num_passed[group]:
                self.pool.release(sequence.blocks[group][num_passed[group] : first])
                num_passed[group] = first

    def most_blocks(self, num_tokens: int, num_encoder_blocks: int = 0) -> int:
        """Blocks of all groups that a sequence of so many tokens holds at most, with so many of what it reads beside."""
        return self.reach.most_held(num_tokens, self.max_num_batched_tokens) + num_encoder_blocks

    def _reserve(self, sequence: Sequence, count: int, plan: list[ScheduledSequence]) -> bool:
        """Takes the blocks that `count` more tokens need, preempting from the back; False if `sequence` itself had to go."""
        if sequence.slot < 0:  # was preempted for one that comes before it
            return False
        needed = self.reach.num_blocks(sequence.num_computed_tokens + count) - len(sequence.blocks[0])
        while needed > 0 and (new := self.pool.allocate(needed * self.reach.num_groups)) is None:
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        if needed > 0:
            for group, blocks in enumerate(sequence.blocks):
                blocks += new[group * needed : (group + 1) * needed]
        return True

    def _admit(self, sequence: Sequence, budget: int, plan: list[ScheduledSequence]) -> ScheduledSequence | None:
        """Starts a waiting sequence, or None if it has to wait.

        An encoder runs whole, because all of its tokens see each other: the last one of a step may exceed the budget.
        """
        if self._sharing.waits_for_sibling(sequence):
            return self._admit_after(sequence, budget, plan)
        while len(self.running) >= self.max_num_seqs:
            if not self._preempt_for(sequence, plan):
                return None
        known = self._sharing.known_blocks(sequence)
        num_known = len(known[0])
        num_known_tokens = num_known * self.block_size
        encoder_blocks = self._sharing.encoder_blocks(sequence)
        num_encoder_tokens = 0 if encoder_blocks else len(sequence.request.encoder_token_ids)
        count = self._chunk(sequence, num_known_tokens, max(1, budget - num_encoder_tokens))
        if not count or (self._whole_prompts and count < sequence.num_tokens):
            self._release_media(sequence)
            return None
        num_encoder_blocks = 0 if encoder_blocks else sequence.request.num_encoder_blocks(self.block_size)
        num_new = self.reach.num_blocks(num_known_tokens + count) - num_known  # of each group
        needed = num_new * self.reach.num_groups + num_encoder_blocks
        num_passed = self.reach.first_read(num_known_tokens)
        shared = [block for blocks, n in zip(known, num_passed, strict=True) for block in blocks[n:]] + encoder_blocks
        while needed + self.pool.num_free_of(shared) > self.pool.num_free:
            if not self._preempt_for(sequence, plan):
                self._release_media(sequence)
                return None
        state_from = self._sharing.use_state(sequence, num_known)
        self.pool.share(shared)
        new = self.pool.allocate(needed)  # may take blocks before the window, whose snapshots go with them
        assert new is not None
        sequence.encoder_blocks = encoder_blocks or new[:num_encoder_blocks]
        starts = range(num_encoder_blocks, needed, num_new)
        sequence.blocks = [[*blocks, *new[i : i + num_new]] for blocks, i in zip(known, starts, strict=True)]
        sequence.num_passed_blocks = num_passed
        sequence.num_computed_tokens, sequence.num_published = num_known_tokens, num_known
        self._sharing.count_hit(sequence, num_known_tokens)
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=_order)
        sequence.slot, sequence.num_table_blocks = self._free_slots.pop(), 0
        return ScheduledSequence(sequence, count, encodes=num_encoder_blocks > 0, state_from=state_from)

    def _admit_after(self, first: Sequence, budget: int, plan: list[ScheduledSequence]) -> ScheduledSequence | None:
        """Starts the first waiting sequence that need not wait for its request's prompt."""
        for sequence in self.waiting:
            if not self._sharing.waits_for_sibling(sequence):
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

    def recompute(self, sequence: Sequence) -> None:
        """Lets a running sequence start over, because what was computed of it no longer holds."""
        self._preempt(sequence, [])
        sequence.digests = []

    def preempt_all(self) -> None:
        """Preempts everything that runs, as if memory had run out; for tests."""
        for sequence in list(self.running):
            self._preempt(sequence, [])

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
        own: list[set[int]] = [set() for _ in self.reach.windows]
        for sequence in self.running:
            for group, blocks in enumerate(sequence.blocks):
                own[group].update(blocks[sequence.num_passed_blocks[group] :])
        assert len(set().union(*own)) == sum(map(len, own)), "a block is held by two groups of layers"
        assert all(not sequence.blocks for sequence in self.waiting)
        if self.snapshots is not None:
            self.snapshots.check()
        if self.media is not None:
            self.media.cache.check()
        assert all(not sequence.held_media for sequence in self.waiting)
        assert len({s.slot for s in self.running}) == len(self.running) == self.max_num_seqs - len(self._free_slots)


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
