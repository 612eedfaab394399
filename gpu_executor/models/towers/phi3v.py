"""Phi-3-vision's tower (Abdin et al., 2024): CLIP over a picture's crops and over the whole of it, 2 x 2 patches in a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.tower import Embed, TowerInput, normalized


@dataclasses.dataclass(frozen=True, slots=True)
class Phi3Vision:
    """Facts of the tower."""

    vision: ClipVit
    output_size: int

    def build(self) -> nn.Module:
        """The tower with parameters of undefined content."""
        return Phi3VisionTower(self)


class Phi3VisionTower(nn.Module):
    """A picture (3, H, W), whose sides are multiples of the crops', -> rows of the grid of all crops, then of the whole.

    Each row of a grid ends in `row_end`; `between` stands between the two grids.
    """

    def __init__(self, facts: Phi3Vision) -> None:
        super().__init__()
        self.side = facts.vision.image_size
        self.vision = facts.vision.build()
        size = 4 * facts.vision.output_size
        self.row_end, self.between = nn.Parameter(torch.empty(size)), nn.Parameter(torch.empty(size))
        self.up, self.down = nn.Linear(size, facts.output_size), nn.Linear(facts.output_size, facts.output_size)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Features (n, D) of each item."""
        return [self._rows(normalized(item.tensors, torch.float32)) for item in items]

    def _rows(self, picture: torch.Tensor) -> torch.Tensor:
        side, dtype = self.side, self.row_end.dtype
        whole = F.interpolate(picture[None], size=(side, side), mode="bicubic")
        rows, cols = picture.shape[1] // side, picture.shape[2] // side
        crops = picture.unflatten(2, (cols, side)).unflatten(1, (rows, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        patches = self.vision(torch.cat((whole, crops)).to(dtype))  # (1 + rows * cols, patches, size)
        joined = (self._grid(patches[1:], rows, cols), self.between[None], self._grid(patches[:1], 1, 1))
        return self.down(F.gelu(self.up(torch.cat(joined))))

    def _grid(self, patches: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
        """Patches (rows * cols, n * n, size) of crops -> the grid of all of them, (rows n/2 * (cols n/2 + 1), 4 size)."""
        half = round(patches.shape[1] ** 0.5) // 2
        x = patches.view(rows, cols, half, 2, half, 2, -1)
        x = x.permute(0, 2, 1, 4, 3, 5, 6).reshape(rows * half, cols * half, -1)  # 2 x 2 patches side by side
        return torch.cat((x, self.row_end.expand(len(x), 1, -1)), 1).flatten(0, 1)
