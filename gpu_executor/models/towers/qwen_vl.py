"""Qwen-VL's tower (Bai et al., 2023): a vision transformer over a square picture, and a resampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from gpu_executor.models.towers.resampler import Resampler
from gpu_executor.models.towers.tower import Embed, TowerInput, normalized
from gpu_executor.models.towers.vit_layers import VitLayers, VitStack, resized_positions

_NUM_POSITIONS = 256  # of patches, in a square; other grids draw the table to their size


@dataclasses.dataclass(frozen=True, slots=True)
class QwenVision:
    """Facts of the tower."""

    vit: VitLayers
    patch_size: int
    num_queries: int
    output_size: int

    def build(self) -> nn.Module:
        """The tower with parameters of undefined content."""
        return QwenVisionTower(self)


class QwenVisionTower(nn.Module):
    """A picture (3, S, S) -> rows (Q, D)."""

    def __init__(self, facts: QwenVision) -> None:
        super().__init__()
        size = facts.vit.hidden_size
        self.patch = nn.Conv2d(3, size, facts.patch_size, facts.patch_size, bias=False)
        self.positions = nn.Parameter(torch.empty(_NUM_POSITIONS, size))
        self.pre_norm, self.vit = facts.vit.make_norm(), VitStack(facts.vit)
        self.resampler = Resampler(facts.num_queries, size, facts.output_size, query_positions=True)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Features (Q, D) of each item."""
        return [self._rows(normalized(item.tensors, self.positions.dtype)) for item in items]

    def _rows(self, picture: torch.Tensor) -> torch.Tensor:
        patches = self.patch(picture[None])  # (1, size, rows, cols)
        rows, cols = patches.shape[2:]
        x = patches.flatten(2).transpose(1, 2) + resized_positions(self.positions, rows, cols)
        positions = resized_positions(self.resampler.query_positions, rows, cols)
        return self.resampler(self.vit(self.pre_norm(x)), positions)[0]
