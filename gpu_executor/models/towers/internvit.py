"""InternViT with a projector (InternVL: Chen et al., 2023): tiles of one size, 2 x 2 patches of each joined to a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.tower import Embed, TowerInput, normalized
from gpu_executor.models.towers.vit_layers import VitLayers, VitStack, resized_positions


@dataclasses.dataclass(frozen=True, slots=True)
class InternVit:
    """Facts of the tower; `num_positions` is that of the table, which tiles of another size stretch."""

    vit: VitLayers
    patch_size: int
    num_positions: int
    join: int  # as many patches in each direction become one row
    rows_swapped: bool  # whether rows and columns change places as they are joined, as in the first version
    projector_size: int
    projector_bias: bool  # of its two linear layers
    output_size: int

    def build(self) -> nn.Module:
        """The tower with parameters of undefined content."""
        return InternVitTower(self)


class InternVitTower(nn.Module):
    """Tiles (n, 3, S, S) of an item -> rows (n * (S / patch_size / join)^2, D)."""

    def __init__(self, facts: InternVit) -> None:
        super().__init__()
        self.facts, size = facts, facts.vit.hidden_size
        self.patch = nn.Conv2d(3, size, facts.patch_size, facts.patch_size)
        self.class_embedding = nn.Parameter(torch.empty(1, 1, size))
        self.positions = nn.Parameter(torch.empty(1, 1 + facts.num_positions, size))
        self.vit = VitStack(facts.vit)
        joined = size * facts.join**2
        self.norm = nn.LayerNorm(joined)
        self.up = nn.Linear(joined, facts.projector_size, bias=facts.projector_bias)
        self.down = nn.Linear(facts.projector_size, facts.output_size, bias=facts.projector_bias)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Features (n, D) of each item."""
        return [self._rows(normalized(item.tensors, self.positions.dtype)) for item in items]

    def _rows(self, tiles: torch.Tensor) -> torch.Tensor:
        patches = self.patch(tiles)  # (N, D, rows, cols)
        rows, cols = patches.shape[2:]
        x = torch.cat((self.class_embedding.expand(len(tiles), -1, -1), patches.flatten(2).transpose(1, 2)), 1)
        table = resized_positions(self.positions[0, 1:], rows, cols)
        x = self.vit(x + torch.cat((self.positions[0, :1], table)))[:, 1:]
        joined = self._join(x.unflatten(1, (rows, cols))).flatten(0, 1)  # (N * rows * cols / join^2, D * join^2)
        return self.down(F.gelu(self.up(self.norm(joined))))

    def _join(self, x: torch.Tensor) -> torch.Tensor:
        """Patches (N, rows, cols, D) -> (N, rows * cols / join^2, D * join^2), the patches of a square row by row."""
        join = self.facts.join
        x = x.unflatten(2, (-1, join)).unflatten(1, (-1, join))  # (N, rows / join, join, cols / join, join, D)
        if self.facts.rows_swapped:
            return x.permute(0, 3, 1, 2, 4, 5).flatten(3).flatten(1, 2)
        return x.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
