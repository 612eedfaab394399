"""Owns what Fuyu (Adept, 2023) has for a tower: one linear over the pixels of each patch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from gpu_executor.models.towers.tower import Embed, TowerInput, normalized


@dataclasses.dataclass(frozen=True, slots=True)
class FuyuPatches:
    """Square patches, and the text's width."""

    patch_size: int
    num_channels: int
    out_size: int

    def build(self) -> FuyuTower:
        return FuyuTower(self)


class FuyuTower(nn.Module):
    """Items have `pixels` (C, H, W) in whole patches, and a row for each patch."""

    def __init__(self, spec: FuyuPatches) -> None:
        super().__init__()
        self.patch_size = spec.patch_size
        self.projector = nn.Linear(spec.num_channels * spec.patch_size**2, spec.out_size)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        dtype = self.projector.weight.dtype
        return [self.projector(self._patches(normalized(item.tensors, dtype))) for item in items]

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """(C, H, W) -> (patches, numbers of a patch: row, column, channel)."""
        channels, height, width = pixels.shape
        p = self.patch_size
        grid = pixels.view(channels, height // p, p, width // p, p)
        return grid.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)
