"""Owns which block holds which prefix, by digest, and what changed since frontends were last told."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from forebay.block_hash import short_hash


class PrefixCache:
    """A one-to-one map between digests of full blocks (see forebay.block_hash) and blocks that hold their KV."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._stored: list[int] = []
        self._removed: list[int] = []
        self.num_hit_tokens = 0
        self.on_forget: Callable[[bytes], None] | None = None  # told each digest whose block is gone

    def __len__(self) -> int:
        return len(self._block_of)

    def knows(self, block: int) -> bool:
        return block in self._digest_of

    def match(self, digests: Iterable[bytes], first_read: Callable[[int], int] | None = None) -> list[int]:
        """Blocks of the longest beginning of `digests` that is known without a gap.

        With `first_read`, the first first_read(n) blocks of a beginning of n may be unknown, because what follows it does
        not read them; 0 stands for those.
        """
        blocks: list[int] = []
        num_matched = gap_end = 0
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                if first_read is None:
                    break
                gap_end = len(blocks) + 1
                blocks.append(0)
                continue
            blocks.append(block)
            if first_read is None or gap_end <= first_read(len(blocks)):
                num_matched = len(blocks)
        return blocks[:num_matched]

    def publish(self, block: int, digest: bytes) -> None:
        """Lets others find the block, unless another block holds the same prefix already."""
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest
            self._stored.append(short_hash(digest))

    def forget(self, block: int) -> None:
        """The block gets other content."""
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
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
        """Short hashes of everything that can be reused now, for a frontend that has just connected."""
        return [short_hash(digest) for digest in self._block_of]

    def check(self) -> None:
        """Raises AssertionError when the two directions disagree."""
        assert len(self._block_of) == len(self._digest_of)
        assert all(self._block_of[digest] == block for block, digest in self._digest_of.items())
