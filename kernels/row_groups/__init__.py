"""Sorts rows by their group, an expert or an adapter, on the device; see reference.py for the definition.

What multiplies each group's rows by the group's own matrix takes its tiles from here, in a launch whose size depends on
shapes alone: nothing is read back, and a captured graph serves any distribution of rows over groups.
"""

from __future__ import annotations

import dataclasses

import torch

from kernels.row_groups import reference
from kernels.triton_path import use_triton

__all__ = ["RowGroups", "group_rows"]


@dataclasses.dataclass(frozen=True, slots=True)
class RowGroups:
    """Rows of each of G groups side by side, in tiles of at most `tile_size` rows of one group. All tensors are int32.

    Rows of no group come last in `order`, behind the end of the last group, and in no tile.
    """

    order: torch.Tensor  # (P): row at each place; those of a group ascend
    ends: torch.Tensor  # (G): the place behind each group's last row
    tile_groups: torch.Tensor  # (number of tiles that any distribution may need): group, or -1 for a tile not needed
    tile_starts: torch.Tensor  # (as many): place of the tile's first row
    tile_size: int


def group_rows(groups: torch.Tensor, num_groups: int, tile_size: int) -> RowGroups:
    """groups (P): of each row, any integer that is not in [0, num_groups) for none."""
    if groups.dim() != 1 or num_groups < 1 or tile_size < 1:
        raise ValueError(
            f"group_rows takes groups (P), at least one group and one row in a tile, got {tuple(groups.shape)}, "
            f"{num_groups} and {tile_size}"
        )
    # Most tiles are needed when as many groups as can have a single row in their last tile.
    num_tiles = (len(groups) + min(len(groups), num_groups) * (tile_size - 1)) // tile_size
    path = reference
    if use_triton(groups):
        from kernels.row_groups import kernel as path
    return RowGroups(*path.group_rows(groups, num_groups, tile_size, num_tiles), tile_size)
