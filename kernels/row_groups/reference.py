"""Defines how rows are sorted by their group and cut into tiles of one group each, in plain torch."""

from __future__ import annotations

import torch


def group_rows(
    groups: torch.Tensor, num_groups: int, tile_size: int, num_tiles: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """groups (P) -> order (P), ends (G), tile_groups (num_tiles), tile_starts (num_tiles), int32; see RowGroups."""
    groups = groups.long()
    inside = (groups >= 0) & (groups < num_groups)
    order = torch.where(inside, groups, num_groups).argsort(stable=True)
    counts = torch.zeros(num_groups, dtype=torch.int64, device=groups.device)
    counts.scatter_add_(0, groups.where(inside, 0), inside.long())
    ends = counts.cumsum(0)
    tiles = (counts + tile_size - 1) // tile_size
    tile_ends = tiles.cumsum(0)
    tile = torch.arange(num_tiles, device=groups.device)
    group = torch.searchsorted(tile_ends, tile, right=True)
    used = group < num_groups
    of = group.where(used, 0)
    starts = (ends - counts)[of] + (tile - (tile_ends - tiles)[of]) * tile_size
    return tuple(t.int() for t in (order, ends, group.where(used, -1), starts.where(used, 0)))
