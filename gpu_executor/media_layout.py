"""Owns where a prompt's media lies for cross attention, and which of it each token reads.

A token reads the tiles of the last item before it, and of the items directly in front of that one. As transformers has it, a
token that stands before all media reads everything, tiles that stand empty too. Attention reads the first rows of a list of
blocks, so that each run of items directly one after another begins a block:

    blocks   0 1 1 1  1 1 1 1  1 1 2 2  │  3 3 3 3  3 3 · ·  │  2 2 3 3  e e e ·       one digit: an item's row, 4 rows each
             │◀─ item 1 ─▶│             │  items 2 and 3 …   │  what they have in blocks that are not full, once more,
                                                             │  and empty tiles: with the full blocks, everything
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class View:
    """What the tokens from `start` on read, up to the next view's."""

    start: int
    blocks: np.ndarray  # (M,) int64, of the layout's
    num_rows: int  # in these blocks, without a gap
    passes_mlp: bool  # of layers with gates: False before all media


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MediaLayout:
    """Rows of the items' features, joined, and the slots that they go to, counted through num_blocks blocks."""

    num_blocks: int
    rows: np.ndarray  # (n,) int64
    slots: np.ndarray  # (n,) int64
    views: tuple[View, ...]

    @property
    def reads_all(self) -> bool:
        """Whether some token reads of media that follows it."""
        return not self.views[0].passes_mlp


def lay_out(
    starts: Sequence[int], num_tiles: Sequence[int], *, max_tiles: int, tile_rows: int, block_size: int
) -> MediaLayout:
    """The layout of items at the tokens `starts`, ascending, with so many tiles each of the max_tiles that their features have."""
    item_rows = max_tiles * tile_rows
    num_own = [tiles * tile_rows for tiles in num_tiles]
    rows, slots, views, whole, rest, num_blocks = [], [], [], [], [], 0

    def put(added: np.ndarray) -> np.ndarray:
        """Lays rows into new blocks and gives these."""
        nonlocal num_blocks
        blocks = np.arange(num_blocks, num_blocks - (-len(added) // block_size))
        rows.append(added)
        slots.append(num_blocks * block_size + np.arange(len(added)))
        num_blocks += len(blocks)
        return blocks

    for run in _runs(starts):
        mine = np.concatenate([index * item_rows + np.arange(num_own[index]) for index in run])
        blocks, num_rows = put(mine), 0
        for index in run:
            num_rows += num_own[index]
            views.append(View(starts[index], blocks[: -(-num_rows // block_size)], num_rows, True))
        num_full = len(mine) // block_size
        whole.append(blocks[:num_full])
        rest.append(mine[num_full * block_size :])
    if starts[0] > 0:
        empty = [index * item_rows + np.arange(own, item_rows) for index, own in enumerate(num_own)]
        blocks = np.concatenate([*whole, put(np.concatenate([*rest, *empty]))])
        views.insert(0, View(0, blocks, len(starts) * item_rows, False))
    return MediaLayout(num_blocks, np.concatenate(rows), np.concatenate(slots), tuple(views))


def _runs(starts: Sequence[int]) -> Iterator[range]:
    """Indexes of items that stand directly one after another."""
    first = 0
    for index in range(1, len(starts) + 1):
        if index == len(starts) or starts[index] != starts[index - 1] + 1:
            yield range(first, index)
            first = index
