"""Owns the KV cache's blocks: which are free, who holds which, and which hold a reusable prefix. It knows no tensors.

held (count > 0) ──release──▶ free, published   (oldest first to be taken; a hit takes it back)
     ▲                        free, unpublished (taken before any published one)
     └────────allocate / share──────────┘
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from gpu_executor.block_reach import BlockReach
from gpu_executor.prefix_cache import PrefixCache


class BlockPool:
    """`num_blocks` blocks with reference counts. A free block keeps its prefix until it is needed for something else."""

    def __init__(self, num_blocks: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.prefix_cache = PrefixCache() if prefix_caching else None
        self._holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next to be taken first

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, whether or not they keep a prefix."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks held once, their old content forgotten; None if there are not enough (nothing is taken then)."""
        if count > len(self._free):
            return None
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
            if self.prefix_cache is not None:
                self.prefix_cache.forget(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each block, which takes it from the free ones if it was there."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Takes one holder from each block. The last blocks of a sequence are the first to be reused."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                if self.prefix_cache is None or not self.prefix_cache.knows(block):
                    self._free.move_to_end(block, last=False)
            assert self._holders[block] >= 0, f"block {block} was released more often than taken"

    def match(self, digests: Iterable[bytes], reach: BlockReach) -> list[list[int]]:
        """Each group's blocks of the longest known beginning of `digests` (see PrefixCache.match); they are not held yet."""
        return [[] for _ in reach.windows] if self.prefix_cache is None else self.prefix_cache.match(digests, reach)

    def num_free_of(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are free now, which sharing them would use up."""
        return sum(self._holders[block] == 0 for block in blocks)

    def check(self) -> None:
        """Raises AssertionError when counts and free blocks disagree; for tests and debugging."""
        for block, holders in enumerate(self._holders):
            assert (holders == 0) == (block in self._free), f"block {block} has {holders} holders"
        if self.prefix_cache is not None:
            self.prefix_cache.check()
