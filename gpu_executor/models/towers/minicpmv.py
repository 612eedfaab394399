"""SigLIP (Zhai et al., 2023) with a resampler, as MiniCPM-V (Yao et al., 2024) has it: slices of any size and shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.resampler import Resampler, grid_positions
from gpu_executor.models.towers.tower import Embed, TowerInput, normalized
from gpu_executor.models.towers.vit_layers import VitLayers, VitStack


@dataclasses.dataclass(frozen=True, slots=True)
class MiniCpmVision:
    """Facts of the tower; its table of positions is a square grid.

    How a slice's patches take positions from it: by where they lie in the slice ("nearest"), the same as if all patches
    were one row ("one row"), or from the table drawn to the slice's grid ("drawn").
    """

    vit: VitLayers
    patch_size: int
    positions_side: int
    positions: Literal["nearest", "one row", "drawn"]
    num_queries: int
    query_positions: bool
    output_size: int

    def build(self) -> nn.Module:
        """The tower with parameters of undefined content."""
        return MiniCpmTower(self)


class MiniCpmTower(nn.Module):
    """Slices of an item, the whole picture first -> Q rows for each."""

    def __init__(self, facts: MiniCpmVision) -> None:
        super().__init__()
        self.facts, size = facts, facts.vit.hidden_size
        self.patch = nn.Conv2d(3, size, facts.patch_size, facts.patch_size)
        self.positions = nn.Parameter(torch.empty(facts.positions_side**2, size))
        self.vit, self.norm = VitStack(facts.vit), facts.vit.make_norm()
        self.resampler = Resampler(facts.num_queries, size, facts.output_size, query_positions=facts.query_positions)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Features (slices * Q, D) of each item."""
        return [self._rows(item) for item in items]

    def _rows(self, item: TowerInput) -> torch.Tensor:
        dtype = self.positions.dtype
        rows = [self._slices(normalized(item.tensors, dtype)[None])]
        if "slices" in item.tensors:
            rows.append(self._slices(normalized(item.tensors, dtype, "slices")))
        return torch.cat(rows)

    def _slices(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (N, 3, H, W) of slices of one size -> (N * Q, D)."""
        patches = self.patch(pixels)  # (N, size, rows, cols)
        rows, cols = patches.shape[2:]
        x = patches.flatten(2).transpose(1, 2) + self._positions(rows, cols)
        positions = grid_positions(rows, cols, self.facts.output_size, device=x.device).to(x.dtype)
        return self.resampler(self.norm(self.vit(x)), positions).flatten(0, 1)

    def _positions(self, rows: int, cols: int) -> torch.Tensor:
        """Those of a slice's patches (rows * cols, size)."""
        side = self.facts.positions_side
        if self.facts.positions == "drawn":
            return _drawn(self.positions, side, rows, cols)
        if self.facts.positions == "one row":
            rows, cols = 1, rows * cols
        index = _nearest(rows, side)[:, None] * side + _nearest(cols, side)  # (rows, cols)
        return self.positions[index.flatten().to(self.positions.device)]


def _nearest(count: int, side: int) -> torch.Tensor:
    """Which of `side` equal parts each of `count` equal parts begins in; at a boundary float32's rounding decides (Idefics2)."""
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    begins = torch.arange(0, 1 - 1e-6, 1 / torch.tensor(count))
    return torch.bucketize(begins, boundaries, right=True)


def _drawn(table: torch.Tensor, side: int, rows: int, cols: int) -> torch.Tensor:
    """The table (side * side, size) drawn to another grid, bicubically and with antialiasing, as timm does."""
    if (rows, cols) == (side, side):
        return table
    grid = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, cols), mode="bicubic", antialias=True)
    return grid.flatten(2).squeeze(0).t().to(table.dtype)
