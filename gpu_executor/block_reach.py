"""Owns which of a sequence's blocks its queries can still read: all of them, or, in layers that slide, the last ones.

blocks   0   1   2   3   4   5   6      window: keys that a query sees, itself included
         ·   ·   │◀──── window ────▶q   q: the next query, at position num_computed_tokens
         gone    kept
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class BlockReach:
    """Arithmetic of blocks of `block_size` tokens, for each group of layers that has its own: `windows`, None for no bound."""

    block_size: int
    windows: tuple[int | None, ...] = (None,)

    @property
    def num_groups(self) -> int:
        return len(self.windows)

    @property
    def slides(self) -> bool:
        """Whether some group's blocks are given back as a sequence goes on."""
        return self.windows != (None,) * len(self.windows)

    @property
    def spans(self) -> list[int | None]:
        """Of each group, how many blocks before its own a query at the first position of a block reads; None if all."""
        return [None if w is None else self.num_blocks(w - 1) for w in self.windows]

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks of one group that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def first_read(self, position: int) -> list[int]:
        """Of each group, the index of the oldest block that a query at `position`, or any later one, reads."""
        return [0 if w is None else max(0, position - w + 1) // self.block_size for w in self.windows]

    def first_kept(self, num_computed_tokens: int) -> list[int]:
        """Of each group, the index of the oldest block that a running sequence keeps.

        It keeps what a query at its last full block would read, so that others can start there as it goes on: sequences
        of the same request, and what the prefix cache is asked for.
        """
        return self.first_read((num_computed_tokens - 1) // self.block_size * self.block_size)

    def most_held(self, num_tokens: int, max_chunk: int) -> int:
        """Blocks of all groups that a sequence of `num_tokens` tokens holds at most, if no step computes more than `max_chunk`."""
        whole, in_chunk = self.num_blocks(num_tokens), (max_chunk - 1) // self.block_size
        # The worst: the last token is a block's last, the window begins with a block's last token, and so does the chunk.
        return sum(whole if span is None else min(whole, span + 2 + in_chunk) for span in self.spans)
