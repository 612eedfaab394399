"""Owns the choice of an executor: who has the least to do, counting what its prefix cache spares it."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from forebay.block_hash import MediaMap, block_digests, short_hash
from forebay.executor.v1 import executor_pb2 as wire
from frontend.flight import Flight

# A running sequence slows a newcomer about as much as this many prompt tokens that must be computed first.
TOKENS_PER_SEQUENCE = 64
# Prefixes are compared up to here: hashing longer ones costs the event loop more than a better choice gains.
MAX_PREFIX_TOKENS = 8_192
MAX_KNOWN_BLOCKS = 1 << 17


class PrefixIndex:
    """Hashes of blocks that an executor's prefix cache is believed to hold, the least recently seen forgotten first."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = min(max(1, max_blocks), MAX_KNOWN_BLOCKS)
        self._hashes: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, hashes: Sequence[int]) -> None:
        """Notes blocks that are there, or will be soon; a prompt's first blocks first."""
        known = self._hashes
        for value in reversed(hashes):  # the first are forgotten last: without them the rest is worth nothing
            known[value] = None
            known.move_to_end(value)
        while len(known) > self._max_blocks:
            known.popitem(last=False)

    def remove(self, hashes: Iterable[int]) -> None:
        """Notes blocks that are gone."""
        for value in hashes:
            self._hashes.pop(value, None)

    def num_leading(self, hashes: Sequence[int]) -> int:
        """How many of a prompt's first blocks are there."""
        for count, value in enumerate(hashes):
            if value not in self._hashes:
                return count
        return len(hashes)


class ExecutorLoad:
    """How busy an executor is, from its own reports and from what this frontend has sent since."""

    def __init__(self, welcome: wire.Welcome) -> None:
        self.block_size = welcome.block_size
        self.prefixes = PrefixIndex(welcome.num_blocks) if welcome.prefix_caching and welcome.block_size else None
        self.num_own_sequences = 0
        self._num_others_sequences = 0
        self._num_waiting_tokens = 0

    def report(self, load: wire.Load) -> None:
        """Takes the load of a StepFrame."""
        self._num_others_sequences = max(0, load.num_running + load.num_waiting - self.num_own_sequences)
        self._num_waiting_tokens = load.num_waiting_tokens

    def learn(self, events: wire.CacheEvents) -> None:
        """Takes the prefix-cache events of a StepFrame."""
        if self.prefixes is not None:
            self.prefixes.remove(events.removed)
            self.prefixes.add(events.stored)

    def cost(self, flight: Flight) -> int:
        """What it takes to serve the request here, in prompt tokens that must be computed before it is its turn."""
        num_sequences = self.num_own_sequences + self._num_others_sequences
        waiting = self._num_waiting_tokens + num_sequences * TOKENS_PER_SEQUENCE
        return waiting + flight.num_prompt_tokens - self._num_cached_tokens(flight)

    def expect(self, flight: Flight) -> None:
        """Notes that the request was sent here, so that its prefix is in the cache soon."""
        if self.prefixes is not None:
            self.prefixes.add(prefix_hashes(flight, self.block_size))

    def _num_cached_tokens(self, flight: Flight) -> int:
        if self.prefixes is None or not len(self.prefixes):
            return 0
        return self.block_size * self.prefixes.num_leading(prefix_hashes(flight, self.block_size))


def prefix_hashes(flight: Flight, block_size: int) -> list[int]:
    """Short hashes of the prompt's full blocks, computed once per request and block size."""
    hashes = flight.hashes.get(block_size)
    if hashes is None:
        prompt = flight.prompt_token_ids[:MAX_PREFIX_TOKENS]
        media = MediaMap((start, length, found.item.digest) for found in flight.media for start, length in found.spans)
        digests = block_digests(prompt, block_size, flight.cache_salt, flight.encoder_token_ids, media)
        hashes = flight.hashes[block_size] = [short_hash(digest) for digest in digests]
    return hashes


def pick(loads: Sequence[ExecutorLoad], flight: Flight) -> int:
    """Index of the executor where the request costs least; among equals, any of them."""
    if len(loads) == 1:
        return 0
    costs = [load.cost(flight) for load in loads]
    least = min(costs)
    return random.choice([index for index, cost in enumerate(costs) if cost == least])
