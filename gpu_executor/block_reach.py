"""Owns which of a sequence's blocks its queries can still read: all of them, or, where every layer slides, the last ones.

blocks   0   1   2   3   4   5   6      window: keys that a query sees, itself included
         ·   ·   │◀──── window ────▶q   q: the next query, at position num_computed_tokens
         gone    kept
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class BlockReach:
    """Arithmetic of blocks of `block_size` tokens under a window that holds for all layers; None if some layer has none."""

    block_size: int
    window: int | None = None

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def first_read(self, position: int) -> int:
        """Index of the oldest block that a query at `position`, or any later one, reads."""
        return 0 if self.window is None else max(0, position - self.window + 1) // self.block_size

    def first_kept(self, num_computed_tokens: int) -> int:
        """Index of the oldest block that a running sequence keeps.

        It keeps what a query at its last full block would read, so that others can start there as it goes on: sequences
        of the same request, and what the prefix cache is asked for.
        """
        return self.first_read((num_computed_tokens - 1) // self.block_size * self.block_size)

    def most_held(self, num_tokens: int, max_chunk: int) -> int:
        """Blocks that a sequence of `num_tokens` tokens holds at most, if no step computes more than `max_chunk` of them."""
        whole = self.num_blocks(num_tokens)
        if self.window is None:
            return whole
        # The worst: the last token is a block's last, the window begins with a block's last token, and so does the chunk.
        return min(whole, self.num_blocks(self.window - 1) + 2 + (max_chunk - 1) // self.block_size)
