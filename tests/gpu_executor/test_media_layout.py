"""Every token reads the rows that it should, once each and without a gap, whatever the tiles and the blocks."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from gpu_executor.media_layout import MediaLayout, View, lay_out


def read(layout: MediaLayout, view: View, block_size: int) -> list[int]:
    """Rows that attention reads of a cache of NaN into which the layout's were put."""
    cache = np.full(layout.num_blocks * block_size, -1)
    cache[layout.slots] = layout.rows
    found = cache.reshape(-1, block_size)[view.blocks].flatten()[: view.num_rows]
    assert len(found) == view.num_rows
    return found.tolist()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_tokens_read_the_items_before_them(data: st.DataObject) -> None:
    max_tiles, tile_rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    block_size = data.draw(st.sampled_from([1, 2, 4, 16]))
    gaps = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
    starts = (np.cumsum(gaps) + np.arange(len(gaps))).tolist()
    num_tiles = [data.draw(st.integers(1, max_tiles)) for _ in starts]
    layout = lay_out(starts, num_tiles, max_tiles=max_tiles, tile_rows=tile_rows, block_size=block_size)

    assert len(set(layout.slots.tolist())) == len(layout.slots) == len(layout.rows)
    assert layout.slots.max() // block_size == layout.num_blocks - 1
    views = {view.start: view for view in layout.views}
    assert layout.views[0].start == 0 and sorted(views) == [view.start for view in layout.views]
    assert layout.reads_all == (starts[0] > 0)
    if starts[0] > 0:
        everything = range(len(starts) * max_tiles * tile_rows)
        assert sorted(read(layout, views[0], block_size)) == list(everything) and not views[0].passes_mlp
    for index, start in enumerate(starts):
        first = index
        while first and starts[first - 1] == starts[first] - 1:
            first -= 1
        wanted = [
            item * max_tiles * tile_rows + row
            for item in range(first, index + 1)
            for row in range(num_tiles[item] * tile_rows)
        ]
        assert read(layout, views[start], block_size) == wanted and views[start].passes_mlp


def test_empty_tiles_are_kept_for_tokens_before_all_media_alone() -> None:
    kept = lay_out([1], [1], max_tiles=4, tile_rows=10, block_size=4)
    assert len(kept.rows) == 40 + 10 % 4 and kept.num_blocks == 3 + 8
    left_out = lay_out([0], [1], max_tiles=4, tile_rows=10, block_size=4)
    assert len(left_out.rows) == 10 and left_out.num_blocks == 3
