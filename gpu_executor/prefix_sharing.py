"""Owns what a sequence can start from instead of computing it: blocks that others hold, and states that they left.

Blocks come from the prefix cache, or from a sibling that continues the same prompt. Where a layer's state lies in a slot,
blocks are of use only up to a snapshot of that state.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator

from forebay.block_hash import block_digest
from gpu_executor.block_pool import BlockPool
from gpu_executor.block_reach import BlockReach
from gpu_executor.request import Request, Sequence
from gpu_executor.snapshots import SnapshotCache

_LEAST_SNAPSHOT_BLOCKS = 2  # that a snapshot must spare a later request, if chunks are to be cut for it


class PrefixSharing:
    """Finds beginnings of sequences in a pool's blocks, and makes what is computed known to others.

    `snapshots` is None if all state is in blocks.
    """

    def __init__(self, pool: BlockPool, reach: BlockReach, block_size: int, snapshots: SnapshotCache | None) -> None:
        self._pool, self._reach, self._block_size, self.snapshots = pool, reach, block_size, snapshots
        if snapshots is not None and pool.prefix_cache is not None:
            pool.prefix_cache.on_forget = snapshots.drop

    def known_blocks(self, sequence: Sequence) -> list[list[int]]:
        """Each group's blocks that hold the sequence's beginning already, from which it can start; equally many of each.

        Those before the window of the token that follows may hold anything: what stands for them in the list is not read.
        The last token is always computed, as its logits are wanted; so are all tokens where something is asked of each.
        """
        return self._shared_blocks(sequence) if self.snapshots is None else self._blocks_up_to_a_state(sequence)

    def use_state(self, sequence: Sequence, num_blocks: int) -> int | None:
        """The slot whose state a sequence that starts behind so many known blocks takes over; None if there is none."""
        return (
            None if self.snapshots is None or not num_blocks else self.snapshots.use(sequence.digests[num_blocks - 1])
        )

    def _shared_blocks(self, sequence: Sequence) -> list[list[int]]:
        """The longer of what a sibling and what the prefix cache have."""
        request = sequence.request
        limit = (sequence.num_tokens - 1) // self._block_size
        if request.computes_whole_prompt and sequence is request.sequences[0]:
            return self._nothing()
        if request.prompt_is_whole and self._reach.slides:  # the prompt's last tokens see its first ones in every layer
            return self._nothing()
        donor = self._sibling_with_prompt(sequence)
        num_shared = self._num_shared_blocks(request)
        shared = [blocks[:num_shared] for blocks in donor.blocks] if donor else self._nothing()
        if self._pool.prefix_cache is None:
            return shared
        cached = self._cached(sequence, limit)
        return cached if len(cached[0]) > len(shared[0]) else shared

    def _nothing(self) -> list[list[int]]:
        return [[] for _ in self._reach.windows]

    def _cached(self, sequence: Sequence, limit: int) -> list[list[int]]:
        """Each group's blocks of the sequence's beginning that the prefix cache knows, `limit` at most."""
        return self._pool.match(itertools.islice(self._digests(sequence), limit), self._reach)

    def _sibling_with_prompt(self, sequence: Sequence) -> Sequence | None:
        """A running sequence of the request that has the prompt's KV, as far as one that starts behind it reads it."""
        request = sequence.request
        first = self._reach.first_read(self._num_shared_blocks(request) * self._block_size)
        for other in request.sequences:
            if other is sequence or other.slot < 0 or other.num_computed_tokens < request.num_prompt_tokens:
                continue
            if other.is_long == sequence.is_long and all(map(operator.le, other.num_passed_blocks, first)):
                return other
        return None

    def _num_shared_blocks(self, request: Request) -> int:
        """Blocks of the prompt that its sequences share; its last token is computed by each."""
        return (request.num_prompt_tokens - 1) // self._block_size

    def encoder_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks of a running sequence of the request that hold the encoder's output; empty if there is none."""
        for other in sequence.request.sequences:
            if other is not sequence and other.is_encoded:
                return list(other.encoder_blocks)
        return []

    def waits_for_sibling(self, sequence: Sequence) -> bool:
        """Whether another sequence of the request is computing what this one could share: the prompt, the encoder's output."""
        request = sequence.request
        if len(request.sequences) == 1:
            return False
        running = [other for other in request.sequences if other is not sequence and other.slot >= 0]
        if request.num_encoder_blocks(self._block_size) and running and not request.is_encoded:
            return True
        if request.num_prompt_tokens <= self._block_size:
            return False
        if self.snapshots is not None and not self.snapshots.num_slots:  # nothing can be shared
            return False
        if self._sibling_with_prompt(sequence) is not None:
            return False
        alike = (other for other in running if other.is_long == sequence.is_long)
        return any(other.num_computed_tokens < request.num_prompt_tokens for other in alike)

    def _digests(self, sequence: Sequence) -> Iterator[bytes]:
        """Digests of the sequence's full blocks; computed when they are asked for, and kept."""
        yield from sequence.digests
        size = self._block_size
        while (end := (len(sequence.digests) + 1) * size) <= sequence.num_tokens:
            request = sequence.request
            parent = sequence.digests[-1] if sequence.digests else sequence.root_digest
            media = request.media_map.key(end - size, end)
            sequence.digests.append(block_digest(parent, sequence.token_ids[end - size : end], media))
            yield sequence.digests[-1]

    def publish(self, sequence: Sequence, state_slot: int | None) -> None:
        """Lets others find the sequence's newly full blocks, and the copy of its state if one was made."""
        self._publish_blocks(sequence)
        if state_slot is not None:
            self._store_state(sequence, state_slot)

    def _publish_blocks(self, sequence: Sequence) -> None:
        cache = self._pool.prefix_cache
        num_full = sequence.num_computed_tokens // self._block_size
        if cache is None or num_full <= sequence.num_published:
            return
        for index, digest in enumerate(itertools.islice(self._digests(sequence), num_full)):
            if index >= sequence.num_published:
                for group, blocks in enumerate(sequence.blocks):
                    cache.publish(blocks[index], digest, group)
        sequence.num_published = num_full

    def count_hit(self, sequence: Sequence, num_known_tokens: int) -> None:
        request, cache = sequence.request, self._pool.prefix_cache
        if cache is not None and sequence is request.sequences[0] and not sequence.num_preemptions:
            cache.num_hit_tokens += num_known_tokens
            request.num_cached_tokens = min(num_known_tokens, request.num_prompt_tokens)

    def _blocks_up_to_a_state(self, sequence: Sequence) -> list[list[int]]:
        """Cached blocks, but only as far as a snapshot reaches; decides where this sequence stops for snapshots.

        It stops at the last full block, for a request with the same tokens, and where its way leaves that of an earlier
        request: others will come that have just this beginning in common, such as a system prompt.
        """
        request, snapshots, size = sequence.request, self.snapshots, self._block_size
        last = (sequence.num_tokens - 1) // size
        sequence.stops = ()
        if not snapshots.num_slots:
            return self._nothing()
        num_matched, num_known, known = 0, 0, self._nothing()
        if not request.computes_whole_prompt or sequence is not request.sequences[0]:
            num_matched = len(self._cached(sequence, last)[0])
            num_known = snapshots.longest(sequence.digests[:num_matched])
            while num_known and len((known := self._cached(sequence, num_known))[0]) < num_known:  # its window is gone
                num_known = snapshots.longest(sequence.digests[: num_known - 1])
            known = [blocks[:num_known] for blocks in known]
        least = num_known + (_LEAST_SNAPSHOT_BLOCKS if len(request.sequences) == 1 else 1)
        sequence.stops = tuple(sorted({count * size for count in (num_matched, last) if count >= least}))
        return known

    def chunk(self, sequence: Sequence, start: int, budget: int) -> int:
        """How many of the sequence's tokens from `start` on to compute at once: up to the next stop, or to a whole block."""
        end = min(sequence.num_tokens, start + budget)
        if self.snapshots is not None and self.snapshots.num_slots:
            stop = next((stop for stop in sequence.stops if start < stop < end), None)
            whole = end // self._block_size * self._block_size
            if stop is not None:
                end = stop
            elif end < sequence.num_tokens and start < whole:
                end = whole
        return end - start

    def slot_for_state(self, sequence: Sequence, num_tokens: int) -> int | None:
        """Where to copy its state after `num_tokens` more, if they end with a full block and that state is not known."""
        if self.snapshots is None or not self.snapshots.num_slots:
            return None
        num_blocks, rest = divmod(sequence.num_computed_tokens + num_tokens, self._block_size)
        if rest:
            return None
        digest = next(itertools.islice(self._digests(sequence), num_blocks - 1, None))
        return None if digest in self.snapshots else self.snapshots.reserve(sequence.passing_snapshot)

    def _store_state(self, sequence: Sequence, slot: int) -> None:
        """Lets others find the state after the sequence's last full block."""
        digest = sequence.digests[sequence.num_computed_tokens // self._block_size - 1]
        passing = sequence.num_computed_tokens not in sequence.stops
        self.snapshots.store(digest, slot, passing=passing)
        sequence.passing_snapshot = digest if passing else None
