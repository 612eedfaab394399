"""Owns which block holds which prefix, by digest, and what changed since frontends were last told."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable

from forebay.block_hash import short_hash
from gpu_executor.block_reach import BlockReach

Key = tuple[int, bytes]  # a group of layers, and the digest of a full block: see forebay.block_hash


class PrefixCache:
    """A one-to-one map between what a block holds, the KV of some tokens in some layers, and the block.

    Frontends are told of the first group, whose layers see furthest: what it holds can be of use the longest.
    """

    def __init__(self) -> None:
        self._block_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._stored: list[int] = []
        self._removed: list[int] = []
        self.num_hit_tokens = 0
        self.on_forget: Callable[[bytes], None] | None = None  # told each digest whose block is gone

    def __len__(self) -> int:
        return len(self._block_of)

    def knows(self, block: int) -> bool:
        return block in self._key_of

    def match(self, digests: Iterable[bytes], reach: BlockReach) -> list[list[int]]:
        """Each group's blocks of the longest beginning of `digests` that a sequence can start behind.

        All that what follows the beginning reads is known; 0 stands for blocks before that which are not.
        """
        found: list[list[int]] = [[] for _ in reach.windows]
        gap_ends = [0] * reach.num_groups
        slides, num_matched = reach.slides, 0
        for count, digest in enumerate(digests, 1):
            for group, window in enumerate(reach.windows):
                block = self._block_of.get((group, digest))
                if block is None:
                    if window is None:
                        return [blocks[:num_matched] for blocks in found]
                    gap_ends[group] = count
                found[group].append(block or 0)
            if not slides or all(map(operator.le, gap_ends, reach.first_read(count * reach.block_size))):
                num_matched = count
        return [blocks[:num_matched] for blocks in found]

    def publish(self, block: int, digest: bytes, group: int = 0) -> None:
        """Lets others find the block, unless another block holds the same already."""
        key = (group, digest)
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key
            if group == 0:
                self._stored.append(short_hash(digest))

    def forget(self, block: int) -> None:
        """The block gets other content."""
        key = self._key_of.pop(block, None)
        if key is None:
            return
        del self._block_of[key]
        group, digest = key
        if group == 0:
            self._removed.append(short_hash(digest))
        if self.on_forget is not None:
            self.on_forget(digest)

    def take_events(self) -> tuple[list[int], list[int]]:
        """Short hashes (stored, removed) since the last call."""
        stored, removed = self._stored, self._removed
        if stored or removed:
            self._stored, self._removed = [], []
        return stored, removed

    def known_hashes(self) -> list[int]:
        """Short hashes of what can be reused now, for a frontend that has just connected."""
        return [short_hash(digest) for group, digest in self._block_of if group == 0]

    def check(self) -> None:
        """Raises AssertionError when the two directions disagree."""
        assert len(self._block_of) == len(self._key_of)
        assert all(self._block_of[key] == block for block, key in self._key_of.items())
