"""Owns which block holds which prefix, by digest, and what changed since frontends were last told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from forebay.block_hash import short_hash
from gpu_executor.block_reach import BlockReach


class PrefixCache:
    """A one-to-one map, for each group of layers, between digests of full blocks (see forebay.block_hash) and blocks.

    Frontends are told of the first group, whose layers see furthest: what it holds can be of use the longest.
    """

    def __init__(self) -> None:
        self._blocks_of: defaultdict[int, dict[bytes, int]] = defaultdict(dict)  # by group, then by digest
        self._key_of: dict[int, tuple[int, bytes]] = {}  # group and digest
        self._stored: list[int] = []
        self._removed: list[int] = []
        self.num_hit_tokens = 0
        self.on_forget: Callable[[bytes], None] | None = None  # told each digest whose block is gone

    def __len__(self) -> int:
        return len(self._key_of)

    def knows(self, block: int) -> bool:
        return block in self._key_of

    def match(self, digests: Iterable[bytes], reach: BlockReach) -> list[list[int]]:
        """Each group's blocks of the longest beginning of `digests` that a sequence can start behind.

        All that what follows the beginning reads is known; 0 stands for blocks before that which are not.
        """
        known = [self._blocks_of[group] for group in range(reach.num_groups)]
        spans, rows = reach.spans, []
        num_matched = least = 0  # behind fewer than `least` blocks, some that are not known would be read
        for count, digest in enumerate(digests, 1):
            row = [blocks.get(digest) for blocks in known]
            if None in row:
                missed = [span for block, span in zip(row, spans, strict=True) if block is None]
                if None in missed:
                    break
                least = max(least, count + max(missed))
            rows.append(row)
            if count >= least:
                num_matched = count
        return [[row[group] or 0 for row in rows[:num_matched]] for group in range(len(known))]

    def publish(self, block: int, digest: bytes, group: int = 0) -> None:
        """Lets others find the block, unless another block holds the same already."""
        if digest not in self._blocks_of[group] and block not in self._key_of:
            self._blocks_of[group][digest] = block
            self._key_of[block] = (group, digest)
            if group == 0:
                self._stored.append(short_hash(digest))

    def forget(self, block: int) -> None:
        """The block gets other content."""
        key = self._key_of.pop(block, None)
        if key is None:
            return
        group, digest = key
        del self._blocks_of[group][digest]
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
        return [short_hash(digest) for digest in self._blocks_of[0]]

    def check(self) -> None:
        """Raises AssertionError when the two directions disagree."""
        assert sum(map(len, self._blocks_of.values())) == len(self._key_of)
        assert all(self._blocks_of[group][digest] == block for block, (group, digest) in self._key_of.items())
