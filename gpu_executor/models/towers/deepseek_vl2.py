"""DeepSeek-VL2's tower (Wu et al., 2024): SigLIP over a picture and over its tiles, 2 x 2 patches in a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.tower import Embed, TowerInput, normalized
from gpu_executor.models.towers.vit_layers import VitLayers, VitStack


@dataclasses.dataclass(frozen=True, slots=True)
class DeepseekVision:
    """Facts of the tower; `projector_sizes` are the widths from the joined patches to the text model."""

    vit: VitLayers
    patch_size: int
    num_positions: int
    join: int  # as many patches in each direction become one row
    projector_sizes: tuple[int, ...]
    whole_first: bool  # the picture before its tiles

    def build(self) -> nn.Module:
        """The tower with parameters of undefined content."""
        return DeepseekVisionTower(self)


class DeepseekVisionTower(nn.Module):
    """The picture and its tiles (1 + n, 3, S, S) with `images_spatial_crop` (columns, rows) of tiles -> rows of two grids.

    Each line of a grid ends in `line_end`; `between` stands between the picture's grid and that of all tiles.
    """

    def __init__(self, facts: DeepseekVision) -> None:
        super().__init__()
        self.facts, size = facts, facts.vit.hidden_size
        self.patch = nn.Conv2d(3, size, facts.patch_size, facts.patch_size)
        self.positions = nn.Parameter(torch.empty(facts.num_positions, size))
        self.vit, self.norm = VitStack(facts.vit), facts.vit.make_norm()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(facts.projector_sizes):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        self.projector = nn.Sequential(*layers[:-1])
        self.line_end, self.between = (nn.Parameter(torch.empty(facts.projector_sizes[-1])) for _ in range(2))

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Features (n, D) of each item."""
        return [self._rows(item) for item in items]

    def _rows(self, item: TowerInput) -> torch.Tensor:
        cols, rows = item.tensors["images_spatial_crop"].tolist()
        tiles = self._project(normalized(item.tensors, self.positions.dtype))
        grids = self._grid(tiles[:1], 1, 1), self._grid(tiles[1:], rows, cols)
        first, second = grids if self.facts.whole_first else grids[::-1]
        return torch.cat((first, self.between[None], second))

    def _project(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tiles (N, 3, S, S) -> their cells (N, side, side, D)."""
        patches = self.patch(pixels)  # (N, size, n, n)
        num_patches, join = patches.shape[3], self.facts.join
        x = self.norm(self.vit(patches.flatten(2).transpose(1, 2) + self.positions))
        x = x.transpose(1, 2).unflatten(2, (num_patches, num_patches))
        missing = -num_patches % join
        x = F.unfold(F.pad(x, (0, missing, 0, missing)), join, stride=join)  # (N, size * join^2, cells)
        side = (num_patches + missing) // join
        return self.projector(x.transpose(1, 2)).unflatten(1, (side, side))

    def _grid(self, tiles: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
        """Cells (rows * cols, side, side, D) of tiles -> (rows * side * (cols * side + 1), D), line by line."""
        x = tiles.unflatten(0, (rows, cols)).transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (rows side, cols side, D)
        return torch.cat((x, self.line_end.expand(len(x), 1, -1)), 1).flatten(0, 1)
